/* SPDX-License-Identifier: MIT */
/*
 * Who runs on which slot of a device. Contexts with work wait in three rings, one inside the other: uids take turns,
 * within a uid its connections, within a connection its contexts. A context whose turn it is gets a slot at a job
 * boundary for at most `burst` jobs while others wait. The one it ran on last is preferred if that is idle, else the
 * slot idle for longest (never used ones first).
 *
 * Wait bound: with S slots in service and jobs of at most L each, a ready context begins within
 *
 *   ceil(U * C * K / S) * burst * L, switches aside,
 *
 * U uids being ready, C connections of its uid, K contexts of its connection, itself counted each time (the most that
 * are at one moment while it waits). A product, and not the number of ready contexts: a uid with a single context gets
 * every U-th turn, so one of 100 contexts of another uid waits for it 100 times. Nobody else can raise C or K, and U
 * grows by users, not by contexts. The wait starts anew when a context is held.
 *
 * Policy only: no device, no clock, no jobs. The caller tells what became ready, begun and idle; sched_next() tells
 * what to do.
 */
#ifndef CORE_SCHED_H
#define CORE_SCHED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct sched;
struct sched_entity; /* a context, as the scheduler sees it */

/* slots 1..64, burst >= 1: 0, -EINVAL, -ENOMEM. */
int sched_new(struct sched **ret, unsigned int slots, unsigned int burst);
struct sched *sched_free(struct sched *s); /* all entities are removed; takes NULL, returns NULL */

/* tag is the caller's (its context). connection and uid group entities; 0, -ENOMEM. */
int sched_add(struct sched *s, uid_t uid, uint64_t connection, void *tag, struct sched_entity **ret);
/* It must not be running, except on a slot that is out of service. Slots forget that it was resident. Takes NULL,
 * returns NULL. */
struct sched_entity *sched_remove(struct sched *s, struct sched_entity *e);

/* It has `jobs` jobs to begin (0: none). Cheap; call it whenever the number changes, running or not: also when
 * some have begun, for sched_begun() does not count it down. */
void sched_set_jobs(struct sched *s, struct sched_entity *e, uint32_t jobs);
/* A held entity is not given a slot (its tables are being changed, or it is going). One that runs goes on with
 * what it has begun and gets no more, so that it ends soon; let go, it is last in its rings. */
void sched_hold(struct sched *s, struct sched_entity *e, bool held);

struct sched_turn {
	unsigned int slot;
	void *tag;
	bool switched; /* another context, or none, was resident: scrub, install; tag is resident from now on */
	uint32_t jobs; /* how many it may begin now, at least 1 */
};

/* The next turn, if there is one: a ready entity and an idle slot; or a further allowance for an entity that runs
 * (slot busy) when nobody waits or its burst is not used up. The slot is busy, and the entity running, from here
 * on until sched_idle(). The caller begins 1..jobs jobs, now or later, and reports with sched_begun(); until then
 * the slot has no further turn. So calling this in a loop until it is false, after every event, is how it is meant
 * to be used.
 *
 * A slot has at most `burst` jobs begun and not ended, also when nobody waits: whoever comes next waits for those. */
bool sched_next(struct sched *s, struct sched_turn *ret);
/* n jobs of the turn were put on the slot. 0: none could be. If others of the entity are on the slot, it is asked
 * again when some of them have ended. If none is, this is sched_idle(): hold the entity, set its jobs to 0 or take
 * the slot out of service first, or the same turn comes again. */
void sched_begun(struct sched *s, unsigned int slot, uint32_t n);
/* n of the jobs on the slot have ended and others have not (but may have by now): room for as many when nobody
 * waits. Optional: without it, an entity that is alone begins `burst` jobs, all end, it begins the next. More than
 * were begun count as all. */
void sched_ended(struct sched *s, unsigned int slot, uint32_t n);
/* All jobs on the slot have ended. Its entity goes to the end of its rings if it has more. Does nothing on an idle
 * slot; takes back a turn of which nothing has begun. */
void sched_idle(struct sched *s, unsigned int slot);

/* n jobs of e, which is on no slot, are on this idle one: how it was left by somebody who is gone. */
void sched_adopt(struct sched *s, unsigned int slot, struct sched_entity *e, uint32_t n);

/* A slot goes out of service (stopping, hung), or comes back, idle and with nobody resident. Until it comes back, or
 * sched_idle() says that its jobs have ended, its entity counts as running there and is given no other slot. */
void sched_slot_service(struct sched *s, unsigned int slot, bool in_service);
/* The device forgot everything: all slots idle, in service, nobody resident. */
void sched_reset(struct sched *s);

/* The slot that e runs on, or has a turn on, or -1. */
int sched_running(const struct sched *s, const struct sched_entity *e);
/* The slot that e is resident on, running or not, or -1. */
int sched_resident(const struct sched *s, const struct sched_entity *e);
/* Who is resident on the slot; NULL: nobody. */
void *sched_resident_tag(const struct sched *s, unsigned int slot);
bool sched_slot_busy(const struct sched *s, unsigned int slot);

#endif
