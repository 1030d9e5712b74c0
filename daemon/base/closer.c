/* SPDX-License-Identifier: MIT */
/*
 * See closer.h. An fd that waits is in its uid's queue: a list through a table by fd number, since a number cannot wait
 * twice. A child is given a few fds of one uid at a time, in a box of shared memory, and takes them one by one. After
 * PATIENCE_MS without progress it counts as stuck: what it has not begun goes back to the queue, a signal tries to
 * interrupt it, and it is counted against the uid until it comes back.
 *
 * A number is free for reuse the moment close(2) begins, so a stuck child holds a file but no number of ours.
 */
#include "base/closer.h"

#include <errno.h>
#include <event2/event.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"

#define CHILDREN_MAX 256u /* stuck ones included */
#define STUCK_MAX 16u /* of one uid */
#define BATCH 32u
#define PATIENCE_MS 100
#define CROWD 256u /* about what one message can carry */
#define QUEUES 1024u /* uids that have something waiting or stuck; the last queue serves all beyond */
#define WITHDRAWN (1u << 30)

struct box { /* shared with one child */
	_Atomic uint32_t given; /* batches; the futex that the child sleeps on */
	_Atomic uint32_t done; /* batches */
	_Atomic uint32_t taken; /* of this one: fds begun; WITHDRAWN and more: the rest is not the child's any more */
	uint32_t n;
	int fds[BATCH];
};

struct queue {
	uid_t uid;
	int head, tail; /* fds; -1: none */
	uint32_t waiting;
	uint32_t batches; /* that children have */
	uint32_t stuck; /* of these children */
};

struct child {
	pid_t pid;
	struct box *box;
	struct queue *queue; /* whose batch it has; NULL: it is idle */
	uint32_t seen; /* of box->taken, at the last look */
	bool stuck;
};

static struct {
	struct box *boxes; /* CHILDREN_MAX, shared */
	int *next; /* by fd: the one behind it in its queue */
	size_t n_next;
	struct queue queues[QUEUES];
	uint32_t n_queues; /* of which those behind are not in use */
	uint32_t turn; /* the queue that is served next */
	uint32_t waiting; /* of all queues */
	struct child children[CHILDREN_MAX]; /* n_children of them, in no order */
	uint32_t n_children;
	int fd; /* an eventfd: a child is done with its batch */
	struct event *finished;
	struct event *patience; /* while a child is at work */
	struct log_limit limit;
} closer = {.fd = -1};

/* ---- in a child: system calls only, on a copy of our memory and on our very own fd table ---- */

static void on_interrupt(int sig)
{
	/* close(2) has been interrupted, which is all that is wanted. */
}

static void child_main(struct box *b, uint32_t seen, pid_t parent, int fd)
{
	struct sigaction interrupt = {.sa_handler = on_interrupt};
	static const uint64_t one = 1;
	uint32_t given, i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGUSR1, &interrupt, NULL);
	if (getppid() != parent)
		_exit(0);
	for (;;) {
		given = atomic_load(&b->given);
		if (given == seen) {
			syscall(SYS_futex, &b->given, FUTEX_WAIT, seen, NULL, NULL, 0);
			continue;
		}
		while ((i = atomic_fetch_add(&b->taken, 1)) < b->n)
			close(b->fds[i]);
		seen = given;
		atomic_store(&b->done, seen);
		(void)!write(fd, &one, sizeof(one));
	}
}

/* ---- queues ---- */

static bool queue_in_use(const struct queue *q)
{
	return q->waiting || q->batches;
}

static struct queue *queue_find(uid_t uid)
{
	for (uint32_t i = 0; i < closer.n_queues; i++)
		if (closer.queues[i].uid == uid && queue_in_use(&closer.queues[i]))
			return &closer.queues[i];
	return NULL;
}

/* The last queue serves everybody for whom there is no other. */
static struct queue *queue_make(uid_t uid)
{
	struct queue *q = queue_find(uid);
	uint32_t i;

	if (q)
		return q;
	for (i = 0; i < QUEUES - 1 && queue_in_use(&closer.queues[i]); i++)
		;
	q = &closer.queues[i];
	if (i >= closer.n_queues)
		closer.n_queues = i + 1;
	if (!queue_in_use(q))
		*q = (struct queue){.uid = uid, .head = -1, .tail = -1};
	return q;
}

static void queue_push(struct queue *q, int fd)
{
	closer.next[fd] = -1;
	if (q->tail >= 0)
		closer.next[q->tail] = fd;
	else
		q->head = fd;
	q->tail = fd;
	q->waiting++;
	closer.waiting++;
}

static int queue_pop(struct queue *q)
{
	int fd = q->head;

	q->head = closer.next[fd];
	if (q->head < 0)
		q->tail = -1;
	q->waiting--;
	closer.waiting--;
	return fd;
}

/* The next queue that may be served, in turn; NULL: none. */
static struct queue *queue_next(void)
{
	for (uint32_t i = 0; closer.waiting && i < closer.n_queues; i++) {
		struct queue *q = &closer.queues[(closer.turn + i) % closer.n_queues];

		if (!q->waiting || q->stuck >= STUCK_MAX)
			continue;
		closer.turn = (closer.turn + i + 1) % closer.n_queues;
		return q;
	}
	return NULL;
}

/* ---- children ---- */

static struct child *child_new(void)
{
	pid_t self = getpid(), pid;
	struct child *c;
	uint32_t seen;

	if (closer.n_children == CHILDREN_MAX)
		return NULL;
	c = &closer.children[closer.n_children];
	seen = atomic_load(&c->box->given);
	atomic_store(&c->box->done, seen);
	pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0)
		child_main(c->box, seen, self, closer.fd);
	if (pid < 0)
		return NULL;
	c->pid = pid;
	c->queue = NULL;
	c->stuck = false;
	closer.n_children++;
	return c;
}

/* It has ended. The last child takes its place, and the boxes change places with them. */
static void child_forget(struct child *c)
{
	struct child *last = &closer.children[--closer.n_children];
	struct box *box = c->box;

	if (c != last) {
		*c = *last;
		last->box = box;
	}
}

static struct child *child_idle(void)
{
	for (uint32_t i = 0; i < closer.n_children; i++)
		if (!closer.children[i].queue)
			return &closer.children[i];
	return NULL;
}

static void look_again(void)
{
	static const struct timeval tv = {0, PATIENCE_MS * 1000};

	if (!evtimer_pending(closer.patience, NULL))
		evtimer_add(closer.patience, &tv);
}

static void give(struct child *c, struct queue *q)
{
	struct box *b = c->box;

	b->n = 0;
	while (b->n < BATCH && q->waiting)
		b->fds[b->n++] = queue_pop(q);
	atomic_store(&b->taken, 0);
	c->queue = q;
	q->batches++;
	c->seen = 0;
	atomic_fetch_add(&b->given, 1);
	syscall(SYS_futex, &b->given, FUTEX_WAKE, 1, NULL, NULL, 0);
	look_again();
}

/* Work for whoever is idle. */
static void distribute(void)
{
	struct child *c;
	struct queue *q;

	while (closer.waiting && (c = child_idle()) && (q = queue_next()))
		give(c, q);
}

/* What the child has not begun goes back. */
static void withdraw(struct child *c)
{
	uint32_t taken = atomic_exchange(&c->box->taken, WITHDRAWN);

	for (uint32_t i = taken; i < c->box->n; i++)
		queue_push(c->queue, c->box->fds[i]);
}

static void child_done(struct child *c)
{
	if (c->stuck)
		c->queue->stuck--;
	c->queue->batches--;
	c->stuck = false;
	c->queue = NULL;
}

static void collect(void)
{
	for (uint32_t i = 0; i < closer.n_children; i++) {
		struct child *c = &closer.children[i];

		if (c->queue && atomic_load(&c->box->done) == atomic_load(&c->box->given))
			child_done(c);
	}
}

/* A child that somebody killed (the kernel, for want of memory). What it was closing is closed. */
static void bury(void)
{
	for (uint32_t i = 0; i < closer.n_children;) {
		struct child *c = &closer.children[i];

		if (waitpid(c->pid, NULL, WNOHANG) != c->pid) {
			i++;
			continue;
		}
		if (c->queue) {
			withdraw(c);
			child_done(c);
		}
		child_forget(c);
	}
}

/* Nothing is left to do, so one child is enough again. */
static void retire(void)
{
	for (uint32_t i = closer.n_children; i > 0 && closer.n_children > 1; i--) {
		struct child *c = &closer.children[i - 1];

		if (c->queue)
			continue;
		kill(c->pid, SIGKILL);
		waitpid(c->pid, NULL, 0);
		child_forget(c);
	}
}

static void find_stuck(struct child *c)
{
	uint32_t taken = atomic_load(&c->box->taken);

	if (!c->stuck && taken == c->seen && taken > 0) {
		c->stuck = true;
		c->queue->stuck++;
		withdraw(c);
	}
	if (c->stuck)
		kill(c->pid, SIGUSR1);
	c->seen = taken;
}

static void on_patience(evutil_socket_t fd, short what, void *arg)
{
	uint32_t stuck = 0, busy = 0;

	bury();
	collect();
	for (uint32_t i = 0; i < closer.n_children; i++) {
		struct child *c = &closer.children[i];

		if (c->queue)
			find_stuck(c);
		busy += c->queue != NULL;
		stuck += c->stuck;
	}
	/* One that is at work and not stuck will get to it. */
	if (busy == stuck && queue_next() && !child_idle() && !child_new())
		log_limited(&closer.limit, LOG_ERROR, "%u fds wait to be closed, and all %u children are stuck",
			    closer.waiting, closer.n_children);
	else if (stuck && closer.waiting)
		log_limited(&closer.limit, LOG_WARN,
			    "closing fds that clients sent takes long: %u wait, %u children are stuck", closer.waiting,
			    stuck);
	distribute();
	if (busy || closer.waiting)
		look_again();
	else
		retire();
}

static void on_finished(evutil_socket_t fd, short what, void *arg)
{
	uint64_t count;

	(void)!read(closer.fd, &count, sizeof(count));
	collect();
	distribute();
}

/* ---- the process's one ---- */

static void *map_zeros(size_t size, int flags)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int closer_start(struct event_base *base)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return -errno;
	closer.n_next = rl.rlim_cur > INT_MAX ? INT_MAX : (size_t)rl.rlim_cur;
	closer.next = map_zeros(closer.n_next * sizeof(*closer.next), MAP_PRIVATE);
	closer.boxes = map_zeros(CHILDREN_MAX * sizeof(*closer.boxes), MAP_SHARED);
	closer.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (closer.fd >= 0)
		closer.finished = event_new(base, closer.fd, EV_READ | EV_PERSIST, on_finished, NULL);
	closer.patience = evtimer_new(base, on_patience, NULL);
	if (!closer.next || !closer.boxes || !closer.finished || !closer.patience ||
	    event_add(closer.finished, NULL) < 0) {
		closer_stop();
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < CHILDREN_MAX; i++)
		closer.children[i].box = &closer.boxes[i];
	if (!child_new()) {
		closer_stop();
		return -EAGAIN;
	}
	return 0;
}

void closer_stop(void)
{
	for (uint32_t i = 0; i < closer.n_children; i++)
		kill(closer.children[i].pid, SIGKILL);
	/* A stuck one cannot be waited for; it is init's when we are gone. */
	for (uint32_t i = 0; i < closer.n_children; i++)
		waitpid(closer.children[i].pid, NULL, WNOHANG);
	if (closer.finished)
		event_free(closer.finished);
	if (closer.patience)
		event_free(closer.patience);
	if (closer.fd >= 0)
		close(closer.fd);
	if (closer.boxes)
		munmap(closer.boxes, CHILDREN_MAX * sizeof(*closer.boxes));
	if (closer.next)
		munmap(closer.next, closer.n_next * sizeof(*closer.next));
	memset(&closer, 0, sizeof(closer));
	closer.fd = -1;
}

void closer_close(int fd, uid_t uid)
{
	if (fd < 0)
		return;
	if (!closer.boxes) {
		close(fd);
		return;
	}
	queue_push(queue_make(uid), fd);
	distribute();
	look_again();
}

bool closer_crowded(uid_t uid)
{
	const struct queue *q = queue_find(uid);

	return q && q->waiting > CROWD;
}

bool closer_exhausted(uid_t uid)
{
	const struct queue *q = queue_find(uid);

	return q && q->stuck >= STUCK_MAX;
}
