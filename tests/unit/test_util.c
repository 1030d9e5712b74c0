/* SPDX-License-Identifier: MIT */
/* Mappings that children do not inherit. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"

#include "emulated.h"

#define LEN 8192u

static void test_map_shared(void **state)
{
	AUTO_CLOSE int fd = memfd_create("test", MFD_CLOEXEC);
	uint8_t *p, there;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 2 * LEN), 0);
	p = util_map_shared(LEN, PROT_READ | PROT_WRITE, fd, LEN);
	assert_non_null(p);
	p[1] = 7;
	assert_int_equal(pread(fd, &there, 1, LEN + 1), 1);
	assert_int_equal(there, 7);
	munmap(p, LEN);
	assert_null(util_map_shared(LEN, PROT_READ, -1, 0));
	assert_int_equal(errno, EBADF);
}

static void test_not_inherited(void **state)
{
	AUTO_CLOSE int fd = memfd_create("test", MFD_CLOEXEC);
	uint8_t *p, there[LEN / 4096];
	pid_t child;
	int status;

	if (emulated("qemu-user does not pass madvise(MADV_DONTFORK) on"))
		skip();
	assert_int_equal(ftruncate(fd, LEN), 0);
	p = util_map_shared(LEN, PROT_READ | PROT_WRITE, fd, 0);
	assert_non_null(p);
	child = fork();
	assert_true(child >= 0);
	if (child == 0)
		_exit(mincore(p, LEN, there) < 0 && errno == ENOMEM ? 0 : 1);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	munmap(p, LEN);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map_shared),
		cmocka_unit_test(test_not_inherited),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
