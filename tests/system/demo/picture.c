/* SPDX-License-Identifier: MIT */
/*
 * The statement as a picture: a font of 5x7 dots, a page of text, and the sum of its layers. See picture.h.
 *
 * The colours are chosen so that no byte of a picture, with any grain, is 0x00, 0x5a or 0xee: those are what the demo
 * marks memory with.
 */
#include <errno.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "picture.h"

#define GLYPH_ROWS 7u
#define GLYPH_COLUMNS 5u

/* Alpha, blue, green, red: red is the first byte in memory. */
const uint32_t picture_paper = 0xf0e0e4e6u;

static const uint32_t ink_colour[PICTURE_INKS] = {
	[PICTURE_BLACK] = 0xf0302824u,
	[PICTURE_BLUE] = 0xf0a04820u,
	[PICTURE_RED] = 0xf02030b8u,
};

struct glyph {
	char c;
	uint8_t row[GLYPH_ROWS]; /* bit 4 is the leftmost dot */
};

static const struct glyph font[] = {
	{'0', {0x0e, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0e}}, {'1', {0x04, 0x0c, 0x04, 0x04, 0x04, 0x04, 0x0e}},
	{'2', {0x0e, 0x11, 0x01, 0x06, 0x08, 0x10, 0x1f}}, {'3', {0x1e, 0x01, 0x01, 0x0e, 0x01, 0x01, 0x1e}},
	{'4', {0x02, 0x06, 0x0a, 0x12, 0x1f, 0x02, 0x02}}, {'5', {0x1f, 0x10, 0x1e, 0x01, 0x01, 0x11, 0x0e}},
	{'6', {0x06, 0x08, 0x10, 0x1e, 0x11, 0x11, 0x0e}}, {'7', {0x1f, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08}},
	{'8', {0x0e, 0x11, 0x11, 0x0e, 0x11, 0x11, 0x0e}}, {'9', {0x0e, 0x11, 0x11, 0x0f, 0x01, 0x02, 0x0c}},
	{'A', {0x04, 0x0a, 0x11, 0x11, 0x1f, 0x11, 0x11}}, {'B', {0x1e, 0x11, 0x11, 0x1e, 0x11, 0x11, 0x1e}},
	{'C', {0x0e, 0x11, 0x10, 0x10, 0x10, 0x11, 0x0e}}, {'D', {0x1e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x1e}},
	{'E', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f}}, {'F', {0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x10}},
	{'G', {0x0e, 0x11, 0x10, 0x17, 0x11, 0x11, 0x0f}}, {'H', {0x11, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11}},
	{'I', {0x0e, 0x04, 0x04, 0x04, 0x04, 0x04, 0x0e}}, {'J', {0x07, 0x02, 0x02, 0x02, 0x02, 0x12, 0x0c}},
	{'K', {0x11, 0x12, 0x14, 0x18, 0x14, 0x12, 0x11}}, {'L', {0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1f}},
	{'M', {0x11, 0x1b, 0x15, 0x15, 0x11, 0x11, 0x11}}, {'N', {0x11, 0x19, 0x15, 0x13, 0x11, 0x11, 0x11}},
	{'O', {0x0e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}}, {'P', {0x1e, 0x11, 0x11, 0x1e, 0x10, 0x10, 0x10}},
	{'Q', {0x0e, 0x11, 0x11, 0x11, 0x15, 0x12, 0x0d}}, {'R', {0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11}},
	{'S', {0x0f, 0x10, 0x10, 0x0e, 0x01, 0x01, 0x1e}}, {'T', {0x1f, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04}},
	{'U', {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e}}, {'V', {0x11, 0x11, 0x11, 0x11, 0x0a, 0x0a, 0x04}},
	{'W', {0x11, 0x11, 0x11, 0x15, 0x15, 0x1b, 0x11}}, {'X', {0x11, 0x11, 0x0a, 0x04, 0x0a, 0x11, 0x11}},
	{'Y', {0x11, 0x11, 0x0a, 0x04, 0x04, 0x04, 0x04}}, {'Z', {0x1f, 0x01, 0x02, 0x04, 0x08, 0x10, 0x1f}},
	{'.', {0x00, 0x00, 0x00, 0x00, 0x00, 0x0c, 0x0c}}, {',', {0x00, 0x00, 0x00, 0x00, 0x0c, 0x04, 0x08}},
	{':', {0x00, 0x0c, 0x0c, 0x00, 0x0c, 0x0c, 0x00}}, {'-', {0x00, 0x00, 0x00, 0x1f, 0x00, 0x00, 0x00}},
	{'+', {0x00, 0x04, 0x04, 0x1f, 0x04, 0x04, 0x00}}, {'/', {0x01, 0x01, 0x02, 0x04, 0x08, 0x10, 0x10}},
	{'!', {0x04, 0x04, 0x04, 0x04, 0x04, 0x00, 0x04}}, {'*', {0x00, 0x15, 0x0e, 0x1f, 0x0e, 0x15, 0x00}},
};

static const struct {
	const char *text;
	enum picture_ink ink;
} lines[] = {
	{"ACCOUNT STATEMENT            NOVEMBER", PICTURE_BLUE},
	{"", PICTURE_BLACK},
	{"HOLDER    A. N. OTHER", PICTURE_BLACK},
	{"ACCOUNT   #", PICTURE_BLACK}, /* completed with the number */
	{"", PICTURE_BLACK},
	{"DATE    DETAILS                        AMOUNT", PICTURE_BLUE},
	{"", PICTURE_BLACK},
	{"01/11   BALANCE BROUGHT FORWARD    +12,804.17", PICTURE_BLACK},
	{"03/11   RENT                        -1,150.00", PICTURE_RED},
	{"07/11   GROCERIES                      -86.42", PICTURE_RED},
	{"11/11   TRAIN TICKET                   -39.90", PICTURE_RED},
	{"15/11   SALARY                      +3,412.55", PICTURE_BLACK},
	{"19/11   DENTIST                       -240.00", PICTURE_RED},
	{"23/11   INSURANCE                     -118.75", PICTURE_RED},
	{"28/11   INTEREST                        +4.06", PICTURE_BLACK},
	{"", PICTURE_BLACK},
	{"        NEW BALANCE                +14,585.71", PICTURE_BLUE},
	{"", PICTURE_BLACK},
	{"FOR YOUR EYES ONLY", PICTURE_BLACK},
};

uint32_t picture_ink_word(enum picture_ink ink)
{
	return ink_colour[ink] - picture_paper;
}

static const struct glyph *glyph_find(char c)
{
	size_t i;

	for (i = 0; i < sizeof(font) / sizeof(font[0]); i++)
		if (font[i].c == c)
			return &font[i];
	return NULL;
}

void picture_cell(uint32_t *cell, char c, enum picture_ink ink)
{
	const struct glyph *g = glyph_find(c);
	uint32_t x, y;

	memset(cell, 0, PICTURE_CELL_WORDS * sizeof(*cell));
	if (!g)
		return;
	for (y = 0; y < 2 * GLYPH_ROWS; y++)
		for (x = 0; x < 2 * GLYPH_COLUMNS; x++)
			if (g->row[y / 2] >> (GLYPH_COLUMNS - 1 - x / 2) & 1)
				cell[y * PICTURE_CELL_WIDTH + x] = picture_ink_word(ink);
}

static struct picture_item item_rect(uint32_t x, uint32_t y, uint32_t width, uint32_t height, enum picture_ink ink)
{
	return (struct picture_item){.x = x, .y = y, .width = width, .height = height, .ink = ink};
}

/* Adds the characters of a line that leave dots. Returns the new number of items, beyond max if there is no room. */
static size_t items_add_text(struct picture_item *items, size_t n, size_t max, uint32_t y, const char *text,
			     enum picture_ink ink)
{
	uint32_t x = 36;

	for (; *text; text++, x += PICTURE_CELL_WIDTH) {
		if (!glyph_find(*text))
			continue;
		if (n < max)
			items[n] = (struct picture_item){.x = x,
							 .y = y,
							 .width = PICTURE_CELL_WIDTH,
							 .height = PICTURE_CELL_HEIGHT,
							 .ink = ink,
							 .c = *text};
		n++;
	}
	return n;
}

size_t picture_items(struct picture_item *items, size_t max, uint32_t account)
{
	uint32_t y = 34;
	char text[64];
	size_t i, n = 6;

	if (max < n)
		return 0;
	items[0] = item_rect(12, 12, 616, 3, PICTURE_BLUE);
	items[1] = item_rect(12, 385, 616, 3, PICTURE_BLUE);
	items[2] = item_rect(12, 15, 3, 370, PICTURE_BLUE);
	items[3] = item_rect(625, 15, 3, 370, PICTURE_BLUE);
	items[4] = item_rect(36, 147, 568, 2, PICTURE_BLACK);
	items[5] = item_rect(36, 310, 568, 2, PICTURE_BLACK);
	for (i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		if (strchr(lines[i].text, '#'))
			snprintf(text, sizeof(text), "%.*s%04u %04u", (int)strcspn(lines[i].text, "#"), lines[i].text,
				 account / 10000 % 10000, account % 10000);
		else
			snprintf(text, sizeof(text), "%s", lines[i].text);
		n = items_add_text(items, n, max, y, text, lines[i].ink);
		y += PICTURE_CELL_HEIGHT + 2;
	}
	return n <= max ? n : 0;
}

int picture_grain(uint32_t *grain)
{
	size_t done = 0, size = PICTURE_GRAIN_WORDS * sizeof(*grain);
	size_t i;

	while (done < size) {
		ssize_t n = getrandom((char *)grain + done, size - done, 0);
		int err = errno;

		if (n < 0 && err != EINTR)
			return -err;
		if (n > 0)
			done += (size_t)n;
	}
	for (i = 0; i < PICTURE_GRAIN_WORDS; i++)
		grain[i] &= 0x07070707u;
	return 0;
}

static void layer_put(uint32_t *layer, const struct picture_item *item)
{
	uint32_t cell[PICTURE_CELL_WORDS];
	uint32_t x, y;

	picture_cell(cell, item->c, item->ink);
	for (y = 0; y < item->height; y++)
		for (x = 0; x < item->width; x++)
			layer[(item->y + y) * PICTURE_WIDTH + item->x + x] =
				item->c ? cell[y * PICTURE_CELL_WIDTH + x] : picture_ink_word(item->ink);
}

void picture_draw(uint32_t *out, const uint32_t *grain, const struct picture_item *items, size_t n)
{
	size_t i;

	memset(out, 0, PICTURE_BYTES);
	for (i = 0; i < n; i++)
		layer_put(out, &items[i]);
	for (i = 0; i < PICTURE_WORDS; i++)
		out[i] += picture_paper + grain[i % PICTURE_GRAIN_WORDS];
}

void picture_text(uint32_t *layer, uint32_t x, uint32_t y, const char *text, enum picture_ink ink)
{
	struct picture_item item = {
		.x = x, .y = y, .width = PICTURE_CELL_WIDTH, .height = PICTURE_CELL_HEIGHT, .ink = ink};

	for (; *text && item.x + item.width <= PICTURE_WIDTH; text++, item.x += PICTURE_CELL_WIDTH) {
		item.c = *text;
		layer_put(layer, &item);
	}
}

int picture_write_png(const char *path, const uint32_t *words)
{
	png_image image = {.version = PNG_IMAGE_VERSION, .width = PICTURE_WIDTH, .height = PICTURE_HEIGHT};
	uint8_t *rgb = malloc(PICTURE_WORDS * 3u);
	size_t i;
	int ok;

	if (!rgb)
		return -ENOMEM;
	for (i = 0; i < PICTURE_WORDS; i++) {
		rgb[i * 3] = words[i] & 0xff;
		rgb[i * 3 + 1] = words[i] >> 8 & 0xff;
		rgb[i * 3 + 2] = words[i] >> 16 & 0xff;
	}
	image.format = PNG_FORMAT_RGB;
	ok = png_image_write_to_file(&image, path, 0, rgb, 0, NULL);
	free(rgb);
	return ok ? 0 : -EIO;
}
