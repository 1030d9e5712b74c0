/* SPDX-License-Identifier: MIT */
/* See selftest.h: which checks are made, one after the other, and what is said of them. */
#include "selftest.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "selftest_run.h"

#define RUN_S 60u /* after that no check is begun */
/* Users that no distribution gives to anybody (systemd's "Users, Groups, UIDs and GIDs": 60578 to 61183 are unused). */
#define BANK_UID 61001u
#define THIEF_UID 61002u

static const struct checks *const lists[] = {&engine_checks, &translator_checks, &address_checks, &thief_checks};

/* ---- what is there ---- */

NORETURN static void no_such_device(struct trial *t)
{
	struct pasid_device v[16] = {{.size = sizeof(v[0])}};
	size_t n = ARRAY_SIZE(v), len = 0;
	char names[sizeof(v) + 2] = "";

	trial_must(t, pasid_devices(t->p, v, &n));
	for (size_t i = 0; i < n && i < ARRAY_SIZE(v); i++)
		len += (size_t)snprintf(names + len, sizeof(names) - len, "%s %.31s", i ? "," : "", v[i].name);
	trial_end(t, OUTCOME_UNTRIED, -ENOENT, "pasidd has no device \"%s\", it has:%s", t->device,
		  n ? names : " none");
}

static void look_at_device(struct trial *t)
{
	struct pasid_device_info info = {.size = sizeof(info)};
	int r = pasid_device_info(t->p, t->device, &info);

	if (r == -ENOENT)
		no_such_device(t);
	trial_must(t, r);
	info.name[sizeof(info.name) - 1] = info.engine[sizeof(info.engine) - 1] = '\0';
	*t->info = info;
}

/* NULL, or what keeps a device that says so from being tried. */
static const char *not_credible(const struct pasid_device_info *i)
{
	if (!i->present)
		return "is gone at the moment; see pasidd's log";
	if (i->slots < 1 || i->slots > SLOTS_MOST)
		return "has no slots, or more than 64";
	if (!i->submit_max || !(i->page_sizes & PAGE))
		return "takes no commands, or maps no pages of 4 KiB";
	if (i->iova_first > i->iova_last || i->iova_last - i->iova_first < (64u << 20))
		return "has less than 64 MiB of addresses";
	return NULL;
}

static int cannot(FILE *err, const char *device, const char *why)
{
	fprintf(err, "pasidctl: %s %s\n", device, why);
	return SELFTEST_UNTRIED;
}

/* -1: go on. Else an exit status. */
static int find_device(struct run *r, FILE *err)
{
	const struct pasid_device_info *info = &r->told->info;
	const char *why;

	(void)run_process(r, SAME_UID, look_at_device);
	if (r->told->verdict.outcome != OUTCOME_OK) {
		fprintf(err, "pasidctl: %s\n", r->told->verdict.text);
		return SELFTEST_UNTRIED;
	}
	why = not_credible(info);
	if (why)
		return cannot(err, r->o->device, why);
	r->verbs = verbs_find(r->driver.exports, info->engine);
	r->local = verbs_find_local(info->engine);
	if (!r->verbs) {
		fprintf(err, "pasidctl: %s has the driver \"%.31s\", whose commands %s does not know\n", r->o->device,
			info->engine, r->o->driver ? r->o->driver : "pasidctl");
		return SELFTEST_UNTRIED;
	}
	return -1;
}

static void nothing(struct trial *t)
{
}

/* Root can be two users, if the socket lets them in. */
static void find_uids(struct run *r)
{
	r->bank_uid = r->thief_uid = SAME_UID;
	if (geteuid() != 0) {
		r->why_one_uid = "only root can be two users";
		return;
	}
	(void)run_process(r, BANK_UID, nothing);
	if (r->told->verdict.outcome == OUTCOME_OK)
		(void)run_process(r, THIEF_UID, nothing);
	if (r->told->verdict.outcome == OUTCOME_OK) {
		r->bank_uid = BANK_UID;
		r->thief_uid = THIEF_UID;
	} else {
		r->why_one_uid = "others cannot connect";
	}
}

/* ---- checks ---- */

static void said(struct run *r, const char *name, enum outcome outcome, const char *text)
{
	static const char *const words[] = {
		[OUTCOME_OK] = "ok", [OUTCOME_FAIL] = "FAIL", [OUTCOME_SKIP] = "skip", [OUTCOME_UNTRIED] = "skip"};

	r->count[outcome]++;
	if (r->checks_said) {
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "check", json_object_new_string(name));
		json_object_object_add(o, "outcome",
				       json_object_new_string(outcome == OUTCOME_UNTRIED ? "untried" : words[outcome]));
		json_object_object_add(o, "text", json_object_new_string(text));
		json_object_array_add(r->checks_said, o);
		return;
	}
	fprintf(r->out, "%s %s%s%s\n", words[outcome], name, *text ? ": " : "", text);
	fflush(r->out);
}

/* NULL: it can be made. */
static const char *why_skipped(const struct run *r, const struct check *c)
{
	const struct pasid_device_info *info = &r->told->info;

	if (c->needs & NEEDS_PRIVATE && info->mode == PASID_MODE_GLOBAL)
		return "mode global: all contexts share one address space";
	if (c->needs & NEEDS_TOLD && !mode_tells(info->mode))
		return "the kernel tells nobody what the IOMMU refused";
	if ((info->features & c->features) != c->features)
		return "the device's features leave it out";
	return NULL;
}

static const char *why_untried(const struct run *r, const struct check *c)
{
	if (*r->stuck)
		return r->stuck;
	if (c->needs & NEEDS_WORK && r->why_no_work)
		return r->why_no_work;
	if (c->needs & NEEDS_BANK && r->bank_fd < 0)
		return "there is no bank";
	return util_now_ns() > r->until ? "there was no time left for it" : NULL;
}

static void make_check(struct run *r, const struct check *c)
{
	const char *why = why_skipped(r, c);

	r->checks++;
	if (why) {
		said(r, c->name, OUTCOME_SKIP, why);
		return;
	}
	why = why_untried(r, c);
	if (why) {
		said(r, c->name, OUTCOME_UNTRIED, why);
		return;
	}
	if (!run_process(r, c->needs & NEEDS_BANK ? r->thief_uid : SAME_UID, c->run))
		snprintf(r->stuck, sizeof(r->stuck), "%s did not end", c->name);
	if (r->told->verdict.error == -ECONNREFUSED)
		snprintf(r->stuck, sizeof(r->stuck), "pasidd is gone, see %s", c->name);
	said(r, c->name, r->told->verdict.outcome, r->told->verdict.text);
}

/* Without a job that works nothing can be said of jobs. */
static void judge_first(struct run *r)
{
	const struct verdict *v = &r->told->verdict;

	if (v->outcome == OUTCOME_UNTRIED)
		r->why_no_work = "no job can be submitted, see first-job";
	else if (v->outcome != OUTCOME_OK)
		r->why_no_work = "not even the first job was done";
}

static void make_bank(struct run *r)
{
	const struct verdict *v = &r->told->bank.verdict;

	r->checks++;
	if (*r->stuck) {
		said(r, "bank", OUTCOME_UNTRIED, r->stuck);
		return;
	}
	run_bank(r);
	said(r, "bank", v->outcome, v->text);
}

static void make_checks(struct run *r)
{
	for (size_t l = 0; l < ARRAY_SIZE(lists); l++) {
		if (lists[l]->v->needs & NEEDS_BANK)
			make_bank(r);
		for (size_t i = 0; i < lists[l]->n; i++) {
			make_check(r, &lists[l]->v[i]);
			if (l == 0 && i == 0)
				judge_first(r);
		}
	}
	run_bank_end(r);
}

/* -1: go on. */
static int load_driver(struct run *r, FILE *err)
{
	char why[DRIVER_ERROR_MAX];

	if (!r->o->driver || driver_load(&r->driver, r->o->driver, why) == 0)
		return -1;
	fprintf(err, "pasidctl: %s\n", why);
	return SELFTEST_UNTRIED;
}

static int run(struct run *r, const struct machine *m, FILE *err)
{
	int status = load_driver(r, err);

	if (status >= 0)
		return status;
	status = find_device(r, err);
	if (status < 0) {
		find_uids(r);
		make_checks(r);
		report_run(r, m);
		status = r->count[OUTCOME_FAIL]      ? SELFTEST_FAILED
			 : r->count[OUTCOME_UNTRIED] ? SELFTEST_UNTRIED
						     : SELFTEST_OK;
	}
	if (r->o->driver)
		driver_unload(&r->driver);
	return status;
}

int selftest(const struct machine *m, const struct selftest_options *o, FILE *out, FILE *err)
{
	struct run r = {.o = o, .out = out, .begun = util_now_ns(), .bank_fd = -1};
	int status;

	r.until = r.begun + RUN_S * 1000000000ull;
	r.told = mmap(NULL, sizeof(*r.told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (r.told == MAP_FAILED) {
		fprintf(err, "pasidctl: no memory for the selftest: %s\n", strerror(errno));
		return SELFTEST_UNTRIED;
	}
	r.checks_said = o->json ? json_object_new_array() : NULL;
	status = run(&r, m, err);
	json_object_put(r.checks_said);
	munmap(r.told, sizeof(*r.told));
	return status;
}
