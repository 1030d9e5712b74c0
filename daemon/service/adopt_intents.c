/* SPDX-License-Identifier: MIT */
#include "service/adopt_intents.h"

#include <errno.h>
#include <stdlib.h>

#include "base/util.h"
#include "service/entries.h"

static struct open_intent *open_of(struct intents *in, uint32_t client)
{
	for (size_t i = 0; i < in->n_open; i++)
		if (in->open[i].client == client)
			return &in->open[i];
	return NULL;
}

static int note_open(struct intents *in, const struct record *rec)
{
	struct open_intent *v = util_grow(in->open, in->n_open, &in->max_open, sizeof(*v));

	if (!v)
		return -ENOMEM;
	in->open = v;
	v[in->n_open++] = (struct open_intent){rec, rec->client};
	return 0;
}

static int note_skip(struct intents *in, const struct record *rec)
{
	const struct record **v = util_grow(in->skip, in->n_skip, &in->max_skip, sizeof(*v));

	if (!v)
		return -ENOMEM;
	in->skip = v;
	v[in->n_skip++] = rec;
	return 0;
}

bool intent_holds_at_once(uint32_t kind)
{
	return kind == RECORD_SUBMIT || kind == RECORD_BUF_FREE || kind == RECORD_CTX_FREE;
}

/* The client's open intent, if it has one, is over. */
static int no_longer_open(struct intents *in, uint32_t client, bool holds)
{
	struct open_intent *o = open_of(in, client);
	const struct record *rec;

	if (!o)
		return 0;
	rec = o->rec;
	*o = in->open[--in->n_open];
	return holds ? 0 : note_skip(in, rec);
}

/* What one process left open, and the next one did not get to, either, has been made again if it is there once more, or if
 * something else was done after it. */
static int given_up(struct intents *in, uint32_t client)
{
	struct open_intent *o = open_of(in, client);

	return no_longer_open(in, client, o && intent_holds_at_once(o->rec->kind));
}

static int committed(struct intents *in, const struct entry_commit *e)
{
	const struct pasid_reply *reply = (const void *)(e + 1);
	struct open_intent *o = open_of(in, e->client);

	if (o && o->rec->serial != e->serial)
		return given_up(in, e->client);
	return no_longer_open(in, e->client, !reply->code);
}

bool intent_is_whole(const void *p, size_t size)
{
	const struct record *rec = p;

	return size >= sizeof(*rec) && rec->n_ops <= PASID_BIND_MAX &&
	       size == sizeof(*rec) + rec->n_ops * sizeof(rec->ops[0]);
}

static int look(void *arg, const struct journal_entry *entry)
{
	struct intents *in = arg;
	const void *p = entry->p;
	int e = 0;

	if (entry->version < ENTRIES_OLDEST)
		return 0; /* all of it is refused soon */
	if (entry->type == ENTRY_INTENT && intent_is_whole(p, entry->size)) {
		e = given_up(in, ((const struct record *)p)->client);
		if (e == 0)
			e = note_open(in, p);
	}
	if (entry->type == ENTRY_COMMIT && entry->size >= sizeof(struct entry_commit) + sizeof(struct pasid_reply))
		e = committed(in, p);
	if (entry->type == ENTRY_UNDONE && entry->size == sizeof(struct entry_undone))
		e = no_longer_open(in, ((const struct entry_undone *)p)->client, false);
	return e;
}

static int by_address(const void *a, const void *b)
{
	const struct record *x = *(const struct record *const *)a, *y = *(const struct record *const *)b;

	return x < y ? -1 : x > y;
}

int intents_read(struct intents *in, struct journal *j)
{
	int e = journal_read(j, look, in);

	for (size_t i = 0; e == 0 && i < in->n_open; i++)
		if (!intent_holds_at_once(in->open[i].rec->kind))
			e = note_skip(in, in->open[i].rec);
	if (e == 0 && in->n_skip)
		qsort(in->skip, in->n_skip, sizeof(*in->skip), by_address);
	return e;
}

bool intents_skip(struct intents *in, const void *intent)
{
	if (in->next_skip == in->n_skip || in->skip[in->next_skip] != intent)
		return false;
	in->next_skip++;
	return true;
}

void intents_fini(struct intents *in)
{
	free(in->open);
	free(in->skip);
}
