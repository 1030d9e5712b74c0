/* SPDX-License-Identifier: MIT */
/* See selftest_trial.h: contexts, and jobs in them. */
#include <errno.h>
#include <string.h>

#include "selftest_trial.h"

#define JOB_NS 10000000000ll /* no job here takes long, whoever else uses the device */
#define COMMAND_ROOM 65536u /* beyond what a command can need, whatever submit_max says */

struct space space_new(struct trial *t)
{
	const struct pasid_ctx_args args = {.size = sizeof(args), .device = t->device};
	struct space s = {.t = t};

	trial_must(t, pasid_ctx_new(t->p, &args, &s.ctx));
	return s;
}

void space_free(struct space *s)
{
	trial_must(s->t, pasid_ctx_free(s->t->p, s->ctx));
}

uint64_t space_map(struct space *s, const struct memory *m, uint64_t off, uint64_t len, uint32_t flags)
{
	uint64_t iova = 0;

	trial_must(s->t, pasid_map(s->t->p, s->ctx, m->buf, off, len, flags, &iova));
	return iova;
}

void space_map_at(struct space *s, const struct memory *m, uint64_t off, uint64_t len, uint32_t flags, uint64_t iova)
{
	trial_must(s->t, pasid_map(s->t->p, s->ctx, m->buf, off, len, flags | PASID_FIXED, &iova));
}

void space_unmap(struct space *s, uint64_t iova, uint64_t len)
{
	trial_must(s->t, pasid_unmap(s->t->p, s->ctx, iova, len));
}

uint64_t space_hole(struct space *s, uint64_t len)
{
	struct memory m = memory_new(s->t, len);
	uint64_t iova = space_map(s, &m, 0, len, PASID_READ);

	space_unmap(s, iova, len);
	trial_must(s->t, pasid_buf_free(s->t->p, m.buf));
	return iova;
}

struct job job_at(struct space *s, unsigned int place)
{
	uint64_t off = (uint64_t)place * PLACE_BYTES;

	if (!s->commands.map) {
		s->commands = memory_new(s->t, PLACES * PLACE_BYTES);
		s->commands_iova = space_map(s, &s->commands, 0, s->commands.len, PASID_READ);
	}
	return (struct job){.s = s, .iova = s->commands_iova + off, .at = s->commands.map + off};
}

void job_add(struct job *j, const void *command, size_t len)
{
	struct trial *t = j->s->t;

	if (len > PLACE_BYTES - j->len || j->len + len > t->info->submit_max)
		trial_end(t, OUTCOME_UNTRIED, 0,
			  "%zu bytes of commands are more than there is room for: %u, and submit_max %u", j->len + len,
			  PLACE_BYTES, t->info->submit_max);
	memcpy(j->at + j->len, command, len);
	j->len += len;
}

void job_fill(struct job *j, uint64_t dst, uint64_t len, uint32_t value)
{
	static uint8_t command[COMMAND_ROOM];

	job_add(j, command, j->s->t->verbs->fill(command, dst, len, value));
}

void job_copy(struct job *j, uint64_t dst, uint64_t src, uint64_t len)
{
	static uint8_t command[COMMAND_ROOM];

	job_add(j, command, j->s->t->verbs->copy(command, dst, src, len));
}

uint64_t job_submit(const struct job *j)
{
	struct space *s = j->s;
	uint64_t job = 0;

	trial_must(s->t, pasid_submit(s->t->p, s->ctx, j->iova, j->len, &job));
	if (job != ++s->jobs)
		trial_fail(s->t, "job %llu of context %u got the number %llu", (unsigned long long)s->jobs, s->ctx,
			   (unsigned long long)job);
	return job;
}

int job_wait(struct space *s, uint64_t job)
{
	int r = pasid_wait(s->t->p, s->ctx, job, JOB_NS);

	trial_must(s->t, r);
	if (r == PASID_JOB_RESET)
		trial_fail(s->t, "the device was reset under job %llu of context %u", (unsigned long long)job, s->ctx);
	return r;
}

void job_done(struct space *s, uint64_t job)
{
	struct pasid_event ev = {.size = sizeof(ev)};

	if (job_wait(s, job) == 0)
		return;
	while (pasid_next_event(s->t->p, &ev) > 0)
		if (ev.type == PASID_EVENT_FAULT && ev.ctx == s->ctx && ev.job == job)
			trial_fail(s->t, "a job touched only what it may, and faulted: %s", ev.text);
	trial_fail(s->t, "job %llu of context %u touched only what it may, and faulted", (unsigned long long)job,
		   s->ctx);
}

static uint64_t submit_fill(struct space *s, uint64_t dst, uint64_t len, uint32_t value)
{
	struct job j = job_at(s, 0);

	job_fill(&j, dst, len, value);
	return job_submit(&j);
}

static uint64_t submit_copy(struct space *s, uint64_t dst, uint64_t src, uint64_t len)
{
	struct job j = job_at(s, 0);

	job_copy(&j, dst, src, len);
	return job_submit(&j);
}

void space_fill(struct space *s, uint64_t dst, uint64_t len, uint32_t value)
{
	job_done(s, submit_fill(s, dst, len, value));
}

void space_copy(struct space *s, uint64_t dst, uint64_t src, uint64_t len)
{
	job_done(s, submit_copy(s, dst, src, len));
}

int space_try_fill(struct space *s, uint64_t dst, uint64_t len, uint32_t value)
{
	return job_wait(s, submit_fill(s, dst, len, value));
}

int space_try_copy(struct space *s, uint64_t dst, uint64_t src, uint64_t len)
{
	return job_wait(s, submit_copy(s, dst, src, len));
}

void space_faulted(struct space *s, int result, uint64_t first, uint64_t last, uint32_t access, uint32_t code)
{
	struct pasid_event ev = {.size = sizeof(ev)};
	struct trial *t = s->t;

	if (!mode_tells(t->info->mode))
		return;
	if (result != PASID_JOB_FAULTED)
		trial_fail(t, "job %llu of context %u touched 0x%llx, where it may not, and did not fault",
			   (unsigned long long)s->jobs, s->ctx, (unsigned long long)first);
	if (pasid_next_event(t->p, &ev) <= 0)
		trial_fail(t, "job %llu of context %u faulted, and no event says so", (unsigned long long)s->jobs,
			   s->ctx);
	if (ev.type != PASID_EVENT_FAULT || ev.ctx != s->ctx || ev.job != s->jobs || ev.addr < first ||
	    ev.addr > last || ev.access != access || ev.code != code)
		trial_fail(t,
			   "job %llu of context %u should have faulted at 0x%llx-0x%llx (access %u, code %u); the "
			   "event says "
			   "job %llu of context %u at 0x%llx (access %u, code %u): %s",
			   (unsigned long long)s->jobs, s->ctx, (unsigned long long)first, (unsigned long long)last,
			   access, code, (unsigned long long)ev.job, ev.ctx, (unsigned long long)ev.addr, ev.access,
			   ev.code, ev.text);
	if (pasid_next_event(t->p, &ev) > 0)
		trial_fail(t, "one job faulted, and there is another event: %s", ev.text);
}
