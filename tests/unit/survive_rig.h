/* SPDX-License-Identifier: MIT */
/*
 * The rig of service_rig.h with a service that dies and has a successor: what the journal says and what is kept outlives it,
 * and so do the device and the kernel's side of it. Dying frees nothing. It may happen before and after each entry of the
 * journal, and at each request to the kernel and to the device: the n-th such moment is chosen.
 *
 * The store is the rig's own: fds by their keys.
 */
#ifndef TESTS_UNIT_SURVIVE_RIG_H
#define TESTS_UNIT_SURVIVE_RIG_H

#include <setjmp.h>

#include "nested_rig.h"
#include "service/entries.h"

#define MOST_KEPT 512u
#define MOST_DEAD 16384u

/* ---- the store ---- */

static struct {
	struct keep {
		uint64_t key; /* 0: a free place */
		int fd;
	} v[MOST_KEPT];
	uint64_t last;
	bool device;
} kept;

static struct keep *keep_find(uint64_t key)
{
	for (size_t i = 0; i < MOST_KEPT; i++)
		if (kept.v[i].key == key)
			return &kept.v[i];
	return NULL;
}

uint64_t store_keys(struct store *s, unsigned int kind, unsigned int n)
{
	kept.last += n;
	return (uint64_t)kind << 60 | (kept.last - n + 1);
}

int store_keep(struct store *s, uint64_t key, uint64_t bytes, int fd)
{
	struct keep *k = keep_find(0);

	if (!s)
		return 0;
	assert_non_null(k);
	*k = (struct keep){key, fcntl(fd, F_DUPFD_CLOEXEC, 0)};
	return 0;
}

void store_drop(struct store *s, uint64_t key)
{
	struct keep *k = s && key ? keep_find(key) : NULL;

	if (!k)
		return;
	close(k->fd);
	*k = (struct keep){0};
}

int store_get(struct store *s, uint64_t key)
{
	struct keep *k = keep_find(key);

	return k ? fcntl(k->fd, F_DUPFD_CLOEXEC, 0) : -ENOENT;
}

int store_get_pair(struct store *s, uint64_t key, int *fd, int *ro_fd)
{
	*fd = store_get(s, key);
	*ro_fd = store_get(s, key + 1);
	if (*fd >= 0 && *ro_fd >= 0)
		return 0;
	return -ENOENT;
}

int store_put_device(struct store *s, const int *fds, size_t n, char names[][STORE_NAME_MAX])
{
	kept.device = true;
	strcpy(names[0], "%000");
	return 0;
}

int store_take_device(struct store *s, char names[][STORE_NAME_MAX], size_t n, int *fds)
{
	fds[0] = dup(edu.kept);
	return kept.device ? 0 : -ENOENT;
}

void store_drop_device(struct store *s, char names[][STORE_NAME_MAX], size_t n)
{
	kept.device = false;
}

void store_believed(struct store *s)
{
}

void store_give_up(struct store *s)
{
	fail_msg("the journal was given up");
}

void vault_each(const struct vault *v, void (*each)(void *arg, uint64_t key), void *arg)
{
}

int vault_get(struct vault *v, uint64_t key)
{
	return -ENOENT;
}

void vault_forget_others(struct vault *v, bool (*known)(void *arg, uint64_t key), void *arg)
{
	for (size_t i = 0; i < MOST_KEPT; i++)
		if (kept.v[i].key && !known(arg, kept.v[i].key))
			store_drop(store, kept.v[i].key);
}

/* ---- dying ---- */

static struct {
	jmp_buf at;
	unsigned int moments, die_at; /* 0: it lives */
	int fd; /* what apps import */
	bool no_snapshots; /* a journal goes on as it is, through any number of lives */
	bool snapshots; /* whenever somebody waits */
	/* Where the sanitizers find them. */
	void *dead[MOST_DEAD];
	size_t n_dead;
} life;

static void moment(void)
{
	if (++life.moments == life.die_at)
		longjmp(life.at, 1);
}

void __real_journal_append(struct journal *j, uint32_t type, const struct iovec *v, int n);
void __wrap_journal_append(struct journal *j, uint32_t type, const struct iovec *v, int n);

void __wrap_journal_append(struct journal *j, uint32_t type, const struct iovec *v, int n)
{
	moment();
	__real_journal_append(j, type, v, n);
	moment();
}

/* As from the loop, whatever is under way. */
static void snapshot(void)
{
	event_get_callback(service->snapshot)(-1, EV_TIMEOUT, service);
}

/* What is left in the middle of a call nobody frees: not for the leak sanitizer. */
__attribute__((visibility("default"))) int __lsan_is_turned_off(void);

int __lsan_is_turned_off(void)
{
	return 1;
}

static void store_begin(void)
{
	memset(&kept, 0, sizeof(kept));
	store = calloc(1, sizeof(*store));
	assert_non_null(store);
	assert_int_equal(journal_new(&store->journal, ENTRIES_VERSION), 0);
	kernel.life = 1;
}

static void store_end(void)
{
	/* What ends leaves its devices to a successor, and no client is left. */
	for (size_t i = 0; i < MOST_KEPT; i++) {
		if (kept.v[i].key && kept.v[i].key >> 60 != VAULT_DEVICE && !life.no_snapshots)
			fail_msg("kept for nobody: %#llx", (unsigned long long)kept.v[i].key);
		store_drop(store, kept.v[i].key);
	}
	journal_free(store->journal);
	free(store);
	store = NULL;
}

/* A client's session finds the reply that it may have had already, or makes its request again. */
static void app_resume(struct app *a)
{
	struct service_reply reply;

	a->later = a->again = false;
	if (!a->pending)
		return;
	/* A message that was not consumed still has its fd. */
	if (((const struct pasid_msg *)(void *)a->msg)->fds)
		a->fd = fcntl(life.fd, F_DUPFD_CLOEXEC, 0);
	if (a->serial > service_client_serial(a->client))
		app_try(a);
	else if (service_client_kept(a->client, a->serial, &reply))
		app_reply(a, &reply);
	else
		fail_msg("no reply to request %llu is kept", (unsigned long long)a->serial);
}

/* What was not written down when it died nobody was told of either: an app that was just coming begins anew. */
static void successor(unsigned int die_at)
{
	struct service_client *c, *next;
	int fd = fcntl(journal_fd(store->journal), F_DUPFD_CLOEXEC, 0);
	struct event_base *old = base;

	kernel_die();
	edu.opening = edu.open = false;
	life.moments = 0;
	life.die_at = die_at;
	assert_true(life.n_dead + 2 <= MOST_DEAD);
	life.dead[life.n_dead++] = service;
	life.dead[life.n_dead++] = old;
	store = calloc(1, sizeof(*store));
	assert_non_null(store);
	if (journal_open(&store->journal, fd, ENTRIES_VERSION, why_not) < 0)
		fail_msg("%s", why_not);
	base = event_base_new();
	if (service_new(&service, base, &config, store, why_not) < 0)
		fail_msg("%s", why_not);
	if (life.no_snapshots) {
		event_free(service->snapshot);
		service->snapshot = NULL;
	}
	for (size_t i = 0; i < APPS; i++)
		apps[i].client = NULL;
	for (next = service_adopted(service, NULL); (c = next);) {
		struct app *a = &apps[service_client_uid(c) - 1000];

		next = service_adopted(service, c);
		assert_false(service_client_doomed(c));
		a->client = c;
		service_client_own(c, &app_ops, a);
	}
	for (size_t i = 0; i < APPS; i++)
		if (apps[i].client)
			app_resume(&apps[i]);
}

#endif
