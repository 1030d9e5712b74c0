/* SPDX-License-Identifier: MIT */
/*
 * Events between their arrival and pasid_next_event(). Each context has room for its newest 16 faults, a count of
 * those before them, its latest reset and its loss, so no flood of events takes more memory than the contexts do.
 * Contexts wait in the order in which their oldest event came. An event for a context that is no longer known came
 * while it was freed and is dropped, and so are kinds of events that a newer daemon may have.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

void events_init(struct pasid *p)
{
	p->pending = NULL;
	p->pending_end = &p->pending;
}

static void events_queue(struct pasid *p, struct ctx *c)
{
	if (c->pending)
		return;
	c->pending = true;
	c->next = NULL;
	*p->pending_end = c;
	p->pending_end = &c->next;
}

void events_forget(struct pasid *p, struct ctx *c)
{
	struct ctx **link = &p->pending;

	if (!c->pending)
		return;
	while (*link != c)
		link = &(*link)->next;
	*link = c->next;
	if (p->pending_end == &c->next)
		p->pending_end = link;
	c->pending = false;
}

/* A job is remembered once, however many faults it had. */
static void disrupted_add(struct pasid *p, struct ctx *c, uint64_t job, int how)
{
	struct disrupted *d = &p->disrupted[p->disrupted_count % DISRUPTED_MAX];

	if (events_disrupted(p, c->id, job))
		return;
	d->ctx = c->id;
	d->job = job;
	d->how = how;
	p->disrupted_count++;
	c->told++;
}

int events_disrupted(const struct pasid *p, uint32_t ctx, uint64_t job)
{
	size_t i, n = p->disrupted_count < DISRUPTED_MAX ? (size_t)p->disrupted_count : DISRUPTED_MAX;

	for (i = 0; i < n; i++)
		if (p->disrupted[i].ctx == ctx && p->disrupted[i].job == job)
			return p->disrupted[i].how;
	return 0;
}

static void fault_drop_oldest(struct ctx *c)
{
	uint64_t dropped = c->fault[c->fault_first].dropped + 1;

	c->fault_first = (c->fault_first + 1) % PASID_FAULTS_MAX;
	c->faults--;
	c->fault[c->fault_first].dropped += dropped;
}

static void fault_add(struct pasid *p, struct ctx *c, const struct pasid_wire_fault *f)
{
	struct queued_fault *q;

	if (c->faults == PASID_FAULTS_MAX)
		fault_drop_oldest(c);
	q = &c->fault[(c->fault_first + c->faults++) % PASID_FAULTS_MAX];
	q->f = *f;
	q->dropped = c->dropped;
	c->dropped = 0;
	disrupted_add(p, c, f->job, PASID_JOB_FAULTED);
}

static void take_fault(struct pasid *p, const struct pasid_msg *m)
{
	const char *at = (const char *)m + sizeof(struct pasid_ev_fault);
	struct pasid_wire_fault f;
	struct pasid_ev_fault ev;
	struct ctx *c;
	uint32_t i;

	if (m->size < sizeof(ev))
		return;
	memcpy(&ev, m, sizeof(ev));
	if (ev.count > PASID_FAULTS_MAX || m->size != sizeof(ev) + ev.count * sizeof(f))
		return;
	c = ctx_find(p, ev.ctx);
	if (!c || (!ev.count && !ev.dropped))
		return;
	c->dropped += ev.dropped;
	c->told += (uint32_t)ev.dropped;
	for (i = 0; i < ev.count; i++) {
		memcpy(&f, at + i * sizeof(f), sizeof(f));
		fault_add(p, c, &f);
	}
	events_queue(p, c);
}

static void take_lost(struct pasid *p, const struct pasid_msg *m)
{
	struct pasid_ev_lost ev;
	struct ctx *c;

	if (m->size != sizeof(ev))
		return;
	memcpy(&ev, m, sizeof(ev));
	c = ctx_find(p, ev.ctx);
	if (!c)
		return;
	if (ev.why == PASID_LOST_RESET) {
		c->reset = true;
		c->reset_job = ev.job;
		disrupted_add(p, c, ev.job, PASID_JOB_RESET);
	} else {
		c->lost = true;
		c->lost_job = ev.job;
		c->lost_why = ev.why;
	}
	events_queue(p, c);
}

/* The latest return of each device counts. */
static void take_device(struct pasid *p, const struct pasid_msg *m)
{
	struct pasid_ev_device ev;
	unsigned int i;

	if (m->size != sizeof(ev))
		return;
	memcpy(&ev, m, sizeof(ev));
	ev.device[PASID_NAME_MAX - 1] = '\0';
	for (i = 0; i < p->devices_back; i++)
		if (!strcmp(p->device_back[i], ev.device))
			return;
	if (p->devices_back == DEVICES_BACK_MAX) {
		p->devices_back--;
		memmove(p->device_back[0], p->device_back[1], p->devices_back * sizeof(p->device_back[0]));
	}
	memcpy(p->device_back[p->devices_back++], ev.device, PASID_NAME_MAX);
}

void events_take(struct pasid *p, const struct pasid_msg *m)
{
	switch (m->opcode) {
	case PASID_EV_FAULT:
		take_fault(p, m);
		break;
	case PASID_EV_LOST:
		take_lost(p, m);
		break;
	case PASID_EV_RESUMED:
		p->resumed = true;
		break;
	case PASID_EV_DEVICE_BACK:
		take_device(p, m);
		break;
	}
}

/* ---- What an event says. ------------------------------------------------------------------------------------ */

static const char *access_name(uint32_t access)
{
	return access == 2 ? "wrote" : access == 4 ? "fetched commands at" : "read";
}

static const char *code_name(uint32_t code)
{
	static const char *const name[] = {
		[PASID_FAULT_UNMAPPED] = "where nothing is mapped",
		[PASID_FAULT_PERMISSION] = "which its mapping does not allow",
		[PASID_FAULT_ADDRESS] = "which is not an address of this device",
		[PASID_FAULT_BUS] = "which is mapped, but the memory behind it did not answer",
		[PASID_FAULT_PRIVILEGED] = "a command that is not for clients",
		[PASID_FAULT_COMMAND] = "a malformed command",
	};

	return code < sizeof(name) / sizeof(name[0]) && name[code] ? name[code] : "which the device refused";
}

static const char *age(char *buf, size_t len, uint64_t ns)
{
	if (ns < 10000)
		snprintf(buf, len, "%" PRIu64 " ns", ns);
	else if (ns < 10000000)
		snprintf(buf, len, "%" PRIu64 " us", ns / 1000);
	else if (ns < 10000000000)
		snprintf(buf, len, "%" PRIu64 " ms", ns / 1000000);
	else
		snprintf(buf, len, "%" PRIu64 " s", ns / 1000000000);
	return buf;
}

/* Where addr lies relative to the nearest mapping. */
static void near_text(char *buf, size_t len, const struct pasid_event *ev)
{
	uint64_t a = ev->addr, first = ev->near_first, last = ev->near_last;

	if (!first && !last)
		snprintf(buf, len, "the context has no mappings");
	else if (a < first)
		snprintf(buf, len, "%" PRIu64 " bytes below its mapping 0x%" PRIx64 "-0x%" PRIx64, first - a, first,
			 last);
	else if (a - last == 1)
		snprintf(buf, len, "right behind its mapping 0x%" PRIx64 "-0x%" PRIx64, first, last);
	else if (a > last)
		snprintf(buf, len, "%" PRIu64 " bytes behind its mapping 0x%" PRIx64 "-0x%" PRIx64, a - last - 1, first,
			 last);
	else
		snprintf(buf, len, "in its mapping 0x%" PRIx64 "-0x%" PRIx64, first, last);
}

static void fault_text(struct pasid_event *ev)
{
	bool command = ev->code == PASID_FAULT_PRIVILEGED || ev->code == PASID_FAULT_COMMAND;
	char near[96] = "", gone[96] = "", when[32];
	size_t n = 0;

	near_text(near, sizeof(near), ev);
	if (!command && (ev->gone_first || ev->gone_last))
		snprintf(gone, sizeof(gone), "; 0x%" PRIx64 "-0x%" PRIx64 " was unmapped %s before", ev->gone_first,
			 ev->gone_last, age(when, sizeof(when), ev->gone_age_ns));
	if (command)
		n = (size_t)snprintf(ev->text, sizeof(ev->text),
				     "job %" PRIu64 " of context %u ran at 0x%" PRIx64 " %s", ev->job, ev->ctx,
				     ev->addr, code_name(ev->code));
	else
		n = (size_t)snprintf(ev->text, sizeof(ev->text),
				     "job %" PRIu64 " of context %u %s 0x%" PRIx64 ", %s: %s%s", ev->job, ev->ctx,
				     access_name(ev->access), ev->addr, code_name(ev->code), near, gone);
	if (ev->dropped && n < sizeof(ev->text))
		snprintf(ev->text + n, sizeof(ev->text) - n, " (%" PRIu64 " faults before it not reported)",
			 ev->dropped);
}

/* ---- Fetching. ---------------------------------------------------------------------------------------------- */

static void pop_fault(struct ctx *c, struct pasid_event *ev)
{
	const struct pasid_wire_fault *f = &c->fault[c->fault_first].f;

	ev->type = PASID_EVENT_FAULT;
	ev->dropped = c->fault[c->fault_first].dropped;
	ev->job = f->job;
	ev->addr = f->addr;
	ev->access = f->access;
	ev->code = f->code;
	ev->near_first = f->near_first;
	ev->near_last = f->near_last;
	ev->gone_first = f->gone_first;
	ev->gone_last = f->gone_last;
	ev->gone_age_ns = f->gone_age_ns;
	c->fault_first = (c->fault_first + 1) % PASID_FAULTS_MAX;
	c->faults--;
	fault_text(ev);
}

static void pop_reset(struct ctx *c, struct pasid_event *ev)
{
	c->reset = false;
	ev->type = PASID_EVENT_RESET;
	ev->job = c->reset_job;
	snprintf(ev->text, sizeof(ev->text),
		 "the device was reset while job %" PRIu64
		 " of context %u ran: that job ended unfinished, submit it again",
		 ev->job, c->id);
}

static void pop_lost(struct ctx *c, struct pasid_event *ev)
{
	c->lost = false;
	ev->type = PASID_EVENT_LOST;
	ev->why = c->lost_why;
	ev->job = c->lost_job;
	if (ev->job)
		snprintf(ev->text, sizeof(ev->text), "context %u is lost at job %" PRIu64 ": %s; free it", c->id,
			 ev->job, error_lost_why(ev->why));
	else
		snprintf(ev->text, sizeof(ev->text), "context %u is lost: %s; free it", c->id, error_lost_why(ev->why));
}

/* Only dropped faults are left to tell of: a fault of which nothing is known but that it was. */
static void pop_dropped(struct ctx *c, struct pasid_event *ev)
{
	ev->type = PASID_EVENT_FAULT;
	ev->code = PASID_FAULT_OTHER;
	ev->dropped = c->dropped;
	c->dropped = 0;
	snprintf(ev->text, sizeof(ev->text), "%" PRIu64 " faults of context %u were not reported", ev->dropped, c->id);
}

static void pop_ctx(struct pasid *p, struct pasid_event *ev)
{
	struct ctx *c = p->pending;

	ev->ctx = c->id;
	if (c->faults)
		pop_fault(c, ev);
	else if (c->dropped)
		pop_dropped(c, ev);
	else if (c->reset)
		pop_reset(c, ev);
	else
		pop_lost(c, ev);
	if (!c->faults && !c->dropped && !c->reset && !c->lost)
		events_forget(p, c);
}

static bool events_pop(struct pasid *p, struct pasid_event *ev)
{
	memset(ev, 0, sizeof(*ev));
	if (p->resumed) {
		p->resumed = false;
		ev->type = PASID_EVENT_RESUMED;
		snprintf(ev->text, sizeof(ev->text), "a new pasidd took over; nothing was lost");
	} else if (p->devices_back) {
		ev->type = PASID_EVENT_DEVICE_BACK;
		memcpy(ev->device, p->device_back[0], sizeof(ev->device));
		p->devices_back--;
		memmove(p->device_back[0], p->device_back[1], p->devices_back * sizeof(p->device_back[0]));
		snprintf(ev->text, sizeof(ev->text), "device %s is back: new contexts can be made", ev->device);
	} else if (p->pending) {
		pop_ctx(p, ev);
	} else {
		return false;
	}
	return true;
}

int pasid_next_event(struct pasid *p, struct pasid_event *ev)
{
	struct pasid_event full;
	size_t size = 0;
	int r = 0;

	if (ev)
		memcpy(&size, ev, sizeof(size));
	if (size < sizeof(size) || size > STRUCT_SIZE_MAX)
		return error_call(p, failure(p, -EINVAL, ev ? LOCAL_STRUCT : LOCAL_ARGUMENT, size, 0),
				  "fetch an event");
	if (!p->dead)
		r = conn_drain(p);
	if (events_pop(p, &full)) {
		struct_out(ev, &full, sizeof(full));
		return 1;
	}
	if (r < 0 || p->dead)
		return error_call(p, conn_check(p), "fetch an event");
	return 0;
}
