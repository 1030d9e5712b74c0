/* SPDX-License-Identifier: MIT */
/*
 * Kills a process at a certain moment of its life, as a debugger sees it: before or after its Nth system call, or after N
 * instructions.
 *
 *   every_call attach PID call|exit|step N
 *   every_call start FILE PROGRAM [ARGUMENT...]
 *
 * "attach": once the process waits in epoll_wait(2) it is held there, and "ready" is said. It goes on, and is counted, when a
 * line comes on stdin. After a second one it is let go where it waits next. The last line is "killed CALL", with the number of
 * the system call, or "ended COUNT".
 *
 * "start": becomes PROGRAM. If FILE is there, with a line "call N" or "exit N", a child takes it away, follows PROGRAM from its
 * first system call on, and kills it; or lets it go where it waits once FILE is there again. FILE.said then has the same last
 * line.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/ptrace.h>

#define TICK_US 2000

enum mode { AT_CALL, AT_EXIT, AT_STEP };

struct tracing {
	pid_t pid;
	enum mode mode;
	unsigned long n;
	unsigned long count; /* of what is counted, so far */
	uint64_t last; /* system call */
};

__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "every_call: %s: %s\n", what, strerror(errno));
	exit(1);
}

static bool waits(uint64_t call)
{
#ifdef SYS_epoll_wait
	if (call == SYS_epoll_wait)
		return true;
#endif
	return call == SYS_epoll_pwait || call == SYS_epoll_pwait2;
}

static void go(const struct tracing *t, int signal)
{
	if (ptrace(t->mode == AT_STEP ? PTRACE_SINGLESTEP : PTRACE_SYSCALL, t->pid, NULL, (void *)(intptr_t)signal) <
		    0 &&
	    errno != ESRCH)
		die("it cannot go on");
}

/* What the stop is about. */
static uint8_t look(struct tracing *t)
{
	struct ptrace_syscall_info info = {0};

	if (ptrace(PTRACE_GET_SYSCALL_INFO, t->pid, (void *)sizeof(info), &info) < 0)
		return PTRACE_SYSCALL_INFO_NONE;
	if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
		t->last = info.entry.nr;
	return info.op;
}

/* The signal to go on with; or what follows. */
#define DEAD (-1)
#define TICK (-2) /* nothing has happened for a while */

static int next_stop(const struct tracing *t, int *status)
{
	if (waitpid(t->pid, status, __WALL) != t->pid) {
		if (errno == EINTR)
			return TICK;
		die("it cannot be waited for");
	}
	if (!WIFSTOPPED(*status))
		return DEAD;
	if (WSTOPSIG(*status) == (SIGTRAP | 0x80) || WSTOPSIG(*status) == SIGTRAP || *status >> 16 == PTRACE_EVENT_STOP)
		return 0;
	return WSTOPSIG(*status);
}

static int await_stop(const struct tracing *t, int *status)
{
	int signal;

	do
		signal = next_stop(t, status);
	while (signal == TICK);
	if (signal == DEAD)
		die("it died");
	return signal;
}

static bool kill_now(const struct tracing *t, FILE *out)
{
	int status;

	kill(t->pid, SIGKILL);
	while (next_stop(t, &status) != DEAD)
		;
	fprintf(out, "killed %llu\n", (unsigned long long)t->last);
	fflush(out);
	return true;
}

/* After a stop of the process. True: it was killed. */
static bool judge(struct tracing *t, int status, FILE *out)
{
	uint8_t op;

	if (t->mode == AT_STEP)
		return WSTOPSIG(status) == SIGTRAP && t->count++ == t->n && kill_now(t, out);
	if (WSTOPSIG(status) != (SIGTRAP | 0x80))
		return false;
	op = look(t);
	t->count += op == PTRACE_SYSCALL_INFO_ENTRY;
	return t->count == t->n && op == (t->mode == AT_CALL ? PTRACE_SYSCALL_INFO_ENTRY : PTRACE_SYSCALL_INFO_EXIT) &&
	       kill_now(t, out);
}

static void let_go(const struct tracing *t, FILE *out)
{
	fprintf(out, "ended %lu\n", t->count);
	fflush(out);
	if (ptrace(PTRACE_DETACH, t->pid, NULL, NULL) < 0 && errno != ESRCH)
		die("it cannot be let go");
}

/* ---- a process that runs ---- */

/* Held at the beginning of epoll_wait(2). */
static void hold(struct tracing *t)
{
	const struct tracing by_call = {.pid = t->pid, .mode = AT_CALL};
	int status, signal;

	if (ptrace(PTRACE_SEIZE, t->pid, NULL, (void *)PTRACE_O_TRACESYSGOOD) < 0)
		die("it cannot be traced");
	if (ptrace(PTRACE_INTERRUPT, t->pid, NULL, NULL) < 0)
		die("it cannot be stopped");
	for (;;) {
		signal = await_stop(t, &status);
		if (WSTOPSIG(status) == (SIGTRAP | 0x80) && look(t) == PTRACE_SYSCALL_INFO_ENTRY && waits(t->last))
			return;
		go(&by_call, signal);
	}
}

/* Is it in a system call that waits, as the kernel says? */
static bool is_waiting(const struct tracing *t)
{
	char path[64], line[64] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/syscall", (int)t->pid);
	f = fopen(path, "re");
	if (!f)
		return false;
	if (!fgets(line, sizeof(line), f))
		line[0] = '\0';
	fclose(f);
	return line[0] >= '0' && line[0] <= '9' && waits(strtoull(line, NULL, 10));
}

/* Waits where it would wait without us, too: nothing of what it was asked is left. */
static bool stop_where_it_waits(struct tracing *t)
{
	int status;

	if (!is_waiting(t))
		return false;
	if (ptrace(PTRACE_INTERRUPT, t->pid, NULL, NULL) < 0)
		die("it cannot be stopped");
	await_stop(t, &status);
	return true;
}

static bool line_came(void)
{
	char c;

	while (read(0, &c, 1) == 1)
		if (c == '\n')
			return true;
	exit(0); /* nobody is interested any more */
}

static void on_tick(int sig)
{
}

/* Waiting is interrupted now and then. */
static void start_ticks(void)
{
	const struct sigaction sa = {.sa_handler = on_tick};
	const struct itimerval every = {{0, TICK_US}, {0, TICK_US}};

	if (sigaction(SIGALRM, &sa, NULL) < 0 || setitimer(ITIMER_REAL, &every, NULL) < 0)
		die("a timer cannot be set");
}

/* A line came on stdin or, if there is a path, that is there. */
static bool is_over(const char *path)
{
	struct pollfd in = {.fd = 0, .events = POLLIN};

	return path ? access(path, F_OK) == 0 : poll(&in, 1, 0) > 0 && line_came();
}

/* Until it is killed, or waits and all is over. */
static int follow(struct tracing *t, const char *path, FILE *out)
{
	bool over = false;
	int status;

	start_ticks();
	for (;;) {
		int signal = next_stop(t, &status);

		if (signal == DEAD)
			die("it died");
		if (signal != TICK) {
			if (judge(t, status, out))
				return 0;
			go(t, signal);
			continue;
		}
		over = over || is_over(path);
		if (over && stop_where_it_waits(t)) {
			let_go(t, out);
			return 0;
		}
	}
}

static int attach(struct tracing *t)
{
	hold(t);
	printf("ready\n");
	fflush(stdout);
	line_came();
	go(t, 0);
	return follow(t, NULL, stdout);
}

/* ---- one that begins ---- */

static bool parse_mode(const char *text, enum mode *mode)
{
	static const char *const names[] = {"call", "exit", "step"};

	for (unsigned int i = 0; i < 3; i++)
		if (!strcmp(text, names[i])) {
			*mode = (enum mode)i;
			return true;
		}
	return false;
}

static bool read_orders(const char *path, struct tracing *t)
{
	char word[8] = "";
	FILE *f = fopen(path, "re");
	bool ok;

	if (!f)
		return false;
	ok = fscanf(f, "%7s %lu", word, &t->n) == 2 && parse_mode(word, &t->mode);
	fclose(f);
	return ok;
}

/* What was handed over is the program's alone. */
static void close_all_but(int fd)
{
	if (close_range(3, (unsigned int)fd - 1, 0) < 0 || close_range((unsigned int)fd + 1, ~0u, 0) < 0)
		die("close_range");
}

/* From the end of its execve(2) on. */
static int follow_start(struct tracing *t, const char *path, int begun)
{
	int status, signal;
	char said[4096];
	FILE *out;

	close_all_but(begun);
	snprintf(said, sizeof(said), "%s.said", path);
	out = fopen(said, "we");
	if (!out || unlink(path) < 0)
		die(said);
	if (ptrace(PTRACE_SEIZE, t->pid, NULL, (void *)(PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC)) < 0)
		die("it cannot be traced");
	close(begun);
	do {
		signal = await_stop(t, &status);
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_EXEC << 8))
			break;
	} while (ptrace(PTRACE_CONT, t->pid, NULL, (void *)(intptr_t)signal) == 0);
	go(t, 0);
	return follow(t, path, out);
}

/* The tracer is nobody's child, so that the program has only those that it makes. */
static int start(const char *path, char **argv)
{
	struct tracing t = {.pid = getpid()};
	int pipe_fds[2];
	pid_t pid;
	char c;

	if (read_orders(path, &t)) {
		if (pipe(pipe_fds) < 0)
			die("pipe");
		pid = fork();
		if (pid < 0)
			die("fork");
		if (pid == 0) {
			close(pipe_fds[0]);
			if (fork() == 0)
				exit(follow_start(&t, path, pipe_fds[1]));
			_exit(0);
		}
		close(pipe_fds[1]);
		waitpid(pid, NULL, 0);
		if (read(pipe_fds[0], &c, 1) < 0)
			die("pipe");
		close(pipe_fds[0]);
	}
	execv(argv[0], argv);
	die(argv[0]);
}

int main(int argc, char **argv)
{
	struct tracing t = {0};

	if (argc >= 4 && !strcmp(argv[1], "start"))
		return start(argv[2], argv + 3);
	if (argc != 5 || strcmp(argv[1], "attach") || !parse_mode(argv[3], &t.mode))
		return 2;
	t.pid = (pid_t)atoi(argv[2]);
	t.n = strtoul(argv[4], NULL, 10);
	return attach(&t);
}
