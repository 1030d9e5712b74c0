/* SPDX-License-Identifier: MIT */
/* The bank, and what the thief can have it do. */
#ifndef PASIDCTL_SELFTEST_BANK_H
#define PASIDCTL_SELFTEST_BANK_H

#include "selftest_trial.h"

#define SECRET_PAGES 4u
#define SECRET_BYTES (SECRET_PAGES * PAGE)

/* One byte each, to the bank; it answers with the same one, and says that it is ready. */
enum { BANK_READY = 'r', BANK_WORK = 'w', BANK_LOOK = 'l' };

/* The process itself: does what is asked on fd until it is closed. */
NORETURN void bank_run(struct trial *t, int fd);

/* The device works for the bank now, and has done so when this returns. */
void bank_works(struct trial *t);

/* The bank looks at its memory and its events; `after` is what the thief did. */
void bank_is_intact(struct trial *t, const char *after);

#endif
