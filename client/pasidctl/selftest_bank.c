/* SPDX-License-Identifier: MIT */
/* See selftest_bank.h: a process with a secret that the device works on while the thief tries to get at it. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "selftest_bank.h"

struct bank {
	struct trial *t;
	struct space s;
	struct memory secret, mirror;
	unsigned int works;
};

/* In the middle of the aperture, where the daemon puts nothing by itself as long as there is room elsewhere. */
static uint64_t middle(const struct pasid_device_info *info)
{
	return (info->iova_first + (info->iova_last - info->iova_first) / 2) & ~(uint64_t)(PAGE - 1);
}

static void map_secret(struct bank *b, struct bank_page *page)
{
	page->secret = middle(b->t->info);
	if (b->t->info->mode == PASID_MODE_GLOBAL)
		page->secret = space_map(&b->s, &b->secret, 0, b->secret.len, READ_WRITE);
	else
		space_map_at(&b->s, &b->secret, 0, b->secret.len, READ_WRITE, page->secret);
	page->mirror = page->secret + b->secret.len;
	if (b->t->info->mode == PASID_MODE_GLOBAL)
		page->mirror = space_map(&b->s, &b->mirror, 0, b->mirror.len, READ_WRITE);
	else
		space_map_at(&b->s, &b->mirror, 0, b->mirror.len, READ_WRITE, page->mirror);
}

/* The device copies a page of the secret, and keeps some of it, if it has memory for that. */
static void bank_work(struct bank *b)
{
	const struct local_verbs *local = b->t->local;
	uint64_t page = (uint64_t)(b->works++ % SECRET_PAGES) * PAGE;

	memset(b->mirror.map + page, 0, PAGE);
	space_copy(&b->s, b->t->bank->mirror + page, b->t->bank->secret + page, PAGE);
	must_equal(b->t, b->mirror.map + page, b->secret.map + page, PAGE, "the bank's copy of its secret");
	if (local) {
		uint8_t command[PLACE_BYTES];
		size_t len = local->bytes < SECRET_BYTES ? local->bytes : SECRET_BYTES;
		struct job j = job_at(&b->s, 0);

		job_add(&j, command, local->keep(command, b->t->bank->secret, len));
		job_done(&b->s, job_submit(&j));
	}
}

static uint32_t count_changed(const struct memory *m, const uint8_t *should)
{
	uint32_t n = 0;

	for (size_t i = 0; i < m->len; i++)
		n += m->map[i] != should[i];
	return n;
}

static void bank_look(const struct bank *b)
{
	struct bank_page *page = b->t->bank;
	struct pasid_event ev = {.size = sizeof(ev)};
	uint8_t should[SECRET_BYTES];

	pattern_write(should, sizeof(should), page->key);
	page->changed = count_changed(&b->secret, should);
	if (b->works >= SECRET_PAGES)
		page->changed += count_changed(&b->mirror, should);
	while (pasid_next_event(b->t->p, &ev) > 0)
		if (!page->events++)
			snprintf(page->event, sizeof(page->event), "%s", ev.text);
}

static void bank_open(struct bank *b)
{
	struct bank_page *page = b->t->bank;

	b->s = space_new(b->t);
	b->secret = memory_new(b->t, SECRET_BYTES);
	b->mirror = memory_new(b->t, SECRET_BYTES);
	page->key = trial_key(b->t);
	pattern_write(b->secret.map, SECRET_BYTES, page->key);
	map_secret(b, page);
	page->commands = job_at(&b->s, 0).iova;
	page->ctx = b->s.ctx;
	page->buf = b->secret.buf;
	while (b->t->job_ns && b->works < SECRET_PAGES)
		bank_work(b);
}

void bank_run(struct trial *t, int fd)
{
	struct bank b = {.t = t};
	char word = BANK_READY;

	bank_open(&b);
	while (write(fd, &word, 1) == 1 && read(fd, &word, 1) == 1) {
		if (word == BANK_WORK)
			bank_work(&b);
		else
			bank_look(&b);
	}
	trial_end(t, OUTCOME_OK, 0, "it was not asked any more");
}

static void ask(struct trial *t, char word)
{
	if (send(t->bank_fd, &word, 1, MSG_NOSIGNAL) != 1 || read(t->bank_fd, &word, 1) != 1)
		trial_fail(t, "the bank ended: %s", t->bank->verdict.text);
}

void bank_works(struct trial *t)
{
	ask(t, BANK_WORK);
}

void bank_is_intact(struct trial *t, const char *after)
{
	const struct bank_page *page = t->bank;

	ask(t, BANK_LOOK);
	if (page->changed)
		trial_fail(t, "%u bytes of the bank's memory changed after %s", page->changed, after);
	if (page->events)
		trial_fail(t, "the bank was told of %u events after %s: %s", page->events, after, page->event);
}
