/* SPDX-License-Identifier: MIT */
/*
 * Where log lines go. A line is formatted into a buffer of fixed size (what does not fit is cut) and leaves in one
 * write or one journal datagram, so that lines of several threads never mix. Logging keeps errno and never fails.
 */
#include "base/log.h" /* before syslog.h, which sd-journal.h drags in: its macros carry the names of our levels */

#include "base/util.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#define LINE_MAX_BYTES 1024u

#define LIMIT_BURST 10u
#define LIMIT_REFILL_NS 1000000000u

static atomic_int max_level = LOG_INFO;
static pthread_once_t journal_once = PTHREAD_ONCE_INIT;
static bool journal;

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
static void journal_detect(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	if (!stream || sscanf(stream, "%llu:%llu", &dev, &ino) != 2 || fstat(STDERR_FILENO, &st) < 0)
		return;
	journal = st.st_dev == (dev_t)dev && st.st_ino == (ino_t)ino;
}

static void emit_journal(enum log_level level, const char *text)
{
	char message[LINE_MAX_BYTES + sizeof("MESSAGE=")];
	char priority[sizeof("PRIORITY=") + 12];
	char ident[64];
	struct iovec iov[3];

	snprintf(message, sizeof(message), "MESSAGE=%s", text);
	snprintf(priority, sizeof(priority), "PRIORITY=%d", (int)level);
	snprintf(ident, sizeof(ident), "SYSLOG_IDENTIFIER=%s", program_invocation_short_name);
	iov[0] = (struct iovec){message, strlen(message)};
	iov[1] = (struct iovec){priority, strlen(priority)};
	iov[2] = (struct iovec){ident, strlen(ident)};
	sd_journal_sendv(iov, ARRAY_SIZE(iov));
}

static void emit_stderr(enum log_level level, const char *text)
{
	char line[LINE_MAX_BYTES + 16];
	int n = snprintf(line, sizeof(line), "<%d> %s\n", (int)level, text);

	/* A line that cannot be written has nowhere to be reported. */
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return;
}

static void emit(enum log_level level, uint32_t dropped, const char *fmt, va_list ap)
{
	int saved = errno;
	char text[LINE_MAX_BYTES];
	size_t used;

	vsnprintf(text, sizeof(text), fmt, ap);
	used = strlen(text);
	if (dropped > 0)
		snprintf(text + used, sizeof(text) - used, " (%u lines before this one were dropped)", dropped);
	pthread_once(&journal_once, journal_detect);
	if (journal)
		emit_journal(level, text);
	else
		emit_stderr(level, text);
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
	emit(level, 0, fmt, ap);
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

void log_limited(struct log_limit *limit, enum log_level level, const char *fmt, ...)
{
	va_list ap;

	if (!enabled(level))
		return;
	if (!limit_take(limit, util_now_ns())) {
		if (limit->dropped < UINT32_MAX)
			limit->dropped++;
		return;
	}
	va_start(ap, fmt);
	emit(level, limit->dropped, fmt, ap);
	va_end(ap);
	limit->dropped = 0;
}
