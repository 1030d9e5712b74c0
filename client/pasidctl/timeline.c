/* SPDX-License-Identifier: MIT */
/* See timeline.h. */
#include "timeline.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/util.h"

#define SLOTS 64u
#define TID_DEVICE 1u
#define TID_SLOT 2u /* and the slot */
#define TID_CONTEXT 1000ull /* and the context */
#define JOBS_MOST 64u /* that one record ends */

struct slot {
	bool named;
	uint32_t resident, run; /* contexts; 0: none */
	uint64_t job; /* 0: none */
};

struct track { /* a context's */
	uint32_t id;
	uint32_t device;
	bool bind; /* a list is being carried out */
};

struct timeline {
	FILE *f;
	uint64_t now; /* ns */
	bool any; /* something was written */
	struct slot slots[PASID_TRACE_DEVICES][SLOTS];
	bool resetting[PASID_TRACE_DEVICES];
	uint32_t n_devices;
	struct track *tracks; /* by id */
	size_t n_tracks, room;
};

static const char *const fault_codes[] = {"other", "unmapped",   "permission", "address",
					  "bus",   "privileged", "command",    "other"};
static const char *const lost_whys[] = {"", "hang", "device", "reset", "daemon", "closed"};
static const char *const ends[] = {"done", "stopped", "reset", "device gone"};

#define WORD(list, i) ((i) < ARRAY_SIZE(list) ? (list)[i] : "other")

/* ---- the text ---- */

/* An event of phase `ph` on a track; the rest of the object is fmt's. */
__attribute__((format(printf, 5, 6))) static void put(struct timeline *t, char ph, uint32_t device, uint64_t tid,
						      const char *fmt, ...)
{
	va_list ap;

	fprintf(t->f, "%s\n{\"ph\":\"%c\",\"pid\":%u,\"tid\":%" PRIu64, t->any ? "," : "", ph, device + 1, tid);
	if (ph != 'M')
		fprintf(t->f, ",\"ts\":%" PRIu64 ".%03u", t->now / 1000, (unsigned int)(t->now % 1000));
	va_start(ap, fmt);
	vfprintf(t->f, fmt, ap);
	va_end(ap);
	fputc('}', t->f);
	t->any = true;
}

#define INSTANT ",\"s\":\"t\""

static void name_thread(struct timeline *t, uint32_t device, uint64_t tid, const char *what, uint64_t number)
{
	put(t, 'M', device, tid, ",\"name\":\"thread_name\",\"args\":{\"name\":\"%s %" PRIu64 "\"}", what, number);
	put(t, 'M', device, tid, ",\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%" PRIu64 "}", tid);
}

static void name_device(struct timeline *t, uint32_t device, const char *name)
{
	put(t, 'M', device, TID_DEVICE, ",\"name\":\"process_name\",\"args\":{\"name\":\"%s\"}", name);
	put(t, 'M', device, TID_DEVICE, ",\"name\":\"thread_name\",\"args\":{\"name\":\"device\"}");
	put(t, 'M', device, TID_DEVICE, ",\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":1}");
}

/* ---- slots ---- */

static void end_job(struct timeline *t, uint32_t device, uint32_t slot, const char *how)
{
	struct slot *s = &t->slots[device][slot];

	if (s->job)
		put(t, 'E', device, TID_SLOT + slot, ",\"args\":{\"end\":\"%s\"}", how);
	s->job = 0;
}

static void end_run(struct timeline *t, uint32_t device, uint32_t slot, const char *how)
{
	struct slot *s = &t->slots[device][slot];

	end_job(t, device, slot, how);
	if (s->run)
		put(t, 'E', device, TID_SLOT + slot, ",\"args\":{\"end\":\"%s\"}", how);
	s->run = 0;
}

static void begin_run(struct timeline *t, uint32_t device, uint32_t slot, uint32_t ctx)
{
	struct slot *s = &t->slots[device][slot];

	if (s->run == ctx)
		return;
	end_run(t, device, slot, "unknown");
	put(t, 'B', device, TID_SLOT + slot, ",\"cat\":\"run\",\"name\":\"context %u\",\"args\":{\"context\":%u}", ctx,
	    ctx);
	s->run = ctx;
}

static void begin_job(struct timeline *t, uint32_t device, uint32_t slot, uint32_t ctx, uint64_t job)
{
	struct slot *s = &t->slots[device][slot];

	begin_run(t, device, slot, ctx);
	if (s->job == job)
		return;
	end_job(t, device, slot, "unknown");
	put(t, 'B', device, TID_SLOT + slot,
	    ",\"cat\":\"job\",\"name\":\"job %" PRIu64 "\",\"args\":{\"context\":%u,\"job\":%" PRIu64 "}", job, ctx,
	    job);
	s->job = job;
}

/* Of several jobs that are found done at once only the first one's begin is known. */
static void jobs_done(struct timeline *t, uint32_t slot, const struct pasid_trace_record *r)
{
	uint64_t first = r->a && r->a <= r->job && r->job - r->a < JOBS_MOST ? r->a : r->job;

	for (uint64_t job = first; r->job && job - 1 < r->job; job++) {
		begin_job(t, r->device, slot, r->ctx, job);
		end_job(t, r->device, slot, "done");
	}
}

static void switched(struct timeline *t, uint32_t slot, const struct pasid_trace_record *r)
{
	struct slot *s = &t->slots[r->device][slot];

	if (r->known && s->resident == r->ctx)
		return;
	end_run(t, r->device, slot, "unknown");
	if (s->resident && s->resident != r->ctx)
		put(t, 'i', r->device, TID_SLOT + slot,
		    INSTANT ",\"cat\":\"eviction\",\"name\":\"context %u evicted\",\"args\":{\"context\":%u,\"by\":%u}",
		    s->resident, s->resident, r->ctx);
	if (!r->known)
		put(t, 'i', r->device, TID_SLOT + slot,
		    INSTANT ",\"cat\":\"switch\",\"name\":\"switch to context %u\",\"args\":{\"context\":%u}", r->ctx,
		    r->ctx);
	s->resident = r->ctx;
}

static void add_to_slot(struct timeline *t, const struct pasid_trace_record *r)
{
	uint32_t slot = r->slot - 1u;
	struct slot *s;

	if (slot >= SLOTS || !r->ctx)
		return;
	s = &t->slots[r->device][slot];
	if (!s->named)
		name_thread(t, r->device, TID_SLOT + slot, "slot", slot);
	s->named = true;
	if (r->event == PASID_TRACE_SWITCH)
		switched(t, slot, r);
	else if (r->event == PASID_TRACE_RUN)
		begin_run(t, r->device, slot, r->ctx);
	else if (r->event == PASID_TRACE_RUN_END)
		end_run(t, r->device, slot, WORD(ends, r->a));
	else if (r->event == PASID_TRACE_JOB && r->job)
		begin_job(t, r->device, slot, r->ctx, r->job);
	else if (r->event == PASID_TRACE_JOB_END)
		jobs_done(t, slot, r);
}

/* ---- contexts ---- */

static size_t place_of(const struct timeline *t, uint32_t id)
{
	size_t low = 0, high = t->n_tracks;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (t->tracks[mid].id < id)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* The context's track, which is named when it is first heard of. NULL: no memory. */
static struct track *track_of(struct timeline *t, uint32_t id, uint32_t device)
{
	size_t at = place_of(t, id);

	if (at < t->n_tracks && t->tracks[at].id == id)
		return &t->tracks[at];
	if (t->n_tracks == t->room) {
		size_t room = t->room ? 2 * t->room : 64;
		struct track *v = realloc(t->tracks, room * sizeof(*v));

		if (!v)
			return NULL;
		t->tracks = v;
		t->room = room;
	}
	for (size_t i = t->n_tracks++; i > at; i--)
		t->tracks[i] = t->tracks[i - 1];
	t->tracks[at] = (struct track){.id = id, .device = device};
	name_thread(t, device, TID_CONTEXT + id, "context", id);
	return &t->tracks[at];
}

static void end_bind(struct timeline *t, struct track *track)
{
	if (track->bind)
		put(t, 'E', track->device, TID_CONTEXT + track->id, "%s", "");
	track->bind = false;
}

static void context_gone(struct timeline *t, struct track *track)
{
	size_t at = (size_t)(track - t->tracks);

	end_bind(t, track);
	put(t, 'i', track->device, TID_CONTEXT + track->id, INSTANT ",\"cat\":\"context\",\"name\":\"freed\"");
	for (uint32_t d = 0; d < t->n_devices; d++)
		for (uint32_t s = 0; s < SLOTS; s++)
			if (t->slots[d][s].resident == track->id)
				t->slots[d][s].resident = 0;
	t->n_tracks--;
	for (size_t i = at; i < t->n_tracks; i++)
		t->tracks[i] = t->tracks[i + 1];
}

static void mapped(struct timeline *t, const struct track *track, const struct pasid_trace_record *r)
{
	uint64_t tid = TID_CONTEXT + track->id;

	if (r->event == PASID_TRACE_MAP)
		put(t, 'i', track->device, tid,
		    INSTANT ",\"cat\":\"map\",\"name\":\"map\",\"args\":{\"first\":\"%#" PRIx64
			    "\",\"last\":\"%#" PRIx64 "\",\"bus\":\"%#" PRIx64 "\"}",
		    r->a, r->b, r->c);
	else
		put(t, 'i', track->device, tid,
		    INSTANT ",\"cat\":\"unmap\",\"name\":\"unmap\",\"args\":{\"first\":\"%#" PRIx64
			    "\",\"last\":\"%#" PRIx64 "\"}",
		    r->a, r->b);
}

static int add_to_context(struct timeline *t, const struct pasid_trace_record *r)
{
	struct track *track = r->ctx ? track_of(t, r->ctx, r->device) : NULL;
	uint64_t tid = TID_CONTEXT + r->ctx;

	if (!track)
		return r->ctx ? -ENOMEM : 0;
	switch (r->event) {
	case PASID_TRACE_CTX:
		put(t, 'i', track->device, tid,
		    INSTANT
		    ",\"cat\":\"context\",\"name\":\"%s\",\"args\":{\"owner pid\":%u,\"owner uid\":%u,\"pasid\":%u}",
		    r->known ? "was there" : "made", (unsigned int)r->a, (unsigned int)r->b, (unsigned int)r->c);
		break;
	case PASID_TRACE_CTX_LOST:
		put(t, 'i', track->device, tid,
		    INSTANT ",\"cat\":\"context\",\"name\":\"lost\",\"args\":{\"why\":\"%s\",\"job\":%" PRIu64 "}",
		    WORD(lost_whys, r->a), r->job);
		break;
	case PASID_TRACE_CTX_GONE:
		context_gone(t, track);
		break;
	case PASID_TRACE_BIND:
		end_bind(t, track);
		put(t, 'B', track->device, tid, ",\"cat\":\"bind\",\"name\":\"bind\"");
		track->bind = true;
		break;
	case PASID_TRACE_BIND_END:
		end_bind(t, track);
		break;
	default:
		mapped(t, track, r);
	}
	return 0;
}

/* ---- devices ---- */

static void end_reset(struct timeline *t, uint32_t device)
{
	if (t->resetting[device])
		put(t, 'E', device, TID_DEVICE, "%s", "");
	t->resetting[device] = false;
}

/* On its slot's track, if that is known and the context is there; else on the context's, or the device's. */
static int fault(struct timeline *t, const struct pasid_trace_record *r)
{
	uint32_t slot = r->slot - 1u, device = r->device;
	uint64_t tid = TID_DEVICE;

	if (r->ctx && slot < SLOTS && t->slots[device][slot].run == r->ctx) {
		tid = TID_SLOT + slot;
	} else if (r->ctx) {
		const struct track *track = track_of(t, r->ctx, device);

		if (!track)
			return -ENOMEM;
		device = track->device;
		tid = TID_CONTEXT + r->ctx;
	}
	put(t, 'i', device, tid,
	    INSTANT ",\"cat\":\"fault\",\"name\":\"fault\",\"args\":{\"context\":%u,\"job\":%" PRIu64
		    ",\"iova\":\"%#" PRIx64 "\",\"access\":\"%s\",\"code\":\"%s\"}",
	    r->ctx, r->job, r->a,
	    r->b == 1   ? "read"
	    : r->b == 2 ? "write"
			: "fetch",
	    WORD(fault_codes, r->c));
	return 0;
}

static void add_to_device(struct timeline *t, const struct pasid_trace_record *r)
{
	switch (r->event) {
	case PASID_TRACE_RESET:
		if (t->resetting[r->device])
			break;
		put(t, 'B', r->device, TID_DEVICE, ",\"cat\":\"reset\",\"name\":\"reset\"");
		t->resetting[r->device] = true;
		break;
	case PASID_TRACE_RESET_END:
		end_reset(t, r->device);
		break;
	case PASID_TRACE_DEVICE_GONE:
		end_reset(t, r->device);
		put(t, 'i', r->device, TID_DEVICE, INSTANT ",\"cat\":\"device\",\"name\":\"gone\"");
		break;
	case PASID_TRACE_DEVICE_READY:
		if (!r->known)
			put(t, 'i', r->device, TID_DEVICE, INSTANT ",\"cat\":\"device\",\"name\":\"ready\"");
		for (uint32_t s = 0; s < SLOTS; s++) {
			struct slot *slot = &t->slots[r->device][s];

			if (!r->known)
				slot->resident = 0;
			if (s < r->a && !slot->named)
				name_thread(t, r->device, TID_SLOT + s, "slot", s);
			slot->named |= s < r->a;
		}
		break;
	}
}

/* ---- as a whole ---- */

int timeline_new(struct timeline **ret, FILE *f, const char names[][32], uint32_t n_devices)
{
	struct timeline *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->f = f;
	t->n_devices = n_devices;
	fputs("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[", f);
	for (uint32_t i = 0; i < n_devices; i++)
		name_device(t, i, names[i]);
	*ret = t;
	return 0;
}

int timeline_add(struct timeline *t, const struct pasid_trace_record *r)
{
	if (r->device >= t->n_devices)
		return 0;
	t->now = r->time_ns > t->now ? r->time_ns : t->now;
	switch (r->event) {
	case PASID_TRACE_SWITCH:
	case PASID_TRACE_RUN:
	case PASID_TRACE_RUN_END:
	case PASID_TRACE_JOB:
	case PASID_TRACE_JOB_END:
		add_to_slot(t, r);
		return 0;
	case PASID_TRACE_CTX:
	case PASID_TRACE_CTX_GONE:
	case PASID_TRACE_CTX_LOST:
	case PASID_TRACE_BIND:
	case PASID_TRACE_MAP:
	case PASID_TRACE_UNMAP:
	case PASID_TRACE_BIND_END:
		return add_to_context(t, r);
	case PASID_TRACE_FAULT:
		return fault(t, r);
	default:
		add_to_device(t, r);
		return 0;
	}
}

static void end_all(struct timeline *t, const char *how)
{
	for (uint32_t d = 0; d < t->n_devices; d++) {
		for (uint32_t s = 0; s < SLOTS; s++)
			end_run(t, d, s, how);
		end_reset(t, d);
	}
	for (size_t i = 0; i < t->n_tracks; i++)
		end_bind(t, &t->tracks[i]);
}

void timeline_lost(struct timeline *t, uint64_t n)
{
	end_all(t, "unknown");
	for (uint32_t d = 0; d < t->n_devices; d++) {
		put(t, 'i', d, TID_DEVICE,
		    INSTANT ",\"cat\":\"lost\",\"name\":\"%" PRIu64 " events lost\",\"args\":{\"events\":%" PRIu64 "}",
		    n, n);
		for (uint32_t s = 0; s < SLOTS; s++)
			t->slots[d][s].resident = 0;
	}
}

struct timeline *timeline_end(struct timeline *t)
{
	if (!t)
		return NULL;
	end_all(t, "end of the trace");
	fputs("\n]}\n", t->f);
	free(t->tracks);
	free(t);
	return NULL;
}
