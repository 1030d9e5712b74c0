/* SPDX-License-Identifier: MIT */
/* Errors: a name that a program can tell apart, and a sentence. */
#include "dbus/private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "sentence.h"

#define ERROR_PREFIX "org.pasidd.Error."

const char *refuse_name(const struct refusal *why)
{
	if (why->reason == PASID_WHY_NOT_MAPPED)
		return "NotMapped";
	switch (refusal_code(why->reason)) {
	case -ENOENT:
		return "NotFound";
	case -EEXIST:
		return "Exists";
	case -ERANGE:
		return "OutOfRange";
	case -EACCES:
		return "AccessDenied";
	case -EPERM:
		return "NotPermitted";
	case -EOPNOTSUPP:
		return "NotSupported";
	case -EIO:
		return "ContextLost";
	case -ENODEV:
		return "DeviceGone";
	case -EDQUOT:
		return "QuotaExceeded";
	default:
		return "InvalidArgument";
	}
}

int refuse_call(sd_bus_message *m, const char *name, const char *fmt, ...)
{
	char full[64], text[DBUS_ERROR_MAX];
	va_list ap;
	int r;

	snprintf(full, sizeof(full), ERROR_PREFIX "%s", name);
	if (!m)
		return 0;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	r = sd_bus_reply_method_errorf(m, full, "%s", text);
	return r < 0 ? r : 0;
}

int refuse_why(sd_bus_message *m, const struct refusal *why)
{
	char text[512];

	if (!sentence_put(text, sizeof(text), why->reason, why->n1, why->n2))
		snprintf(text, sizeof(text), "it was refused for reason %u", why->reason);
	return refuse_call(m, refuse_name(why), "%s", text);
}
