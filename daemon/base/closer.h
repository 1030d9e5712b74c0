/* SPDX-License-Identifier: MIT */
/*
 * Closes fds that came from others. close(2) may wait for whoever serves the file: a FUSE server that does not answer
 * keeps it for ever, beyond SIGKILL; a TCP socket that lingers, until a signal comes. So children that share our fd table
 * do it. One that does not come back is left behind, and another takes over; how many a uid can leave behind is bounded,
 * and its fds beyond that wait among themselves.
 *
 * There is one fd table in a process, so there is one closer. Where it was not started (in tests of single libraries),
 * fds are closed on the spot.
 */
#ifndef BASE_CLOSER_H
#define BASE_CLOSER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct event_base;

/* After the limit on fds has been raised for the last time. */
int closer_start(struct event_base *base);
/* Waits for nobody: what is not closed yet ends with this process. */
void closer_stop(void);

/* For a file that is known to be a memfd or an empty socket: it may take a while, but waits for nobody. */
#define CLOSER_OURS ((uid_t)-2)

/* Takes the fd, which came from a process of this uid. Negative: nothing happens. */
void closer_close(int fd, uid_t uid);

/* Do more fds of this uid wait than are closed in a moment? Then whoever sends many should wait, too. */
bool closer_crowded(uid_t uid);

/* Has the uid left as many children behind as it may? */
bool closer_exhausted(uid_t uid);

#endif
