/* SPDX-License-Identifier: MIT */
/* Bind lists and jobs for books_rig.h: which lists are right, and what each does, page by page. */
#ifndef TESTS_BOOKS_RIG_BIND_H
#define TESTS_BOOKS_RIG_BIND_H

#include "unit/books_rig.h"

/* What a bind list should give. */
struct m_verdict {
	uint32_t why, index;
	bool unsure; /* an address of the books' choosing is on the way */
	struct m_space after;
	uint64_t peak;
};

static inline uint32_t m_judge_words(struct rig *g, const struct m_context *x, const struct record_op *w)
{
	const struct m_buffer *b;

	if (w->reserved)
		return PASID_WHY_RESERVED;
	if (w->kind == PASID_BIND_UNMAP)
		return w->flags ? PASID_WHY_FLAGS : w->buf || w->off ? PASID_WHY_RESERVED : 0;
	if (w->kind != PASID_BIND_MAP)
		return PASID_WHY_BIND_OP;
	if ((w->flags & ~7u) || !(w->flags & PASID_MAP_READ))
		return PASID_WHY_FLAGS;
	b = m_find_buffer(g, x->owner, w->buf);
	return !b ? PASID_WHY_NO_BUFFER : b->dev != x->dev ? PASID_WHY_OTHER_DEVICE : 0;
}

static inline uint32_t m_judge_numbers(struct rig *g, const struct m_context *x, const struct record_op *w)
{
	bool map = w->kind == PASID_BIND_MAP, placed = !map || (w->flags & PASID_MAP_FIXED);
	const struct m_buffer *b = map ? m_find_buffer(g, x->owner, w->buf) : NULL;

	if (!w->len)
		return PASID_WHY_EMPTY;
	if ((placed && w->iova % PAGE) || w->off % PAGE || w->len % PAGE)
		return PASID_WHY_UNALIGNED;
	if (placed && w->len - 1 > UINT64_MAX - w->iova)
		return PASID_WHY_WRAPS;
	if (b && w->len > UINT64_MAX - w->off)
		return PASID_WHY_WRAPS;
	if (b && w->off + w->len > b->pages * PAGE)
		return PASID_WHY_BUFFER_END;
	if (b && (w->flags & PASID_MAP_WRITE) && !b->writable)
		return PASID_WHY_READ_ONLY;
	if (placed && (w->iova < RIG_IOVA || w->iova + (w->len - 1) > RIG_IOVA + RIG_PAGES * PAGE - 1))
		return PASID_WHY_APERTURE;
	return 0;
}

/* A page is changed: what is cut off above it becomes a mapping of its own. */
static inline void m_split_above(struct rig *g, struct m_space *s, uint64_t end)
{
	uint32_t serial;

	if (end >= RIG_PAGES || !s->page[end].ctx || s->page[end].serial != s->page[end - 1].serial)
		return;
	serial = s->page[end].serial;
	g->serial++;
	for (; end < RIG_PAGES && s->page[end].serial == serial; end++)
		s->page[end].serial = g->serial;
}

static inline uint32_t m_apply(struct rig *g, struct m_context *x, const struct record_op *w, struct m_space *s)
{
	uint64_t at = (w->iova - RIG_IOVA) / PAGE, n = w->len / PAGE;
	bool map = w->kind == PASID_BIND_MAP;

	for (uint64_t i = at; i < at + n; i++) {
		if (map && s->page[i].ctx)
			return PASID_WHY_OVERLAP;
		if (!map && s->page[i].ctx != x->id)
			return PASID_WHY_NOT_MAPPED;
	}
	if (!map)
		m_split_above(g, s, at + n);
	g->serial++;
	for (uint64_t i = 0; i < n; i++)
		s->page[at + i] = !map ? (struct m_page){0}
				       : (struct m_page){.ctx = x->id,
							 .serial = g->serial,
							 .off = w->off / PAGE + i,
							 .buf = m_find_buffer(g, x->owner, w->buf),
							 .writable = w->flags & PASID_MAP_WRITE};
	return 0;
}

static inline struct m_verdict m_judge_list(struct rig *g, struct m_context *x, const struct record *rec)
{
	struct m_verdict v = {.after = *m_space_of(g, x)};
	uint64_t before = m_mappings(&v.after, x->id), now;

	for (v.index = 0; v.index < rec->n_ops; v.index++)
		if ((v.why = m_judge_words(g, x, &rec->ops[v.index])))
			return v;
	for (v.index = 0; v.index < rec->n_ops; v.index++) {
		const struct record_op *w = &rec->ops[v.index];

		v.why = m_judge_numbers(g, x, w);
		if (v.why)
			return v;
		v.unsure = w->kind == PASID_BIND_MAP && !(w->flags & PASID_MAP_FIXED);
		if (v.unsure || (v.why = m_apply(g, x, w, &v.after)))
			return v;
		now = m_mappings(&v.after, x->id);
		if (now > before && now - before > v.peak)
			v.peak = now - before;
	}
	v.index = 0;
	if (v.peak)
		v.why = m_quota(g, x->owner, PASID_RES_MAPPINGS, v.peak);
	return v;
}

/* ---- lists ---- */

static inline void rig_make_op(struct rig *g, struct m_context *x, struct record_op *w)
{
	const struct m_buffer *b = m_pick(g->buffer, RIG_BUFFERS);

	*w = (struct record_op){.kind = draw(3) ? PASID_BIND_MAP : PASID_BIND_UNMAP,
				.iova = RIG_IOVA + draw(RIG_PAGES) * PAGE,
				.len = (1 + draw(4)) * PAGE};
	if (w->kind == PASID_BIND_MAP) {
		for (uint32_t i = 0; i < 4 && b && (b->owner != x->owner || b->dev != x->dev || !b->named); i++)
			b = m_pick(g->buffer, RIG_BUFFERS);
		w->buf = b ? b->id : RIG_ID_NEVER;
		w->off = draw(3) * PAGE;
		w->flags = PASID_MAP_READ | (draw(3) ? PASID_MAP_FIXED : 0) | (draw(3) ? 0 : PASID_MAP_WRITE);
	}
	switch (draw(80)) { /* and sometimes wrong */
	case 1:
		w->len = 0;
		break;
	case 2:
		w->len += 16;
		break;
	case 3:
		w->iova = -PAGE * draw(3);
		break;
	case 4:
		w->off = -PAGE;
		break;
	case 5:
		w->flags ^= 1u << draw(5);
		break;
	case 6:
		w->kind = draw(4);
		break;
	case 7:
		w->reserved = 1;
		break;
	case 8:
		w->buf = m_wrong_buffer(g, x->owner);
		break;
	}
}

/* Addresses that the books chose: free, with a page to spare on both sides. Then the list does what it says. */
static inline void m_apply_chosen(struct rig *g, struct m_context *x, const struct record *rec, uint32_t chosen,
				  struct m_space *s)
{
	for (uint32_t i = 0; i < rec->n_ops; i++) {
		const struct record_op *w = &rec->ops[i];
		uint64_t at = (w->iova - RIG_IOVA) / PAGE, end = at + w->len / PAGE;

		check(m_judge_numbers(g, x, w) == 0);
		check(w->kind != PASID_BIND_MAP || (w->flags & PASID_MAP_FIXED));
		if (chosen & 1u << i) {
			check(!at || !s->page[at - 1].ctx);
			check(end == RIG_PAGES || !s->page[end].ctx);
		}
		check(m_apply(g, x, w, s) == 0);
	}
}

static inline void rig_bind_finish(struct rig *g, struct m_context *x)
{
	struct m_space after = *m_space_of(g, x);

	m_apply_chosen(g, x, x->open, 0, &after);
	*m_space_of(g, x) = after;
	books_bind_commit(g->books, x->c, x->open, x->plan);
	x->plan = NULL;
	g->open_binds--;
	rig_say(g, RECORD_COMMIT, x->open, true);
	free(x->open);
	x->open = NULL;
}

static inline void rig_bind_begun(struct rig *g, struct m_context *x, struct record *rec, struct plan *plan)
{
	if (draw(8) == 0) { /* page tables could not follow: as if nothing had been asked */
		books_bind_undo(g->books, x->c, plan);
		free(rec);
		return;
	}
	rig_say(g, RECORD_INTENT, rec, false);
	x->plan = plan;
	x->open = rec;
	g->open_binds++;
	if (draw(4))
		rig_bind_finish(g, x);
}

static inline void rig_bind(struct rig *g)
{
	struct m_context *x = m_pick(g->context, RIG_CONTEXTS);
	struct record *rec;
	struct refusal why = {.index = 0};
	struct m_verdict v;
	struct plan *plan = NULL;
	uint32_t chosen = 0;
	int r;

	if (!x || x->lost || m_space_busy(g, x) || m_busy(g, x->owner))
		return;
	rec = calloc(1, sizeof(*rec) + RIG_OPS * sizeof(rec->ops[0]));
	check(rec);
	rec->kind = RECORD_BIND;
	rec->client = x->owner->id;
	rec->ctx = x->id;
	rec->n_ops = 1 + draw(RIG_OPS);
	for (uint32_t i = 0; i < rec->n_ops; i++) {
		rig_make_op(g, x, &rec->ops[i]);
		if (rec->ops[i].kind == PASID_BIND_MAP && !(rec->ops[i].flags & PASID_MAP_FIXED))
			chosen |= 1u << i;
	}
	v = m_judge_list(g, x, rec);
	r = books_bind(g->books, x->c, rec, &plan, &why);
	check(v.unsure || (r == refusal_code(v.why) && why.reason == v.why));
	check(v.unsure || r == 0 || v.why >= PASID_WHY_QUOTA_UID || why.index == v.index);
	if (r < 0) {
		free(rec);
		return;
	}
	v.after = *m_space_of(g, x);
	m_apply_chosen(g, x, rec, chosen, &v.after);
	rig_bind_begun(g, x, rec, plan);
}

static inline void rig_bind_finish_any(struct rig *g)
{
	struct m_context *x = m_pick(g->context, RIG_CONTEXTS);

	if (x && x->plan)
		rig_bind_finish(g, x);
}

/* ---- jobs ---- */

static inline uint32_t m_judge_submit(struct rig *g, const struct m_context *x, const struct record *rec)
{
	if (!rec->len)
		return PASID_WHY_EMPTY;
	if (rec->len > 64)
		return PASID_WHY_COMMANDS;
	if (rec->iova % 8 || rec->len % 8)
		return PASID_WHY_UNALIGNED;
	if (rec->len - 1 > UINT64_MAX - rec->iova)
		return PASID_WHY_WRAPS;
	if (rec->iova < RIG_IOVA || rec->iova + (rec->len - 1) > RIG_IOVA + RIG_PAGES * PAGE - 1)
		return PASID_WHY_APERTURE;
	return m_quota(g, x->owner, PASID_RES_JOBS, 1);
}

static inline void rig_submit(struct rig *g)
{
	struct m_context *x = m_pick(g->context, RIG_CONTEXTS);
	struct record rec = {.kind = RECORD_SUBMIT, .iova = RIG_IOVA + 64 * draw(8), .len = 8 + 8 * draw(7)};
	struct refusal why = {0};
	uint32_t expect;

	if (!x || x->lost || m_busy(g, x->owner))
		return;
	switch (draw(24)) {
	case 1:
		rec.len = draw(2) ? 0 : 72;
		break;
	case 2:
		rec.iova += draw(8);
		break;
	case 3:
		rec.iova = -8ull * draw(3);
		break;
	}
	rec.client = x->owner->id;
	rec.ctx = x->id;
	expect = m_judge_submit(g, x, &rec);
	check(books_submit(g->books, x->c, &rec, &why) == refusal_code(expect) && why.reason == expect);
	if (expect)
		return;
	check(rec.job == ++x->submitted);
	rig_say(g, RECORD_INTENT, &rec, false);
	rig_say(g, RECORD_COMMIT, &rec, true);
}

static inline void rig_jobs_done(struct rig *g)
{
	struct m_context *x = m_pick(g->context, RIG_CONTEXTS);
	struct record rec = {.kind = RECORD_JOBS_DONE};

	if (!x)
		return;
	rec.client = x->owner->id;
	rec.ctx = x->id;
	rec.job = x->submitted - draw((uint32_t)(x->submitted - x->ended) + 1);
	books_jobs_done(x->c, rec.job);
	if (rec.job > x->ended)
		x->ended = rec.job;
	rig_say(g, RECORD_INTENT, &rec, true);
}

#endif
