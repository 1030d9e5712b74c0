/* SPDX-License-Identifier: MIT */
/*
 * What pasid_error() says: one line of English about a failure, which is a reason and two numbers, whether the daemon sent
 * them or the library found out by itself. What could not be done, the call says; why, and what to do about it, sentence.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

static _Thread_local char connect_error[ERROR_MAX] = "no connection was tried";

int failure(struct pasid *p, int code, uint32_t reason, uint64_t n1, uint64_t n2)
{
	p->why.reason = reason;
	p->why.n1 = n1;
	p->why.n2 = n2;
	return code;
}

const char *error_lost_why(uint32_t why)
{
	switch (why) {
	case PASID_LOST_HANG:
		return "a job of it ran beyond the job limit and was stopped";
	case PASID_LOST_DEVICE:
		return "its device is gone";
	case PASID_LOST_DAEMON:
		return "pasidd could not keep its page tables true";
	case PASID_LOST_CLOSED:
		return "an administrator closed it";
	default:
		return "its work was stopped";
	}
}

static void why_text(char *buf, size_t len, int code, const struct failure *w)
{
	if (w->reason == LOCAL_SYSTEM) {
		snprintf(buf, len, "%s", strerrordesc_np(-code) ? strerrordesc_np(-code) : "unknown error");
		return;
	}
	if (!sentence_put(buf, len, w->reason, w->n1, w->n2))
		snprintf(buf, len,
			 "pasidd refused it for reason %u (%s; %" PRIu64 ", %" PRIu64 "), which this library is too"
			 " old to know",
			 w->reason, strerrorname_np(-code) ? strerrorname_np(-code) : "?", w->n1, w->n2);
}

static void compose(char *buf, int code, const struct failure *w, const char *fmt, va_list ap)
	__attribute__((format(printf, 4, 0), nonnull(4)));

static void compose(char *buf, int code, const struct failure *w, const char *fmt, va_list ap)
{
	size_t n;

	strcpy(buf, "cannot ");
	n = strlen(buf);
	vsnprintf(buf + n, ERROR_MAX / 2, fmt, ap);
	n += strlen(buf + n);
	strcpy(buf + n, ": ");
	n += 2;
	why_text(buf + n, ERROR_MAX - n, code, w);
}

int error_call(struct pasid *p, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	compose(p->error, code, &p->why, fmt, ap);
	va_end(ap);
	return code;
}

int error_connect(const struct pasid *p, int code, const char *fmt, ...)
{
	static const struct failure sys = {.reason = LOCAL_SYSTEM};
	va_list ap;

	va_start(ap, fmt);
	compose(connect_error, code, p ? &p->why : &sys, fmt, ap);
	va_end(ap);
	if (!p && (code == -ENOENT || code == -ECONNREFUSED) && strlen(connect_error) < ERROR_MAX - 24)
		strcat(connect_error, "; is pasidd running?");
	return code;
}

const char *pasid_error(const struct pasid *p)
{
	return p ? p->error : connect_error;
}
