/* SPDX-License-Identifier: MIT */
/*
 * See closer.h. Work lies in a ring of shared memory. A child claims the next entry, closes it, and marks it closed;
 * claims are atomic, so that no entry is ever tried twice: the number may be somebody else's by then. A number is free
 * for reuse the moment close(2) begins, so a stuck child holds a file but no number of ours.
 */
#include "base/closer.h"

#include <errno.h>
#include <event2/event.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"

#define RING 65536u
#define CHILDREN_MAX 256u /* stuck ones included; beyond that fds wait, which costs fds and nobody's time */
#define PATIENCE_MS 100
#define CROWD 256u /* about what one message can carry */

struct entry {
	int fd;
	uint32_t uid;
	_Atomic uint32_t closed;
};

struct shared {
	_Atomic uint32_t tail; /* entries given, absolute; the futex that children sleep on */
	_Atomic uint32_t next; /* the next entry to claim */
	struct entry ring[RING];
};

static struct {
	struct shared *shared;
	struct event *patience; /* while something is not closed */
	pid_t children[CHILDREN_MAX];
	uint32_t n_children;
	uint32_t oldest; /* entries before it are closed */
	uint32_t last_next; /* what had been claimed when patience last looked */
	struct log_limit limit;
} closer;

/* In the child: system calls only, on a copy of our memory and on our very own fd table. */
static void child_main(struct shared *s, pid_t parent)
{
	uint32_t tail, next;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	for (;;) {
		tail = atomic_load(&s->tail);
		next = atomic_load(&s->next);
		if (next == tail) {
			syscall(SYS_futex, &s->tail, FUTEX_WAIT, tail, NULL, NULL, 0);
		} else if (atomic_compare_exchange_strong(&s->next, &next, next + 1)) {
			struct entry *e = &s->ring[next % RING];

			close(e->fd);
			atomic_store(&e->closed, 1);
		}
	}
}

static bool child_new(void)
{
	pid_t self = getpid(), pid;

	if (closer.n_children == CHILDREN_MAX)
		return false;
	pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0)
		child_main(closer.shared, self);
	if (pid > 0)
		closer.children[closer.n_children++] = pid;
	return pid > 0;
}

static void look_again(void)
{
	static const struct timeval tv = {0, PATIENCE_MS * 1000};

	if (!evtimer_pending(closer.patience, NULL))
		evtimer_add(closer.patience, &tv);
}

static void forget_closed(void)
{
	struct shared *s = closer.shared;

	while (closer.oldest != atomic_load(&s->next) && atomic_load(&s->ring[closer.oldest % RING].closed))
		closer.oldest++;
}

/* A child that somebody killed (the kernel, for want of memory) is replaced. What it was closing is closed: an fd leaves
 * the table when close(2) begins. */
static void replace_dead(void)
{
	struct shared *s = closer.shared;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < closer.n_children; i++)
		if (waitpid(closer.children[i], NULL, WNOHANG) == 0)
			closer.children[kept++] = closer.children[i];
	if (kept == closer.n_children)
		return;
	closer.n_children = kept;
	/* Nobody closes what the dead one had claimed; nobody else has claimed anything if none is left. */
	for (uint32_t i = closer.oldest; !kept && i != atomic_load(&s->next); i++)
		atomic_store(&s->ring[i % RING].closed, 1);
	if (!kept)
		child_new();
}

/* Nothing is left, so nobody is stuck: one child is enough again. */
static void retire_children(void)
{
	while (closer.n_children > 1) {
		pid_t pid = closer.children[--closer.n_children];

		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
}

/* Work that nobody has claimed since the last look means that every child is stuck. */
static void on_patience(evutil_socket_t fd, short what, void *arg)
{
	struct shared *s = closer.shared;
	uint32_t next = atomic_load(&s->next);

	replace_dead();
	forget_closed();
	if (next != atomic_load(&s->tail) && next == closer.last_next) {
		log_limited(&closer.limit, LOG_WARN,
			    "closing fds that clients sent takes long: %u are left, %u children "
			    "are at it",
			    atomic_load(&s->tail) - next, closer.n_children);
		child_new();
	}
	closer.last_next = next;
	if (closer.oldest != atomic_load(&s->tail))
		look_again();
	else
		retire_children();
}

int closer_start(struct event_base *base)
{
	void *p = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	closer.shared = p;
	closer.patience = evtimer_new(base, on_patience, NULL);
	if (!closer.patience || !child_new()) {
		closer_stop();
		return -ENOMEM;
	}
	return 0;
}

void closer_stop(void)
{
	for (uint32_t i = 0; i < closer.n_children; i++)
		kill(closer.children[i], SIGKILL);
	/* A stuck one cannot be waited for; it is init's when we are gone. */
	for (uint32_t i = 0; i < closer.n_children; i++)
		waitpid(closer.children[i], NULL, WNOHANG);
	if (closer.patience)
		event_free(closer.patience);
	if (closer.shared)
		munmap(closer.shared, sizeof(*closer.shared));
	memset(&closer, 0, sizeof(closer));
}

void closer_close(int fd, uid_t uid)
{
	struct shared *s = closer.shared;
	uint32_t tail;

	if (fd < 0)
		return;
	if (!s) {
		close(fd);
		return;
	}
	tail = atomic_load(&s->tail);
	forget_closed();
	if (tail - closer.oldest == RING) {
		log_limited(&closer.limit, LOG_ERROR, "%u fds of clients wait to be closed; fd %d stays open", RING,
			    fd);
		return;
	}
	s->ring[tail % RING].fd = fd;
	s->ring[tail % RING].uid = uid;
	atomic_store(&s->ring[tail % RING].closed, 0);
	atomic_store(&s->tail, tail + 1);
	syscall(SYS_futex, &s->tail, FUTEX_WAKE, 1, NULL, NULL, 0);
	look_again();
}

bool closer_crowded(void)
{
	struct shared *s = closer.shared;

	return s && atomic_load(&s->tail) - atomic_load(&s->next) > CROWD;
}

uint32_t closer_stuck(uid_t uid)
{
	struct shared *s = closer.shared;
	uint32_t n = 0;

	if (!s)
		return 0;
	forget_closed();
	for (uint32_t i = closer.oldest; i != atomic_load(&s->next); i++)
		n += s->ring[i % RING].uid == uid && !atomic_load(&s->ring[i % RING].closed);
	return n;
}
