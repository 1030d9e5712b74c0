/* SPDX-License-Identifier: MIT */
/* Why something failed, in a sentence. */
#include <stdarg.h>
#include <stdio.h>

#include "transport/vfio_priv.h"

int vfio_fail(struct vfio_why *why, int error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why->text, sizeof(why->text), fmt, ap);
	va_end(ap);
	return error;
}
