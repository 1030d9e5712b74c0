/* SPDX-License-Identifier: MIT */
/*
 * Quotas. Whatever is held for a client is charged twice, to its connection and to its uid, and both have limits; bytes
 * are held against one total for the daemon as well. A charge is an amount that remembers whom to give it back to, so
 * that freeing an object returns exactly what making it took.
 */
#ifndef CORE_CHARGE_H
#define CORE_CHARGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/error.h"

struct limits {
	uint64_t v[PASID_RES_COUNT]; /* enum pasid_resource; UINT64_MAX: no limit */
};

/* What the configuration says. */
struct limit_policy {
	struct limits connection;
	struct limits uid; /* unless listed below */
	const struct uid_limits *uids; /* sorted or not, n_uids of them; stay the caller's */
	uint32_t n_uids;
	uint64_t total_bytes; /* of all clients together */
};

struct uid_limits {
	uid_t uid;
	struct limits limits;
};

struct ledger; /* all accounts of the daemon */
struct account; /* one connection's; knows its uid's */

int ledger_new(struct ledger **ret, const struct limit_policy *policy);
struct ledger *ledger_free(struct ledger *l); /* all accounts are closed by then; takes NULL */

/* While it is lenient no limit is one: what is charged was granted before, perhaps under other limits. */
void ledger_lenient(struct ledger *l, bool lenient);

/* Opens a connection's account (and its uid's, if it is the first); takes one of PASID_RES_CONNECTIONS from the
 * uid (the connection's own limit on those means nothing, its use is 0). 0, or -EDQUOT with *why (QUOTA_UID +
 * CONNECTIONS, or QUOTA_MEMORY). */
int account_open(struct ledger *l, uid_t uid, struct account **ret, struct refusal *why);
/* Closes it; everything charged must have been returned (asserted: ours). Takes NULL, returns NULL. */
struct account *account_close(struct account *a);

/* Other limits from now on. What is held beyond them stays; a connection keeps the rate that it came with. */
void ledger_set_policy(struct ledger *l, const struct limit_policy *policy);

struct charge {
	struct account *account; /* NULL: nothing charged */
	uint32_t resource;
	uint64_t amount;
};

/* Takes amount more of a resource from the account, into *c (which may hold some already, of the same resource and
 * account). 0, or -EDQUOT with *why (QUOTA_CONNECTION + resource, QUOTA_UID + resource, QUOTA_TOTAL) and *c as it
 * was. They are tried in that order; only PASID_RES_BYTES counts towards the total, so bytes in huge pages are
 * taken as both BYTES and HUGE. Not for RATE and CONNECTIONS. No sum wraps. */
int charge_take(struct charge *c, struct account *a, uint32_t resource, uint64_t amount, struct refusal *why);
/* Gives back `amount` of what *c holds (more is asserted: ours), or all of it; an empty charge is all zero again. */
void charge_return(struct charge *c, uint64_t amount);
void charge_return_all(struct charge *c);

uint64_t account_used(const struct account *a, uint32_t resource);
uint64_t account_uid_used(const struct account *a, uint32_t resource);
uint64_t ledger_total_bytes(const struct ledger *l);

/* One message at time now_ns, against RATE (messages a second, bursts of one second's worth) of the connection and of
 * the uid. 0 if it may be served now, and then it is counted; otherwise how many ns to wait before asking again, and
 * nothing is. More than 10^9 a second is no limit; 0 a second lets nothing pass and says to ask a second later. The
 * clock is the caller's and never goes back. Connecting again does not refill a uid's burst. */
uint64_t account_rate(struct account *a, uint64_t now_ns);

#endif
