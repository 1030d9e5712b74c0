/* SPDX-License-Identifier: MIT */
/*
 * A device reached as the daemon reaches it, by its transport and an event loop, for benchmarks of what lies above. What
 * fails ends the program.
 */
#ifndef TESTS_BENCH_REACH_H
#define TESTS_BENCH_REACH_H

#include <stdbool.h>

struct event_base;
struct transport;

struct reach {
	struct event_base *base;
	struct transport *t;
	bool opened;
};

/* way: "type1" or "iommufd". */
void reach_open(struct reach *r, const char *way, const char *bdf);
void reach_close(struct reach *r);

/* Waits for something, and handles it. */
void reach_turn(struct reach *r);
/* err: what a call returned that calls reach_done() with `done` once it is answered; waits for that. */
void reach_await(struct reach *r, int err, const bool *done);
/* A transport_done; arg: a bool, which becomes true. */
void reach_done(void *arg, int err);

#endif
