/* SPDX-License-Identifier: MIT */
/*
 * Taking over a device that goes on working. Its memory, its driver's notes and its page tables are where they were; who runs
 * on which slot follows from the journal. First slots are held whose tables were being changed, and those tables are
 * emptied. Then the device forgets all that it knows of tables, which makes good for every invalidation that was owed. Then
 * tables are filled again, memory that is mapped for nobody goes, and everybody goes on.
 *
 * Until then nothing that belongs to clients is freed, and no table page is used for another purpose.
 */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "service/adopt.h"
#include "service/persist.h"
#include "translator/domain.h"

#define KERNEL_MS 60000u
#define NOT_TRUSTED "what the last process left of it cannot be trusted"

const char *adopt_why_not(const struct device *d)
{
	uint8_t saved[TRANSPORT_SAVE_MAX];

	if (!d->tops->adopt)
		return "its transport cannot be taken over by another process";
	if (!d->eops->adopt)
		return "its driver cannot take it over from another process";
	if (!d->tops->save(d->t, saved))
		return "this kernel maps memory by addresses, which end with their process (files: Linux 6.13)";
	return NULL;
}

/* ---- what is noted while the journal is read ---- */

int adoption_clear_later(struct adoption *a, struct range bus)
{
	struct range *v = util_grow(a->clear, a->n_clear, &a->max_clear, sizeof(*v));

	if (!v)
		return -ENOMEM;
	a->clear = v;
	v[a->n_clear++] = bus;
	return 0;
}

int adoption_detach_later(struct adoption *a, uint32_t pasid)
{
	uint32_t *v = util_grow(a->pasids, a->n_pasids, &a->max_pasids, sizeof(*v));

	if (!v)
		return -ENOMEM;
	a->pasids = v;
	v[a->n_pasids++] = pasid;
	return 0;
}

struct adoption *adoption_free(struct adoption *a)
{
	if (a) {
		free(a->clear);
		free(a->pasids);
	}
	free(a);
	return NULL;
}

/* ---- is it still the device that it was? ---- */

static const char *changed(const struct device *d, const struct entry_device *e)
{
	if (strncmp(d->config->spec, e->spec, sizeof(e->spec)) != 0)
		return "it is configured to be another one";
	if (strncmp(pgtable_format_name(d->format), e->format, sizeof(e->format)) != 0)
		return "its table format is configured to be another one";
	if (d->config->mode != e->mode && (!d->config->fallback || d->config->fallback != e->mode))
		return "its mode is configured to be another one";
	return d->tops->adopt && e->saved_size <= sizeof(e->saved) && e->n_kept <= TRANSPORT_KEEP_MAX
		       ? NULL
		       : "its transport cannot be taken over";
}

static const char *driver_changed(const struct device *d, const struct entry_device *e)
{
	if (strncmp(d->eops->name, e->driver, sizeof(e->driver)) != 0)
		return "another driver is there for it";
	if (!d->eops->adopt)
		return "its driver cannot take it over";
	return d->eops->ro_bytes != e->ro_bytes || d->eops->rw_bytes != e->rw_bytes ||
			       d->eops->keep_bytes != e->keep_bytes
		       ? "its driver has changed"
		       : NULL;
}

void adopt_device(struct device *d)
{
	struct adoption *a = d->adoption;
	const char *why = changed(d, &a->e);
	int fds[TRANSPORT_KEEP_MAX];
	size_t n = d->adoption->e.n_kept;
	bool taken;
	int r;

	d->state = DEVICE_OPENING;
	d->recorded = true;
	d->n_kept = a->e.n_kept;
	d->memory_key = a->e.memory;
	memcpy(d->kept, a->e.kept, sizeof(d->kept));
	a->phase = ADOPT_OPENING;
	r = why ? -EINVAL : store_take_device(d->svc->store, d->kept, d->n_kept, fds);
	taken = r == 0;
	if (r == 0)
		r = d->tops->adopt(&d->t, d->svc->base, d->address, engine_irqs(&d->svc->config->drivers),
				   d->config->answer_ms, a->e.saved, a->e.saved_size, fds, d->n_kept, &device_events,
				   d);
	if (r < 0) {
		while (taken && n)
			close(fds[--n]);
		d->t = NULL;
		device_fail(d, why ? why : "what the last process left of it is not whole");
		return;
	}
	/* The next successor has to tell this one's requests from the last one's. */
	a->e.index = d->books->index;
	a->e.saved_size = (uint32_t)d->tops->save(d->t, a->e.saved);
	persist_device_again(d, &a->e);
}

/* ---- memory, driver, tables ---- */

int adopt_shm(struct device *d, enum vault_memory which, uint64_t bytes, struct shm *m)
{
	int fd, ro_fd, r;

	if (!bytes)
		return 0;
	r = store_get_pair(d->svc->store, d->memory_key + 2 * which, &fd, &ro_fd);
	if (r < 0)
		return r;
	r = shm_adopt(m, bytes, fd, ro_fd);
	if (r < 0) {
		close(fd);
		close(ro_fd);
	}
	return r;
}

static int adopt_pool(struct device *d, const struct entry_device *e)
{
	int fd, ro_fd, r;

	r = store_get_pair(d->svc->store, d->memory_key + 2 * VAULT_TABLES, &fd, &ro_fd);
	if (r < 0)
		return r;
	r = table_pool_adopt(&d->pool, d->layout.tables.first, e->pool_max, e->pool_extent, fd, ro_fd);
	if (r < 0) {
		close(fd);
		close(ro_fd);
	}
	return r;
}

static int adopt_nest(struct device *d)
{
	struct nest *n = &d->nest;
	int r = adopt_shm(d, VAULT_DESCRIPTORS, nest_descriptor_bytes(d), &n->descriptors);

	if (r == 0)
		r = adopt_shm(d, VAULT_NEST_WINDOW, d->eops->window_bytes, &n->window);
	if (r == 0)
		nest_lay_table(d);
	return r;
}

static int adopt_memory(struct device *d, const struct entry_device *e)
{
	int r = adopt_shm(d, VAULT_RINGS, e->ro_bytes, &d->rings);

	if (r == 0)
		r = adopt_shm(d, VAULT_MARKS, e->rw_bytes, &d->marks);
	if (r == 0)
		r = adopt_shm(d, VAULT_KEEP, e->keep_bytes, &d->keep);
	if (r == 0 && d->eops->reads) {
		d->commands = malloc(d->eops->submit_max);
		r = d->commands ? 0 : -ENOMEM;
	}
	if (r == 0 && device_nested(d))
		r = adopt_nest(d);
	if (device_kernel_tables(d))
		return r < 0 ? r : adopt_kernel_windows(d);
	return r < 0 ? r : adopt_pool(d, e);
}

static int adopt_context(struct ctx *ctx)
{
	struct device *d = ctx->dev;
	struct fence_map *fence = fence_map_find(ctx->client, d);
	struct refusal why;
	bool differs = false;
	int r;

	if (ctx->life != CTX_ALIVE)
		return 0;
	if (!fence && !d->eops->reads)
		return -EBADMSG;
	if (fence)
		ctx->fence_bus = fence->bus_node.first + (uint64_t)ctx->books->line * PASID_FENCE_STRIDE;
	r = sched_add(d->sched, ctx->books->client->uid, ctx->books->client->id, ctx, &ctx->se);
	if (r < 0)
		return r;
	ids_installed(d->books->pasids, ctx->books->pasid);
	if (d->books->traits.global) {
		ctx->pt = d->shared_pt;
		return 0;
	}
	ids_installed(d->books->asids, ctx->books->asid);
	if (device_kernel_tables(d))
		return adopt_kernel_tables(ctx);
	r = adopt_tables(d, &ctx->pt, ctx->root, ctx->books->aspace, &differs);
	if (r == 0)
		r = charge_take(&ctx->books->c_tables, ctx->books->client->account, PASID_RES_TABLES,
				pgtable_pages(ctx->pt), &why);
	if (differs && !ctx->rebuild) {
		log_error("device %s: the page tables of context %u are not what its owner asked for", d->config->name,
			  ctx->books->id);
		ctx->lost_why = PASID_LOST_DAEMON;
	}
	return r;
}

static int adopt_contexts(struct device *d)
{
	struct adoption *a = d->adoption;
	struct context *b;
	bool differs = false;
	int r = 0;

	if (d->books->traits.global)
		r = adopt_tables(d, &d->shared_pt, a->shared_root, &d->books->shared, &differs);
	a->rebuild_shared = differs;
	ledger_lenient(books_ledger(d->svc->books), true);
	TAILQ_FOREACH (b, &d->books->contexts, in_device)
		if (r == 0)
			r = adopt_context(b->tag);
	ledger_lenient(books_ledger(d->svc->books), false);
	return r;
}

static int adopt_translator(struct device *d)
{
	int r = 0;

	if (device_exclusive(d)) {
		r = domain_new(&d->tr, d->t, ctx_changed, d);
		if (r == 0)
			domain_adopted(d->tr);
	} else if (device_nested(d)) {
		r = nest_translator(d);
	} else {
		d->tr = setup_whole_translator(d);
	}
	return r < 0 || d->tr ? r : -EPROTO;
}

static int adopt_engine(struct device *d, const struct entry_device *e)
{
	int r = setup_start_engine(d, d->eops->adopt, e->n_slots);

	if (r < 0)
		return r;
	r = adopt_translator(d);
	if (r == 0)
		r = faults_begin(d);
	if (r == 0)
		r = sched_new(&d->sched, d->n_slots, d->config->burst);
	if (r == 0)
		r = adopt_contexts(d);
	return r == 0 ? run_adopt(d) : r;
}

/* ---- address spaces that have to be made again ---- */

static void hold_those(struct device *d)
{
	struct context *b;

	TAILQ_FOREACH (b, &d->books->contexts, in_device)
		if (adopt_rebuilds(d, b->tag))
			run_hold(d, b->tag, false);
}

static bool all_still(struct device *d)
{
	struct context *b;

	TAILQ_FOREACH (b, &d->books->contexts, in_device)
		if (adopt_rebuilds(d, b->tag) && !run_held_still(d, b->tag))
			return false;
	return true;
}

/* ---- what is mapped for nobody ---- */

void adopt_on_cleared(void *arg, int err)
{
	struct device *d = arg;

	if (err == -ENODEV || !d->adoption)
		return; /* lost follows */
	d->adoption->clearing--;
	d->adoption->since = util_now_ns();
	if (err < 0)
		device_fail(d, "it does not say that it has forgotten memory");
	else
		device_poke(d);
}

static void note_unused(struct device *d)
{
	struct buffer_entry *e;

	TAILQ_FOREACH (e, &d->books->buffers, in_device)
		if (!e->buffer.named && !e->buffer.uses &&
		    adoption_clear_later(d->adoption, (struct range){e->bus_node.first, e->bus_node.last}) < 0)
			d->setup_failed = true;
}

/* The predecessor may have been asking for more table pages. */
static void note_next_chunk(struct device *d)
{
	uint64_t off = (uint64_t)table_pool_extent(d->pool) * TABLE_PAGE;
	uint64_t len = (uint64_t)pool_next_chunk(d) * TABLE_PAGE;

	if (len && adoption_clear_later(d->adoption, (struct range){d->layout.tables.first + off,
								    d->layout.tables.first + off + len - 1}) < 0)
		d->setup_failed = true;
}

/* True when all is done. */
static bool clear_some(struct device *d)
{
	struct adoption *a = d->adoption;

	while (a->next_clear < a->n_clear) {
		struct range r = a->clear[a->next_clear];
		int e = d->tops->dma_clear(d->t, r.first, range_len(r), adopt_on_cleared, d);

		if (e == -EBUSY)
			return false;
		if (e < 0) {
			device_fail(d, "it cannot be asked to forget memory");
			return false;
		}
		a->next_clear++;
		a->clearing++;
	}
	return !a->clearing;
}

static void drop_unused(struct device *d)
{
	struct buffer_entry *e, *next;
	struct client *c = NULL;
	struct fence_map *m;

	TAILQ_FOREACH_SAFE (e, &d->books->buffers, in_device, next)
		if (!e->buffer.named && !e->buffer.uses)
			buf_drop(e->tag);
	while ((c = books_next_client(d->svc->books, c)))
		LIST_FOREACH (m, &((struct service_client *)c->tag)->fence_maps, link)
			if (m->dev == d && m->state == BUF_MAPPING)
				m->state = BUF_UNMAPPED;
}

/* ---- step by step ---- */

static void give_back_lost(struct device *d)
{
	struct context *b, *next;

	TAILQ_FOREACH_SAFE (b, &d->books->contexts, in_device, next) {
		struct ctx *ctx = b->tag;

		if (ctx->life == CTX_ALIVE && ctx->lost_why && d->state == DEVICE_READY)
			ctx_lose(ctx, ctx->lost_why, ctx->lost_job);
	}
}

static void adopted(struct device *d)
{
	drop_unused(d);
	d->adoption = adoption_free(d->adoption);
	d->state = DEVICE_READY;
	d->backoff_ms = BACKOFF_FIRST_MS;
	log_info("device %s: taken over at %s, %u contexts, engine %s", d->config->name, d->config->spec,
		 d->books->n_contexts, d->eops->name);
	adopt_over(d->svc);
	give_back_lost(d);
	if (d->state == DEVICE_READY)
		run_go_on(d);
	device_poke(d);
}

static bool invalidate_all(struct device *d)
{
	struct adoption *a = d->adoption;

	if (!a->ticket && run_invalidate(d, 0, NULL, 0, &a->ticket) < 0)
		return false;
	run_invalidated(d);
	return d->state == DEVICE_SETUP && a->ticket <= d->ticket_done;
}

static void enter(struct device *d, enum adoption_phase phase)
{
	d->adoption->phase = phase;
	d->adoption->since = util_now_ns();
}

static void begin_tables(struct device *d)
{
	enter(d, device_kernel_tables(d) ? ADOPT_SPACES : ADOPT_STILL);
	if (!device_kernel_tables(d))
		hold_those(d);
}

/* Nothing is on its slots any more, and it knows no tables. */
static void on_adopted_reset(void *arg, int err)
{
	struct device *d = arg;

	if (err == -ENODEV || !d->adoption)
		return; /* gone: lost follows */
	if (err < 0) {
		device_fail(d, "it cannot be reset");
		return;
	}
	run_after_reset(d);
	if (d->state != DEVICE_RESETTING)
		return;
	d->state = DEVICE_SETUP;
	d->adoption->reset = 0;
	begin_tables(d);
	device_poke(d);
}

/* Before anybody's tables are touched: what does not obey may go on walking them until then. */
static void reset_first(struct device *d)
{
	enter(d, ADOPT_RESETTING);
	d->state = DEVICE_RESETTING;
	if (!d->adoption->reset)
		persist_reset(d, RESET_ASKED);
	if (d->tops->reset(d->t, on_adopted_reset, d) < 0)
		device_fail(d, "it cannot be reset");
}

/* Since it last answered. The kernel is no device that lies, but it may have much to pin and to unpin. */
static uint32_t patience_ms(const struct device *d)
{
	bool kernel = d->adoption->phase >= ADOPT_SPACES && d->adoption->phase <= ADOPT_SWEEPING;

	return kernel && d->config->answer_ms < KERNEL_MS ? KERNEL_MS : d->config->answer_ms;
}

/* Whoever does not stand still is guilty, and the device is reset; otherwise it is the device that does not answer. */
static void over_time(struct device *d)
{
	struct context *b;

	if (util_now_ns() - d->adoption->since <= patience_ms(d) * 1000000ull)
		return;
	if (d->adoption->phase != ADOPT_STILL) {
		device_fail(d, "it does not answer the process that takes it over");
		return;
	}
	TAILQ_FOREACH (b, &d->books->contexts, in_device) {
		struct ctx *ctx = b->tag;

		if (adopt_rebuilds(d, ctx) && !run_held_still(d, ctx))
			ctx->lost_why = PASID_LOST_HANG;
	}
	reset_first(d);
}

static bool still_phase(struct device *d)
{
	if (device_nested(d) && !d->adoption->asked && nest_adopted(d) < 0)
		return false;
	d->adoption->asked = true;
	if (!all_still(d))
		return false;
	adopt_empty_tables(d);
	return true;
}

static bool invalidate_phase(struct device *d)
{
	if (!invalidate_all(d))
		return false;
	adopt_reclaim_tables(d);
	table_pool_adopted(d->pool);
	note_unused(d);
	note_next_chunk(d);
	if (adopt_fill_tables(d) < 0 || d->setup_failed) {
		device_fail(d, "its page tables cannot be made again");
		return false;
	}
	return true;
}

/* Its driver takes over. */
static void adopt_running(struct device *d)
{
	struct adoption *a = d->adoption;

	if (adopt_engine(d, &a->e) < 0) {
		device_fail(d, NOT_TRUSTED);
		return;
	}
	if (a->reset)
		reset_first(d);
	else
		begin_tables(d);
}

void adopt_go_on(struct device *d)
{
	struct adoption *a = d->adoption;

	if (a->phase == ADOPT_ATTACHING && d->nest.attached)
		adopt_running(d);
	if (d->state == DEVICE_SETUP && device_kernel_tables(d))
		adopt_kernel_go_on(d);
	if (d->state == DEVICE_SETUP && a->phase == ADOPT_STILL && still_phase(d))
		enter(d, ADOPT_INVALIDATING);
	if (d->state == DEVICE_SETUP && a->phase == ADOPT_INVALIDATING && invalidate_phase(d))
		enter(d, ADOPT_CLEARING);
	if (d->state != DEVICE_SETUP)
		return;
	if (a->phase == ADOPT_CLEARING && clear_some(d))
		adopted(d);
	else if (d->state == DEVICE_SETUP)
		over_time(d);
}

void adopt_prepared(struct device *d, const char *why)
{
	struct adoption *a = d->adoption;
	int r;

	d->state = DEVICE_SETUP;
	d->setup_failed = false;
	a->since = util_now_ns();
	r = why ? -EINVAL : adopt_memory(d, &a->e);
	if (r == 0 && device_nested(d)) {
		a->phase = ADOPT_ATTACHING;
		r = nest_attach(d);
	}
	if (r < 0)
		device_fail(d, why ? why : NOT_TRUSTED);
	else if (!device_nested(d))
		adopt_running(d);
	if (d->state == DEVICE_SETUP)
		adopt_go_on(d);
	if (d->adoption)
		run_watch(d);
}

void adopt_opened(struct device *d)
{
	const char *why = driver_changed(d, &d->adoption->e);

	setup_take_traits(d);
	if (d->mode == PASID_MODE_PASID)
		setup_limit_pasids(d);
	if (!why && device_nested(d))
		nest_prepare(d);
	else
		adopt_prepared(d, why);
}
