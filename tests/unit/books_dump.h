/* SPDX-License-Identifier: MIT */
/* All that the books know, as text, to compare. */
#ifndef UNIT_BOOKS_DUMP_H
#define UNIT_BOOKS_DUMP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "core/books.h"

/* The caller frees it. */
static char *dump(struct books *b)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	assert_non_null(f);
	books_dump(b, f);
	fclose(f);
	return text;
}

#endif
