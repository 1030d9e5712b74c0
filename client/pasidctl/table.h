/* SPDX-License-Identifier: MIT */
/* Text in columns, as wide as what stands in them; colours where a terminal reads. */
#ifndef PASIDCTL_TABLE_H
#define PASIDCTL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum colour { COLOUR_NONE, COLOUR_BOLD, COLOUR_RED, COLOUR_GREEN, COLOUR_YELLOW };

struct table {
	const char *const *columns; /* their names; those that begin with '>' are numbers */
	size_t n_columns;
	char **cells; /* n_rows of n_columns */
	enum colour *colours; /* of rows */
	size_t n_rows;
	bool no_memory;
};

#define TABLE(names)                                                                \
	{                                                                           \
		.columns = (names), .n_columns = sizeof(names) / sizeof((names)[0]) \
	}

void table_fini(struct table *t);
#define AUTO_TABLE __attribute__((cleanup(table_fini)))

void table_row(struct table *t, enum colour colour);
/* The next row's cells, each column once. */
__attribute__((format(printf, 3, 4))) void table_cell(struct table *t, size_t column, const char *fmt, ...);
/* rows and width: at most; 0: all. */
void table_print(const struct table *t, FILE *f, bool coloured, size_t rows, size_t width);

/* Does a terminal read it that knows colours? */
bool table_coloured(FILE *f);
/* "1.5 MiB". */
const char *table_bytes(uint64_t bytes, char to[16]);

#endif
