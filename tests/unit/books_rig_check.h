/* SPDX-License-Identifier: MIT */
/* The recount for books_rig.h, a step of random verbs, and the end of everything. */
#ifndef TESTS_BOOKS_RIG_CHECK_H
#define TESTS_BOOKS_RIG_CHECK_H

#include "unit/books_rig.h"
#include "unit/books_rig_bind.h"

/* The tree of an address space shows what the pages show. */
static inline void check_space(const struct aspace *as, const struct m_space *s)
{
	uint64_t count = 0, bytes = 0;

	for (struct itree_node *n = itree_first(&as->tree); n; n = itree_next(n)) {
		const struct mapping *m = container_of(n, struct mapping, node);
		uint64_t at = (n->first - RIG_IOVA) / PAGE, end = (n->last - RIG_IOVA) / PAGE;

		check(n->first % PAGE == 0 && n->last % PAGE == PAGE - 1 && end < RIG_PAGES);
		check(at == 0 || s->page[at - 1].serial != s->page[at].serial || !s->page[at - 1].ctx);
		check(end == RIG_PAGES - 1 || s->page[end + 1].serial != s->page[at].serial);
		for (uint64_t i = at; i <= end; i++) {
			const struct m_page *p = &s->page[i];

			check(p->ctx == m->owner && p->serial == s->page[at].serial && p->writable == m->writable);
			check(&p->buf->e->buffer == m->buf && p->off * PAGE == m->off + (i - at) * PAGE);
		}
		count++;
		bytes += n->last - n->first + 1;
	}
	for (uint32_t i = 0; i < RIG_PAGES; i++)
		bytes -= s->page[i].ctx ? PAGE : 0;
	check(bytes == 0 && count == as->count);
}

static inline void check_contexts(struct rig *g)
{
	for (uint32_t i = 0; i < RIG_CONTEXTS; i++) {
		struct m_context *x = &g->context[i], *y;

		if (!x->live)
			continue;
		check(x->c->id == x->id && books_any_context(g->books, x->id) == x->c);
		check(x->c->lost == x->lost && x->c->submitted == x->submitted && x->c->ended == x->ended);
		check(x->c->mappings == m_mappings(m_space_of(g, x), x->id));
		check(x->c->c_mappings.amount == x->c->mappings);
		check(x->c->pasid && x->c->asid && x->c->line < rig_connection_limits[PASID_RES_CONTEXTS]);
		for (y = x + 1; y < g->context + RIG_CONTEXTS; y++) {
			if (!y->live)
				continue;
			check(y->id != x->id);
			check(y->dev != x->dev || y->c->pasid != x->c->pasid);
			check(y->dev != x->dev || (y->c->asid != x->c->asid) == (x->dev == 0));
			check(y->owner != x->owner || y->c->line != x->c->line);
		}
		check_space(x->c->aspace, m_space_of(g, x));
	}
	check_space(&g->dev[1]->shared, &g->shared);
}

static inline void check_buffers(struct rig *g)
{
	for (uint32_t i = 0; i < RIG_BUFFERS; i++) {
		struct m_buffer *b = &g->buffer[i];
		struct refusal why = {0};

		if (!b->live)
			continue;
		check(b->e->buffer.uses == m_uses(g, b) && b->e->buffer.named == b->named);
		check(b->told == (!b->named && !b->e->buffer.uses));
		check(b->e->buffer.bus == b->bus && b->e->buffer.size == b->pages * PAGE);
		check(books_buffer(b->owner->c, b->id, &why) == (b->named ? b->e : NULL));
	}
}

/* An id that is not one's own is refused like one that nobody has. */
static inline void check_foreign(struct rig *g, const struct m_client *m)
{
	struct refusal foreign = {0}, unknown = {0};

	for (uint32_t i = 0; i < RIG_CONTEXTS; i++) {
		const struct m_context *x = &g->context[i];

		if (!x->live)
			continue;
		if (x->owner == m) {
			check(books_context(m->c, x->id, g->books, &foreign) == x->c);
			continue;
		}
		check(!books_context(m->c, x->id, g->books, &foreign));
		check(!books_context(m->c, UINT32_MAX, g->books, &unknown));
		check(foreign.n1 == x->id && unknown.n1 == UINT32_MAX);
		foreign.n1 = unknown.n1 = 0;
		check(!memcmp(&foreign, &unknown, sizeof(foreign)) && foreign.reason == PASID_WHY_NO_CONTEXT);
	}
}

static inline void check_accounts(struct rig *g)
{
	for (uint32_t i = 0; i < RIG_CLIENTS; i++) {
		const struct m_client *m = &g->client[i];

		for (uint32_t res = 0; m->live && res < PASID_RES_COUNT; res++) {
			check(account_used(m->c->account, res) == m_used(g, m, 0, res));
			check(account_uid_used(m->c->account, res) == m_used(g, NULL, m->uid, res));
		}
		if (m->live)
			check_foreign(g, m);
	}
	check(ledger_total_bytes(books_ledger(g->books)) == m_used(g, NULL, (uid_t)-1, PASID_RES_BYTES));
	for (uint32_t d = 0; d < RIG_DEVICES; d++) {
		check(g->dev[d]->n_contexts == m_contexts_on(g, d));
		check(ids_in_use(g->dev[d]->pasids) == m_contexts_on(g, d));
		check(ids_in_use(g->dev[d]->asids) == (d == 1 ? 1 : m_contexts_on(g, d)));
	}
}

static inline void rig_check(struct rig *g)
{
	check_accounts(g);
	if (g->open_binds) /* the books show an open list already, and keep what it removes */
		return;
	check_contexts(g);
	check_buffers(g);
}

static inline void rig_verb(struct rig *g)
{
	static void (*const verbs[])(struct rig * g) = {
		rig_open,
		rig_open,
		rig_close_any,
		rig_ctx_new,
		rig_ctx_new,
		rig_lose_or_free,
		rig_import,
		rig_import,
		rig_import,
		rig_buf_free,
		rig_gone_any,
		rig_gone_any,
		rig_bind,
		rig_bind,
		rig_bind,
		rig_bind,
		rig_bind,
		rig_submit,
		rig_submit,
		rig_submit,
		rig_jobs_done,
		rig_bind_finish_any,
		rig_bind_finish_any,
	};

	verbs[draw(ARRAY_SIZE(verbs))](g);
}

static inline void rig_step(struct rig *g)
{
	rig_verb(g);
	rig_check(g);
}

/* Everyone goes; nothing is left. */
static inline void rig_end(struct rig *g)
{
	for (uint32_t i = 0; i < RIG_CONTEXTS; i++)
		if (g->context[i].live && g->context[i].plan)
			rig_bind_finish(g, &g->context[i]);
	for (uint32_t i = 0; i < RIG_CLIENTS; i++) {
		if (g->client[i].live)
			rig_close(g, &g->client[i]);
		rig_check(g);
	}
	check(ledger_total_bytes(books_ledger(g->books)) == 0);
	check(!g->dev[0]->bus.root && !g->dev[1]->bus.root && !g->dev[1]->shared.count);
	check(!books_next_client(g->books, NULL));
	books_free(g->books);
}

#endif
