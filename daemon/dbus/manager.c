/* SPDX-License-Identifier: MIT */
/* org.pasidd.Manager1 */
#include "dbus/private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"

/* ---- properties ---- */

static int get_version(const struct look *l, sd_bus_message *m)
{
	return sd_bus_message_append(m, "s", PASIDD_VERSION);
}

static int get_protocol(const struct look *l, sd_bus_message *m)
{
	return sd_bus_message_append(m, "u", PASID_PROTOCOL_VERSION);
}

static int get_devices(const struct look *l, sd_bus_message *m)
{
	int r = sd_bus_message_open_container(m, 'a', "o");
	char path[BUS_PATH_MAX];
	struct look device;

	for (uint32_t i = 0; r >= 0 && look_at_device(l->b, l->by, i, &device); i++) {
		path_of_device(device.device.name, path);
		r = sd_bus_message_append(m, "o", path);
	}
	return r < 0 ? r : sd_bus_message_close_container(m);
}

static int get_connections(const struct look *l, sd_bus_message *m)
{
	return sd_bus_message_append(m, "u", inspect_connections(l->b->service, l->by->who.admin, l->by->who.uid));
}

struct count {
	const struct look *by;
	uint32_t n;
};

static int count_context(void *arg, uint32_t id)
{
	struct count *c = arg;
	struct look look;

	c->n += look_at_context(c->by->b, c->by->by, id, &look);
	return 0;
}

static int get_contexts(const struct look *l, sd_bus_message *m)
{
	struct count c = {.by = l};

	inspect_contexts(l->b->service, count_context, &c);
	return sd_bus_message_append(m, "u", c.n);
}

/* Of all clients, so for those only who may know of all. */
static int get_total(const struct look *l, sd_bus_message *m)
{
	uint64_t limit, used = inspect_total_bytes(l->b->service, &limit);

	return sd_bus_message_append(m, "t", l->by->who.admin ? used : 0);
}

static int get_total_limit(const struct look *l, sd_bus_message *m)
{
	uint64_t limit;

	inspect_total_bytes(l->b->service, &limit);
	return sd_bus_message_append(m, "t", limit);
}

static int append_limits(const struct look *l, sd_bus_message *m, bool connection)
{
	static const char *const names[PASID_RES_COUNT] = {
		[PASID_RES_CONTEXTS] = "contexts",
		[PASID_RES_BUFFERS] = "buffers",
		[PASID_RES_MAPPINGS] = "mappings",
		[PASID_RES_BYTES] = "bytes",
		[PASID_RES_HUGE] = "huge",
		[PASID_RES_TABLES] = "tables",
		[PASID_RES_JOBS] = "jobs",
		[PASID_RES_RATE] = "rate",
		[PASID_RES_CONNECTIONS] = "connections",
	};
	int r = sd_bus_message_open_container(m, 'a', "{st}");

	for (uint32_t i = 0; r >= 0 && i < PASID_RES_COUNT; i++)
		if (!connection || i != PASID_RES_CONNECTIONS)
			r = sd_bus_message_append(m, "{st}", names[i],
						  inspect_limit(l->b->service, l->by->who.uid, connection, i));
	return r < 0 ? r : sd_bus_message_close_container(m);
}

static int get_connection_limits(const struct look *l, sd_bus_message *m)
{
	return append_limits(l, m, true);
}

static int get_user_limits(const struct look *l, sd_bus_message *m)
{
	return append_limits(l, m, false);
}

static int get_dropped(const struct look *l, sd_bus_message *m)
{
	return sd_bus_message_append(m, "t", l->b->dropped);
}

/* ---- methods ---- */

/* Its identity is that of the bus name: the pair is ours, and so its credentials would be. */
static int open_connection(struct call *c)
{
	int fds[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return -errno;
	r = fcntl(fds[0], F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
	if (r == 0)
		r = c->b->host.connect(c->b->host.arg, util_take_fd(&fds[0]), c->from->who.uid, c->from->who.pid);
	util_closep(&fds[0]);
	if (r == -EDQUOT)
		r = refuse_call(c->m, "QuotaExceeded",
				"uid %u has as many connections as it may have, and more that are refused; close some",
				c->from->who.uid);
	else if (r == 0)
		r = sd_bus_reply_method_return(c->m, "h", fds[1]);
	close(fds[1]);
	return r;
}

static int reload(struct call *c)
{
	char error[DBUS_ERROR_MAX];

	log_info("the configuration is read again: asked for over D-Bus by pid %d, uid %u", c->from->who.pid,
		 c->from->who.uid);
	if (c->b->host.reload(c->b->host.arg, error) < 0)
		return refuse_call(c->m, "InvalidConfiguration", "%s; nothing has changed", error);
	return sd_bus_reply_method_return(c->m, "");
}

/* It is written for this bus name, however often that asks, until the name is gone. */
static int open_trace(struct call *c)
{
	int fd = service_trace_open(c->b->service), r;

	if (fd < 0)
		return refuse_call(c->m, "QuotaExceeded", "there is no memory for a trace: %s; try again",
				   strerror(-fd));
	if (c->from->tracing)
		service_trace_close(c->b->service);
	c->from->tracing = true;
	r = sd_bus_reply_method_return(c->m, "h", fd);
	close(fd);
	return r;
}

const struct bus_interface manager_interface = {
	.name = "org.pasidd.Manager1",
	.methods =
		(const struct bus_method[]){
			{"OpenConnection", "", "h", "socket", open_connection, false},
			{"CreateContext", "sa{sv}", "ohu", "device options context fence line", verb_create_context,
			 false},
			{"Reload", "", "", "", reload, true},
			{"GetState", "", "s", "json", listing_state, false},
			{"Subscribe", "", "", "", signals_subscribe, false},
			{"Unsubscribe", "", "", "", signals_unsubscribe, false},
			{"OpenTrace", "", "h", "ring", open_trace, true},
			{0},
		},
	.properties =
		(const struct bus_property[]){
			{"Version", "s", 0, get_version, 0, false},
			{"ProtocolVersion", "u", 0, get_protocol, 0, false},
			{"Devices", "ao", 0, get_devices, 0, false},
			{"Connections", "u", 0, get_connections, BUS_SILENT, false},
			{"Contexts", "u", 0, get_contexts, BUS_SILENT, false},
			{"TotalBytes", "t", 0, get_total, BUS_SILENT, true},
			{"TotalBytesLimit", "t", 0, get_total_limit, BUS_SILENT, false},
			{"ConnectionLimits", "a{st}", 0, get_connection_limits, BUS_SILENT, false},
			{"UserLimits", "a{st}", 0, get_user_limits, BUS_SILENT, false},
			{"SignalsDropped", "t", 0, get_dropped, BUS_SILENT, false},
			{0},
		},
};
