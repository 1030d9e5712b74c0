/* SPDX-License-Identifier: MIT */
/* See manager.h. */
#include "manager.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "service/service.h"
#include "transport/transport.h"

/* What pasidd.socket calls its fd. No device has such a name, for it has a dot. */
#define LISTENER_NAME "pasidd.socket"
#define FAILED_PAUSE_US 100000

/* What such an fd is said to be for: a device by its name, or a file that is no device's. */
static const char *find_use(const struct service_config *c, const char *name)
{
	if (transport_is_file(name))
		return name;
	for (size_t i = 0; i < c->n_devices; i++)
		if (!strcmp(c->devices[i].name, name))
			return c->devices[i].spec;
	return NULL;
}

/* NULL, or why it will not do. systemd takes O_NONBLOCK away from what it hands over. */
static const char *take_listener(int fd, int *listener)
{
	int flags = fcntl(fd, F_GETFL);

	if (*listener >= 0)
		return "there is one already";
	if (sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) <= 0)
		return "it is not a Unix socket of type SOCK_SEQPACKET that listens";
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return strerror(errno);
	*listener = fd;
	return NULL;
}

static const char *take_file(const struct service_config *c, const char *name, int fd)
{
	const char *use = find_use(c, name);

	return use ? transport_hand_over(use, fd) : "no device is called that";
}

void manager_take(void *arg, const char *name, int fd)
{
	struct manager_given *given = arg;
	const char *why =
		!strcmp(name, LISTENER_NAME) ? take_listener(fd, &given->listener) : take_file(given->config, name, fd);

	if (why) {
		log_warn("the service manager handed over an fd \"%s\": %s; it is closed", name, why);
		close(fd);
	} else {
		log_info("the service manager handed over %s", name);
	}
}

uint32_t manager_fdstore_max(void)
{
	const char *max = getenv("FDSTORE");
	unsigned long n = max ? strtoul(max, NULL, 10) : 0;

	return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

void manager_says(const char *status)
{
	sd_notifyf(0, "STATUS=%s", status);
}

static void on_watchdog(evutil_socket_t fd, short what, void *arg)
{
	sd_notify(0, "WATCHDOG=1");
}

int manager_watch(struct event **ret, struct event_base *base)
{
	uint64_t us = 0;
	struct timeval half;

	*ret = NULL;
	if (sd_watchdog_enabled(true, &us) <= 0)
		return 0;
	half = (struct timeval){.tv_sec = (time_t)(us / 2000000), .tv_usec = (suseconds_t)(us / 2 % 1000000)};
	*ret = event_new(base, -1, EV_PERSIST, on_watchdog, NULL);
	return *ret && event_add(*ret, &half) == 0 ? 0 : -ENOMEM;
}

void manager_failed(void)
{
	if (getenv("NOTIFY_SOCKET"))
		usleep(FAILED_PAUSE_US);
}

void manager_ready(void)
{
	sd_notify(0, "READY=1");
}

/* It wants the time, so as to tell this one from what was said before it asked. */
void manager_reloading(void)
{
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, util_now_ns() / 1000);
}

void manager_reloaded(const char *error)
{
	if (error)
		sd_notifyf(0, "READY=1\nSTATUS=%s; nothing has changed", error);
	else
		sd_notify(0, "READY=1\nSTATUS=The configuration was read again.");
}

void manager_stopping(void)
{
	sd_notify(0, "STOPPING=1");
}
