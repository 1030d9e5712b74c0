/* SPDX-License-Identifier: MIT */
/*
 * Closes fds that came from others. close(2) may wait for whoever serves the file: a FUSE server that does not answer
 * keeps it for ever, beyond SIGKILL; a TCP socket that lingers, for as long as it likes. So children that share our fd
 * table do it. One that does not come back is left behind, up to a bound, and another takes over.
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

int closer_start(struct event_base *base);
/* Waits for nobody: what is not closed yet ends with this process. */
void closer_stop(void);

/* Takes the fd, which came from a process of this uid. Negative: nothing happens. */
void closer_close(int fd, uid_t uid);

/* Do more fds wait than are closed in a moment? Then whoever sends many should wait, too. */
bool closer_crowded(void);

/* fds of this uid that are not closed yet, though they have been tried. */
uint32_t closer_stuck(uid_t uid);

#endif
