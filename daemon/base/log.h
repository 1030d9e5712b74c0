/* SPDX-License-Identifier: MIT */
/*
 * Log lines: stderr as "<level> text", or the journal with fields where systemd runs us (JOURNAL_STREAM names our
 * stderr). An error is logged once, where it stops travelling, with the numbers and what to do; never with a client's
 * text. Lines that clients or devices can cause go through log_limited().
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERROR = 3, LOG_WARN = 4, LOG_INFO = 6, LOG_TRACE = 7 }; /* syslog's numbers */

void log_set_level(enum log_level level);
/* 0, or -EINVAL for a name other than error, warn, info, debug. */
int log_level_parse(const char *name, enum log_level *ret);

__attribute__((format(printf, 2, 3))) void log_line(enum log_level level, const char *fmt, ...);

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_TRACE, __VA_ARGS__)

/* A budget of lines for something hostile: 10 at once, refilled by one a second; what is dropped is counted and the
 * count stands in the next line that gets through. Zero-initialised is full. */
struct log_limit {
	uint64_t last_ns;
	uint32_t used;
	uint32_t dropped;
};

/* Whom a line is about: fields in the journal, beside the text that names them, too. 0 and NULL: nobody. */
struct log_about {
	const char *device; /* PASIDD_DEVICE */
	uint32_t context; /* PASIDD_CONTEXT */
	int32_t pid; /* PASIDD_CLIENT_PID, and with it */
	uint32_t uid; /* PASIDD_CLIENT_UID */
};

/* about NULL: nobody in particular; limit NULL: none. */
__attribute__((format(printf, 4, 5))) void log_about(const struct log_about *about, struct log_limit *limit,
						     enum log_level level, const char *fmt, ...);

#define log_limited(limit, level, ...) log_about(NULL, limit, level, __VA_ARGS__)

extern const char *log_journal_path; /* for tests, before the first line */

#endif
