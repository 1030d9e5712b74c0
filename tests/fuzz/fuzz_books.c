/* SPDX-License-Identifier: MIT */
/* Bytes as choices: which verb next, for whom, with what. The model of the unit tests judges every answer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define check(c)                                                                \
	do {                                                                    \
		if (!(c)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #c); \
			abort();                                                \
		}                                                               \
	} while (0)

static const uint8_t *input;
static size_t left;

static uint32_t draw(uint32_t below)
{
	if (!left)
		return 0;
	left--;
	return *input++ % below;
}

#include "unit/books_rig_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct rig g;

	input = data;
	left = size;
	rig_init(&g);
	for (unsigned int i = 0; left; i++) {
		rig_verb(&g);
		if (i % 8 == 0) /* most of the time goes there */
			rig_check(&g);
	}
	rig_end(&g);
	return 0;
}
