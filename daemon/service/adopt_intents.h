/* SPDX-License-Identifier: MIT */
/*
 * What became of requests, as a journal tells it: an intent is followed, sometimes much later, by the word that it was
 * committed or undone, or by the journal's end. Who applies a journal has to know beforehand.
 */
#ifndef SERVICE_ADOPT_INTENTS_H
#define SERVICE_ADOPT_INTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/books.h"
#include "store/journal.h"

struct open_intent { /* of one client; they are few: a client has one request at a time */
	const struct record *rec; /* in the journal */
	uint32_t client;
};

struct intents { /* begins zeroed */
	struct open_intent *open; /* at the end */
	size_t n_open, max_open;
	const struct record **skip; /* those without effect, in the order of their addresses */
	size_t n_skip, max_skip, next_skip;
};

/* Reads all of it. 0; -ENOMEM. Good while the journal stays as it is. */
int intents_read(struct intents *in, struct journal *j);
/* Is this one without effect? To be asked for each intent of the journal, in its order. */
bool intents_skip(struct intents *in, const void *intent);
void intents_fini(struct intents *in);

/* Of a kind that holds from the moment when it was written; what else is open at the end is made again. */
bool intent_holds_at_once(uint32_t kind);
bool intent_is_whole(const void *rec, size_t size);

#endif
