/* SPDX-License-Identifier: MIT */
/*
 * Structs of callers, which may be older or newer than this library: each begins with its size, as a size_t, and only
 * what both sides know is copied. What the caller does not have reads as zero; what the library does not have is
 * ignored on the way in and zeroed on the way out.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

bool struct_size(const void *s, size_t *size)
{
	memcpy(size, s, sizeof(*size));
	return *size >= sizeof(*size) && *size <= STRUCT_SIZE_MAX;
}

bool struct_in(void *dst, size_t known, const void *src)
{
	size_t size;

	if (!struct_size(src, &size))
		return false;
	memset(dst, 0, known);
	memcpy(dst, src, size < known ? size : known);
	return true;
}

bool struct_out(void *dst, const void *src, size_t known)
{
	size_t size, n;

	if (!struct_size(dst, &size))
		return false;
	n = size < known ? size : known;
	memset((char *)dst + sizeof(size), 0, size - sizeof(size));
	memcpy((char *)dst + sizeof(size), (const char *)src + sizeof(size), n - sizeof(size));
	return true;
}

int name_in(struct pasid *p, char *dst, const char *name)
{
	size_t n = name ? strnlen(name, PASID_NAME_MAX) : 0;

	if (n == PASID_NAME_MAX)
		return failure(p, -ENAMETOOLONG, LOCAL_NAME, 0, 0);
	memset(dst, 0, PASID_NAME_MAX);
	if (n)
		memcpy(dst, name, n);
	return 0;
}
