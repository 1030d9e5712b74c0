/* SPDX-License-Identifier: MIT */
/*
 * See iort.h. Source: Arm DEN0049 (IO Remapping Table), "Node format", "PCI root complex node", "Memory access properties";
 * CANWBS is in revision E.f. ACPI specification 6.5, 5.2.6 (table header). As Linux does, drivers/acpi/arm64/iort.c, the
 * first root complex of a segment is taken, whatever its node's revision.
 */
#include "iort.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define TABLE_MAX (1u << 20) /* servers' have some 10 KiB */

#define LENGTH 4u /* of the table */
#define NODE_COUNT 36u
#define NODE_OFFSET 40u
#define NODES_MIN 48u /* no node before that */

#define NODE_LENGTH 1u
#define NODE_MIN 16u
#define ROOT_COMPLEX 2u
#define ROOT_MEMORY_FLAGS 23u
#define ROOT_CANWBS (1u << 2)
#define ROOT_SEGMENT 28u
#define ROOT_MIN 32u

static uint32_t get16(const unsigned char *p)
{
	return p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get32(const unsigned char *p)
{
	return get16(p) | get16(p + 2) << 16;
}

/* A whole table has the length that it says. */
static bool is_table(const unsigned char *bytes, size_t n)
{
	return n >= NODES_MIN && !memcmp(bytes, "IORT", 4) && get32(bytes + LENGTH) == n;
}

enum iort iort_parse(const unsigned char *bytes, size_t n, uint32_t segment)
{
	size_t at, length;

	if (!is_table(bytes, n))
		return IORT_UNREADABLE;
	at = get32(bytes + NODE_OFFSET);
	/* A node is never empty, so that a count which lies ends at the end of the table. */
	for (uint32_t left = get32(bytes + NODE_COUNT); left; left--, at += length) {
		const unsigned char *node;

		if (at < NODES_MIN || at > n || n - at < NODE_MIN)
			return IORT_UNREADABLE;
		node = bytes + at;
		length = get16(node + NODE_LENGTH);
		if (length < NODE_MIN || length > n - at)
			return IORT_UNREADABLE;
		if (node[0] != ROOT_COMPLEX)
			continue;
		if (length < ROOT_MIN)
			return IORT_UNREADABLE;
		if (get32(node + ROOT_SEGMENT) == segment)
			return node[ROOT_MEMORY_FLAGS] & ROOT_CANWBS ? IORT_COHERENT : IORT_NOT_COHERENT;
	}
	return IORT_NO_ROOT;
}

enum iort iort_read(const struct machine *m, uint32_t segment)
{
	AUTO_FREE unsigned char *bytes = malloc(TABLE_MAX);
	size_t n;
	int r = bytes ? machine_bytes(m, bytes, TABLE_MAX, &n, "sys/firmware/acpi/tables/IORT") : -ENOMEM;

	if (r == -ENOENT)
		return IORT_NONE;
	if (r == -EACCES || r == -EPERM)
		return IORT_NO_RIGHT;
	return r < 0 ? IORT_UNREADABLE : iort_parse(bytes, n, segment);
}
