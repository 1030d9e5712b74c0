/* SPDX-License-Identifier: MIT */
/* Traces: opened, and told what is so already, so that a reader knows whose the next events are; and what is said of slots. */
#include "service/private.h"

#include <errno.h>
#include <fcntl.h>

#include "base/util.h"

#define CAPACITY 65536u /* records, 4 MiB: a few thousand jobs between two looks of a reader */

/* ---- what happens on slots ---- */

void trace_slot(struct device *d, unsigned int slot, uint16_t event, uint64_t job)
{
	device_trace(d, (struct pasid_trace_record){.event = event,
						    .slot = (uint16_t)(slot + 1),
						    .ctx = d->runs[slot].ctx->books->id,
						    .job = job});
}

void trace_run_end(struct device *d, unsigned int slot, enum pasid_trace_end why)
{
	if (d->runs[slot].ctx)
		device_trace(d, (struct pasid_trace_record){.event = PASID_TRACE_RUN_END,
							    .slot = (uint16_t)(slot + 1),
							    .ctx = d->runs[slot].ctx->books->id,
							    .job = run_front_job(d, slot),
							    .a = why});
}

/* ---- what is so already ---- */

static void known(const struct device *d, struct pasid_trace_record r)
{
	r.known = 1;
	device_trace(d, r);
}

static void known_slot(const struct device *d, unsigned int slot)
{
	const struct ctx *resident = sched_resident_tag(d->sched, slot);
	const struct run *run = &d->runs[slot];
	struct pasid_trace_record r = {.slot = (uint16_t)(slot + 1)};

	if (resident) {
		r.event = PASID_TRACE_SWITCH;
		r.ctx = resident->books->id;
		known(d, r);
	}
	if (!run->ctx)
		return;
	r.event = PASID_TRACE_RUN;
	r.ctx = run->ctx->books->id;
	known(d, r);
	r.event = PASID_TRACE_JOB;
	r.job = run_front_job(d, slot);
	if (r.job)
		known(d, r);
}

static void known_device(const struct device *d)
{
	const struct context *c;

	TAILQ_FOREACH (c, &d->books->contexts, in_device)
		if (c->tag)
			known(d, (struct pasid_trace_record){.event = PASID_TRACE_CTX,
							     .ctx = c->id,
							     .a = (uint64_t)c->client->pid,
							     .b = c->client->uid,
							     .c = c->pasid});
	if (d->state != DEVICE_READY && d->state != DEVICE_RESETTING)
		return;
	known(d, (struct pasid_trace_record){.event = PASID_TRACE_DEVICE_READY, .a = d->n_slots});
	if (d->state == DEVICE_RESETTING)
		known(d, (struct pasid_trace_record){.event = PASID_TRACE_RESET});
	for (unsigned int s = 0; s < d->n_slots; s++)
		known_slot(d, s);
}

/* ---- readers ---- */

int service_trace_open(struct service *s)
{
	int r = trace_open(&s->trace, CAPACITY);
	int fd;

	if (r < 0)
		return r;
	for (size_t i = 0; r > 0 && i < s->n_devices; i++)
		trace_name_device(&s->trace, (uint32_t)i, s->devices[i].config->name);
	fd = fcntl(s->trace.ring.ro_fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0) {
		r = -errno;
		trace_close(&s->trace);
		return r;
	}
	trace_known(&s->trace);
	for (size_t i = 0; i < s->n_devices; i++)
		known_device(&s->devices[i]);
	return fd;
}

void service_trace_close(struct service *s)
{
	trace_close(&s->trace);
}
