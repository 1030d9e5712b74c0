/* SPDX-License-Identifier: MIT */
/*
 * The statement as a picture: paper with a random grain, and ink. The picture is the word-wise sum of three layers
 * (paper colour, grain, ink), which a GPU adds up as easily as a CPU does; here is the CPU's way, and everything that
 * both ways need. Pixels are 32-bit words; all four bytes of a pixel carry grain, so each byte of a statement is one
 * that nobody can guess.
 */
#ifndef DEMO_PICTURE_H
#define DEMO_PICTURE_H

#include <stddef.h>
#include <stdint.h>

#define PICTURE_WIDTH 640u
#define PICTURE_HEIGHT 400u
#define PICTURE_PITCH (PICTURE_WIDTH * 4u)
#define PICTURE_WORDS (PICTURE_WIDTH * PICTURE_HEIGHT)
#define PICTURE_BYTES (PICTURE_WORDS * 4u) /* 250 pages */

#define PICTURE_GRAIN_ROWS 50u /* the grain repeats after so many rows */
#define PICTURE_GRAIN_WORDS (PICTURE_GRAIN_ROWS * PICTURE_WIDTH)

#define PICTURE_CELL_WIDTH 12u /* a character, pixels */
#define PICTURE_CELL_HEIGHT 16u
#define PICTURE_CELL_WORDS (PICTURE_CELL_WIDTH * PICTURE_CELL_HEIGHT)
#define PICTURE_CHARS 96u /* from the space on */

enum picture_ink { PICTURE_BLACK, PICTURE_BLUE, PICTURE_RED, PICTURE_INKS };

/* One thing to draw into the ink layer: a character, or a filled rectangle where c is 0. */
struct picture_item {
	uint32_t x;
	uint32_t y;
	uint32_t width;
	uint32_t height;
	enum picture_ink ink;
	char c;
};

extern const uint32_t picture_paper;

/* The word that, added to paper, gives this ink. */
uint32_t picture_ink_word(enum picture_ink ink);

/* Draws the character into cell, PICTURE_CELL_WIDTH words a row: ink where it is black, 0 elsewhere. */
void picture_cell(uint32_t *cell, char c, enum picture_ink ink);

/* Lists the items of a statement for this account number; items has room for max of them. Returns how many there are,
 * or 0 if they are more. */
size_t picture_items(struct picture_item *items, size_t max, uint32_t account);

/* Fills grain with PICTURE_GRAIN_WORDS random words, each byte of them 0 to 7. 0 or -errno. */
int picture_grain(uint32_t *grain);

/* The whole statement, drawn by the CPU: PICTURE_WORDS words. */
void picture_draw(uint32_t *out, const uint32_t *grain, const struct picture_item *items, size_t n);

/* Draws text with its upper left corner at x, y into a zeroed layer of PICTURE_WIDTH words a row. */
void picture_text(uint32_t *layer, uint32_t x, uint32_t y, const char *text, enum picture_ink ink);

/* Writes the colours of PICTURE_WORDS words as a PNG. 0 or -errno. */
int picture_write_png(const char *path, const uint32_t *words);

#endif
