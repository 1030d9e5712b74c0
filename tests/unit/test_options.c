/* SPDX-License-Identifier: MIT */
/* The daemon's command line through the real binary ($PASIDD), and a daemon that has no devices. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <pasid/protocol.h>

#include "emulated.h"

#define ARGS 8

static char dir[] = "/tmp/test_options.XXXXXX";

static const char *in_dir(const char *name)
{
	static char path[4][96];
	static unsigned int n;
	char *p = path[n++ % 4];

	snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
	return p;
}

/* A running daemon; what it says goes to a file without a name, and stderr to a pipe instead if one is given. */
struct run {
	pid_t pid;
	int out, err;
};

/* As a service manager hands an fd over: the first one behind stderr, by name; sd_listen_fds(3). */
static void hand_over(int fd, const char *name)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", getpid());
	dup2(fd, STDERR_FILENO + 1);
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "1", 1);
	setenv("LISTEN_FDNAMES", name, 1);
}

static struct run start_with(const char *const args[], int err, const char *handed)
{
	struct run r = {.out = memfd_create("out", MFD_CLOEXEC),
			.err = err >= 0 ? err : memfd_create("err", MFD_CLOEXEC)};
	const char *exe = getenv("PASIDD");
	char *argv[ARGS + 2] = {(char *)(uintptr_t) "pasidd"};

	assert_non_null(exe);
	for (int i = 0; i < ARGS && args[i]; i++)
		argv[i + 1] = (char *)(uintptr_t)args[i];
	r.pid = fork();
	assert_true(r.pid >= 0);
	if (r.pid == 0) {
		dup2(r.out, STDOUT_FILENO);
		dup2(r.err, STDERR_FILENO);
		if (handed)
			hand_over(STDIN_FILENO, handed);
		execv(exe, argv);
		_exit(127);
	}
	return r;
}

static struct run start(const char *const args[], int err)
{
	return start_with(args, err, NULL);
}

static int finish(const struct run *r)
{
	int status;

	assert_int_equal(waitpid(r->pid, &status, 0), r->pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static const char *text_of(int fd)
{
	static char text[2][8192];
	static unsigned int n;
	char *t = text[n++ % 2];
	ssize_t len = pread(fd, t, sizeof(text[0]) - 1, 0);

	t[len > 0 ? len : 0] = 0;
	return t;
}

/* Runs to its end. NULL: whatever it says there. */
static void expect(const char *const args[], int status, const char *out, const char *err)
{
	struct run r = start(args, -1);

	assert_int_equal(finish(&r), status);
	if (out)
		assert_string_equal(text_of(r.out), out);
	if (err)
		assert_string_equal(text_of(r.err), err);
	close(r.out);
	close(r.err);
}

#define ARGV(...) ((const char *const[ARGS + 1]){__VA_ARGS__})

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static void test_help(void **state)
{
	static const char *const words[] = {"Usage: pasidd", "--config",    "--check-config", "--device",
					    "--socket PATH", "--log-level", "--help",         "--version"};
	struct run r = start(ARGV("--help"), -1);
	const char *out;

	assert_int_equal(finish(&r), 0);
	assert_string_equal(text_of(r.err), "");
	out = text_of(r.out);
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		assert_non_null(strstr(out, words[i]));
	close(r.out);
	close(r.err);
	expect(ARGV("-h"), 0, NULL, "");
}

static void test_version(void **state)
{
	struct run r = start(ARGV("--version"), -1);
	unsigned int major, minor, patch;
	char end;

	assert_int_equal(finish(&r), 0);
	assert_int_equal(sscanf(text_of(r.out), "pasidd %u.%u.%u%c", &major, &minor, &patch, &end), 4);
	assert_int_equal(end, '\n');
	assert_string_equal(text_of(r.err), "");
	close(r.out);
	close(r.err);
}

static void test_bad_options(void **state)
{
	expect(ARGV("--no-such-thing"), 2, "", NULL);
	expect(ARGV("-x"), 2, "", NULL);
	expect(ARGV("--config"), 2, "", NULL);
	expect(ARGV("--check-config"), 2, "", NULL);
	expect(ARGV("stray"), 2, "", "pasidd: found \"stray\"; no arguments are allowed, only options (--help)\n");
	expect(ARGV("--log-level", "loud"), 2, "",
	       "pasidd: --log-level: found \"loud\"; allowed is error, warn, info, debug\n");
	expect(ARGV("--device", "tcp:1"), 1, "",
	       "pasidd: --device: devices[0].spec: found \"tcp:1\"; allowed is \"vfio-user:/PATH\" or "
	       "\"vfio:0000:01:00.0\" (also iommufd:, type1:)\n");
	expect(ARGV("--device", "vfio-user:/a\"b"), 1, "",
	       "pasidd: --device: found a spec that is too long, or has quotes in it\n");
}

static void test_check_config(void **state)
{
	const char *path = in_dir("c.json");
	char said[256];

	write_file(path, "{}");
	snprintf(said, sizeof(said), "%s: ok\n", path);
	expect(ARGV("--check-config", path), 0, said, "");
	write_file(path, "{\"socket\": {\"mode\": 438}}");
	snprintf(said, sizeof(said),
		 "pasidd: %s: socket.mode: found 438; allowed is an octal mode in a string, as \"0660\"\n", path);
	expect(ARGV("--check-config", path), 1, "", said);
	expect(ARGV("--config", path), 1, "", said);
	path = in_dir("none.json");
	snprintf(said, sizeof(said), "pasidd: %s: cannot be opened: No such file or directory\n", path);
	expect(ARGV("--check-config", path), 1, "", said);
}

/* ---- without devices ---- */

/* Reads the daemon's lines until one holds `word`. */
static void wait_for_line(FILE *f, const char *word)
{
	char line[512];

	do
		assert_non_null(fgets(line, sizeof(line), f));
	while (!strstr(line, word));
}

static int connect_to(const char *path)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", path);
	assert_int_equal(connect(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	return fd;
}

/* Sends a request and takes its reply; bytes of the reply. */
static size_t call(int fd, const void *request, size_t size, void *reply, size_t room)
{
	ssize_t n;

	assert_int_equal(send(fd, request, size, MSG_NOSIGNAL), (ssize_t)size);
	n = recv(fd, reply, room, 0);
	assert_true(n >= (ssize_t)sizeof(struct pasid_reply));
	return (size_t)n;
}

static void talk(const char *path)
{
	struct {
		struct pasid_msg msg;
		struct pasid_hello body;
	} hello = {{sizeof(hello), PASID_OP_HELLO, 0, 1}, {PASID_PROTOCOL_MAGIC, PASID_PROTOCOL_VERSION, 0}};
	struct pasid_msg devices = {sizeof(devices), PASID_OP_DEVICES, 0, 2};
	struct {
		struct pasid_msg msg;
		struct pasid_device_query body;
	} info = {{sizeof(info), PASID_OP_DEVICE_INFO, 0, 3}, {""}};
	struct {
		struct pasid_reply head;
		uint8_t body[4096];
	} reply;
	int fd = connect_to(path);

	assert_int_equal(call(fd, &hello, sizeof(hello), &reply, sizeof(reply)),
			 sizeof(reply.head) + sizeof(struct pasid_hello_reply));
	assert_int_equal(reply.head.code, 0);
	assert_int_equal(call(fd, &devices, sizeof(devices), &reply, sizeof(reply)), sizeof(reply.head));
	assert_int_equal(reply.head.code, 0);
	call(fd, &info, sizeof(info), &reply, sizeof(reply));
	assert_int_equal(reply.head.code, -ENOENT);
	assert_int_equal(reply.head.reason, PASID_WHY_NO_DEVICE);
	close(fd);
}

static void test_no_devices(void **state)
{
	const char *config = in_dir("idle.json"), *path = in_dir("s");
	struct stat st;
	struct run r;
	int fds[2];
	FILE *err;

	if (emulated(EMULATED_CLOSER))
		skip();
	write_file(config, "{\"socket\": {\"path\": \"/nonexistent/never\", \"mode\": \"0640\"}}");
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	r = start(ARGV("--config", config, "--socket", path), fds[1]);
	close(fds[1]);
	err = fdopen(fds[0], "r");
	assert_non_null(err);
	wait_for_line(err, "no devices are configured");
	wait_for_line(err, "listening at");
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0640);
	talk(path);
	talk(path);
	assert_int_equal(kill(r.pid, SIGTERM), 0);
	wait_for_line(err, "ending on signal 15");
	assert_int_equal(finish(&r), 0);
	assert_int_equal(access(path, F_OK), -1);
	fclose(err);
	close(r.out);
}

/* --device stands in for the configured ones, and the rest of the file still holds. */
static void test_device_and_config(void **state)
{
	const char *config = in_dir("both.json"), *path = in_dir("both");
	struct run r;
	char text[256];
	int fds[2];
	FILE *err;

	if (emulated(EMULATED_CLOSER))
		skip();
	snprintf(text, sizeof(text), "{\"socket\": {\"path\": \"%s\"}, \"devices\": []}", path);
	write_file(config, text);
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	r = start(ARGV("-c", config, "-d", "vfio-user:/nonexistent/gpu"), fds[1]);
	close(fds[1]);
	err = fdopen(fds[0], "r");
	assert_non_null(err);
	wait_for_line(err, "device gpu0: not reachable");
	assert_int_equal(kill(r.pid, SIGINT), 0);
	finish(&r);
	fclose(err);
	close(r.out);
	unlink(path);
}

/* What is no device's file is said, and closed. */
static void test_handed_over(void **state)
{
	static const struct {
		const char *name, *said;
	} v[] = {{"gpu1", "an fd \"gpu1\": no device is called that; it is closed"},
		 {"gpu0", "an fd \"gpu0\": that is no PCI device of this machine; it is closed"},
		 {"iommu", "an fd \"iommu\": it is not the device file for that"}};

	if (emulated(EMULATED_CLOSER))
		skip();
	for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
		struct run r;
		int fds[2];
		FILE *err;

		assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
		r = start_with(ARGV("-s", in_dir("s"), "-d", "vfio-user:/nonexistent/gpu"), fds[1], v[i].name);
		close(fds[1]);
		err = fdopen(fds[0], "r");
		assert_non_null(err);
		wait_for_line(err, v[i].said);
		wait_for_line(err, "listening at");
		assert_int_equal(kill(r.pid, SIGTERM), 0);
		assert_int_equal(finish(&r), 0);
		fclose(err);
		close(r.out);
	}
}

static int make_dir(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	static const char *const names[] = {"c.json", "idle.json", "both.json", "s", "both"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unlink(in_dir(names[i]));
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_help),        cmocka_unit_test(test_version),
		cmocka_unit_test(test_bad_options), cmocka_unit_test(test_check_config),
		cmocka_unit_test(test_no_devices),  cmocka_unit_test(test_device_and_config),
		cmocka_unit_test(test_handed_over),
	};

	alarm(120); /* a daemon that says nothing ends the test */
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
