/* SPDX-License-Identifier: MIT */
/*
 * The trace: what the daemon writes, the reader gets, in order, or knows that it lost it; and whatever stands in the memory,
 * and however it changes meanwhile, the reader goes on and the timeline is one: JSON, with tracks on which everything that
 * begins ends, in time.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/trace.h"
#include "base/util.h"
#include "timeline.h"
#include "trace_ring.h"

#define CAPACITY 64u

static int dup_ro(const struct trace *t)
{
	int fd = fcntl(t->ring.ro_fd, F_DUPFD_CLOEXEC, 3);

	assert_true(fd >= 0);
	return fd;
}

static void read_from(struct trace_ring *r, const struct trace *t)
{
	const char *why;

	assert_int_equal(trace_ring_open(r, dup_ro(t), &why), 0);
}

static void write_jobs(struct trace *t, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		trace_write(t, &(struct pasid_trace_record){.event = PASID_TRACE_JOB, .slot = 1, .ctx = 1, .job = i});
}

/* ---- a reader and a writer that are both well ---- */

static void test_in_order(void **state)
{
	struct pasid_trace_record rec;
	struct trace t = {0};
	struct trace_ring r;
	uint64_t last = 0;

	assert_false(trace_on(&t));
	assert_int_equal(trace_open(&t, CAPACITY), 1);
	trace_name_device(&t, 0, "gpu0");
	trace_name_device(&t, 1, "b \"\n\x80");
	read_from(&r, &t);
	assert_int_equal(r.n_devices, 2);
	assert_string_equal(r.devices[0], "gpu0");
	assert_string_equal(r.devices[1], "b????");
	assert_int_equal(trace_ring_next(&r, &rec), 0);
	for (uint64_t i = 1; i < 10 * CAPACITY; i += 7) {
		write_jobs(&t, i, 7);
		for (uint64_t k = i; k < i + 7; k++) {
			assert_int_equal(trace_ring_next(&r, &rec), 1);
			assert_int_equal(rec.seq, k);
			assert_int_equal(rec.job, k);
			assert_true(rec.time_ns >= last);
			last = rec.time_ns;
		}
		assert_int_equal(trace_ring_next(&r, &rec), 0);
	}
	assert_int_equal(r.lost, 0);
	trace_ring_close(&r);
	trace_close(&t);
	assert_false(trace_on(&t));
}

static void test_lost(void **state)
{
	struct pasid_trace_record rec;
	struct trace t = {0};
	struct trace_ring r;
	uint64_t read = 0, last = 0;

	assert_int_equal(trace_open(&t, CAPACITY), 1);
	read_from(&r, &t);
	write_jobs(&t, 1, CAPACITY);
	assert_int_equal(trace_ring_next(&r, &rec), 1);
	assert_int_equal(rec.job, 1);
	write_jobs(&t, CAPACITY + 1, 2);
	while (trace_ring_next(&r, &rec)) {
		assert_true(rec.job > last);
		last = rec.job;
		read++;
	}
	assert_int_equal(last, CAPACITY + 2);
	assert_true(r.lost > 0);
	assert_int_equal(1 + read + r.lost, CAPACITY + 2);
	trace_ring_close(&r);
	trace_close(&t);
}

/* Each begins with what is so when it comes, and hears what the others' coming causes. */
static void test_readers(void **state)
{
	struct pasid_trace_record rec;
	struct trace_ring first, second;
	struct trace t = {0};

	assert_int_equal(trace_open(&t, CAPACITY), 1);
	trace_known(&t);
	write_jobs(&t, 1, 3);
	read_from(&first, &t);
	assert_int_equal(trace_open(&t, CAPACITY), 0);
	trace_known(&t);
	write_jobs(&t, 4, 1);
	read_from(&second, &t);
	assert_int_equal(trace_ring_next(&second, &rec), 1);
	assert_int_equal(rec.job, 4);
	for (uint64_t i = 1; i <= 4; i++) {
		assert_int_equal(trace_ring_next(&first, &rec), 1);
		assert_int_equal(rec.job, i);
	}
	trace_close(&t);
	assert_true(trace_on(&t));
	write_jobs(&t, 5, 1);
	assert_int_equal(trace_ring_next(&second, &rec), 1);
	trace_close(&t);
	assert_false(trace_on(&t));
	/* The memory stays with those who have it. */
	assert_int_equal(trace_ring_next(&first, &rec), 1);
	assert_int_equal(rec.job, 5);
	trace_ring_close(&first);
	trace_ring_close(&second);
}

static void test_read_only(void **state)
{
	struct trace t = {0};
	int fd;

	assert_int_equal(trace_open(&t, CAPACITY), 1);
	fd = dup_ro(&t);
	assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	assert_int_equal(write(fd, "x", 1), -1);
	assert_int_equal(ftruncate(fd, 0), -1);
	close(fd);
	trace_close(&t);
}

/* A writer that is faster than its reader: each record is whole, or it is lost. */
#define FAST 2000000u

static void *write_fast(void *arg)
{
	for (uint64_t i = 1; i <= FAST; i++)
		trace_write(arg, &(struct pasid_trace_record){.job = i, .a = ~i, .b = i, .c = ~i});
	return NULL;
}

/* It reads the first place again and again, just when that is written. */
static void test_whole(void **state)
{
	const struct pasid_trace_record *first;
	const struct pasid_trace_head *head;
	struct pasid_trace_record rec;
	struct trace t = {0};
	struct trace_ring r;
	pthread_t thread;

	assert_int_equal(trace_open(&t, CAPACITY), 1);
	read_from(&r, &t);
	head = r.map;
	first = (const void *)((const uint8_t *)r.map + PASID_TRACE_HEAD);
	assert_int_equal(pthread_create(&thread, NULL, write_fast, &t), 0);
	while (__atomic_load_n(&head->written, __ATOMIC_ACQUIRE) < FAST) {
		r.next = __atomic_load_n(&first->seq, __ATOMIC_ACQUIRE);
		if (!r.next || !trace_ring_next(&r, &rec))
			continue;
		assert_true(rec.job == rec.seq && rec.a == ~rec.seq && rec.b == rec.seq && rec.c == ~rec.seq);
	}
	pthread_join(thread, NULL);
	trace_ring_close(&r);
	trace_close(&t);
}

/* ---- memory that lies ---- */

static int lying_fd(const void *head, size_t n, size_t bytes, unsigned int seals)
{
	int fd = memfd_create("lies", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(pwrite(fd, head, n < bytes ? n : bytes, 0), n < bytes ? n : bytes);
	if (seals)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static const struct pasid_trace_head good_head = {
	.magic = PASID_TRACE_MAGIC,
	.version = PASID_TRACE_VERSION,
	.head_bytes = PASID_TRACE_HEAD,
	.record_bytes = sizeof(struct pasid_trace_record),
	.capacity = CAPACITY,
	.n_devices = 2,
};

#define GOOD_BYTES (PASID_TRACE_HEAD + CAPACITY * sizeof(struct pasid_trace_record))

static void test_bad_heads(void **state)
{
	struct pasid_trace_head bad[12];
	struct trace_ring r;
	const char *why;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		bad[i] = good_head;
	bad[0].magic++;
	bad[1].version++;
	bad[2].head_bytes = 0;
	bad[3].head_bytes = UINT32_MAX;
	bad[4].record_bytes = 0;
	bad[5].record_bytes = 128;
	bad[6].capacity = 0;
	bad[7].capacity = CAPACITY - 1;
	bad[8].capacity = 2 * CAPACITY;
	bad[9].capacity = 1ull << 63;
	bad[10].n_devices = PASID_TRACE_DEVICES + 1;
	bad[11].n_devices = UINT32_MAX;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		int fd = lying_fd(&bad[i], sizeof(bad[i]), GOOD_BYTES, F_SEAL_SHRINK);

		assert_int_equal(trace_ring_open(&r, fd, &why), -EPROTO);
		assert_non_null(why);
		assert_null(r.map);
		assert_int_equal(fcntl(fd, F_GETFD), -1);
	}
	/* Cut short, and what may be cut. */
	assert_int_equal(trace_ring_open(&r, lying_fd(&good_head, sizeof(good_head), 100, F_SEAL_SHRINK), &why),
			 -EPROTO);
	assert_int_equal(trace_ring_open(&r, lying_fd(&good_head, sizeof(good_head), GOOD_BYTES, 0), &why), -EPROTO);
	assert_int_equal(trace_ring_open(&r, open("/dev/null", O_RDONLY | O_CLOEXEC), &why), -EPROTO);
}

static uint64_t seed = 0x243f6a8885a308d3;

static uint64_t any(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Mostly numbers that mean something. */
static uint64_t number(uint64_t below)
{
	return any() % 16 ? any() % below : any() % 2 ? UINT64_MAX : any();
}

static struct pasid_trace_record any_record(void)
{
	return (struct pasid_trace_record){
		.seq = number(4 * CAPACITY),
		.time_ns = number(1000000),
		.event = (uint16_t)number(20),
		.device = (uint16_t)number(3),
		.slot = (uint16_t)number(5),
		.known = (uint16_t)(any() % 4 == 0),
		.ctx = (uint32_t)number(6),
		.job = number(9),
		.a = number(9),
		.b = number(9),
		.c = number(9),
	};
}

/* ---- is it a timeline? ---- */

#define TRACKS 4096u

static struct track_seen {
	int64_t pid, tid;
	bool named;
	uint32_t open;
	double ts;
} tracks[TRACKS];

static struct track_seen *track_seen(int64_t pid, int64_t tid)
{
	for (size_t i = 0; i < TRACKS; i++) {
		if (!tracks[i].pid)
			tracks[i] = (struct track_seen){.pid = pid, .tid = tid};
		if (tracks[i].pid == pid && tracks[i].tid == tid)
			return &tracks[i];
	}
	fail_msg("more tracks than there can be");
	return NULL;
}

static struct json_object *field(struct json_object *o, const char *name)
{
	struct json_object *v = NULL;

	json_object_object_get_ex(o, name, &v);
	return v;
}

static void check_event(struct json_object *e)
{
	const char *ph = json_object_get_string(field(e, "ph"));
	struct track_seen *t =
		track_seen(json_object_get_int64(field(e, "pid")), json_object_get_int64(field(e, "tid")));
	double ts = json_object_get_double(field(e, "ts"));

	if (*ph == 'M') {
		t->named = true;
		return;
	}
	assert_true(t->named);
	assert_true(ts >= t->ts);
	t->ts = ts;
	if (*ph == 'B')
		t->open++;
	if (*ph == 'E')
		assert_true(t->open-- > 0);
	if (*ph != 'E')
		assert_non_null(field(e, "name"));
}

static size_t check_timeline(const char *text)
{
	struct json_object *o = json_tokener_parse(text), *events;
	size_t n;

	assert_non_null(o);
	events = field(o, "traceEvents");
	assert_true(json_object_is_type(events, json_type_array));
	memset(tracks, 0, sizeof(tracks));
	n = json_object_array_length(events);
	for (size_t i = 0; i < n; i++)
		check_event(json_object_array_get_idx(events, i));
	for (size_t i = 0; i < TRACKS; i++)
		assert_int_equal(tracks[i].open, 0);
	json_object_put(o);
	return n;
}

static void test_any_records(void **state)
{
	static const char names[2][32] = {"gpu0", "gpu1"};

	for (unsigned int round = 0; round < 200; round++) {
		struct timeline *t;
		char *text;
		size_t size;
		FILE *f = open_memstream(&text, &size);

		assert_int_equal(timeline_new(&t, f, names, 2), 0);
		for (unsigned int i = 0; i < 200; i++) {
			const struct pasid_trace_record r = any_record();

			assert_int_equal(timeline_add(t, &r), 0);
			if (any() % 50 == 0)
				timeline_lost(t, number(10));
		}
		timeline_end(t);
		fclose(f);
		assert_true(check_timeline(text) > 6);
		free(text);
	}
}

/* Somebody scribbles all over it while it is read. */
static void *scribble(void *arg)
{
	uint8_t *map = arg;

	for (unsigned int i = 0; i < 300000; i++) {
		struct pasid_trace_head *h = (void *)map;
		struct pasid_trace_record r = any_record(), *to;
		uint64_t at = any() % CAPACITY;

		to = (void *)(map + PASID_TRACE_HEAD + at * sizeof(r));
		if (any() % 2)
			r.seq = __atomic_load_n(&h->written, __ATOMIC_RELAXED) + any() % 4;
		memcpy(to, &r, sizeof(r));
		__atomic_store_n(&h->written, number(4 * CAPACITY), __ATOMIC_RELEASE);
		if (any() % 64 == 0)
			memset(h, (int)any(), offsetof(struct pasid_trace_head, written));
	}
	__atomic_store_n(&((struct pasid_trace_head *)(void *)map)->reserved, 4711, __ATOMIC_RELEASE);
	return NULL;
}

static void test_scribbled(void **state)
{
	int fd = lying_fd(&good_head, sizeof(good_head), GOOD_BYTES, F_SEAL_SHRINK);
	uint8_t *map = util_map_shared(GOOD_BYTES, PROT_READ | PROT_WRITE, fd, 0);
	const struct pasid_trace_head *h = (const void *)map;
	struct pasid_trace_record rec;
	struct trace_ring r;
	pthread_t thread;
	const char *why;

	assert_non_null(map);
	assert_int_equal(trace_ring_open(&r, fd, &why), 0);
	assert_int_equal(pthread_create(&thread, NULL, scribble, map), 0);
	while (__atomic_load_n(&h->reserved, __ATOMIC_ACQUIRE) != 4711)
		for (unsigned int i = 0; i < 1000 && trace_ring_next(&r, &rec); i++)
			;
	pthread_join(thread, NULL);
	trace_ring_close(&r);
	munmap(map, GOOD_BYTES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_in_order),    cmocka_unit_test(test_lost),      cmocka_unit_test(test_readers),
		cmocka_unit_test(test_read_only),   cmocka_unit_test(test_whole),     cmocka_unit_test(test_bad_heads),
		cmocka_unit_test(test_any_records), cmocka_unit_test(test_scribbled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
