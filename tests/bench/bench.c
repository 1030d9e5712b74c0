/* SPDX-License-Identifier: MIT */
/* Figures and bare peers. See bench.h. */
#include "bench.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DOORBELL 40u /* bytes of a vfio-user REGION_WRITE of 8 bytes */
#define SPIN_NS 20000

void die(const char *what, const char *why)
{
	fprintf(stderr, "bench: %s: %s\n", what, why);
	exit(1);
}

/* ---- figures ---- */

void figure_add(struct figure *f, double value, double limit)
{
	if (f->n == ROUNDS_MAX)
		die(f->name, "too many rounds");
	f->value[f->n] = value;
	f->limit[f->n++] = limit;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *v, unsigned int n)
{
	qsort(v, n, sizeof(*v), by_value);
	return v[n / 2];
}

void figure_print(struct figure *f)
{
	double value = median(f->value, f->n), limit = median(f->limit, f->n);

	printf("%s\t%.2f\t%s\t%.2f\t%.2f\n", f->name, value, f->unit, limit, value / limit);
	fflush(stdout);
}

/* ---- the other processes ---- */

struct peer {
	const struct bare *b;
	int fd; /* the client's */
	int ask; /* to the third process */
	int answer; /* eventfd, from it */
	int ep;
};

static void futex_wake(uint64_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* The third process: a message comes, a thing is done, somebody is told. */
static void be_device(const struct bare *b, int fd, int answer)
{
	char doorbell[DOORBELL];
	uint64_t one = 1;

	while (recv(fd, doorbell, sizeof(doorbell), 0) == (ssize_t)sizeof(doorbell)) {
		if (b->kind == BARE_JOB) {
			__atomic_add_fetch(b->fence, 1, __ATOMIC_RELEASE);
			futex_wake(b->fence);
		} else if (write(answer, &one, sizeof(one)) != (ssize_t)sizeof(one)) {
			break;
		}
	}
}

static void reply(const struct peer *p)
{
	(void)!send(p->fd, p->b->buf, p->b->reply, MSG_NOSIGNAL);
}

static void ask_device(const struct peer *p)
{
	static const char doorbell[DOORBELL];

	(void)!send(p->ask, doorbell, sizeof(doorbell), MSG_NOSIGNAL);
}

/* False: the client is gone. */
static bool serve_one(const struct peer *p)
{
	if (recv(p->fd, p->b->buf, p->b->request, 0) <= 0)
		return false;
	if (p->ask >= 0)
		ask_device(p);
	if (p->b->kind != BARE_CHAIN)
		reply(p);
	return true;
}

static void watch(int ep, int fd)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = fd};

	if (fd >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) < 0)
		die("epoll_ctl", strerror(errno));
}

static void serve_loop(struct peer *p)
{
	struct epoll_event ev;
	uint64_t n;

	p->ep = epoll_create1(EPOLL_CLOEXEC);
	watch(p->ep, p->fd);
	watch(p->ep, p->answer);
	while (epoll_wait(p->ep, &ev, 1, -1) == 1) {
		if (ev.data.fd == p->answer) {
			(void)!read(p->answer, &n, sizeof(n));
			reply(p);
		} else if (!serve_one(p)) {
			return;
		}
	}
}

static void die_with_parent(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static int fork_or_die(void)
{
	int pid = fork();

	if (pid < 0)
		die("fork", strerror(errno));
	return pid;
}

/* Begins the third process; what is left here is p->ask and p->answer. */
static int start_device(const struct bare *b, struct peer *p)
{
	int sv[2], pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		die("socketpair", strerror(errno));
	p->answer = b->kind == BARE_CHAIN ? eventfd(0, EFD_CLOEXEC) : -1;
	pid = fork_or_die();
	if (pid == 0) {
		die_with_parent();
		close(sv[0]);
		be_device(b, sv[1], p->answer);
		_exit(0);
	}
	close(sv[1]);
	p->ask = sv[0];
	return pid;
}

/* ---- the asking side ---- */

void bare_start(struct bare *b, enum bare_kind kind, size_t request, size_t reply_bytes)
{
	struct peer p = {.b = b, .ask = -1, .answer = -1};
	size_t room = request > reply_bytes ? request : reply_bytes;
	int sv[2];

	*b = (struct bare){.kind = kind, .request = request, .reply = reply_bytes, .buf = calloc(1, room)};
	b->fence = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!b->buf || b->fence == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		die("a bare peer", strerror(errno));
	fflush(NULL);
	if (kind == BARE_CHAIN || kind == BARE_JOB)
		b->pid_device = start_device(b, &p);
	b->pid = fork_or_die();
	p.fd = sv[1];
	if (b->pid == 0) {
		die_with_parent();
		close(sv[0]);
		while (kind == BARE_BLOCKING && serve_one(&p))
			;
		if (kind != BARE_BLOCKING)
			serve_loop(&p);
		_exit(0);
	}
	close(sv[1]);
	if (p.ask >= 0)
		close(p.ask);
	if (p.answer >= 0)
		close(p.answer);
	b->fd = sv[0];
}

void bare_stop(struct bare *b)
{
	/* Not by closing the socket: peers that began later have copies of it. */
	kill(b->pid, SIGKILL);
	waitpid(b->pid, NULL, 0);
	if (b->pid_device) {
		kill(b->pid_device, SIGKILL);
		waitpid(b->pid_device, NULL, 0);
	}
	close(b->fd);
	munmap(b->fence, 4096);
	free(b->buf);
}

void bare_call(struct bare *b)
{
	if (send(b->fd, b->buf, b->request, MSG_NOSIGNAL) != (ssize_t)b->request ||
	    recv(b->fd, b->buf, b->reply, 0) != (ssize_t)b->reply)
		die("a bare call", strerror(errno));
	b->jobs++;
}

double bare_time(struct bare *b, unsigned int n)
{
	double t = now_ns();

	for (unsigned int i = 0; i < n; i++)
		bare_call(b);
	return (now_ns() - t) / n;
}

void bare_wait(struct bare *b)
{
	double start = now_ns();
	uint64_t done;

	while ((done = __atomic_load_n(b->fence, __ATOMIC_ACQUIRE)) < b->jobs) {
		if (now_ns() - start < SPIN_NS)
			cpu_relax();
		else
			syscall(SYS_futex, b->fence, FUTEX_WAIT, (uint32_t)done, NULL, NULL, 0);
	}
}
