/* SPDX-License-Identifier: MIT */
/*
 * The journal: entries of a type and some bytes, in one memfd that outlives the process that writes it. Only appended to,
 * and now and then replaced as a whole by a snapshot. Whoever opens the file after the writer was killed, at whatever
 * instruction, finds all entries up to some append, in order, each whole; or is told that it cannot be trusted.
 *
 * Appending cannot fail, because room was made before: in advance, for all that a change will have to say, so that
 * nothing is begun which could not be written down. Memory is taken ahead, so a store never faults.
 */
#ifndef STORE_JOURNAL_H
#define STORE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define JOURNAL_WHY_MAX 160u
#define JOURNAL_ENTRY_MAX (UINT32_C(1) << 30) /* bytes of one entry's payload */

struct journal;

/* What an entry with so many bytes of payload takes. */
static inline uint64_t journal_entry_bytes(uint64_t payload)
{
	return 16 + ((payload + 7) & ~UINT64_C(7));
}

/*
 * An empty one. version: of what the caller will write. 0, or -errno (-ENOMEM, -EMFILE).
 */
int journal_new(struct journal **ret, uint32_t version);
/*
 * What another process wrote; the fd is taken if 0 is returned, and stays the caller's otherwise. All of it is checked
 * before anything is believed. -EPROTONOSUPPORT: it was written by a newer daemon, in its own format or of a later
 * version than the caller's. -EBADMSG: it cannot be trusted. Both with a sentence in `why`. Other errors (-ENOMEM) say
 * nothing about the journal.
 */
int journal_open(struct journal **ret, int fd, uint32_t version, char why[JOURNAL_WHY_MAX]);
/* The file stays for whoever has another fd of it. Takes NULL, returns NULL. */
struct journal *journal_free(struct journal *j);

int journal_fd(const struct journal *j); /* stays the journal's */

/*
 * Makes sure that the next appends cannot fail, if they are of no more than `bytes` together (journal_entry_bytes() of
 * each). It holds until control goes back to the event loop: others append, too. -ENOMEM, -ENOSPC: then nothing has
 * changed.
 */
int journal_room(struct journal *j, uint64_t bytes);
/* Into room that was made; types begin at 1. What was appended is there for a successor when this returns. The first append
 * to what an older daemon wrote says that it is of another version from there on. */
void journal_append(struct journal *j, uint32_t type, const struct iovec *v, int n);

struct journal_entry {
	uint32_t version; /* of who wrote it */
	uint32_t type;
	const void *p; /* aligned to 8 bytes */
	size_t size;
};

/* Calls each() for all entries in order. Ends at once if it returns other than 0, with that. */
int journal_read(const struct journal *j, int (*each)(void *arg, const struct journal_entry *e), void *arg);

/*
 * A snapshot: between begin and switch the appends are of what the journal comes to, in `bytes` at most. A successor sees
 * the old entries until the switch, then these alone. -ENOMEM, -ENOSPC: nothing has changed.
 */
int journal_begin(struct journal *j, uint64_t bytes);
void journal_switch(struct journal *j);
void journal_abort(struct journal *j); /* instead of the switch: the old entries stay */

uint64_t journal_bytes(const struct journal *j); /* all entries */
uint64_t journal_snapshot_bytes(const struct journal *j); /* of those, the last snapshot */
/* Is it time for a snapshot? The journal stays below twice what the last one came to and a little. */
bool journal_fat(const struct journal *j);

#endif
