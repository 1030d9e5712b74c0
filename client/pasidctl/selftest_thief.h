/* SPDX-License-Identifier: MIT */
/* What the thief can have the bank do. */
#ifndef PASIDCTL_SELFTEST_THIEF_H
#define PASIDCTL_SELFTEST_THIEF_H

#include "selftest_checks.h"

#define SECRET_PAGES 4u
#define SECRET_BYTES (SECRET_PAGES * PAGE)

enum { BANK_READY = 'r', BANK_WORK = 'w', BANK_LOOK = 'l' };

/* The device works for the bank now, and has done so when this returns. */
void bank_works(struct trial *t);

/* The bank looks at its memory and its events; `after` is what the thief did. */
void bank_is_intact(struct trial *t, const char *after);

#endif
