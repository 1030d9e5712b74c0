/* SPDX-License-Identifier: MIT */
/* Device files that were handed over: each is used once, and only as what its number says it is. */
#include "transport/vfio_files.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/util.h"

/* Two devices that every machine has. */
#define PATH "/dev/null"
#define NUMBER "1:3\n"
#define OTHER_PATH "/dev/zero"
#define OTHER_NUMBER "1:5\n"

static char sysfs[] = "/tmp/pasidd-number-XXXXXX";
static struct vfio_file file = {.path = PATH};
static bool kept;

static void number_is(const char *text)
{
	FILE *f = fopen(sysfs, "we");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static int device(const char *path, int mode)
{
	int fd = open(path, mode | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static void test_serves_one_opening(void **state)
{
	int fd = device(PATH, O_RDWR), again;
	struct vfio_why why;

	assert_false(vfio_file_kept(&file));
	assert_true(vfio_file_keep(&file, fd));
	assert_true(vfio_file_kept(&file));
	assert_int_equal(vfio_file_open(&file, &kept, &why), fd);
	assert_false(vfio_file_kept(&file));
	assert_true(kept);
	again = vfio_file_open(&file, &kept, &why); /* by its path */
	assert_true(again >= 0 && again != fd);
	assert_false(kept);
	close(fd);
	close(again);
}

/* Where nothing comes of it, what was handed over is there again, and what was opened is not kept. */
static void test_returned(void **state)
{
	int fd = device(PATH, O_RDWR), again;
	struct vfio_why why;

	assert_true(vfio_file_keep(&file, fd));
	again = vfio_file_open(&file, &kept, &why);
	vfio_file_return(&file, &again, kept);
	assert_int_equal(again, -1);
	assert_int_equal(vfio_file_open(&file, &kept, &why), fd);
	again = vfio_file_open(&file, &kept, &why);
	assert_true(again >= 0);
	vfio_file_return(&file, &again, kept);
	assert_false(vfio_file_kept(&file));
	close(fd);
}

static void assert_not_kept(int fd)
{
	assert_false(vfio_file_keep(&file, fd));
	assert_false(vfio_file_kept(&file));
	close(fd);
}

static void test_not_what_it_is_said_to_be(void **state)
{
	assert_not_kept(device(OTHER_PATH, O_RDWR));
	assert_not_kept(device(PATH, O_RDONLY));
	assert_not_kept(memfd_create("a file", MFD_CLOEXEC));
	number_is("none");
	assert_not_kept(device(PATH, O_RDWR));
	assert_int_equal(unlink(sysfs), 0);
	assert_not_kept(device(PATH, O_RDWR));
}

/* Another device has the place by now. */
static void test_no_longer_what_it_was(void **state)
{
	struct vfio_file here = file;
	int fd = device(PATH, O_RDWR), opened;
	struct vfio_why why;

	strcpy(here.path, OTHER_PATH);
	assert_true(vfio_file_keep(&file, fd));
	number_is(OTHER_NUMBER);
	opened = vfio_file_open(&here, &kept, &why);
	assert_true(opened >= 0 && opened != fd);
	close(opened);
	number_is(NUMBER);
	assert_int_equal(vfio_file_open(&file, &kept, &why), fd);
	close(fd);
}

static void test_why_not(void **state)
{
	const struct vfio_file none = {.path = "/dev/vfio/none"};
	struct vfio_why why;

	assert_int_equal(vfio_file_open(&none, &kept, &why), -ENOENT);
	assert_string_equal(why.text, "/dev/vfio/none: No such file or directory; load vfio-pci");
}

static void test_uses(void **state)
{
	static const char *const uses[] = {
		"vfio-user:/run/gpu", "vfio:0000:7f:1f.7", "type1:0000:7f:1f.7", "gpu", "iommu", "vfio"};

	for (size_t i = 0; i < ARRAY_SIZE(uses); i++) {
		int fd = device(PATH, O_RDWR);

		assert_non_null(transport_hand_over(uses[i], fd));
		close(fd); /* still ours */
	}
}

static int setup(void **state)
{
	int fd = mkostemp(sysfs, O_CLOEXEC);

	if (fd < 0)
		return -1;
	close(fd);
	snprintf(file.number, sizeof(file.number), "%s", sysfs);
	number_is(NUMBER);
	return 0;
}

static int teardown(void **state)
{
	unlink(sysfs); /* a test may have */
	strcpy(sysfs + sizeof(sysfs) - sizeof("XXXXXX"), "XXXXXX");
	return 0;
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_returned, setup, teardown),
		cmocka_unit_test_setup_teardown(test_serves_one_opening, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_what_it_is_said_to_be, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_longer_what_it_was, setup, teardown),
		cmocka_unit_test(test_why_not),
		cmocka_unit_test(test_uses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
