/* SPDX-License-Identifier: MIT */
/*
 * See journal.h. The file: a head, then two areas at fixed places, of which one counts and the other is a hole or a
 * snapshot in the making. All numbers are little-endian.
 *
 *   head        magic, format, their checksum; `published`: which area counts, how far, and a checksum
 *   area        struct area_head, then entries without gaps, each padded to 8 bytes; an entry of type 0 says that those
 *               behind it are of a later version
 *
 * `published` is one aligned 64-bit word, stored last and with release order, by an append and by a switch. Its checksum
 * is over itself and the last entry's, so a word that does not belong to these entries is found out.
 *
 * Bytes below `taken` of an area have memory: what the kernel gave by fallocate(2) stays, as the file is sealed and
 * nobody but us punches holes.
 */
#include "store/journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/util.h"
#include "store/crc32c.h"

#define MAGIC "pasiddjl"
#define FORMAT 1u
#define HEAD_BYTES UINT64_C(4096)
#define AREA_BYTES (UINT64_C(4) << 30)
#define FILE_BYTES (HEAD_BYTES + 2 * AREA_BYTES)
#define CHUNK_MIN (UINT64_C(256) << 10)
#define CHUNK_MAX (UINT64_C(4) << 20) /* no append waits for more memory than that */
#define SLACK (UINT64_C(64) << 10)
#define TYPE_VERSION 0u /* an entry of our own: those behind it are of the version that is its payload */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* The first 16 bytes are the same in every format to come. */
struct head {
	char magic[8];
	uint32_t format;
	uint32_t crc; /* of magic and format */
	uint64_t zero[6];
	uint64_t published; /* struct published */
};

/* As one word: the place in the lower half. */
struct published {
	uint32_t place; /* the end in the area, in units of 8 bytes; AREA_BIT: the second area */
	uint32_t crc; /* of the place, on top of the last entry's or, if there is none, the area head's */
};

#define AREA_BIT (UINT32_C(1) << 31)

struct area_head {
	uint32_t crc; /* of the rest */
	uint32_t version; /* of the first entries: their writer's */
	uint64_t snapshot_end; /* in the area */
};

struct entry {
	uint32_t crc; /* of all the rest, with the padding */
	uint32_t size; /* of the payload */
	uint32_t type;
	uint32_t sequence; /* from 0 in each area */
};

_Static_assert(sizeof(struct head) == 72 && offsetof(struct head, published) == 64, "the head of the file");
_Static_assert(sizeof(struct area_head) == 16 && sizeof(struct entry) == 16, "what areas consist of");
_Static_assert(AREA_BYTES / 8 < AREA_BIT, "an end fits its word");

struct area {
	uint8_t *base;
	uint32_t version; /* of its last entries */
	uint64_t end; /* of what was appended */
	uint64_t taken; /* has memory up to there */
	uint32_t sequence; /* of the next entry */
	uint32_t crc; /* of the last entry, or of the head */
};

struct journal {
	int fd;
	struct head *head; /* the whole file, mapped */
	struct area areas[2];
	unsigned int current; /* the area that counts */
	bool snapshot; /* appends go to the other one */
	uint32_t version; /* the caller's */
};

static struct area_head *area_head(const struct area *a)
{
	return (struct area_head *)(void *)a->base;
}

static struct area *writing(struct journal *j)
{
	return &j->areas[j->snapshot ? !j->current : j->current];
}

static uint64_t area_offset(const struct journal *j, const struct area *a)
{
	return (uint64_t)(a->base - (uint8_t *)j->head);
}

static struct journal *journal_close(struct journal *j)
{
	if (!j)
		return NULL;
	if (j->head)
		munmap(j->head, FILE_BYTES);
	free(j);
	return NULL;
}

static void closep(struct journal **j)
{
	journal_close(*j);
}

#define AUTO_JOURNAL __attribute__((cleanup(closep)))

/* Does not own the fd yet. */
static int journal_map(struct journal **ret, int fd, uint32_t version)
{
	AUTO_JOURNAL struct journal *j = calloc(1, sizeof(*j));

	if (!j)
		return -ENOMEM;
	j->fd = fd;
	j->version = version;
	j->head = util_map_shared(FILE_BYTES, PROT_READ | PROT_WRITE, fd, 0);
	if (!j->head)
		return -errno;
	for (unsigned int i = 0; i < 2; i++)
		j->areas[i].base = (uint8_t *)j->head + HEAD_BYTES + i * AREA_BYTES;
	*ret = TAKE_PTR(j);
	return 0;
}

/* ---- memory ---- */

static int file_take(int fd, uint64_t offset, uint64_t bytes)
{
	int r;

	do
		r = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

static void file_give_back(int fd, uint64_t offset, uint64_t bytes)
{
	int r;

	/* If the kernel does not want it back, it is written again by the snapshot after the next one. */
	do
		r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
	while (r < 0 && errno == EINTR);
}

/* Room for so many bytes behind the end. */
static int area_take(struct journal *j, struct area *a, uint64_t bytes)
{
	uint64_t want, chunk;
	int r;

	if (bytes > AREA_BYTES - a->end)
		return -ENOSPC;
	if (bytes <= a->taken - a->end)
		return 0;
	chunk = a->taken / 4;
	chunk = chunk < CHUNK_MIN ? CHUNK_MIN : chunk > CHUNK_MAX ? CHUNK_MAX : chunk;
	want = (a->end + bytes - a->taken + chunk - 1) / CHUNK_MIN * CHUNK_MIN;
	if (want > AREA_BYTES - a->taken)
		want = AREA_BYTES - a->taken;
	r = file_take(j->fd, area_offset(j, a) + a->taken, want);
	if (r < 0)
		return r;
	/* All at once is cheaper than at the first touch of each page, which is what a kernel before 5.14 does. */
	(void)madvise(a->base + a->taken, want, MADV_POPULATE_WRITE);
	a->taken += want;
	return 0;
}

static void area_drop(struct journal *j, struct area *a)
{
	if (a->taken)
		file_give_back(j->fd, area_offset(j, a), a->taken);
	a->end = a->taken = 0;
}

/* ---- writing ---- */

static uint64_t publication(const struct journal *j, const struct area *a)
{
	uint32_t place = (uint32_t)(a->end / 8) | (a == &j->areas[1] ? AREA_BIT : 0);

	return place | (uint64_t)crc32c(a->crc, &place, sizeof(place)) << 32;
}

static void publish(struct journal *j, const struct area *a)
{
	__atomic_store_n(&j->head->published, publication(j, a), __ATOMIC_RELEASE);
}

static void area_begin(const struct journal *j, struct area *a)
{
	a->version = j->version;
	a->end = sizeof(struct area_head);
	a->sequence = 0;
}

/* What was written into it so far is the snapshot. */
static void area_seal(struct journal *j, struct area *a)
{
	struct area_head *h = area_head(a);

	h->version = j->version;
	h->snapshot_end = a->end;
	h->crc = crc32c(0, &h->version, sizeof(*h) - offsetof(struct area_head, version));
	if (!a->sequence)
		a->crc = h->crc;
}

static void area_append(struct area *a, uint32_t type, const struct iovec *v, int n)
{
	struct entry *e = (struct entry *)(void *)(a->base + a->end);
	uint8_t *p = (uint8_t *)(e + 1);
	uint64_t size = 0, whole;

	for (int i = 0; i < n; i++)
		size += v[i].iov_len;
	whole = journal_entry_bytes(size);
	assert(size <= JOURNAL_ENTRY_MAX && whole <= a->taken - a->end);
	memset((uint8_t *)e + whole - 8, 0, 8);
	for (int i = 0; i < n; p += v[i++].iov_len)
		if (v[i].iov_len)
			memcpy(p, v[i].iov_base, v[i].iov_len);
	e->size = (uint32_t)size;
	e->type = type;
	e->sequence = a->sequence++;
	e->crc = crc32c(0, &e->size, whole - offsetof(struct entry, size));
	a->crc = e->crc;
	a->end += whole;
}

void journal_append(struct journal *j, uint32_t type, const struct iovec *v, int n)
{
	const struct iovec version = {&j->version, sizeof(j->version)};
	struct area *a = writing(j);

	assert(type != TYPE_VERSION);
	if (a->version != j->version)
		area_append(a, TYPE_VERSION, &version, 1);
	a->version = j->version;
	area_append(a, type, v, n);
	if (!j->snapshot)
		publish(j, a);
}

int journal_room(struct journal *j, uint64_t bytes)
{
	if (writing(j)->version != j->version)
		bytes += journal_entry_bytes(sizeof(j->version));
	return bytes > AREA_BYTES ? -ENOSPC : area_take(j, writing(j), bytes);
}

int journal_begin(struct journal *j, uint64_t bytes)
{
	struct area *a = &j->areas[!j->current];
	int r;

	assert(!j->snapshot);
	if (bytes > AREA_BYTES)
		return -ENOSPC;
	r = area_take(j, a, sizeof(struct area_head) + bytes);
	if (r < 0)
		return r;
	area_begin(j, a);
	j->snapshot = true;
	return 0;
}

void journal_switch(struct journal *j)
{
	struct area *old = &j->areas[j->current], *a = &j->areas[!j->current];

	assert(j->snapshot);
	area_seal(j, a);
	publish(j, a);
	j->snapshot = false;
	j->current = !j->current;
	area_drop(j, old);
}

void journal_abort(struct journal *j)
{
	assert(j->snapshot);
	j->snapshot = false;
	area_drop(j, &j->areas[!j->current]);
}

/* ---- reading ---- */

__attribute__((format(printf, 2, 3))) static int doubt(char *why, const char *fmt, ...)
{
	va_list ap;

	if (why) {
		va_start(ap, fmt);
		vsnprintf(why, JOURNAL_WHY_MAX, fmt, ap);
		va_end(ap);
	}
	return -EBADMSG;
}

/* The entry at `at`, or NULL and *why. */
static const struct entry *entry_at(const struct area *a, uint64_t at, uint32_t sequence, char *why)
{
	const struct entry *e = (const struct entry *)(const void *)(a->base + at);
	uint64_t left = a->end - at;

	if (left < sizeof(*e) || e->size > JOURNAL_ENTRY_MAX || journal_entry_bytes(e->size) > left)
		doubt(why,
		      "the journal's entry %" PRIu32 " at byte %" PRIu64
		      " does not end where the journal does, %" PRIu64,
		      sequence, at, a->end);
	else if (e->crc != crc32c(0, &e->size, journal_entry_bytes(e->size) - offsetof(struct entry, size)))
		doubt(why, "the journal's entry %" PRIu32 " at byte %" PRIu64 " has a wrong checksum", sequence, at);
	else if (e->sequence != sequence)
		doubt(why, "the journal's entry %" PRIu32 " at byte %" PRIu64 " says that it is number %" PRIu32,
		      sequence, at, e->sequence);
	else
		return e;
	return NULL;
}

static int check_version(const struct journal *j, uint32_t version, char *why)
{
	if (version <= j->version)
		return 0;
	doubt(why, "the journal is of version %" PRIu32 ", and this daemon knows version %" PRIu32 " and before",
	      version, j->version);
	return -EPROTONOSUPPORT;
}

static int check_mark(const struct journal *j, struct area *a, const struct entry *e, char *why)
{
	uint32_t before = a->version;

	if (e->size != sizeof(a->version))
		return doubt(why, "the journal's entry %" PRIu32 " says a version in %" PRIu32 " bytes", e->sequence,
			     e->size);
	memcpy(&a->version, e + 1, sizeof(a->version));
	if (a->version <= before)
		return doubt(why, "the journal's entry %" PRIu32 " says version %" PRIu32 " behind version %" PRIu32,
			     e->sequence, a->version, before);
	return check_version(j, a->version, why);
}

static int check_entries(const struct journal *j, struct area *a, char *why)
{
	const struct entry *e;
	uint64_t at = sizeof(struct area_head);
	bool whole = area_head(a)->snapshot_end == at;
	int r;

	a->version = area_head(a)->version;
	for (a->sequence = 0; at < a->end; a->sequence++) {
		e = entry_at(a, at, a->sequence, why);
		if (!e)
			return -EBADMSG;
		r = e->type == TYPE_VERSION ? check_mark(j, a, e, why) : 0;
		if (r < 0)
			return r;
		at += journal_entry_bytes(e->size);
		whole |= area_head(a)->snapshot_end == at;
		a->crc = e->crc;
	}
	if (!whole)
		return doubt(why, "no entry of the journal ends where its snapshot should, at byte %" PRIu64,
			     area_head(a)->snapshot_end);
	return 0;
}

static int check_area(struct journal *j, char *why)
{
	uint64_t word = __atomic_load_n(&j->head->published, __ATOMIC_ACQUIRE);
	struct area *a;
	const struct area_head *h;
	int r;

	j->current = ((uint32_t)word & AREA_BIT) != 0;
	a = &j->areas[j->current];
	a->end = ((uint32_t)word & ~AREA_BIT) * UINT64_C(8);
	h = area_head(a);
	if (a->end < sizeof(*h) || a->end > AREA_BYTES)
		return doubt(why, "the journal's end cannot be byte %" PRIu64, a->end);
	if (lseek(j->fd, (off_t)area_offset(j, a), SEEK_HOLE) < (off_t)(area_offset(j, a) + a->end))
		return doubt(why, "the journal has no memory up to its end at byte %" PRIu64, a->end);
	a->taken = (a->end + CHUNK_MIN - 1) / CHUNK_MIN * CHUNK_MIN;
	r = file_take(j->fd, area_offset(j, a), a->taken);
	if (r < 0)
		return r;
	a->crc = h->crc;
	if (h->crc != crc32c(0, &h->version, sizeof(*h) - offsetof(struct area_head, version)))
		return doubt(why, "the head of the journal's area %u has a wrong checksum", j->current);
	r = check_version(j, h->version, why);
	if (r == 0)
		r = check_entries(j, a, why);
	if (r == 0 && word != publication(j, a))
		return doubt(why, "the journal's end at byte %" PRIu64 " has a wrong checksum", a->end);
	return r;
}

/* Before it is mapped, so that nothing about it can make a load fault. */
static int check_file(int fd, char *why)
{
	struct head h = {0};
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || seals < 0)
		return doubt(why, "the journal is not a memfd");
	if (pread(fd, &h, sizeof(h), 0) != sizeof(h) || memcmp(h.magic, MAGIC, sizeof(h.magic)) != 0)
		return doubt(why, "the journal does not begin as one");
	if (h.crc != crc32c(0, &h, offsetof(struct head, crc)))
		return doubt(why, "the head of the journal has a wrong checksum");
	if (h.format > FORMAT) {
		doubt(why, "the journal is of format %" PRIu32 ", and this daemon knows format %u and before", h.format,
		      FORMAT);
		return -EPROTONOSUPPORT;
	}
	if (h.format < FORMAT)
		return doubt(why, "there is no journal of format %" PRIu32, h.format);
	if ((uint64_t)st.st_size != FILE_BYTES)
		return doubt(why, "the journal has %" PRIu64 " bytes instead of %" PRIu64, (uint64_t)st.st_size,
			     FILE_BYTES);
	if ((seals & SEALS) != SEALS)
		return doubt(why, "the journal is not sealed: it has the seals 0x%x instead of 0x%x",
			     (unsigned int)seals, SEALS);
	return 0;
}

/* A journal over a file of the right kind, whose head is there to be written; on an error there may be half of one. */
static int journal_over(struct journal **ret, int fd, uint32_t version)
{
	int r = journal_map(ret, fd, version);

	return r < 0 ? r : file_take(fd, 0, HEAD_BYTES);
}

int journal_open(struct journal **ret, int fd, uint32_t version, char why[JOURNAL_WHY_MAX])
{
	AUTO_JOURNAL struct journal *j = NULL;
	int r;

	r = check_file(fd, why);
	if (r < 0)
		return r;
	r = journal_over(&j, fd, version);
	if (r == 0)
		r = check_area(j, why);
	if (r < 0)
		return r;
	/* A snapshot that was never switched to. */
	file_give_back(fd, area_offset(j, &j->areas[!j->current]), AREA_BYTES);
	*ret = TAKE_PTR(j);
	return 0;
}

int journal_read(const struct journal *j, int (*each)(void *arg, const struct journal_entry *e), void *arg)
{
	const struct area *a = &j->areas[j->current];
	struct journal_entry entry = {.version = area_head(a)->version};
	const struct entry *e;
	uint64_t at = sizeof(struct area_head);
	int r;

	for (uint32_t sequence = 0; at < a->end; sequence++) {
		e = entry_at(a, at, sequence, NULL);
		if (!e)
			return -EBADMSG;
		at += journal_entry_bytes(e->size);
		if (e->type == TYPE_VERSION) {
			memcpy(&entry.version, e + 1, sizeof(entry.version));
			continue;
		}
		entry.type = e->type;
		entry.p = e + 1;
		entry.size = e->size;
		r = each(arg, &entry);
		if (r != 0)
			return r;
	}
	return 0;
}

/* ---- its life ---- */

int journal_new(struct journal **ret, uint32_t version)
{
	AUTO_CLOSE int fd = memfd_create("pasidd-journal", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	AUTO_JOURNAL struct journal *j = NULL;
	int r;

	if (fd < 0)
		return -errno;
	if (fchmod(fd, 0) < 0 || ftruncate(fd, (off_t)FILE_BYTES) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0)
		return -errno;
	r = journal_over(&j, fd, version);
	if (r == 0)
		r = area_take(j, &j->areas[0], sizeof(struct area_head));
	if (r < 0)
		return r;
	area_begin(j, &j->areas[0]);
	area_seal(j, &j->areas[0]);
	memcpy(j->head->magic, MAGIC, sizeof(j->head->magic));
	j->head->format = FORMAT;
	j->head->crc = crc32c(0, j->head, offsetof(struct head, crc));
	publish(j, &j->areas[0]);
	util_take_fd(&fd);
	*ret = TAKE_PTR(j);
	return 0;
}

struct journal *journal_free(struct journal *j)
{
	if (j)
		close(j->fd);
	return journal_close(j);
}

int journal_fd(const struct journal *j)
{
	return j->fd;
}

uint64_t journal_bytes(const struct journal *j)
{
	return j->areas[j->current].end;
}

uint64_t journal_snapshot_bytes(const struct journal *j)
{
	return area_head(&j->areas[j->current])->snapshot_end;
}

bool journal_fat(const struct journal *j)
{
	return journal_bytes(j) > 2 * journal_snapshot_bytes(j) + SLACK;
}
