/* SPDX-License-Identifier: MIT */
/*
 * Bytes as a journal's file. The first one says which checksums are made to fit, so that what is behind them is reached:
 * lengths, sequences, ends. What is opened is read whole, appended to, and replaced.
 */
#include <errno.h>
#include <stdlib.h>

#include "store/journal.h"
#include "unit/journal_rig.h"

enum { MEND_HEADS = 1, MEND_ENTRIES = 2, MEND_PUBLISHED = 4, GIVE_MAGIC = 8 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
	if (!ok)
		abort();
}

static uint32_t mend_entries(struct image *i, uint32_t crc)
{
	uint8_t *area = i->area[image_area(i)];
	uint64_t at = RIG_FIRST, end = image_end(i), bytes;

	for (uint32_t n = 0; at + 16 <= end && end <= sizeof(i->area[0]); n++, at += bytes) {
		bytes = journal_entry_bytes(get32(area + at + 4));
		if (bytes > end - at)
			break;
		put32(area + at + 12, n);
		crc = crc32c(0, area + at + 4, bytes - 4);
		put32(area + at, crc);
	}
	return crc;
}

static void fill(struct image *i, const uint8_t *data, size_t size)
{
	static const struct {
		size_t at, size;
	} parts[] = {{8, 4}, {RIG_PUBLISHED, 8}};
	uint32_t crc = 0;
	uint8_t how = size ? data[0] : 0;

	memset(i, 0, sizeof(*i));
	data += size > 0;
	size -= size > 0;
	for (size_t n = 0; n < ARRAY_SIZE(parts); n++) {
		size_t part = size < parts[n].size ? size : parts[n].size;

		memcpy(i->head + parts[n].at, data, part);
		data += part;
		size -= part;
	}
	if (how & GIVE_MAGIC)
		memcpy(i->head, "pasiddjl\1\0\0", 12);
	memcpy(i->area[image_area(i)], data, size < sizeof(i->area[0]) ? size : sizeof(i->area[0]));
	if (how & MEND_HEADS)
		image_mend_heads(i, &crc);
	if (how & MEND_ENTRIES)
		crc = mend_entries(i, crc);
	if (how & MEND_PUBLISHED)
		image_mend_published(i, crc);
}

static int each(void *arg, const struct journal_entry *e)
{
	const uint8_t *bytes = e->p;

	check(e->type != 0 && e->version <= 7);
	for (size_t n = 0; n < e->size; n++)
		*(uint32_t *)arg += bytes[n];
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct image i;
	char text[] = "entry";
	struct iovec v = {text, 5};
	char why[JOURNAL_WHY_MAX] = "";
	struct journal *j;
	uint32_t sum = 0;
	int fd, r;

	fill(&i, data, size);
	fd = image_file(&i);
	check(fd >= 0);
	r = journal_open(&j, fd, 7, why);
	check(r == 0 || r == -EBADMSG || r == -EPROTONOSUPPORT || r == -ENOMEM || r == -ENOSPC);
	if (r < 0) {
		check(r == -ENOMEM || r == -ENOSPC || why[0]);
		close(fd);
		return 0;
	}
	check(journal_read(j, each, &sum) == 0);
	check(journal_room(j, journal_entry_bytes(5)) == 0);
	journal_append(j, 3, &v, 1);
	check(journal_read(j, each, &sum) == 0);
	check(journal_begin(j, journal_entry_bytes(5)) == 0);
	journal_append(j, 1, &v, 1);
	journal_switch(j);
	check(journal_room(j, journal_entry_bytes(5)) == 0);
	journal_append(j, 2, &v, 1);
	check(journal_read(j, each, &sum) == 0 && journal_bytes(j) == 16 + 2 * journal_entry_bytes(5));
	journal_free(j);
	return 0;
}
