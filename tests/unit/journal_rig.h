/* SPDX-License-Identifier: MIT */
/*
 * A journal's file as seen from outside: its format once more (daemon/store/journal.c), copies of it such as a successor
 * finds, and checksums made to fit again.
 */
#ifndef TESTS_JOURNAL_RIG_H
#define TESTS_JOURNAL_RIG_H

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "store/crc32c.h"

#define RIG_HEAD 4096ull
#define RIG_AREA (4ull << 30)
#define RIG_FILE (RIG_HEAD + 2 * RIG_AREA)
#define RIG_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define RIG_PUBLISHED 64u /* where in the head */
#define RIG_FIRST 16u /* where in an area is the first entry */

/* The parts of a small journal. */
struct image {
	uint8_t head[128];
	uint8_t area[2][16384];
};

static inline uint64_t image_published(const struct image *i)
{
	uint64_t word;

	memcpy(&word, i->head + RIG_PUBLISHED, 8);
	return word;
}

static inline unsigned int image_area(const struct image *i)
{
	return image_published(i) >> 31 & 1;
}

static inline uint64_t image_end(const struct image *i)
{
	return (image_published(i) & 0x7fffffff) * 8;
}

static inline bool image_load(struct image *i, int fd)
{
	bool ok = pread(fd, i->head, sizeof(i->head), 0) == sizeof(i->head);

	for (unsigned int a = 0; a < 2; a++)
		ok &= pread(fd, i->area[a], sizeof(i->area[a]), (off_t)(RIG_HEAD + a * RIG_AREA)) == sizeof(i->area[a]);
	return ok;
}

/* A file of its own with that in it; -1. */
static inline int image_file(const struct image *i)
{
	AUTO_CLOSE int fd = memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)RIG_FILE) < 0 || fcntl(fd, F_ADD_SEALS, RIG_SEALS) < 0 ||
	    pwrite(fd, i->head, sizeof(i->head), 0) != sizeof(i->head))
		return -1;
	for (unsigned int a = 0; a < 2; a++)
		if (pwrite(fd, i->area[a], sizeof(i->area[a]), (off_t)(RIG_HEAD + a * RIG_AREA)) != sizeof(i->area[a]))
			return -1;
	return util_take_fd(&fd);
}

static inline void put32(uint8_t *p, uint32_t value)
{
	memcpy(p, &value, 4);
}

static inline uint32_t get32(const uint8_t *p)
{
	uint32_t value;

	memcpy(&value, p, 4);
	return value;
}

/* The two heads' checksums as they should be; *crc is the area's. */
static inline void image_mend_heads(struct image *i, uint32_t *crc)
{
	uint8_t *area = i->area[image_area(i)];

	put32(i->head + 12, crc32c(0, i->head, 12));
	*crc = crc32c(0, area + 4, 12);
	put32(area, *crc);
}

static inline void image_mend_published(struct image *i, uint32_t crc)
{
	put32(i->head + RIG_PUBLISHED + 4, crc32c(crc, i->head + RIG_PUBLISHED, 4));
}

#endif
