/* SPDX-License-Identifier: MIT */
/* Rebuilding the books from records, and showing them. See books.h. */
#include <errno.h>
#include <inttypes.h>

#include "core/books_private.h"

static int replay_bind(struct books *b, struct context *ctx, struct record *rec)
{
	struct refusal why = { 0 };
	struct plan *plan;
	int r = books_bind(b, ctx, rec, &plan, &why);

	if (r == 0)
		books_bind_commit(b, ctx, rec, plan);
	return r;
}

static int replay_intent(struct books *b, struct record *rec)
{
	struct refusal why = { 0 };
	struct client *c;
	struct context *ctx = books_any_context(b, rec->ctx);
	struct buffer_entry *e;

	switch (rec->kind) {
	case RECORD_CLIENT_OPEN:
		return books_client_open(b, rec, &why, &c);
	case RECORD_CLIENT_CLOSE:
		books_client_close(b, books_client(b, rec->client));
		return 0;
	case RECORD_CTX_NEW:
		return books_ctx_new(b, rec, &why, &ctx);
	case RECORD_IMPORT:
		return books_import(b, rec, &why, &e);
	case RECORD_BUF_FREE:
		return books_buf_free(b, rec, &why);
	}
	if (!ctx)
		return -ENOENT;
	switch (rec->kind) {
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
	struct refusal why = { 0 };
	struct context *ctx;

	switch (rec->kind) {
	case RECORD_IMPORT:
		return books_buf_free(b, rec, &why);
	case RECORD_CTX_NEW:
		ctx = books_any_context(b, rec->ctx);
		if (!ctx)
			return -ENOENT;
		books_ctx_free(b, ctx);
		return 0;
	}
	return -EINVAL;
}

int books_replay(struct books *b, enum record_phase phase, struct record *rec)
{
	switch (phase) {
	case RECORD_INTENT:
		return replay_intent(b, rec);
	case RECORD_COMMIT:
		return 0;
	case RECORD_UNDO:
		return replay_undo(b, rec);
	}
	return -EINVAL;
}

static void dump_context(const struct context *ctx, FILE *f)
{
	fprintf(f, "  context %u device %s pasid %u asid %u line %u%s jobs %" PRIu64 "..%" PRIu64 " mappings %" PRIu64
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

	fprintf(f, "total %" PRIu64 "\n", ledger_total_bytes(b->ledger));
	TAILQ_FOREACH(c, &b->clients, link) {
		fprintf(f, "client %u uid %u pid %d\n", c->id, c->uid, c->pid);
		dump_account(c, f);
		TAILQ_FOREACH(e, &c->all_buffers, in_client)
			dump_buffer(e, f);
		TAILQ_FOREACH(ctx, &c->contexts, in_client)
			dump_context(ctx, f);
	}
}
