/* SPDX-License-Identifier: MIT */
/*
 * One check of "pasidctl selftest" at work: a process with a connection of its own, so that a check finds nothing of the
 * one before, one that fails may just end, and one that does not end can be ended.
 *
 * What is declared here does what a check wants done, or ends the process with a verdict. So a check is written as if
 * nothing but what it looks at could go wrong; if it returns, all was well.
 */
#ifndef PASIDCTL_SELFTEST_TRIAL_H
#define PASIDCTL_SELFTEST_TRIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <pasid/pasid.h>

#include "selftest_verbs.h"

#define PAGE 4096u
#define SLOTS_MOST 64u /* docs/configuration.md; a device that claims to have more is not tried */
#define SAME_UID ((uid_t)-1) /* the caller's */

enum outcome {
	OUTCOME_NONE, /* the process ended without one */
	OUTCOME_OK,
	OUTCOME_FAIL,
	OUTCOME_SKIP, /* the device is not made for it */
	OUTCOME_UNTRIED, /* it should have been possible, and was not */
};

/* In memory that the processes share. */
struct verdict {
	enum outcome outcome;
	int error; /* 0, or what libpasid gave */
	char text[640]; /* a sentence; OK: "", or what was done less often than usual, and why */
};

/* What bank and thief know of each other, and what the bank found when it looked; shared. */
struct bank_page {
	struct verdict verdict; /* why it ended */
	uint64_t key; /* of its secret, a pattern */
	uint64_t secret, mirror, commands; /* IOVAs */
	uint32_t ctx, buf;
	uint32_t changed; /* bytes of its memory that are not as it left them */
	uint32_t events; /* that came to it */
	char event[256]; /* the first of them */
};

struct trial {
	struct pasid *p;
	const char *device, *socket;
	struct pasid_device_info *info; /* shared */
	const struct pasid_driver_verbs *verbs;
	const struct local_verbs *local; /* NULL: none */
	struct verdict *verdict;
	struct bank_page *bank;
	int bank_fd; /* -1: there is none */
	uint64_t keys; /* rises with each one that is drawn */
	uint64_t job_ns; /* what a job takes; 0: not known yet */
};

#define NORETURN __attribute__((noreturn))

NORETURN void trial_end(struct trial *t, enum outcome outcome, int error, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
#define trial_fail(t, ...) trial_end(t, OUTCOME_FAIL, 0, __VA_ARGS__)

/* r < 0 from a call of libpasid ends the trial: a limit of this user's leaves it untried, all else is a failure. */
void trial_must(struct trial *t, int r);
/* The call should have been refused with this. */
void trial_refused(struct trial *t, int r, int should, const char *what);

/* Becomes this uid, if it is not SAME_UID, and connects. */
void trial_begin(struct trial *t, uid_t uid);

/* How often to do what takes so many jobs, so that the check does not take long; at least `least` times. The verdict tells
 * if that is not as often as wanted. */
unsigned int trial_times(struct trial *t, unsigned int want, unsigned int jobs, unsigned int least);

/* Is the owner told of an access that was refused? */
bool mode_tells(uint32_t mode);

/* ---- memory and what is in it ---- */

struct memory {
	uint32_t buf;
	uint8_t *map;
	size_t len;
};

struct memory memory_new(struct trial *t, size_t len);

/* A key is a number nobody has used; its pattern, bytes that are found nowhere else. */
uint64_t trial_key(struct trial *t);
void pattern_write(void *at, size_t len, uint64_t key);
/* Bytes of this pattern's beginning that were found anywhere in memory. */
size_t pattern_found(const void *at, size_t len, uint64_t key, size_t pattern_len);
/* Offset of the first byte in which the two differ; len: none. */
size_t first_difference(const void *a, const void *b, size_t len);
/* Both must be the same; `what` is in the sentence if they are not. */
void must_equal(struct trial *t, const void *is, const void *should, size_t len, const char *what);
/* The pattern must be as it was written. */
void must_keep(struct trial *t, const void *at, size_t len, uint64_t key, const char *what);

/* ---- contexts and jobs ---- */

#define READ_WRITE (PASID_READ | PASID_WRITE)
#define PLACES 16u /* for commands of jobs that are out at the same time */
#define PLACE_BYTES 512u

/* A context. Its memory for commands is mapped when the first of them is written. */
struct space {
	struct trial *t;
	uint32_t ctx;
	uint64_t jobs; /* submitted */
	struct memory commands;
	uint64_t commands_iova;
};

struct job {
	struct space *s;
	uint64_t iova;
	uint8_t *at;
	size_t len;
};

struct space space_new(struct trial *t);
void space_free(struct space *s);
/* Maps where the daemon likes, which is returned. */
uint64_t space_map(struct space *s, const struct memory *m, uint64_t off, uint64_t len, uint32_t flags);
void space_map_at(struct space *s, const struct memory *m, uint64_t off, uint64_t len, uint32_t flags, uint64_t iova);
void space_unmap(struct space *s, uint64_t iova, uint64_t len);
/* Addresses where this context has nothing. */
uint64_t space_hole(struct space *s, uint64_t len);

struct job job_at(struct space *s, unsigned int place);
void job_fill(struct job *j, uint64_t dst, uint64_t len, uint32_t value);
void job_copy(struct job *j, uint64_t dst, uint64_t src, uint64_t len);
void job_add(struct job *j, const void *command, size_t len);
uint64_t job_submit(const struct job *j);
/* 0 or PASID_JOB_FAULTED. */
int job_wait(struct space *s, uint64_t job);
/* Has it written what it was told? It may not have faulted. */
void job_done(struct space *s, uint64_t job);

/* One job with one command: must succeed. */
void space_fill(struct space *s, uint64_t dst, uint64_t len, uint32_t value);
void space_copy(struct space *s, uint64_t dst, uint64_t src, uint64_t len);
/* The same where it may fault, as of job_wait(). */
int space_try_fill(struct space *s, uint64_t dst, uint64_t len, uint32_t value);
int space_try_copy(struct space *s, uint64_t dst, uint64_t src, uint64_t len);

/* The context's last job touched first..last, where it may not: it must have faulted there, if that is told, and the
 * connection hears of that job and of no other. code: enum pasid_fault_code. */
void space_faulted(struct space *s, int result, uint64_t first, uint64_t last, uint32_t access, uint32_t code);

#endif
