/* SPDX-License-Identifier: MIT */
/* Bytes as the firmware's table IORT, with a header that fits so that they are looked at. */
#include <stdlib.h>
#include <string.h>

#include "iort.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t n = size + 8;
	unsigned char *table = malloc(n);

	if (!table)
		return 0;
	memcpy(table, "IORT", 4);
	for (int i = 0; i < 4; i++)
		table[4 + i] = (unsigned char)(n >> 8 * i);
	if (size)
		memcpy(table + 8, data, size);
	if (iort_parse(table, n, 0) < IORT_UNREADABLE)
		abort(); /* they speak of the file */
	free(table);
	return 0;
}
