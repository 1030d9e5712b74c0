/* SPDX-License-Identifier: MIT */
/*
 * See closer.h. Each child reads fd numbers from one end of a socket pair and answers each with a byte when it is done.
 * An fd number is free for reuse the moment close(2) begins, so a stuck child holds a file but no number of ours.
 */
#include "ipc/closer.h"

#include <errno.h>
#include <event2/event.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"

#define CHILDREN_MAX 64u /* stuck ones included; beyond that fds wait, which costs the daemon fds and nobody time */
#define PATIENCE_MS 200

struct waiting {
	int fd;
	STAILQ_ENTRY(waiting) link;
};

struct child {
	struct closer *closer;
	pid_t pid;
	int sock;
	bool busy;
	struct event *answer;
	LIST_ENTRY(child) link;
};

struct closer {
	struct event_base *base;
	LIST_HEAD(, child) children;
	uint32_t n_children;
	STAILQ_HEAD(, waiting) waiting;
	struct event *patience; /* while something waits: perhaps all children are stuck */
	struct log_limit limit;
};

/* In the child: system calls only, on a copy of our memory and on our very own fd table. */
static void child_main(int sock, pid_t parent)
{
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	while (read(sock, &fd, sizeof(fd)) == sizeof(fd)) {
		close(fd);
		if (write(sock, "", 1) != 1)
			break;
	}
	_exit(0);
}

static void on_answer(evutil_socket_t fd, short what, void *arg);

static struct child *child_free(struct child *k)
{
	if (!k)
		return NULL;
	if (k->answer)
		event_free(k->answer);
	if (k->pid > 0) {
		kill(k->pid, SIGKILL);
		/* A stuck one is init's to reap when it gets unstuck and we are gone. */
		waitpid(k->pid, NULL, k->busy ? WNOHANG : 0);
	}
	util_closep(&k->sock);
	free(k);
	return NULL;
}

static struct child *child_new(struct closer *c)
{
	struct child *k = calloc(1, sizeof(*k));
	pid_t self = getpid();
	int pair[2];

	if (!k)
		return NULL;
	k->closer = c;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		free(k);
		return NULL;
	}
	k->sock = pair[0];
	k->pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	if (k->pid == 0)
		child_main(pair[1], self);
	/* pair[1] lives in the table that both share: it is the child's, so it stays open as long as the child. */
	k->answer = event_new(c->base, k->sock, EV_READ | EV_PERSIST, on_answer, k);
	if (k->pid < 0 || !k->answer || event_add(k->answer, NULL) < 0) {
		close(pair[1]);
		return child_free(k);
	}
	LIST_INSERT_HEAD(&c->children, k, link);
	c->n_children++;
	return k;
}

static struct child *idle_child(struct closer *c)
{
	struct child *k;

	LIST_FOREACH(k, &c->children, link)
		if (!k->busy)
			return k;
	return NULL;
}

static bool hand_over(struct child *k, int fd)
{
	k->busy = send(k->sock, &fd, sizeof(fd), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(fd);
	return k->busy;
}

static void serve(struct closer *c)
{
	struct timeval tv = { 0, PATIENCE_MS * 1000 };
	struct waiting *w;
	struct child *k;

	while ((w = STAILQ_FIRST(&c->waiting)) && (k = idle_child(c)) && hand_over(k, w->fd)) {
		STAILQ_REMOVE_HEAD(&c->waiting, link);
		free(w);
	}
	if (!STAILQ_EMPTY(&c->waiting) && !evtimer_pending(c->patience, NULL))
		evtimer_add(c->patience, &tv);
}

static void on_answer(evutil_socket_t fd, short what, void *arg)
{
	struct child *k = arg;
	char byte;

	if (recv(fd, &byte, 1, MSG_DONTWAIT) != 1)
		return;
	k->busy = false;
	serve(k->closer);
}

static void on_patience(evutil_socket_t fd, short what, void *arg)
{
	struct closer *c = arg;

	if (STAILQ_EMPTY(&c->waiting))
		return;
	if (idle_child(c) || (c->n_children < CHILDREN_MAX && child_new(c)))
		log_limited(&c->limit, LOG_WARN, "closing a client's fd takes long; %u children for it now", c->n_children);
	serve(c);
}

int closer_new(struct closer **ret, struct event_base *base)
{
	struct closer *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->base = base;
	LIST_INIT(&c->children);
	STAILQ_INIT(&c->waiting);
	c->patience = evtimer_new(base, on_patience, c);
	if (!c->patience || !child_new(c)) {
		closer_free(c);
		return -ENOMEM;
	}
	*ret = c;
	return 0;
}

struct closer *closer_free(struct closer *c)
{
	struct waiting *w;
	struct child *k;

	if (!c)
		return NULL;
	while ((w = STAILQ_FIRST(&c->waiting))) {
		STAILQ_REMOVE_HEAD(&c->waiting, link);
		free(w);
	}
	while ((k = LIST_FIRST(&c->children))) {
		LIST_REMOVE(k, link);
		child_free(k);
	}
	if (c->patience)
		event_free(c->patience);
	free(c);
	return NULL;
}

void closer_close(struct closer *c, int fd)
{
	struct waiting *w;

	if (fd < 0)
		return;
	w = malloc(sizeof(*w));
	if (!w) {
		log_limited(&c->limit, LOG_ERROR, "no memory to close fd %d; it stays open", fd);
		return;
	}
	w->fd = fd;
	STAILQ_INSERT_TAIL(&c->waiting, w, link);
	serve(c);
}
