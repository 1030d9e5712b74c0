/* SPDX-License-Identifier: MIT */
/* What the files of the fd store share. fdstore.c: names, and what stands for them. fdstore_say.c: messages to the manager, and barriers. */
#ifndef STORE_FDSTORE_PRIVATE_H
#define STORE_FDSTORE_PRIVATE_H

#include <event2/event.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/log.h"
#include "store/fdstore.h"

#define FDSTORE_NUMBERS (62u * 62u * 62u) /* names of one kind */

enum message_kind { PUT, DROP, BARRIER, NOTE };

/* What is said to the manager. That of a stored fd stays for as long as its name is in use; it is what drops it, too. */
struct message {
	TAILQ_ENTRY(message) link; /* in the outbox, if queued */
	enum message_kind kind;
	bool queued;
	int fd; /* travels with it; -1: none */
	uint32_t copies; /* of a name in use: fds in the store */
	char text[]; /* PUT, DROP: the name */
};

TAILQ_HEAD(messages, message);

struct names { /* of one kind */
	uint32_t low; /* all below are in use */
	struct message *used[FDSTORE_NUMBERS];
};

struct waiter { /* for a barrier */
	TAILQ_ENTRY(waiter) link; /* in one of the lists below */
	void (*done)(void *arg, int err);
	void *arg;
	int err; /* what it is told */
	uint64_t deadline_ns;
};

TAILQ_HEAD(waiters, waiter);

struct fdstore {
	struct event_base *base;
	int socket; /* -1: there is no store */
	struct sockaddr_un address;
	socklen_t address_len;
	struct event *writable; /* it was full */
	struct event *again;
	struct messages outbox;
	uint32_t notes; /* in it */
	struct names *names[128];
	uint32_t max, count;
	uint64_t said; /* messages so far */
	struct log_limit limit;

	struct event *answer; /* to the barrier on its way; NULL: none is */
	int answer_fd;
	uint64_t covers; /* `said`, when it was begun */
	struct waiters asked; /* for it */
	struct waiters next; /* for the one after it */
	struct waiters finished; /* are being told */
	struct event *deadline;
};

struct message *message_new(enum message_kind kind, const char *text); /* NULL: no memory */
void message_free(struct message *m);
void outbox_remove(struct fdstore *fs, struct message *m); /* it is queued; the caller's again */
/* Sends it, or queues it with a duplicate of the fd. One that is not queued then is the caller's again. A drop never fails. */
int fdstore_say(struct fdstore *fs, struct message *m, int fd);

/* Connects to the manager at that address. 0, or -errno; in both cases fdstore_say_fini() is the end. */
int fdstore_say_init(struct fdstore *fs, const char *address);
void fdstore_say_fini(struct fdstore *fs);

#endif
