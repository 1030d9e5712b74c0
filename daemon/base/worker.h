/* SPDX-License-Identifier: MIT */
/*
 * A thread for calls that may take their time in the kernel: pinning memory, resetting or closing a device. It owns no
 * state of the daemon. Work is carried out in the order in which it was given, but for what is added first; each
 * piece's done() is called from the event loop, in the order in which they were carried out.
 */
#ifndef BASE_WORKER_H
#define BASE_WORKER_H

#include <stdbool.h>
#include <sys/queue.h>

struct event_base;
struct worker;

/* Embedded in whatever describes the piece of work; stays the caller's, and untouched by him until done(). */
struct work {
	STAILQ_ENTRY(work) link; /* in the worker's queues */
	void (*run)(struct work *w); /* on the thread; touches what belongs to this worker's owner alone */
	void (*done)(struct work *w); /* on the loop */
};

/* 0, or -errno. */
int worker_new(struct worker **ret, struct event_base *base);
void worker_add(struct worker *w, struct work *work);
void worker_add_first(struct worker *w, struct work *work); /* before all that were not begun */
/*
 * The owner leaves: no done() is called any more. Pieces that were not begun are given to drop() on the spot, finished
 * ones, too; the one that runs is given to it on the thread, when it has ended. last(arg), there as well, is the final
 * thing: nothing of the owner is in use then. Returns at once; takes NULL, for which nothing happens.
 */
struct worker *worker_leave(struct worker *w, void (*drop)(struct work *w), void (*last)(void *arg), void *arg);

#endif
