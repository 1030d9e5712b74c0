/* SPDX-License-Identifier: MIT */
/*
 * A daemon with nothing in it but the store: it puts fds into the vault and drops them, writes down what it has in the
 * journal, and when it is started again compares what it finds with what was promised before, which stands in a file.
 *
 *     store_subject PROMISES [KEYS]
 *
 * Keys are put and dropped in turn; KEYS are there at most (1000). It ends with a sentence if anything is not as it was
 * promised, and says READY=1 otherwise.
 */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/util.h"
#include "store/fdstore.h"
#include "store/journal.h"
#include "store/vault.h"

#define KEYS_MAX (1u << 20) /* in all lives together */
#define VERSION 1u
#define JOURNAL_NAME "=000"
#define ENTRY_BYTES journal_entry_bytes(sizeof(uint32_t))

enum type { ENTRY_PUT = 1, ENTRY_DROP = 2 };

/* Of a key, on its way from one to the next. */
enum promise { NEVER, PUTTING, THERE, DROPPING, GONE };

static struct {
	volatile uint8_t *promises; /* by key, in a file */
	bool has[KEYS_MAX]; /* as the journal says */
	uint32_t first, next; /* keys: the oldest that may be there, and the next one to put */
	uint32_t most;
	struct event_base *base;
	struct fdstore *fs;
	struct vault *vault;
	struct journal *journal;
	struct event *work;
	int shelves, journal_fd;
	char journal_why[JOURNAL_WHY_MAX];
} me = {.journal_fd = -1};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fprintf(stderr, "store_subject: ");
	vfprintf(stderr, fmt, ap);
	fprintf(stderr, "\n");
	va_end(ap);
	_exit(1);
}

static void must(int r, const char *what)
{
	if (r < 0)
		die("%s: %s", what, strerror(-r));
}

/* ---- what was promised, and what is there ---- */

static void take(void *arg, const char *name, int fd, bool stored)
{
	if (!stored)
		close(fd);
	else if (!strcmp(name, JOURNAL_NAME))
		me.journal_fd = fd;
	else if (name[0] == VAULT_KIND)
		must(vault_adopt(me.vault, name, fd), "a shelf");
}

static int replay(void *arg, const struct journal_entry *e)
{
	uint32_t key;

	if (e->size != sizeof(key))
		return -EBADMSG;
	memcpy(&key, e->p, sizeof(key));
	if (key >= KEYS_MAX || me.has[key] != (e->type == ENTRY_DROP))
		return -EBADMSG;
	me.has[key] = e->type == ENTRY_PUT;
	return 0;
}

static bool is_known(void *arg, uint64_t key)
{
	return key < KEYS_MAX && me.has[key];
}

static void compare(uint32_t key)
{
	uint8_t promise = me.promises[key];
	uint64_t found = 0;
	int fd;

	if ((promise == THERE && !me.has[key]) || ((promise == NEVER || promise == GONE) && me.has[key]))
		die("key %" PRIu32 " was promised to be %u, and the journal says %d", key, promise, me.has[key]);
	if (!me.has[key])
		return;
	fd = vault_get(me.vault, key);
	must(fd, "an fd that the journal knows");
	if (pread(fd, &found, sizeof(found), 0) != sizeof(found) || found != key)
		die("key %" PRIu32 " is now %" PRIu64, key, found);
	close(fd);
}

static void find(void)
{
	if (me.journal_fd >= 0) {
		if (journal_open(&me.journal, me.journal_fd, VERSION, me.journal_why) < 0)
			die("%s", me.journal_why);
		must(journal_read(me.journal, replay, NULL), "reading the journal");
	} else {
		must(journal_new(&me.journal, VERSION), "a journal");
		must(fdstore_put(me.fs, JOURNAL_NAME, journal_fd(me.journal)), "storing the journal");
	}
	for (uint32_t key = 0; key < KEYS_MAX; key++)
		if (me.has[key] || me.promises[key] != NEVER) {
			compare(key);
			me.promises[key] = me.has[key] ? THERE : GONE;
			me.next = key + 1;
		}
	vault_forget_others(me.vault, is_known, NULL);
	while (me.first < me.next && me.promises[me.first] == GONE)
		me.first++;
}

/* ---- work ---- */

static void write_down(enum type type, uint32_t key)
{
	struct iovec v = {&key, sizeof(key)};

	journal_append(me.journal, type, &v, 1);
}

static void shrink_journal(void)
{
	uint32_t n = 0;

	for (uint32_t key = me.first; key < me.next; key++)
		n += me.has[key];
	if (journal_begin(me.journal, n * ENTRY_BYTES) < 0)
		return;
	for (uint32_t key = me.first; key < me.next; key++)
		if (me.has[key])
			write_down(ENTRY_PUT, key);
	journal_switch(me.journal);
}

/* Only what is in the fd store for certain is written down. */
static void commit_put(void *arg, int err)
{
	uint32_t key = (uint32_t)(uintptr_t)arg;

	must(err, "a barrier");
	must(journal_room(me.journal, ENTRY_BYTES), "room in the journal");
	write_down(ENTRY_PUT, key);
	me.has[key] = true;
	me.promises[key] = THERE;
}

static void put_one(void)
{
	uint64_t key = me.next++;
	int fd = memfd_create("thing", MFD_CLOEXEC), r;

	if (key == KEYS_MAX)
		die("no keys are left");
	if (fd < 0 || pwrite(fd, &key, sizeof(key), 0) != sizeof(key))
		die("no memory");
	me.promises[key] = PUTTING;
	r = vault_put(me.vault, key, 4096 << key % 16, fd);
	must(r, "putting an fd");
	close(fd);
	if (r == VAULT_SOON)
		must(fdstore_barrier(me.fs, commit_put, (void *)(uintptr_t)key), "a barrier");
	else
		commit_put((void *)(uintptr_t)key, 0);
}

static void drop_one(uint32_t key)
{
	if (!me.has[key])
		return;
	must(journal_room(me.journal, ENTRY_BYTES), "room in the journal");
	me.promises[key] = DROPPING;
	write_down(ENTRY_DROP, key);
	me.has[key] = false;
	must(vault_drop(me.vault, key), "dropping an fd");
	me.promises[key] = GONE;
	while (me.first < me.next && me.promises[me.first] == GONE)
		me.first++;
}

static void on_work(evutil_socket_t fd, short what, void *arg)
{
	static const struct timeval soon = {0, 200};

	for (int i = 0; i < 4; i++) {
		if (vault_count(me.vault) >= me.most || (vault_count(me.vault) && random() % 5 < 2))
			drop_one(me.first + (uint32_t)random() % (me.next - me.first));
		else
			put_one();
	}
	if (journal_fat(me.journal))
		shrink_journal();
	evtimer_add(me.work, &soon);
}

static void on_sigterm(evutil_socket_t sig, short what, void *arg)
{
	event_base_loopbreak(me.base);
}

static void ready(void *arg, int err)
{
	char text[128];

	must(err, "the first barrier");
	snprintf(text, sizeof(text), "READY=1\nSTATUS=%zu keys, %" PRIu32 " fds stored", vault_count(me.vault),
		 fdstore_count(me.fs));
	must(fdstore_notify(me.fs, text), "saying so");
	on_work(-1, 0, NULL);
}

static void open_promises(const char *path)
{
	AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	void *p;

	if (fd < 0 || ftruncate(fd, KEYS_MAX) < 0)
		die("%s: %s", path, strerror(errno));
	p = mmap(NULL, KEYS_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("%s: %s", path, strerror(errno));
	me.promises = p;
}

int main(int argc, char **argv)
{
	struct rlimit rl;
	struct event *term;

	if (argc < 2)
		die("no file is named");
	me.most = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1000;
	if (getrlimit(RLIMIT_NOFILE, &rl) == 0) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	srandom((unsigned int)getpid());
	me.base = event_base_new();
	me.work = evtimer_new(me.base, on_work, NULL);
	term = evsignal_new(me.base, SIGTERM, on_sigterm, NULL);
	event_add(term, NULL);
	open_promises(argv[1]);
	must(fdstore_new(&me.fs, me.base, UINT32_MAX), "the fd store");
	must(vault_new(&me.vault, me.base, me.fs), "the vault");
	must(fdstore_take(me.fs, "=+", take, NULL), "taking fds");
	find();
	must(fdstore_barrier(me.fs, ready, &me), "a barrier");
	event_base_dispatch(me.base);
	vault_free(me.vault);
	journal_free(me.journal);
	fdstore_free(me.fs);
	event_free(term);
	event_free(me.work);
	event_base_free(me.base);
	return 0;
}
