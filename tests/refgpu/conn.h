/* SPDX-License-Identifier: MIT */
/*
 * A vfio-user connection: framing, fds, and the calls that the device makes to its client.
 *
 * One thread, the message loop, reads; any thread may send. A message's fds sit in its own slots from the moment they
 * arrive: whoever wants one takes it out and leaves -1, message_free closes the rest. Nothing is believed about a
 * length but that it is at most VFIO_USER_MAX_MESSAGE; anything longer or shorter than a header ends the connection.
 */
#ifndef REFGPU_CONN_H
#define REFGPU_CONN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dma.h"
#include "vfio_user_proto.h"

/* Commands that came in while the loop waited for the device; more are left in the socket. */
#define CONN_MAX_BACKLOG 64u

struct message {
	struct message *next; /* of the backlog */
	struct vfio_user_header hdr;
	int fds[VFIO_USER_MAX_FDS];
	unsigned int n_fds;
	bool too_many_fds;
	size_t size; /* of payload */
	uint8_t payload[];
};

/* How the process is asked to end: readable fd, and a flag for loops that never block. */
struct stop {
	_Atomic bool asked;
	int fd;
};

struct remote_call;

struct conn {
	int fd;
	const struct stop *stop;
	struct refgpu_status *status;
	pthread_mutex_t send_lock;
	pthread_mutex_t lock; /* for calls and next_id */
	pthread_cond_t answered;
	struct remote_call *calls;
	uint16_t next_id;
	_Atomic bool dead;
	_Atomic uint32_t max_xfer; /* what the client takes in one DMA message */
	struct message *backlog;
	struct message **backlog_end;
	unsigned int n_backlog;
	struct dma_remote remote; /* to be given to the device's dma */
};

/* Takes fd. conn_fini waits for nobody: no call may be under way. */
int conn_init(struct conn *c, int fd, const struct stop *stop, struct refgpu_status *status);
void conn_fini(struct conn *c);

/* The next command, to be freed with message_free. -ECONNRESET: the client is gone or sent nonsense; -ECANCELED. */
int conn_next(struct conn *c, struct message **ret);
/* Takes in answers for at most `ms`; commands go to the backlog. For whoever keeps the loop waiting. */
void conn_pump(struct conn *c, int ms);

/* Ends the connection for whoever reads, sends or waits for an answer; closes nothing. */
void conn_break(struct conn *c);

/* Answers, unless the command wants none. error: 0 or an errno. fd may be -1 and stays the caller's. */
int conn_reply(struct conn *c, const struct vfio_user_header *to, int error, const void *data, size_t size, int fd);

struct message *message_free(struct message *m);

#endif
