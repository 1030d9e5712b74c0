/* SPDX-License-Identifier: MIT */
/*
 * The journal beside a list of what was put in. It is killed at random moments, and stopped after each instruction of an
 * append and of a switch; every bit of a small one is flipped, and it is cut at every length.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "store/journal.h"
#include "unit/journal_rig.h"

#define VERSION 7u
#define KEEP 5u /* entries that a snapshot leaves */

/* ---- entries that follow from a number, and lists of these ---- */

struct list {
	uint32_t n;
	uint32_t number[4096];
};

#define TYPE(number) ((number) + 1)

static uint32_t mix(uint32_t x)
{
	x = (x ^ x >> 16) * 0x7feb352du;
	x = (x ^ x >> 15) * 0x846ca68bu;
	return x ^ x >> 16;
}

static size_t payload(uint32_t number, uint8_t *p)
{
	size_t size = mix(number) % 300;

	if (number % 11 == 0)
		size = 0;
	memcpy(p, &number, 4);
	for (size_t i = 4; i < size; i++)
		p[i] = (uint8_t)mix(number + (uint32_t)i);
	return size < 4 ? 0 : size;
}

static size_t bytes(uint32_t number)
{
	uint8_t p[512];

	return journal_entry_bytes(payload(number, p));
}

/* In up to three pieces. */
static void put(struct journal *j, uint32_t number)
{
	uint8_t p[512];
	size_t size = payload(number, p), a = size / 3, b = size / 2;
	struct iovec v[] = {{p, a}, {p + a, b - a}, {p + b, size - b}};

	journal_append(j, TYPE(number), v, 3);
}

static void append(struct journal *j, struct list *l, uint32_t number)
{
	assert_int_equal(journal_room(j, bytes(number)), 0);
	put(j, number);
	l->number[l->n++] = number;
}

static void keep_last(struct list *l)
{
	uint32_t n = l->n < KEEP ? l->n : KEEP;

	memmove(l->number, l->number + l->n - n, n * sizeof(l->number[0]));
	l->n = n;
}

static size_t list_bytes(const struct list *l)
{
	size_t sum = 0;

	for (uint32_t i = 0; i < l->n; i++)
		sum += bytes(l->number[i]);
	return sum;
}

static int begin_snapshot(struct journal *j, const struct list *l)
{
	int r = journal_begin(j, list_bytes(l));

	for (uint32_t i = 0; r == 0 && i < l->n; i++)
		put(j, l->number[i]);
	return r;
}

static int collect(void *arg, const struct journal_entry *e)
{
	struct list *l = arg;
	uint8_t want[512];

	if (!e->type || e->size != payload(e->type - 1, want) || memcmp(e->p, want, e->size) ||
	    l->n == ARRAY_SIZE(l->number))
		return -EILSEQ;
	l->number[l->n++] = e->type - 1;
	return 0;
}

static bool same(const struct list *a, const struct list *b)
{
	return a->n == b->n && !memcmp(a->number, b->number, a->n * sizeof(a->number[0]));
}

static void assert_holds(const struct journal *j, const struct list *l)
{
	static struct list got;

	got.n = 0;
	assert_int_equal(journal_read(j, collect, &got), 0);
	assert_true(same(&got, l));
}

/* What a successor finds, in a file of its own. -errno of the opening. */
static int find(const struct image *i, struct list *got, char why[JOURNAL_WHY_MAX])
{
	struct journal *j;
	int fd = image_file(i), r;

	assert_true(fd >= 0);
	got->n = 0;
	r = journal_open(&j, fd, VERSION, why);
	if (r < 0) {
		close(fd);
		return r;
	}
	r = journal_read(j, collect, got);
	journal_free(j);
	return r;
}

static struct journal *reopen(struct journal *j)
{
	char why[JOURNAL_WHY_MAX];
	int fd = fcntl(journal_fd(j), F_DUPFD_CLOEXEC, 0);

	journal_free(j);
	assert_int_equal(journal_open(&j, fd, VERSION, why), 0);
	return j;
}

static struct journal *make(void)
{
	struct journal *j;

	assert_int_equal(journal_new(&j, VERSION), 0);
	return j;
}

/* ---- memory that runs out (with 64-bit offsets the C library calls it so) ---- */

static int fallocate_error; /* of the next that takes memory */

int __real_fallocate64(int fd, int mode, off_t offset, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t len);

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t len)
{
	if (fallocate_error && !(mode & FALLOC_FL_PUNCH_HOLE)) {
		errno = fallocate_error;
		fallocate_error = 0;
		return -1;
	}
	return __real_fallocate64(fd, mode, offset, len);
}

static uint64_t blocks(const struct journal *j)
{
	struct stat st;

	assert_int_equal(fstat(journal_fd(j), &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* ---- tests ---- */

static void test_checksum(void **state)
{
	uint8_t p[1000];

	assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
	assert_int_equal(crc32c_tables(0, "123456789", 9), 0xe3069283);
	assert_int_equal(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
	for (uint32_t i = 0; i < sizeof(p); i++)
		p[i] = (uint8_t)mix(i);
	for (uint32_t i = 0; i < 300; i++)
		assert_int_equal(crc32c(i, p + i, 3 * i % 101), crc32c_tables(i, p + i, 3 * i % 101));
}

static void test_empty(void **state)
{
	struct journal *j = make();
	struct list l = {0};

	assert_holds(j, &l);
	j = reopen(j);
	assert_holds(j, &l);
	append(j, &l, 1);
	j = reopen(j);
	assert_holds(j, &l);
	journal_free(j);
}

static void test_random(void **state)
{
	struct journal *j = make();
	static struct list l;

	l.n = 0;
	for (uint32_t i = 0; i < 20000; i++) {
		uint32_t dice = mix(i ^ 0x5555) % 100;

		if (dice == 0 || l.n == ARRAY_SIZE(l.number)) {
			keep_last(&l);
			assert_int_equal(begin_snapshot(j, &l), 0);
			journal_switch(j);
			assert_int_equal(journal_bytes(j), journal_snapshot_bytes(j));
		} else if (dice == 1) {
			assert_int_equal(begin_snapshot(j, &l), 0);
			journal_abort(j);
		} else if (dice == 2) {
			j = reopen(j);
		} else {
			append(j, &l, i);
		}
		if (dice < 10)
			assert_holds(j, &l);
	}
	journal_free(j);
}

/* Below twice the snapshot and a little; what is replaced gives its memory back. */
static void test_size(void **state)
{
	struct journal *j = make();
	static struct list l;
	uint32_t i = 1;

	l.n = 0;
	for (unsigned int round = 0; round < 20; round++) {
		for (; !journal_fat(j); i++) {
			append(j, &l, i);
			if (l.n == 1000)
				keep_last(&l);
		}
		assert_true(journal_bytes(j) <= 2 * journal_snapshot_bytes(j) + 66000);
		assert_int_equal(begin_snapshot(j, &l), 0);
		journal_switch(j);
		assert_false(journal_fat(j));
		assert_true(blocks(j) <= 4096 + journal_bytes(j) + (256 << 10));
	}
	/* A snapshot of which nothing became is given back by whoever comes next. */
	assert_int_equal(journal_begin(j, 8 << 20), 0);
	assert_true(blocks(j) > 8 << 20);
	j = reopen(j);
	assert_true(blocks(j) <= 4096 + journal_bytes(j) + (256 << 10));
	journal_free(j);
}

static void test_room(void **state)
{
	struct journal *j = make();
	static struct list l;
	static uint8_t big[600 << 10];
	struct iovec v = {big, sizeof(big)};
	uint64_t before;
	uint32_t i = 1;

	l.n = 0;
	assert_int_equal(journal_room(j, 5ull << 30), -ENOSPC);
	assert_int_equal(journal_room(j, UINT64_MAX), -ENOSPC);
	assert_int_equal(journal_begin(j, 5ull << 30), -ENOSPC);
	assert_int_equal(journal_begin(j, UINT64_MAX - 8), -ENOSPC);
	/* Also what is larger than anything before, and in a snapshot. */
	for (unsigned int n = 0; n < 2; n++) {
		append(j, &l, i++);
		if (n == 1) {
			assert_int_equal(begin_snapshot(j, &l), 0);
			journal_switch(j);
		}
		assert_int_equal(journal_room(j, journal_entry_bytes(sizeof(big))), 0);
		before = journal_bytes(j);
		journal_append(j, 1, &v, 1);
		assert_int_equal(journal_bytes(j) - before, journal_entry_bytes(sizeof(big)));
	}
	journal_free(j);
}

static void test_no_memory(void **state)
{
	struct journal *j;
	static struct list l;
	uint32_t i = 1;

	for (int error = ENOMEM; error; error = error == ENOMEM ? ENOSPC : 0) {
		fallocate_error = error;
		assert_int_equal(journal_new(&j, VERSION), -error);
		j = make();
		l.n = 0;
		for (; l.n < 100; i++)
			append(j, &l, i);
		fallocate_error = error;
		assert_int_equal(journal_room(j, 1 << 20), -error);
		fallocate_error = error;
		assert_int_equal(journal_begin(j, list_bytes(&l)), -error);
		append(j, &l, i++);
		assert_holds(j, &l);
		/* A signal is no want of memory. */
		fallocate_error = EINTR;
		assert_int_equal(journal_room(j, 1 << 20), 0);
		fallocate_error = error;
		assert_int_equal(journal_open(&j, journal_fd(j), VERSION, (char[JOURNAL_WHY_MAX]){0}), -error);
		journal_free(j);
	}
}

/* Without room an append is a mistake of ours. */
static void test_append_without_room(void **state)
{
	struct journal *j = make();
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		static uint8_t big[1 << 20];

		close(2);
		signal(SIGABRT, SIG_DFL);
		j = reopen(j);
		journal_append(j, 1, &(struct iovec){big, sizeof(big)}, 1);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	journal_free(j);
}

/* ---- killed ---- */

/* One of the writer's steps; so is what it comes to. */
static void step(struct journal *j, struct list *l, uint32_t i)
{
	if (i % 97 == 0) {
		keep_last(l);
		if (j && begin_snapshot(j, l) < 0)
			_exit(1);
		if (j)
			journal_switch(j);
		return;
	}
	if (j && journal_room(j, bytes(i)) < 0)
		_exit(1);
	if (j)
		put(j, i);
	l->number[l->n++] = i;
}

struct progress {
	_Atomic uint32_t begun, done;
};

static void write_until_killed(int fd, struct progress *p)
{
	struct journal *j;
	static struct list l;
	char why[JOURNAL_WHY_MAX];

	if (journal_open(&j, fd, VERSION, why) < 0)
		_exit(1);
	for (uint32_t i = 1; i < UINT32_MAX; i++) {
		atomic_store(&p->begun, i);
		step(j, &l, i);
		atomic_store(&p->done, i);
	}
}

static void kill_once(struct progress *p, uint32_t after_ns)
{
	struct journal *j = make();
	static struct list before, after, got;
	char why[JOURNAL_WHY_MAX];
	int status, fd = fcntl(journal_fd(j), F_DUPFD_CLOEXEC, 0);
	pid_t pid;
	uint64_t until;

	*p = (struct progress){0};
	pid = fork();
	if (pid == 0)
		write_until_killed(journal_fd(j), p);
	while (!atomic_load(&p->done))
		sched_yield();
	for (until = util_now_ns() + after_ns; util_now_ns() < until;)
		;
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	journal_free(j);
	assert_int_equal(journal_open(&j, fd, VERSION, why), 0);
	before.n = got.n = 0;
	for (uint32_t i = 1; i <= p->done; i++)
		step(NULL, &before, i);
	after = before;
	if (p->begun > p->done)
		step(NULL, &after, p->begun);
	assert_int_equal(journal_read(j, collect, &got), 0);
	assert_true(same(&got, &before) || same(&got, &after));
	journal_free(j);
}

static void test_killed(void **state)
{
	struct progress *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(p != MAP_FAILED);
	for (uint32_t i = 0; i < 150; i++)
		kill_once(p, mix(i) % 300000);
	munmap(p, 4096);
}

/* Stops after each instruction of what act() does. A successor finds the old state, and from some moment on the new. */
static void single_step(struct journal *j, void (*act)(struct journal *j), const struct list *before,
			const struct list *after)
{
	static struct image image, last;
	static struct list got;
	char why[JOURNAL_WHY_MAX];
	uint32_t steps = 0, seen = 0;
	bool changed = false;
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		char text[JOURNAL_WHY_MAX];

		if (journal_open(&j, journal_fd(j), VERSION, text) < 0)
			_exit(1);
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
			_exit(77);
		raise(SIGSTOP);
		act(j);
		_exit(0);
	}
	memset(&last, 0, sizeof(last));
	while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
		assert_true(image_load(&image, journal_fd(j)));
		if (memcmp(&image, &last, sizeof(image)) != 0) { /* else it is what was seen just now */
			last = image;
			assert_int_equal(find(&image, &got, why), 0);
			if (!changed && same(&got, after))
				changed = true;
			assert_true(same(&got, changed ? after : before));
			seen++;
		}
		steps++;
		assert_int_equal(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
	}
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		printf("# skipped: this process may not trace its child\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_true(changed && steps > 100 && seen > 5);
}

static void act_append(struct journal *j)
{
	if (journal_room(j, bytes(1000)) < 0)
		_exit(1);
	put(j, 1000);
}

static void act_snapshot(struct journal *j)
{
	static struct list l = {.n = 3, .number = {18, 19, 20}};

	if (begin_snapshot(j, &l) < 0)
		_exit(1);
	journal_switch(j);
}

static void act_abort(struct journal *j)
{
	static struct list l = {.n = 3, .number = {18, 19, 20}};

	if (begin_snapshot(j, &l) < 0)
		_exit(1);
	journal_abort(j);
	act_append(j);
}

static void step_through(void (*act)(struct journal *j), const struct list *after)
{
	struct journal *j = make();
	struct list before = {0};

	for (uint32_t i = 1; i <= 20; i++)
		append(j, &before, i);
	single_step(j, act, &before, after);
	journal_free(j);
}

static void test_each_instruction_of_an_append(void **state)
{
	struct list after = {.n = 21};

	for (uint32_t i = 0; i < 20; i++)
		after.number[i] = i + 1;
	after.number[20] = 1000;
	step_through(act_append, &after);
	step_through(act_abort, &after);
}

static void test_each_instruction_of_a_switch(void **state)
{
	struct list after = {.n = 3, .number = {18, 19, 20}};

	step_through(act_snapshot, &after);
}

/* ---- what cannot be trusted ---- */

static void small_journal(struct image *i, struct list *l)
{
	struct journal *j = make();

	l->n = 0;
	for (uint32_t n = 8; n < 13; n++)
		append(j, l, n);
	assert_int_equal(begin_snapshot(j, l), 0);
	journal_switch(j); /* so that it is the second area that counts */
	append(j, l, 2);
	append(j, l, 11);
	assert_true(image_load(i, journal_fd(j)));
	journal_free(j);
}

static void try_flip(struct image *i, uint8_t *byte, const struct list *l, bool used)
{
	static struct list got;
	char why[JOURNAL_WHY_MAX];

	for (unsigned int bit = 0; bit < 8; bit++) {
		*byte ^= (uint8_t)(1u << bit);
		memset(why, 0, sizeof(why));
		if (used) {
			assert_int_equal(find(i, &got, why), -EBADMSG);
			assert_true(strlen(why) > 20);
		} else {
			assert_int_equal(find(i, &got, why), 0);
			assert_true(same(&got, l));
		}
		*byte ^= (uint8_t)(1u << bit);
	}
}

static void test_each_bit_flipped(void **state)
{
	static struct image i;
	static struct list l;

	small_journal(&i, &l);
	assert_int_equal(image_area(&i), 1);
	for (size_t n = 0; n < 80; n++)
		try_flip(&i, i.head + n, &l, n < 16 || (n >= RIG_PUBLISHED && n < RIG_PUBLISHED + 8));
	for (size_t n = 0; n < image_end(&i) + 16; n++)
		try_flip(&i, i.area[1] + n, &l, n < image_end(&i));
	try_flip(&i, i.area[0] + 100, &l, false);
}

static void test_cut_at_each_length(void **state)
{
	static struct image i;
	static struct list l;
	uint64_t head = 4096 + 200;

	small_journal(&i, &l);
	for (uint64_t n = 0; n < head + RIG_AREA + image_end(&i) + 100; n++) {
		struct journal *j;
		char why[JOURNAL_WHY_MAX] = "";
		AUTO_CLOSE int fd = image_file(&i), cut = memfd_create("cut", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		uint8_t all[sizeof(i.head)];
		size_t size = n < sizeof(all) ? n : sizeof(all);

		if (n == head)
			n += RIG_AREA - head; /* nothing is there */
		assert_true(fd >= 0 && cut >= 0);
		assert_int_equal(pread(fd, all, size, 0), size);
		assert_int_equal(pwrite(cut, all, size, 0), size);
		assert_int_equal(ftruncate(cut, (off_t)n), 0);
		assert_int_equal(fcntl(cut, F_ADD_SEALS, RIG_SEALS), 0);
		assert_int_equal(journal_open(&j, cut, VERSION, why), -EBADMSG);
		assert_true(strlen(why) > 20);
	}
}

/* Entries that are whole but not these: one is missing, one is there twice, one is too long. */
static void test_wrong_entries(void **state)
{
	static struct image i, broken;
	static struct list l, got;
	char why[JOURNAL_WHY_MAX];
	uint8_t *area = broken.area[1];
	uint32_t crc, first;

	small_journal(&i, &l);
	first = (uint32_t)journal_entry_bytes(get32(i.area[1] + RIG_FIRST + 4));
	broken = i;
	memmove(area + RIG_FIRST, area + RIG_FIRST + first, image_end(&i) - RIG_FIRST - first);
	assert_int_equal(find(&broken, &got, why), -EBADMSG);
	assert_non_null(strstr(why, "number 1"));

	broken = i;
	put32(area + RIG_FIRST + 4, 0xfffffff0);
	put32(area + RIG_FIRST, crc32c(0, area + RIG_FIRST + 4, first - 4));
	assert_int_equal(find(&broken, &got, why), -EBADMSG);

	/* A snapshot that ends inside an entry. */
	broken = i;
	area[8] += 8;
	image_mend_heads(&broken, &crc);
	assert_int_equal(find(&broken, &got, why), -EBADMSG);
	assert_non_null(strstr(why, "snapshot"));

	/* An end inside of an entry, whose checksum fits, and one behind all that there can be. */
	for (unsigned int n = 0; n < 2; n++) {
		uint64_t end = n ? 16ull << 30 : image_end(&i) - 8;

		broken = i;
		put32(broken.head + RIG_PUBLISHED, (uint32_t)(end / 8 - n) | UINT32_C(1) << 31);
		image_mend_published(&broken, get32(i.area[1] + image_end(&i) - 16));
		assert_int_equal(find(&broken, &got, why), -EBADMSG);
		assert_non_null(strstr(why, "end"));
	}
}

static void test_other_files(void **state)
{
	struct journal *j;
	char why[JOURNAL_WHY_MAX];
	static struct image i;
	static struct list l;
	AUTO_CLOSE int unsealed = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int p[2];

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(journal_open(&j, p[0], VERSION, why), -EBADMSG);
	assert_string_equal(why, "the journal is not a memfd");
	close(p[0]);
	close(p[1]);
	small_journal(&i, &l);
	assert_int_equal(pwrite(unsealed, i.head, sizeof(i.head), 0), sizeof(i.head));
	assert_int_equal(ftruncate(unsealed, (off_t)RIG_FILE), 0);
	assert_int_equal(journal_open(&j, unsealed, VERSION, why), -EBADMSG);
	assert_non_null(strstr(why, "sealed"));
}

static int add_version(void *arg, const struct journal_entry *e)
{
	struct list *l = arg;

	l->number[l->n++] = e->version;
	return 0;
}

/* So many entries are of one version, and those behind them of the next one. */
static void assert_versions(const struct journal *j, uint32_t n, uint32_t before, uint32_t behind)
{
	static struct list got;

	got.n = 0;
	assert_int_equal(journal_read(j, add_version, &got), 0);
	for (uint32_t k = 0; k < got.n; k++)
		assert_int_equal(got.number[k], k < n ? before : behind);
}

static struct journal *reopen_as(struct journal *j, uint32_t version)
{
	char why[JOURNAL_WHY_MAX];
	int fd = fcntl(journal_fd(j), F_DUPFD_CLOEXEC, 0);

	journal_free(j);
	assert_int_equal(journal_open(&j, fd, version, why), 0);
	return j;
}

/* An older one is read, goes on as one of ours, for any number of lives, and is wholly ours from the next snapshot on. */
static void test_older(void **state)
{
	struct journal *j, *no;
	static struct image i;
	static struct list l;
	char why[JOURNAL_WHY_MAX];
	uint32_t n;
	int fd;

	small_journal(&i, &l);
	n = l.n;
	fd = image_file(&i);
	assert_int_equal(journal_open(&j, fd, VERSION - 1, why), -EPROTONOSUPPORT);
	assert_non_null(strstr(why, "version 7"));
	assert_int_equal(journal_open(&j, fd, VERSION + 1, why), 0);
	assert_versions(j, n, VERSION, 0);
	j = reopen_as(j, VERSION); /* nothing was appended: it is still the older one's */
	j = reopen_as(j, VERSION + 1);
	for (uint32_t k = 3; k < 6; k++) {
		append(j, &l, k);
		assert_holds(j, &l);
		assert_versions(j, n, VERSION, VERSION + 1);
		j = reopen_as(j, VERSION + 1);
		assert_holds(j, &l);
		assert_versions(j, n, VERSION, VERSION + 1);
	}
	fd = fcntl(journal_fd(j), F_DUPFD_CLOEXEC, 0);
	assert_int_equal(journal_open(&no, fd, VERSION, why), -EPROTONOSUPPORT);
	assert_non_null(strstr(why, "version 8"));
	close(fd);
	assert_int_equal(begin_snapshot(j, &l), 0);
	journal_switch(j);
	append(j, &l, 3);
	assert_holds(j, &l);
	assert_versions(j, 0, 0, VERSION + 1);
	journal_free(j);
}

/* Room for an entry is room for what has to be said before it. */
static void test_older_without_room(void **state)
{
	static uint8_t bytes[(256u << 10) - 16];
	struct iovec v = {bytes, sizeof(bytes)};
	struct journal *j = make();
	uint64_t most = 256u << 10;

	v.iov_len = most - journal_bytes(j) - 16;
	for (unsigned int n = 0; n < 2; n++) {
		assert_int_equal(journal_room(j, journal_entry_bytes(v.iov_len)), 0);
		journal_append(j, 1, &v, 1);
		v.iov_len = sizeof(bytes);
		assert_int_equal(journal_bytes(j) % most, n ? 24 : 0);
		j = reopen_as(j, VERSION + 1);
	}
	journal_free(j);
}

static void try_mark(const struct image *of, uint64_t at, uint32_t size, uint32_t version, const char *word)
{
	struct image i = *of;
	uint8_t *e = i.area[image_area(&i)] + at;
	char why[JOURNAL_WHY_MAX];
	static struct list got;

	put32(e + 4, size);
	put32(e + 16, version);
	put32(e, crc32c(0, e + 4, 20));
	assert_int_equal(find(&i, &got, why), -EBADMSG);
	assert_non_null(strstr(why, word));
}

static void test_wrong_marks(void **state)
{
	struct journal *j;
	static struct image i;
	static struct list l;
	char why[JOURNAL_WHY_MAX];
	uint64_t at;
	int fd;

	small_journal(&i, &l);
	i.area[image_area(&i)][4]--;
	image_mend_heads(&i, &(uint32_t){0});
	fd = image_file(&i);
	assert_int_equal(journal_open(&j, fd, VERSION, why), 0);
	at = journal_bytes(j);
	append(j, &l, 3);
	assert_true(image_load(&i, journal_fd(j)));
	journal_free(j);
	assert_int_equal(find(&i, &l, why), 0);
	try_mark(&i, at, 4, VERSION - 1, "version 6 behind version 6");
	try_mark(&i, at, 4, 0, "version 0 behind version 6");
	try_mark(&i, at, 8, VERSION, "in 8 bytes");
}

static void test_formats(void **state)
{
	static struct image i;
	static struct list l, got;
	char why[JOURNAL_WHY_MAX];
	uint32_t crc;

	small_journal(&i, &l);
	i.head[8]++;
	image_mend_heads(&i, &crc);
	assert_int_equal(find(&i, &got, why), -EPROTONOSUPPORT);
	assert_non_null(strstr(why, "format 2"));
	i.head[8] = 0;
	image_mend_heads(&i, &crc);
	assert_int_equal(find(&i, &got, why), -EBADMSG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_checksum),
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_size),
		cmocka_unit_test(test_room),
		cmocka_unit_test(test_no_memory),
		cmocka_unit_test(test_append_without_room),
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_each_instruction_of_an_append),
		cmocka_unit_test(test_each_instruction_of_a_switch),
		cmocka_unit_test(test_each_bit_flipped),
		cmocka_unit_test(test_cut_at_each_length),
		cmocka_unit_test(test_wrong_entries),
		cmocka_unit_test(test_other_files),
		cmocka_unit_test(test_older),
		cmocka_unit_test(test_older_without_room),
		cmocka_unit_test(test_wrong_marks),
		cmocka_unit_test(test_formats),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
