/* SPDX-License-Identifier: MIT */
/* See selftest_run.h: processes, and how they are waited for. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "selftest_bank.h"
#include "selftest_run.h"

#define PROCESS_S 20u /* more than a job is waited for */

/* Is fd readable in time? */
static bool wait_readable(int fd, uint64_t seconds)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	uint64_t until = util_now_ns() + seconds * 1000000000u, now;

	while ((now = util_now_ns()) < until) {
		int r = poll(&pfd, 1, (int)((until - now) / 1000000 + 1));

		if (r > 0 || (r < 0 && errno != EINTR))
			return r > 0;
	}
	return false;
}

static void child_init(const struct run *r, struct trial *t, struct verdict *verdict)
{
	*t = (struct trial){
		.device = r->o->device,
		.socket = r->o->socket,
		.info = &r->told->info,
		.verbs = r->verbs,
		.local = r->local,
		.verdict = verdict,
		.bank = &r->told->bank,
		.bank_fd = r->bank_fd,
		/* Far enough from the next check's. */
		.keys = r->o->seed + ((uint64_t)r->checks << 32),
		.job_ns = r->told->job_ns,
	};
	*verdict = (struct verdict){0};
}

NORETURN static void child(const struct run *r, struct trial *t, uid_t uid, void (*body)(struct trial *t))
{
	trial_begin(t, uid);
	body(t);
	r->told->job_ns = t->job_ns;
	t->verdict->outcome = OUTCOME_OK;
	_exit(0);
}

__attribute__((format(printf, 2, 3))) static void fail(struct verdict *v, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(v->text, sizeof(v->text), fmt, ap);
	va_end(ap);
	v->outcome = OUTCOME_FAIL;
}

/* Ends a process of ours that did not end by itself. */
static void put_down(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static bool await(pid_t pid)
{
	AUTO_CLOSE int fd = pidfd_open(pid, 0);
	bool ended = fd >= 0 && wait_readable(fd, PROCESS_S);

	if (!ended)
		put_down(pid);
	return ended;
}

bool run_process(struct run *r, uid_t uid, void (*body)(struct trial *t))
{
	struct verdict *v = &r->told->verdict;
	struct trial t;
	int status = 0;
	pid_t pid;

	child_init(r, &t, v);
	fflush(NULL);
	pid = fork();
	if (pid == 0)
		child(r, &t, uid, body);
	if (pid < 0) {
		fail(v, "there is no process for it: %s", strerror(errno));
		return true;
	}
	if (!await(pid)) {
		fail(v, "pasidd did not answer within %u s", PROCESS_S);
		return false;
	}
	waitpid(pid, &status, 0);
	if (v->outcome == OUTCOME_NONE && WIFSIGNALED(status))
		fail(v, "it died of signal %d", WTERMSIG(status));
	else if (v->outcome == OUTCOME_NONE)
		fail(v, "it ended with status %d and no verdict", WEXITSTATUS(status));
	return true;
}

NORETURN static void bank_child(struct run *r, struct trial *t, int fd)
{
	close(r->bank_fd);
	trial_begin(t, r->bank_uid);
	bank_run(t, fd);
}

void run_bank(struct run *r)
{
	struct verdict *v = &r->told->bank.verdict;
	struct trial t;
	int fds[2];
	char word;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
		fail(v, "there is no socket for it: %s", strerror(errno));
		return;
	}
	r->bank_fd = fds[0];
	child_init(r, &t, v);
	fflush(NULL);
	r->bank = fork();
	if (r->bank == 0)
		bank_child(r, &t, fds[1]);
	close(fds[1]);
	if (r->bank < 0)
		fail(v, "there is no process for it: %s", strerror(errno));
	else if (wait_readable(r->bank_fd, PROCESS_S) && read(r->bank_fd, &word, 1) == 1)
		v->outcome = OUTCOME_OK;
	else if (v->outcome == OUTCOME_NONE)
		fail(v, "it was not ready within %u s", PROCESS_S);
	if (v->outcome != OUTCOME_OK)
		run_bank_end(r);
}

void run_bank_end(struct run *r)
{
	if (r->bank > 0)
		put_down(r->bank);
	if (r->bank_fd >= 0)
		close(r->bank_fd);
	r->bank = 0;
	r->bank_fd = -1;
}
