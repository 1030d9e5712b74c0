/* SPDX-License-Identifier: MIT */
/* What pasidctl makes of the firmware's table IORT: whole ones, ones that end early, and ones whose lengths lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "iort.h"
#include "machine_tree.h"

#define TABLE "sys/firmware/acpi/tables/IORT"
#define SEGMENT 7u
#define HEADER 48u
#define ROOT 36u /* bytes of its node */

struct table {
	unsigned char bytes[256];
	size_t n;
};

static void put32(struct table *t, size_t at, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		t->bytes[at + i] = (unsigned char)(v >> 8 * i);
}

/* The table has the length that it has. */
static void settle(struct table *t, size_t n)
{
	t->n = n;
	put32(t, 4, (uint32_t)n);
}

static void begin(struct table *t)
{
	memset(t, 0, sizeof(*t));
	memcpy(t->bytes, "IORT", 4);
	put32(t, 40, HEADER);
	settle(t, HEADER);
}

/* Where it is. */
static size_t add_node(struct table *t, unsigned char type, unsigned char length)
{
	size_t at = t->n;

	assert_true(at + length <= sizeof(t->bytes));
	t->bytes[at] = type;
	t->bytes[at + 1] = length;
	t->bytes[36]++;
	settle(t, at + length);
	return at;
}

static size_t add_root(struct table *t, uint32_t segment, unsigned char flags)
{
	size_t at = add_node(t, 2, ROOT);

	t->bytes[at + 23] = flags;
	put32(t, at + 28, segment);
	return at;
}

/* On the heap and exactly as long, so that a sanitizer sees a byte too many. */
static enum iort parse(const struct table *t)
{
	AUTO_FREE unsigned char *bytes = malloc(t->n ? t->n : 1);

	assert_non_null(bytes);
	memcpy(bytes, t->bytes, t->n);
	return iort_parse(bytes, t->n, SEGMENT);
}

/* An interrupt controller, a root complex of another segment that says otherwise, an SMMU, ours. Where ours is. */
static size_t usual(struct table *t, unsigned char flags)
{
	begin(t);
	add_node(t, 0, 24);
	add_root(t, SEGMENT + 1, (unsigned char)~flags);
	add_node(t, 4, 68);
	return add_root(t, SEGMENT, flags);
}

static void test_whole(void **state)
{
	struct table t;

	usual(&t, 4);
	assert_int_equal(parse(&t), IORT_COHERENT);
	usual(&t, 7);
	assert_int_equal(parse(&t), IORT_COHERENT);
	usual(&t, (unsigned char)~4u);
	assert_int_equal(parse(&t), IORT_NOT_COHERENT);
	/* The first one of a segment counts. */
	usual(&t, 0);
	add_root(&t, SEGMENT, 4);
	assert_int_equal(parse(&t), IORT_NOT_COHERENT);
	begin(&t);
	assert_int_equal(parse(&t), IORT_NO_ROOT);
	add_root(&t, SEGMENT - 1, 4);
	assert_int_equal(parse(&t), IORT_NO_ROOT);
}

static void test_cut(void **state)
{
	struct table whole, t;
	size_t end = usual(&whole, 4) + ROOT;

	for (size_t n = 0; n < end; n++) {
		t = whole;
		t.n = n;
		assert_int_equal(parse(&t), IORT_UNREADABLE);
		settle(&t, n);
		t.n = n;
		assert_int_equal(parse(&t), IORT_UNREADABLE);
	}
	t = whole;
	t.n++;
	assert_int_equal(parse(&t), IORT_UNREADABLE);
}

static void expect_lie(size_t at, uint32_t value, size_t bytes)
{
	struct table t;

	usual(&t, 4);
	for (size_t i = 0; i < bytes; i++)
		t.bytes[at + i] = (unsigned char)(value >> 8 * i);
	assert_int_equal(parse(&t), IORT_UNREADABLE);
}

static void test_lies(void **state)
{
	struct table t;
	size_t root = usual(&t, 4);

	expect_lie(0, 'X', 1);
	expect_lie(4, 0, 4);
	expect_lie(4, UINT32_MAX, 4);
	expect_lie(4, (uint32_t)t.n + 1, 4);
	/* Where nodes begin. */
	expect_lie(40, 0, 4);
	expect_lie(40, HEADER - 1, 4);
	expect_lie(40, (uint32_t)t.n - 15, 4);
	expect_lie(40, (uint32_t)t.n, 4);
	expect_lie(40, UINT32_MAX, 4);
	/* How long one is: the first, and ours. */
	expect_lie(HEADER + 1, 0, 2);
	expect_lie(HEADER + 1, 15, 2);
	expect_lie(HEADER + 1, UINT16_MAX, 2);
	expect_lie(root + 1, 0, 2);
	expect_lie(root + 1, 31, 2);
	expect_lie(root + 1, ROOT + 1, 2);
	/* How many: too few do not reach ours, too many end with the table. */
	t.bytes[36] = 3;
	assert_int_equal(parse(&t), IORT_NO_ROOT);
	usual(&t, 4);
	put32(&t, root + 28, SEGMENT + 2);
	put32(&t, 36, UINT32_MAX);
	assert_int_equal(parse(&t), IORT_UNREADABLE);
}

static void test_noise(void **state)
{
	struct table t;

	for (unsigned int seed = 1; seed < 20000; seed++) {
		srand(seed);
		usual(&t, 0);
		for (int i = rand() % 8; i >= 0; i--)
			t.bytes[36 + (size_t)rand() % (t.n - 36)] = (unsigned char)rand();
		parse(&t);
	}
}

static enum iort read_as_nobody(const struct machine *m)
{
	bool root = geteuid() == 0;
	enum iort r;

	assert_int_equal(chmod(tree_top, 0755), 0);
	assert_int_equal(chmod(tree_at(TABLE), 0), 0);
	if (root)
		assert_int_equal(seteuid(65534), 0);
	r = iort_read(m, SEGMENT);
	if (root)
		assert_int_equal(seteuid(0), 0);
	return r;
}

static void test_file(void **state)
{
	static unsigned char huge[(1u << 20) + 1];
	struct machine m;
	struct table t;

	tree_open(&m, NULL);
	assert_int_equal(iort_read(&m, SEGMENT), IORT_NONE);
	usual(&t, 4);
	tree_bytes(TABLE, t.bytes, t.n);
	assert_int_equal(iort_read(&m, SEGMENT), IORT_COHERENT);
	assert_int_equal(iort_read(&m, SEGMENT + 2), IORT_NO_ROOT);
	assert_int_equal(read_as_nobody(&m), IORT_NO_RIGHT);
	tree_remove(TABLE);
	memcpy(huge, t.bytes, t.n);
	tree_bytes(TABLE, huge, sizeof(huge));
	assert_int_equal(iort_read(&m, SEGMENT), IORT_UNREADABLE);
	tree_remove(TABLE);
	tree_directory(TABLE);
	assert_int_equal(iort_read(&m, SEGMENT), IORT_UNREADABLE);
	tree_close(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_whole), cmocka_unit_test(test_cut),  cmocka_unit_test(test_lies),
		cmocka_unit_test(test_noise), cmocka_unit_test(test_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
