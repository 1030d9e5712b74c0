/* SPDX-License-Identifier: MIT */
/*
 * Closes fds that came from clients. close(2) may wait for whoever serves the file: a FUSE server that does not answer
 * keeps it for ever, beyond SIGKILL; a TCP socket that lingers, for as long as it likes. So children that share our fd
 * table do it. One that does not come back is left behind, up to a bound, and another takes over.
 */
#ifndef IPC_CLOSER_H
#define IPC_CLOSER_H

struct event_base;
struct closer;

int closer_new(struct closer **ret, struct event_base *base);
/* Waits for nobody: what is not closed yet ends with this process. Takes NULL, returns NULL. */
struct closer *closer_free(struct closer *c);

/* Takes the fd. */
void closer_close(struct closer *c, int fd);

#endif
