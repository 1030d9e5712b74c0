/* SPDX-License-Identifier: MIT */
/* org.pasidd.Context1: looking at a context. What changes it is in verbs.c. */
#include "dbus/private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-login.h>

#include "base/util.h"

#define LIST_MAX 4096u /* entries of one answer */
#define UNIT_NS 1000000000u

/* ---- properties ---- */

static int get_device(const struct look *l, sd_bus_message *m)
{
	char path[BUS_PATH_MAX];

	path_of_device(l->context.device_name, path);
	return sd_bus_message_append(m, "o", path);
}

/* Of the process that owns it now; "" if there is none, or it is in no unit. A program has many contexts, and what is asked of
 * all comes in one go: the last answer is good for a moment. */
static const char *unit_of(struct dbus *b, uint32_t pid)
{
	uint64_t now = util_now_ns();
	char *unit = NULL;

	if (b->unit && b->unit_pid == pid && now - b->unit_ns < UNIT_NS)
		return b->unit;
	if (pid == 0 || (sd_pid_get_user_unit((pid_t)pid, &unit) < 0 && sd_pid_get_unit((pid_t)pid, &unit) < 0))
		unit = strdup("");
	free(b->unit);
	b->unit = unit;
	b->unit_pid = pid;
	b->unit_ns = now;
	return unit ? unit : "";
}

static int get_unit(const struct look *l, sd_bus_message *m)
{
	return sd_bus_message_append(m, "s", unit_of(l->b, l->context.pid));
}

static int get_bus_name(const struct look *l, sd_bus_message *m)
{
	const struct caller *c = caller_find(l->b, l->context.client);

	return sd_bus_message_append(m, "s", c ? c->sender->name : "");
}

const char *context_access(uint32_t access)
{
	return access == 1 ? "read" : access == 2 ? "write" : access == 4 ? "fetch" : "";
}

const char *context_code(uint32_t code)
{
	static const char *const names[] = {"",    "unmapped",   "permission", "address",
					    "bus", "privileged", "command",    "other"};

	return code < sizeof(names) / sizeof(names[0]) ? names[code] : "other";
}

static int get_last_fault(const struct look *l, sd_bus_message *m)
{
	const struct pasid_wire_fault *f = &l->context.last_fault;

	return sd_bus_message_append(m, "(ttss)", f->job, f->addr, context_access(f->access), context_code(f->code));
}

/* ---- lists ---- */

struct list {
	struct call *call;
	sd_bus_message *reply;
};

static int list_begin(struct list *l, const char *type)
{
	bool own = inspect_own_tables(l->call->b->service, l->call->look.at.id);
	int r = sd_bus_message_new_method_return(l->call->m, &l->reply);

	if (r >= 0)
		r = sd_bus_message_append(l->reply, "s", own ? "table" : "record");
	return r >= 0 ? sd_bus_message_open_container(l->reply, 'a', type) : r;
}

/* more: 0, 1, or what went wrong. */
static int list_end(struct list *l, int more, bool says_complete)
{
	int r = more;

	if (r >= 0)
		r = sd_bus_message_close_container(l->reply);
	if (r >= 0 && says_complete)
		r = sd_bus_message_append(l->reply, "b", more == 0);
	if (r >= 0)
		r = sd_bus_send(l->call->b->bus, l->reply, NULL);
	l->reply = sd_bus_message_unref(l->reply);
	return r;
}

static int on_mapping(void *arg, const struct inspect_mapping *v)
{
	struct list *l = arg;
	int r = sd_bus_message_append(l->reply, "(ttuutt)", v->iova, v->len, v->flags, v->buf, v->off,
				      l->call->from->who.admin ? v->bus : 0);

	return r < 0 ? r : 0;
}

static int list_mappings(struct call *c, uint64_t from)
{
	struct list l = {.call = c};
	int r = list_begin(&l, "(ttuutt)");

	if (r >= 0)
		r = inspect_mappings(c->b->service, c->look.at.id, from, LIST_MAX, on_mapping, &l);
	return list_end(&l, r, true);
}

static int mappings(struct call *c)
{
	return list_mappings(c, 0);
}

/* An address that is the last one has none behind it. */
static int behind(struct call *c, int (*list)(struct call *c, uint64_t from))
{
	uint64_t iova;
	int r = sd_bus_message_read(c->m, "t", &iova);

	return r < 0 ? r : list(c, iova < UINT64_MAX ? iova + 1 : iova);
}

static int mappings_from(struct call *c)
{
	return behind(c, list_mappings);
}

static int on_leaf(void *arg, const struct inspect_leaf *v)
{
	struct list *l = arg;
	int r = sd_bus_message_append(l->reply, "(ttts)", v->iova, v->size, v->entry, v->says);

	return r < 0 ? r : 0;
}

static int list_leaves(struct call *c, uint64_t from)
{
	struct list l = {.call = c};
	int r = list_begin(&l, "(ttts)");

	if (r >= 0)
		r = inspect_leaves(c->b->service, c->look.at.id, from, LIST_MAX, c->from->who.admin, on_leaf, &l);
	return list_end(&l, r, true);
}

static int dump_table(struct call *c)
{
	return list_leaves(c, 0);
}

static int dump_table_from(struct call *c)
{
	return behind(c, list_leaves);
}

/* ---- one address ---- */

static int walk(struct call *c)
{
	struct inspect_level v[INSPECT_LEVELS];
	struct list l = {.call = c};
	uint64_t iova;
	int n, r = sd_bus_message_read(c->m, "t", &iova);

	if (r < 0)
		return r;
	n = inspect_walk(c->b->service, c->look.at.id, iova, c->from->who.admin, v);
	if (n < 0)
		return n;
	r = list_begin(&l, "(uutts)");
	for (int i = 0; r >= 0 && i < n; i++)
		r = sd_bus_message_append(l.reply, "(uutts)", v[i].level, v[i].index, v[i].at, v[i].entry, v[i].says);
	return list_end(&l, r < 0 ? r : 0, false);
}

static int translate(struct call *c)
{
	bool own = inspect_own_tables(c->b->service, c->look.at.id);
	struct inspect_mapping v;
	uint64_t iova;
	int r = sd_bus_message_read(c->m, "t", &iova);

	if (r < 0)
		return r;
	r = inspect_translate(c->b->service, c->look.at.id, iova, &v);
	if (r == -ENXIO)
		return refuse_call(c->m, "NotMapped", "0x%llx is not mapped in context %u; Mappings lists what is",
				   (unsigned long long)iova, c->look.at.id);
	if (r < 0)
		return r;
	return sd_bus_reply_method_return(c->m, "stuut", own ? "table" : "record", c->from->who.admin ? v.bus : 0,
					  v.flags, v.buf, v.off);
}

#define FIELD(field) offsetof(struct look, context.field), NULL

const struct bus_interface context_interface = {
	.name = "org.pasidd.Context1",
	.methods =
		(const struct bus_method[]){
			{"Map", "httut", "t", "memfd offset length flags iova iova", verb_map, false},
			{"Unmap", "tt", "", "iova length", verb_unmap, false},
			{"Submit", "tt", "t", "iova length job", verb_submit, false},
			{"Close", "", "", "", verb_close, false},
			{"Mappings", "", "sa(ttuutt)b", "source mappings complete", mappings, false},
			{"MappingsFrom", "t", "sa(ttuutt)b", "iova source mappings complete", mappings_from, false},
			{"Walk", "t", "sa(uutts)", "iova source levels", walk, false},
			{"Translate", "t", "stuut", "iova source bus flags buffer offset", translate, false},
			{"DumpTable", "", "sa(ttts)b", "source leaves complete", dump_table, false},
			{"DumpTableFrom", "t", "sa(ttts)b", "iova source leaves complete", dump_table_from, false},
			{0},
		},
	.properties =
		(const struct bus_property[]){
			{"Id", "u", FIELD(id), 0, false},
			{"Pasid", "u", FIELD(pasid), 0, false},
			{"Asid", "u", FIELD(asid), 0, false},
			{"Device", "o", 0, get_device, 0, false},
			{"OwnerPid", "u", FIELD(pid), 0, false},
			{"OwnerUid", "u", FIELD(uid), 0, false},
			{"OwnerUnit", "s", 0, get_unit, 0, false},
			{"BusName", "s", 0, get_bus_name, 0, false},
			{"Opaque", "b", FIELD(opaque), 0, false},
			{"State", "s", FIELD(state), SERVICE_STATE, false},
			{"LostReason", "s", FIELD(lost_reason), SERVICE_STATE, false},
			{"Bytes", "t", FIELD(bytes), SERVICE_MEMORY, false},
			{"Mapped", "t", FIELD(mapped), SERVICE_MEMORY, false},
			{"TableBytes", "t", FIELD(table_bytes), SERVICE_MEMORY, false},
			{"Submitted", "t", FIELD(submitted), SERVICE_JOBS, false},
			{"Completed", "t", FIELD(completed), SERVICE_JOBS, false},
			{"Maps", "t", FIELD(maps), SERVICE_MEMORY, false},
			{"Switches", "t", FIELD(switches), SERVICE_RUNS, false},
			{"DeviceTime", "t", FIELD(device_time), SERVICE_RUNS, false},
			{"Faults", "t", FIELD(faults), SERVICE_FAULTS, false},
			{"LastFault", "(ttss)", 0, get_last_fault, SERVICE_FAULTS, false},
			{0},
		},
	.signals =
		(const struct bus_signal[]){
			{"Fault", "ttss(tt)(tt)t", "job address access code nearest gone gone_age_ns"},
			{"Lost", "st", "why job"},
			{"Switched", "tt", "switches device_time"},
			{0},
		},
};
