/* SPDX-License-Identifier: MIT */
/* One run of "pasidctl selftest": the parent of all its processes. */
#ifndef PASIDCTL_SELFTEST_RUN_H
#define PASIDCTL_SELFTEST_RUN_H

#include "engine/load.h"
#include "selftest.h"
#include "selftest_checks.h"

struct json_object;

/* What the run's processes tell it, in memory that they share. */
struct told {
	struct verdict verdict; /* of the check that is made */
	struct pasid_device_info info;
	struct bank_page bank;
	uint64_t job_ns;
};

struct run {
	const struct selftest_options *o;
	FILE *out;
	struct json_object *checks_said; /* an array of what was said; NULL: that is printed */
	struct told *told;
	struct driver driver; /* of o->driver */
	const struct pasid_driver_verbs *verbs;
	const struct local_verbs *local;
	uint64_t begun, until; /* util_now_ns() */
	uid_t bank_uid, thief_uid;
	const char *why_one_uid; /* NULL: they are two */
	const char *why_no_work; /* NULL: jobs are done */
	char stuck[128]; /* why nothing more can be tried; "": it can */
	pid_t bank;
	int bank_fd; /* -1: there is none */
	unsigned int checks; /* also numbers them, for their patterns */
	unsigned int count[OUTCOME_UNTRIED + 1];
};

/* A process that does `body` as uid; false: it did not end in time, and was ended. The verdict is in told->verdict. */
bool run_process(struct run *r, uid_t uid, void (*body)(struct trial *t));

/* Begins the bank's process. The verdict says whether it is ready. */
void run_bank(struct run *r);
void run_bank_end(struct run *r);

/* What a bug report needs, and the result in one line. */
void report_run(const struct run *r, const struct machine *m);

#endif
