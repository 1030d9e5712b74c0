/* SPDX-License-Identifier: MIT */
/* Log lines as the journal gets them: a datagram each, with fields. The journal is a socket of the test's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/util.h"

static char directory[] = "/tmp/pasidd-journal-XXXXXX";
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static int journal = -1;

static const char *received(void)
{
	static char text[4096];
	ssize_t n = recv(journal, text, sizeof(text) - 1, MSG_DONTWAIT);

	text[n > 0 ? n : 0] = 0;
	return text;
}

static void test_fields(void **state)
{
	const struct log_about about = {.device = "gpu0", .context = 7, .pid = 42, .uid = 1000};
	struct log_limit limit = {0};

	log_about(&about, &limit, LOG_WARN, "job %d\nhangs", 5);
	assert_string_equal(received(),
			    "MESSAGE=job 5?hangs\nPRIORITY=4\nSYSLOG_IDENTIFIER=test_log_journal\n"
			    "PASIDD_DEVICE=gpu0\nPASIDD_CONTEXT=7\nPASIDD_CLIENT_PID=42\nPASIDD_CLIENT_UID=1000\n");
	log_about(&(struct log_about){.pid = 42}, NULL, LOG_INFO, "uid 0 is somebody");
	assert_string_equal(received(), "MESSAGE=uid 0 is somebody\nPRIORITY=6\nSYSLOG_IDENTIFIER=test_log_journal\n"
					"PASIDD_CLIENT_PID=42\nPASIDD_CLIENT_UID=0\n");
	log_error("nobody in particular");
	assert_string_equal(received(),
			    "MESSAGE=nobody in particular\nPRIORITY=3\nSYSLOG_IDENTIFIER=test_log_journal\n");
}

/* A journal that reads nothing takes so many datagrams and no more; whoever logs does not wait for it. */
static void test_stuck_journal(void **state)
{
	unsigned int n = 0;

	for (int i = 0; i < 5000; i++)
		log_info("line %d", i);
	while (received()[0])
		n++;
	assert_true(n > 0 && n < 5000);
	log_info("room again");
	assert_non_null(strstr(received(), " lines before this one were dropped)"));
}

static int setup(void **state)
{
	if (!mkdtemp(directory))
		return -1;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", directory);
	journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return journal < 0 ? -1 : bind(journal, (const struct sockaddr *)&address, sizeof(address));
}

static int teardown(void **state)
{
	close(journal);
	unlink(address.sun_path);
	return rmdir(directory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fields),
		cmocka_unit_test(test_stuck_journal),
	};
	char stream[64];
	struct stat st;

	if (fstat(STDERR_FILENO, &st) < 0)
		return 1;
	snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", stream, 1);
	log_journal_path = address.sun_path;
	return cmocka_run_group_tests(tests, setup, teardown);
}
