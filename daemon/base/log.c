/* SPDX-License-Identifier: MIT */
/*
 * Where log lines go. A line is formatted into a buffer of fixed size (what does not fit is cut) and leaves in one
 * write or one journal datagram, so that lines of several threads never mix. Logging keeps errno, never fails and never
 * waits: whoever reads our lines may have stopped reading, and clients must not notice. What finds no room is counted.
 */
#include "base/log.h"

#include "base/util.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define LINE_MAX_BYTES 1024u

#define LIMIT_BURST 10u
#define LIMIT_REFILL_NS 1000000000u

static atomic_int max_level = LOG_INFO;
static pthread_once_t journal_once = PTHREAD_ONCE_INIT;
static int journal = -1; /* a socket to it */
static atomic_uint unwritten; /* lines that found no room since the last one that did */

const char *log_journal_path = "/run/systemd/journal/socket";

static const struct {
	const char *name;
	enum log_level level;
} level_names[] = {
	{"error", LOG_ERROR},
	{"warn", LOG_WARN},
	{"info", LOG_INFO},
	{"debug", LOG_TRACE},
};

void log_set_level(enum log_level level)
{
	atomic_store(&max_level, (int)level);
}

int log_level_parse(const char *name, enum log_level *ret)
{
	for (size_t i = 0; i < ARRAY_SIZE(level_names); i++) {
		if (strcmp(name, level_names[i].name) == 0) {
			*ret = level_names[i].level;
			return 0;
		}
	}
	return -EINVAL;
}

/* systemd.exec(5): JOURNAL_STREAM is "device:inode" of the stream that it made. It is inherited by whoever we start
 * and whoever redirects us, hence the comparison. */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
	       st.st_dev == (dev_t)dev && st.st_ino == (ino_t)ino;
}

static void journal_open(void)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	AUTO_CLOSE int fd = -1;

	if (!stderr_is_journal() || strlen(log_journal_path) >= sizeof(sa.sun_path))
		return;
	strcpy(sa.sun_path, log_journal_path);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) == 0)
		journal = util_take_fd(&fd);
}

/* systemd's native journal protocol: a field a line. Ours, because libsystemd's sender waits for a full journal. */
static bool emit_journal(const struct log_about *about, enum log_level level, const char *text)
{
	char fields[LINE_MAX_BYTES + 512];
	int n = snprintf(fields, sizeof(fields), "MESSAGE=%s\nPRIORITY=%d\nSYSLOG_IDENTIFIER=%s\n", text, (int)level,
			 program_invocation_short_name);

	if (about && about->device)
		n += snprintf(fields + n, sizeof(fields) - (size_t)n, "PASIDD_DEVICE=%s\n", about->device);
	if (about && about->context)
		n += snprintf(fields + n, sizeof(fields) - (size_t)n, "PASIDD_CONTEXT=%u\n", about->context);
	if (about && about->pid)
		n += snprintf(fields + n, sizeof(fields) - (size_t)n, "PASIDD_CLIENT_PID=%d\nPASIDD_CLIENT_UID=%u\n",
			      about->pid, about->uid);
	return send(journal, fields, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) == n;
}

/* A pipe that is ready takes at least PIPE_BUF bytes, which is more than a line. */
static bool emit_stderr(enum log_level level, const char *text)
{
	struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
	char line[LINE_MAX_BYTES + 16];
	int n = snprintf(line, sizeof(line), "<%d> %s\n", (int)level, text);

	return poll(&p, 1, 0) == 1 && write(STDERR_FILENO, line, (size_t)n) == n;
}

static void emit(const struct log_about *about, enum log_level level, uint32_t dropped, const char *fmt, va_list ap)
{
	int saved = errno;
	char text[LINE_MAX_BYTES];
	unsigned int missing = atomic_exchange(&unwritten, 0);
	size_t used;

	vsnprintf(text, sizeof(text), fmt, ap);
	used = strlen(text);
	if (dropped + missing > 0)
		snprintf(text + used, sizeof(text) - used, " (%u lines before this one were dropped)",
			 dropped + missing);
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ')
			*c = '?'; /* one line stays one line */
	pthread_once(&journal_once, journal_open);
	if (!(journal >= 0 ? emit_journal(about, level, text) : emit_stderr(level, text)))
		atomic_fetch_add(&unwritten, missing + 1);
	errno = saved;
}

static bool enabled(enum log_level level)
{
	return (int)level <= atomic_load(&max_level);
}

void log_line(enum log_level level, const char *fmt, ...)
{
	va_list ap;

	if (!enabled(level))
		return;
	va_start(ap, fmt);
	emit(NULL, level, 0, fmt, ap);
	va_end(ap);
}

/* Takes one line from the budget; false if there is none left. */
static bool limit_take(struct log_limit *limit, uint64_t now_ns)
{
	uint64_t refill = (now_ns - limit->last_ns) / LIMIT_REFILL_NS;

	if (refill >= limit->used) {
		limit->used = 0;
		limit->last_ns = now_ns;
	} else {
		limit->used -= (uint32_t)refill;
		limit->last_ns += refill * LIMIT_REFILL_NS;
	}
	if (limit->used >= LIMIT_BURST)
		return false;
	limit->used++;
	return true;
}

void log_about(const struct log_about *about, struct log_limit *limit, enum log_level level, const char *fmt, ...)
{
	va_list ap;

	if (!enabled(level))
		return;
	if (limit && !limit_take(limit, util_now_ns())) {
		if (limit->dropped < UINT32_MAX)
			limit->dropped++;
		return;
	}
	va_start(ap, fmt);
	emit(about, level, limit ? limit->dropped : 0, fmt, ap);
	va_end(ap);
	if (limit)
		limit->dropped = 0;
}
