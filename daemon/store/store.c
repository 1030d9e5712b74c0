/* SPDX-License-Identifier: MIT */
/* See store.h. */
#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/closer.h"
#include "base/log.h"
#include "base/util.h"

#define KEY_BITS 60

#define KIND_JOURNAL '='
#define KIND_TRIES '#'
#define KIND_CLIENT '@'
#define KIND_DEVICE '%'
#define KINDS "=#@%+" /* with VAULT_KIND */

_Static_assert(VAULT_KIND == '+', "every kind has its sign");

struct store_found {
	char name[STORE_NAME_MAX];
	int fd;
};

struct store_tries {
	uint32_t begun; /* processes */
	uint32_t crashes; /* of them */
};

struct taking {
	struct store *s;
	void (*other)(void *arg, const char *name, int fd);
	void *arg;
	int error;
};

static int note_found(struct store *s, const char *name, int fd)
{
	size_t max = s->max_found ? 2 * s->max_found : 64;
	struct store_found *v = s->found;

	if (s->n_found == s->max_found) {
		v = realloc(s->found, max * sizeof(*v));
		if (!v)
			return -ENOMEM;
		s->found = v;
		s->max_found = max;
	}
	v = &v[s->n_found++];
	snprintf(v->name, sizeof(v->name), "%s", name);
	v->fd = fd;
	return 0;
}

#define TRIES_BYTES 4096u

/* It will be mapped and written to. */
static bool is_tries(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	struct stat st;

	return flags >= 0 && (flags & O_ACCMODE) == O_RDWR && fcntl(fd, F_GET_SEALS) == F_SEAL_SEAL &&
	       fstat(fd, &st) == 0 && st.st_size == TRIES_BYTES;
}

static void take(void *arg, const char *name, int fd, bool stored)
{
	struct taking *t = arg;
	struct store *s = t->s;
	int r = 0;

	if (!stored) {
		t->other(t->arg, name, fd);
		return;
	}
	if (name[0] == KIND_JOURNAL && s->journal_fd < 0)
		s->journal_fd = fd;
	else if (name[0] == KIND_TRIES && s->tries_fd < 0 && is_tries(fd))
		s->tries_fd = fd;
	else if (name[0] == VAULT_KIND)
		r = vault_adopt(s->vault, name, fd);
	else
		r = note_found(s, name, fd);
	if (r < 0)
		log_warn("what was kept as \"%s\" cannot be used: %s", name, strerror(-r));
	if (r == -ENOMEM)
		t->error = r;
}

/* ---- who has tried ---- */

static struct store_tries *crashing; /* what a signal handler can reach */

static void on_crash(int sig)
{
	crashing->crashes++;
	raise(sig); /* it was reset to what it was */
}

static void watch_crashes(struct store *s)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
	const struct sigaction sa = {.sa_handler = on_crash, .sa_flags = (int)SA_RESETHAND};
	struct sigaction now;

	crashing = s->tries;
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		if (sigaction(signals[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL)
			sigaction(signals[i], &sa, NULL);
}

static int count_try(struct store *s)
{
	char name[STORE_NAME_MAX];
	int r = 0;

	if (s->tries_fd < 0) {
		s->tries_fd = memfd_create("pasidd-tries", MFD_CLOEXEC);
		if (s->tries_fd < 0 || ftruncate(s->tries_fd, TRIES_BYTES) < 0)
			return -errno;
		r = fdstore_name(s->fds, KIND_TRIES, name);
		if (r == 0)
			r = fdstore_put(s->fds, name, s->tries_fd);
	}
	if (r < 0)
		return r;
	s->tries = util_map_shared(TRIES_BYTES, PROT_READ | PROT_WRITE, s->tries_fd, 0);
	if (!s->tries)
		return -errno;
	s->tries->begun++;
	watch_crashes(s);
	return 0;
}

/* ---- the journal ---- */

static int new_journal(struct store *s, uint32_t version)
{
	char name[STORE_NAME_MAX];
	int r = journal_new(&s->journal, version);

	if (r == 0)
		r = fdstore_name(s->fds, KIND_JOURNAL, name);
	if (r == 0)
		r = fdstore_put(s->fds, name, journal_fd(s->journal));
	if (r < 0)
		s->journal = journal_free(s->journal);
	return r;
}

static bool anything(const struct store *s)
{
	return s->n_found || vault_count(s->vault);
}

static int find_journal(struct store *s, uint32_t version, char *why)
{
	int r;

	if (s->journal_fd < 0) {
		snprintf(why, JOURNAL_WHY_MAX, "there is none");
		return anything(s) ? -EBADMSG : new_journal(s, version);
	}
	if (s->tries->crashes >= STORE_CRASHES_MAX || s->tries->begun > STORE_TRIES_MAX) {
		snprintf(why, JOURNAL_WHY_MAX,
			 "%u processes in a row ended while they took over what it says, %u by crashing",
			 s->tries->begun - 1, s->tries->crashes);
		return -EBADMSG;
	}
	r = journal_open(&s->journal, s->journal_fd, version, why);
	if (r == 0)
		s->journal_fd = -1;
	return r;
}

static void note_key(void *arg, uint64_t key)
{
	struct store *s = arg;
	uint64_t number = key & ((UINT64_C(1) << KEY_BITS) - 1);

	if (number > s->last_key)
		s->last_key = number;
}

int store_open(struct store **ret, struct event_base *base, uint32_t max, uint32_t version,
	       void (*other)(void *arg, const char *name, int fd), void *arg, char *why)
{
	struct store *s = calloc(1, sizeof(*s));
	struct taking t = {s, other, arg, 0};
	int r;

	*ret = NULL;
	if (!s)
		return -ENOMEM;
	s->tries_fd = s->journal_fd = -1;
	r = fdstore_new(&s->fds, base, max);
	if (r == 0)
		r = vault_new(&s->vault, base, s->fds);
	if (r == 0)
		r = fdstore_take(s->fds, KINDS, take, &t);
	if (r >= 0)
		r = t.error;
	if (r < 0 || !max || !fdstore_there(s->fds)) {
		store_free(s);
		return r;
	}
	*ret = s;
	vault_each(s->vault, note_key, s);
	r = count_try(s);
	return r < 0 ? r : find_journal(s, version, why);
}

struct store *store_free(struct store *s)
{
	if (!s)
		return NULL;
	for (size_t i = 0; i < s->n_found; i++)
		closer_close(s->found[i].fd, CLOSER_OURS);
	free(s->found);
	journal_free(s->journal);
	vault_free(s->vault);
	fdstore_free(s->fds);
	if (s->tries)
		munmap(s->tries, TRIES_BYTES);
	util_closep(&s->tries_fd);
	util_closep(&s->journal_fd);
	free(s);
	return NULL;
}

static void drop_found(struct store *s)
{
	for (size_t i = 0; i < s->n_found; i++) {
		fdstore_drop(s->fds, s->found[i].name);
		closer_close(s->found[i].fd, CLOSER_OURS);
	}
	s->n_found = 0;
}

void store_believed(struct store *s)
{
	if (!s || !s->journal)
		return;
	*s->tries = (struct store_tries){0};
	drop_found(s);
}

static bool none(void *arg, uint64_t key)
{
	return false;
}

int store_begin_anew(struct store *s, uint32_t version)
{
	char name[STORE_NAME_MAX] = {KIND_JOURNAL, '0', '0', '0'};

	for (size_t i = 0; i < s->n_found; i++)
		if (s->found[i].name[0] == KIND_CLIENT)
			shutdown(s->found[i].fd, SHUT_RDWR);
	drop_found(s);
	vault_forget_others(s->vault, none, NULL);
	s->journal = journal_free(s->journal);
	util_closep(&s->journal_fd);
	fdstore_drop(s->fds, name);
	*s->tries = (struct store_tries){0};
	return new_journal(s, version);
}

/* It stays in the store, and says that it is of no use. */
void store_give_up(struct store *s)
{
	s->journal = journal_free(s->journal);
	s->tries->begun = STORE_TRIES_MAX;
}

/* ---- connections, devices ---- */

static int put(struct store *s, char kind, int fd, char name[STORE_NAME_MAX])
{
	int r = fdstore_name(s->fds, kind, name);

	return r < 0 ? r : fdstore_put(s->fds, name, fd);
}

static int take_found(struct store *s, size_t i)
{
	int fd = s->found[i].fd;

	s->found[i] = s->found[--s->n_found];
	return fd;
}

static int take_named(struct store *s, const char *name)
{
	for (size_t i = 0; s && i < s->n_found; i++)
		if (!strcmp(s->found[i].name, name))
			return take_found(s, i);
	return -ENOENT;
}

int store_put_client(struct store *s, int fd, char name[STORE_NAME_MAX])
{
	name[0] = '\0';
	return s ? put(s, KIND_CLIENT, fd, name) : 0;
}

int store_take_client(struct store *s, const char *name)
{
	return take_named(s, name);
}

void store_drop_client(struct store *s, const char *name)
{
	if (s && name[0])
		fdstore_drop(s->fds, name);
}

int store_next_client(struct store *s, char name[STORE_NAME_MAX])
{
	for (size_t i = 0; s && i < s->n_found; i++) {
		if (s->found[i].name[0] != KIND_CLIENT)
			continue;
		strcpy(name, s->found[i].name);
		return take_found(s, i);
	}
	return -ENOENT;
}

int store_put_device(struct store *s, const int *fds, size_t n, char names[][STORE_NAME_MAX])
{
	int r;

	for (size_t i = 0; i < n; i++) {
		r = put(s, KIND_DEVICE, fds[i], names[i]);
		if (r < 0) {
			store_drop_device(s, names, i);
			return r;
		}
	}
	return 0;
}

int store_take_device(struct store *s, char names[][STORE_NAME_MAX], size_t n, int *fds)
{
	for (size_t i = 0; i < n; i++) {
		fds[i] = take_named(s, names[i]);
		if (fds[i] >= 0)
			continue;
		while (i)
			close(fds[--i]);
		return -ENOENT;
	}
	return 0;
}

void store_drop_device(struct store *s, char names[][STORE_NAME_MAX], size_t n)
{
	for (size_t i = 0; i < n; i++)
		fdstore_drop(s->fds, names[i]);
}

/* ---- memory ---- */

uint64_t store_keys(struct store *s, unsigned int kind, unsigned int n)
{
	uint64_t first;

	if (!s)
		return 0;
	first = s->last_key + 1;
	s->last_key += n;
	return (uint64_t)kind << KEY_BITS | first;
}

int store_keep(struct store *s, uint64_t key, uint64_t bytes, int fd)
{
	int r = s ? vault_put(s->vault, key, bytes, fd) : 0;

	return r < 0 ? r : 0;
}

void store_drop(struct store *s, uint64_t key)
{
	if (s)
		vault_drop(s->vault, key);
}

int store_get(struct store *s, uint64_t key)
{
	return s ? vault_get(s->vault, key) : -ENOENT;
}

int store_get_pair(struct store *s, uint64_t key, int *fd, int *ro_fd)
{
	*fd = store_get(s, key);
	if (*fd < 0)
		return *fd;
	*ro_fd = store_get(s, key + 1);
	if (*ro_fd >= 0)
		return 0;
	close(*fd);
	return *ro_fd;
}
