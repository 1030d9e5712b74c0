/* SPDX-License-Identifier: MIT */
/* See reach.h. */
#include "reach.h"

#include <event2/event.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "transport/transport.h"

#define DEADLINE_MS 10000u

static void on_opened(void *owner)
{
	struct reach *r = owner;

	r->opened = true;
}

static bool on_irq(void *owner, uint32_t vector)
{
	return true;
}

static void on_room(void *owner)
{
}

static void on_lost(void *owner, int error, const char *why)
{
	die("the device is lost", why);
}

static const struct transport_events events = {on_opened, on_irq, on_room, on_lost};

void reach_open(struct reach *r, const char *way, const char *bdf)
{
	const char *address;
	const struct transport_ops *ops;
	char spec[64];
	int err;

	snprintf(spec, sizeof(spec), "%s:%s", way, bdf);
	ops = transport_find(spec, &address);
	*r = (struct reach){.base = event_base_new()};
	if (!ops || !r->base)
		die(spec, "no such way");
	err = ops->open(&r->t, r->base, address, 1, DEADLINE_MS, &events, r);
	reach_await(r, err, &r->opened);
}

void reach_close(struct reach *r)
{
	r->t->ops->close(r->t);
	event_base_free(r->base);
}

void reach_turn(struct reach *r)
{
	if (event_base_loop(r->base, EVLOOP_ONCE) < 0)
		die("the loop", "it ended");
}

void reach_await(struct reach *r, int err, const bool *done)
{
	if (err < 0)
		die("the transport", strerror(-err));
	while (!*done)
		reach_turn(r);
}

void reach_done(void *arg, int err)
{
	bool *done = arg;

	if (err < 0)
		die("the kernel refused", strerror(-err));
	*done = true;
}
