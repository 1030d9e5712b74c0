/* SPDX-License-Identifier: MIT */
/* Log lines as they leave through stderr: levels, lengths, and the budget of what hostile ones may cause. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/util.h"

#define SEC UINT64_C(1000000000)

static int saved_stderr = -1, pipe_out = -1;

static void capture(void)
{
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
	saved_stderr = dup(STDERR_FILENO);
	assert_int_equal(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
	close(fds[1]);
	pipe_out = fds[0];
}

/* What was written since capture(), and stderr as it was. */
static const char *captured(void)
{
	static char text[32768];
	ssize_t n = read(pipe_out, text, sizeof(text) - 1);

	dup2(saved_stderr, STDERR_FILENO);
	close(saved_stderr);
	close(pipe_out);
	text[n > 0 ? n : 0] = 0;
	return text;
}

static size_t lines(const char *text)
{
	size_t n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

static void one_of_each(void)
{
	log_error("e %d", 1);
	log_warn("w %s", "two");
	log_info("i");
	log_debug("d");
}

static void test_levels(void **state)
{
	static const struct {
		const char *name, *text;
	} v[] = {
		{"error", "<3> e 1\n"},
		{"warn", "<3> e 1\n<4> w two\n"},
		{"info", "<3> e 1\n<4> w two\n<6> i\n"},
		{"debug", "<3> e 1\n<4> w two\n<6> i\n<7> d\n"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		enum log_level level;

		assert_int_equal(log_level_parse(v[i].name, &level), 0);
		log_set_level(level);
		capture();
		one_of_each();
		assert_string_equal(captured(), v[i].text);
	}
	log_set_level(LOG_INFO);
}

static void test_names(void **state)
{
	static const char *const wrong[] = {"", "Error", "warning", "infos", "trace", "6", " info"};
	enum log_level level = LOG_WARN;

	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
		assert_int_equal(log_level_parse(wrong[i], &level), -EINVAL);
	assert_int_equal(level, LOG_WARN);
}

static void test_long_line(void **state)
{
	char big[5000];
	const char *text;

	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = 0;
	capture();
	log_info("%s", big);
	log_info("next");
	text = captured();
	assert_int_equal(lines(text), 2);
	assert_true(strlen(text) < 1200);
	assert_string_equal(strchr(text, '\n') + 1, "<6> next\n");
}

static void test_errno_is_kept(void **state)
{
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC), err;

	capture();
	dup2(null, STDERR_FILENO); /* cannot be written */
	errno = ENOTTY;
	log_error("lost");
	err = errno;
	assert_string_equal(captured(), "");
	assert_int_equal(err, ENOTTY);
	close(null);
	capture();
	log_error("found");
	assert_string_equal(captured(), "<3> found (1 lines before this one were dropped)\n");
}

/* Whoever reads our lines has stopped reading: they are dropped and counted, and nobody waits. */
static void test_full_pipe(void **state)
{
	const char *text;
	int size;

	capture();
	size = fcntl(pipe_out, F_SETPIPE_SZ, 4096);
	assert_true(size > 0);
	for (int i = 0; i < size; i++)
		log_info("line %d", i);
	/* The test would hang here if one of them had waited. */
	assert_true(read(pipe_out, (char[65536]){0}, 65536) > 0);
	log_info("room again");
	text = captured();
	assert_non_null(strstr(text, "<6> room again ("));
	assert_non_null(strstr(text, " lines before this one were dropped)\n"));
	assert_int_equal(lines(text), 1);
}

static void test_one_line_stays_one(void **state)
{
	capture();
	log_info("a\nb\tc%cd", 7);
	assert_string_equal(captured(), "<6> a?b?c?d\n");
}

/* Without the clock: a budget that was refilled just now, or some time ago. */
static void say(struct log_limit *limit, int n)
{
	for (int i = 0; i < n; i++)
		log_limited(limit, LOG_WARN, "line %d", i);
}

static void test_budget(void **state)
{
	struct log_limit limit = {0};
	const char *text;

	capture();
	say(&limit, 10);
	text = captured();
	assert_int_equal(lines(text), 10);
	assert_null(strstr(text, "dropped"));

	/* Used up just now. */
	limit = (struct log_limit){.used = 10, .last_ns = util_now_ns()};
	capture();
	say(&limit, 5);
	assert_true(lines(captured()) <= 1); /* on a machine that slept a second in between */
	assert_true(limit.dropped >= 4);

	/* Three seconds later three lines pass, the first with the count. */
	limit = (struct log_limit){.used = 10, .dropped = 7, .last_ns = util_now_ns() - 3 * SEC};
	capture();
	say(&limit, 3);
	text = captured();
	assert_int_equal(lines(text), 3);
	assert_non_null(strstr(text, "<4> line 0 (7 lines before this one were dropped)\n<4> line 1\n"));

	/* After a long time it is full again, not more than full. */
	limit = (struct log_limit){.used = 10, .last_ns = util_now_ns() - 1000 * SEC};
	capture();
	say(&limit, 1);
	assert_int_equal(lines(captured()), 1);
	assert_int_equal(limit.used, 1);
}

static void test_budget_counts_no_hidden_lines(void **state)
{
	struct log_limit limit = {0};

	capture();
	for (int i = 0; i < 100; i++)
		log_limited(&limit, LOG_TRACE, "nobody looks");
	assert_string_equal(captured(), "");
	assert_int_equal(limit.used, 0);
	assert_int_equal(limit.dropped, 0);
}

static void test_dropped_is_bounded(void **state)
{
	struct log_limit limit = {.used = 10, .dropped = UINT32_MAX, .last_ns = util_now_ns()};

	capture();
	say(&limit, 1);
	if (lines(captured()) == 0)
		assert_int_equal(limit.dropped, UINT32_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_long_line),
		cmocka_unit_test(test_errno_is_kept),
		cmocka_unit_test(test_full_pipe),
		cmocka_unit_test(test_one_line_stays_one),
		cmocka_unit_test(test_budget),
		cmocka_unit_test(test_budget_counts_no_hidden_lines),
		cmocka_unit_test(test_dropped_is_bounded),
	};

	unsetenv("JOURNAL_STREAM");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
