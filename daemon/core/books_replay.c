/* SPDX-License-Identifier: MIT */
/* Rebuilding the books from records, and showing them. See books.h. */
#include <errno.h>
#include <inttypes.h>

#include "core/books_private.h"

/* ---- what no record of ours says, and a damaged one might ---- */

static bool bus_is_free(const struct device_books *d, const struct record *rec)
{
	struct itree_node *n;
	struct range r;

	if (!range_make(&r, rec->bus, rec->size))
		return false;
	n = itree_at_or_above(&d->bus, r.first);
	return !n || n->first > r.last;
}

static int judge_import(const struct client *c, const struct device_books *d, const struct record *rec)
{
	if (!d || !rec->buf || !rec->bus)
		return -EINVAL;
	return books_any_buffer(c, rec->buf) || !bus_is_free(d, rec) ? -EEXIST : 0;
}

static int judge_ctx_new(struct books *b, const struct device_books *d, const struct record *rec)
{
	if (!d || !rec->ctx || !rec->pasid || !rec->asid || !rec->line)
		return -EINVAL;
	if (d->traits.global && rec->asid != d->shared_asid)
		return -EINVAL;
	return books_any_context(b, rec->ctx) ? -EEXIST : 0;
}

/* Whether the record speaks of what is there, and chooses nothing that is taken. The verbs themselves take their
 * callers' word for that. */
static int judge(struct books *b, const struct record *rec)
{
	const struct client *c = books_client(b, rec->client);
	const struct context *ctx = books_any_context(b, rec->ctx);

	if (rec->kind == RECORD_CLIENT_OPEN)
		return !rec->client || rec->size > BOOKS_MAX_LINES ? -EINVAL : c ? -EEXIST : 0;
	if (!c)
		return -ENOENT;
	switch (rec->kind) {
	case RECORD_CLIENT_CLOSE:
		return TAILQ_EMPTY(&c->contexts) && TAILQ_EMPTY(&c->all_buffers) ? 0 : -EBUSY;
	case RECORD_CTX_NEW:
		return judge_ctx_new(b, books_device_at(b, rec->device), rec);
	case RECORD_IMPORT:
		return judge_import(c, books_device_at(b, rec->device), rec);
	case RECORD_BUF_FREE:
	case RECORD_BUF_GONE:
		return 0;
	}
	if (!ctx || ctx->client != c)
		return -ENOENT;
	if (rec->kind == RECORD_SUBMIT)
		return rec->job == ctx->submitted + 1 ? 0 : -EINVAL;
	if (rec->kind == RECORD_JOBS_DONE)
		return rec->job <= ctx->submitted ? 0 : -EINVAL;
	return 0;
}

/* ---- applying it ---- */

static int replay_bind(struct books *b, struct context *ctx, struct record *rec)
{
	struct refusal why = {0};
	struct plan *plan;
	int r = rec->n_ops > PASID_BIND_MAX ? -EINVAL : books_bind(b, ctx, rec, &plan, &why);

	if (r == 0)
		books_bind_commit(b, ctx, rec, plan);
	return r;
}

static int replay_buf_gone(struct books *b, const struct record *rec)
{
	struct buffer_entry *e = books_any_buffer(books_client(b, rec->client), rec->buf);

	if (!e || e->buffer.named || e->buffer.uses)
		return -ENOENT;
	books_buf_gone(b, e);
	return 0;
}

static int replay_intent(struct books *b, struct record *rec)
{
	struct refusal why = {0};
	struct client *c = books_client(b, rec->client);
	struct context *ctx = books_any_context(b, rec->ctx);
	struct buffer_entry *e;

	switch (rec->kind) {
	case RECORD_CLIENT_OPEN:
		return books_client_open(b, rec, &why, &c);
	case RECORD_CLIENT_CLOSE:
		books_client_close(b, c);
		return 0;
	case RECORD_CTX_NEW:
		return books_ctx_new(b, rec, &why, &ctx);
	case RECORD_IMPORT:
		return books_import(b, rec, &why, &e);
	case RECORD_BUF_FREE:
		return books_buf_free(b, rec, &why);
	case RECORD_BUF_GONE:
		return replay_buf_gone(b, rec);
	case RECORD_CTX_FREE:
		books_ctx_free(b, ctx);
		return 0;
	case RECORD_CTX_LOST:
		books_ctx_clear(b, ctx, NULL, NULL);
		books_ctx_lost(b, ctx);
		return 0;
	case RECORD_BIND:
		return replay_bind(b, ctx, rec);
	case RECORD_SUBMIT:
		return books_submit(b, ctx, rec, &why);
	case RECORD_JOBS_DONE:
		books_jobs_done(ctx, rec->job);
		return 0;
	}
	return -EINVAL;
}

static int replay_undo(struct books *b, struct record *rec)
{
	struct client *c = books_client(b, rec->client);
	struct context *ctx = books_any_context(b, rec->ctx);
	struct refusal why = {0};

	if (!c)
		return -ENOENT;
	switch (rec->kind) {
	case RECORD_IMPORT:
		return books_buf_free(b, rec, &why);
	case RECORD_CTX_NEW:
		if (!ctx || ctx->client != c)
			return -ENOENT;
		books_ctx_free(b, ctx);
		return 0;
	}
	return -EINVAL;
}

int books_replay(struct books *b, enum record_phase phase, struct record *rec)
{
	int r;

	switch (phase) {
	case RECORD_INTENT:
		r = judge(b, rec);
		return r < 0 ? r : replay_intent(b, rec);
	case RECORD_COMMIT:
		return 0;
	case RECORD_UNDO:
		return replay_undo(b, rec);
	}
	return -EINVAL;
}

/* ---- showing it ---- */

static void dump_context(const struct context *ctx, FILE *f)
{
	fprintf(f,
		"  context %u device %s pasid %u asid %u line %u%s jobs %" PRIu64 "..%" PRIu64 " mappings %" PRIu64
		" bytes %" PRIu64 "\n",
		ctx->id, ctx->device->traits.name, ctx->pasid, ctx->asid, ctx->line, ctx->lost ? " lost" : "",
		ctx->ended, ctx->submitted, ctx->mappings, ctx->bytes);
	for (uint64_t n = ctx->ended + 1; n <= ctx->submitted; n++) {
		const struct job *j = books_job(ctx, n);

		fprintf(f, "    job %" PRIu64 " %#" PRIx64 "+%#" PRIx64 "\n", j->number, j->iova, j->len);
	}
	for (struct itree_node *n = itree_first(&ctx->aspace->tree); n; n = itree_next(n)) {
		const struct mapping *m = (const struct mapping *)n;

		if (m->owner == ctx->id)
			fprintf(f, "    %#" PRIx64 "..%#" PRIx64 " bus %#" PRIx64 "+%#" PRIx64 "%s\n", n->first,
				n->last, m->buf->bus, m->off, m->writable ? " rw" : "");
	}
}

static void dump_buffer(const struct buffer_entry *e, FILE *f)
{
	fprintf(f, "  buffer %u%s device %s size %" PRIu64 " bus %#" PRIx64 "%s%s uses %" PRIu64 "\n", e->buffer.id,
		e->buffer.named ? "" : " (freed)", e->device->traits.name, e->buffer.size, e->buffer.bus,
		e->buffer.writable ? " rw" : "", e->huge ? " huge" : "", e->buffer.uses);
}

static void dump_account(const struct client *c, FILE *f)
{
	fprintf(f, "  used");
	for (uint32_t i = 0; i < PASID_RES_COUNT; i++)
		fprintf(f, " %" PRIu64 "/%" PRIu64, account_used(c->account, i), account_uid_used(c->account, i));
	fprintf(f, "\n");
}

void books_dump(struct books *b, FILE *f)
{
	struct client *c;
	struct context *ctx;
	struct buffer_entry *e;

	fprintf(f, "total %" PRIu64 " last client %u last context %u\n", ledger_total_bytes(b->ledger), b->last_client,
		b->last_ctx);
	TAILQ_FOREACH (c, &b->clients, link) {
		fprintf(f, "client %u uid %u pid %d last buffer %u\n", c->id, c->uid, c->pid, c->last_buf);
		dump_account(c, f);
		TAILQ_FOREACH (e, &c->all_buffers, in_client)
			dump_buffer(e, f);
		TAILQ_FOREACH (ctx, &c->contexts, in_client)
			dump_context(ctx, f);
	}
}
