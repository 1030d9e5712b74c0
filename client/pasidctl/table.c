/* SPDX-License-Identifier: MIT */
/* See table.h. */
#include "table.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COLUMNS_MOST 16u

static const char *const codes[] = {
	[COLOUR_NONE] = "",          [COLOUR_BOLD] = "\033[1m",    [COLOUR_RED] = "\033[31m",
	[COLOUR_GREEN] = "\033[32m", [COLOUR_YELLOW] = "\033[33m",
};

void table_fini(struct table *t)
{
	for (size_t i = 0; i < t->n_rows * t->n_columns; i++)
		free(t->cells[i]);
	free(t->cells);
	free(t->colours);
	t->cells = NULL;
	t->colours = NULL;
	t->n_rows = 0;
}

void table_row(struct table *t, enum colour colour)
{
	char **cells = realloc(t->cells, (t->n_rows + 1) * t->n_columns * sizeof(*cells));
	enum colour *colours = realloc(t->colours, (t->n_rows + 1) * sizeof(*colours));

	t->cells = cells ? cells : t->cells;
	t->colours = colours ? colours : t->colours;
	if (!cells || !colours) {
		t->no_memory = true;
		return;
	}
	memset(&cells[t->n_rows * t->n_columns], 0, t->n_columns * sizeof(*cells));
	colours[t->n_rows++] = colour;
}

void table_cell(struct table *t, size_t column, const char *fmt, ...)
{
	char **cell;
	va_list ap;

	if (t->no_memory)
		return;
	cell = &t->cells[(t->n_rows - 1) * t->n_columns + column];
	va_start(ap, fmt);
	if (vasprintf(cell, fmt, ap) < 0) {
		*cell = NULL;
		t->no_memory = true;
	}
	va_end(ap);
}

static const char *cell_of(const struct table *t, size_t row, size_t column)
{
	const char *s = t->cells[row * t->n_columns + column];

	return s ? s : "";
}

/* Its cells in one line, cut at `width` bytes if that is not 0, and nothing behind the last one. */
static void print_line(const struct table *t, FILE *f, const size_t *widths, const char *const *cells, size_t width)
{
	size_t blanks = 0, used = 0;

	for (size_t c = 0; c < t->n_columns; c++) {
		size_t n = strlen(cells[c]), pad = widths[c] - n;
		bool number = t->columns[c][0] == '>';

		blanks += number ? pad : 0;
		if (n && width && used + blanks + n > width)
			n = width > used + blanks ? width - used - blanks : 0;
		if (n) {
			fprintf(f, "%*s%.*s", (int)blanks, "", (int)n, cells[c]);
			used += blanks + n;
			blanks = 0;
		}
		blanks += (number ? 0 : pad) + 2;
	}
}

void table_print(const struct table *t, FILE *f, bool coloured, size_t rows, size_t width)
{
	const char *cells[COLUMNS_MOST];
	size_t widths[COLUMNS_MOST];

	for (size_t c = 0; c < t->n_columns; c++) {
		cells[c] = t->columns[c] + (t->columns[c][0] == '>');
		widths[c] = strlen(cells[c]);
		for (size_t r = 0; r < t->n_rows; r++)
			if (strlen(cell_of(t, r, c)) > widths[c])
				widths[c] = strlen(cell_of(t, r, c));
	}
	fputs(coloured ? codes[COLOUR_BOLD] : "", f);
	print_line(t, f, widths, cells, width);
	fputs(coloured ? "\033[0m\n" : "\n", f);
	for (size_t r = 0; r < t->n_rows && (!rows || r < rows); r++) {
		for (size_t c = 0; c < t->n_columns; c++)
			cells[c] = cell_of(t, r, c);
		fputs(coloured ? codes[t->colours[r]] : "", f);
		print_line(t, f, widths, cells, width);
		fputs(coloured && t->colours[r] ? "\033[0m\n" : "\n", f);
	}
}

bool table_coloured(FILE *f)
{
	const char *term = getenv("TERM");

	return isatty(fileno(f)) && term && strcmp(term, "dumb") != 0;
}

const char *table_bytes(uint64_t bytes, char to[16])
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	size_t i = 0;

	for (; v >= 1024 && i + 1 < sizeof(units) / sizeof(units[0]); i++)
		v /= 1024;
	snprintf(to, 16, i && v < 100 ? "%.1f %s" : "%.0f %s", v, units[i]);
	return to;
}
