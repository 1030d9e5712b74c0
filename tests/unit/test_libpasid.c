/* SPDX-License-Identifier: MIT */
/*
 * libpasid against a daemon that is played by the test: it holds the other end of a socketpair and the fence memory.
 * A record waits in a socket until it is read, so replies and events are written before the call that reads them, and
 * the request is looked at afterwards: no threads, nothing to wait for, except where the test is about waiting.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include <pasid/pasid.h>
#include <pasid/protocol.h>

#define LINES 64u
#define FENCE_BYTES (LINES * PASID_FENCE_STRIDE)
#define FOREVER (-1)
#define LONG_NS 20000000000ll /* never reached unless something is broken */

struct fake {
	int peer;
	int fences;
	struct pasid *p;
	uint64_t serial; /* of the next request */
	struct pasid_fence_line *line;
	int fds_before;
};

static int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* ---- What the daemon says. ---- */

static void fake_raw(struct fake *f, const void *bytes, size_t len, int fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} ctl;
	struct iovec iov = {(void *)(uintptr_t)bytes, len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	memset(&ctl, 0, sizeof(ctl));
	if (fd >= 0) {
		mh.msg_control = &ctl;
		mh.msg_controllen = sizeof(ctl.space);
		ctl.align.cmsg_level = SOL_SOCKET;
		ctl.align.cmsg_type = SCM_RIGHTS;
		ctl.align.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&ctl.align), &fd, sizeof(fd));
	}
	assert_int_equal(sendmsg(f->peer, &mh, MSG_NOSIGNAL | MSG_DONTWAIT), (ssize_t)len);
}

/* A record with the same fd twice. */
static void fake_raw_two_fds(struct fake *f, const void *bytes, size_t len, int fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} ctl;
	struct iovec iov = {(void *)(uintptr_t)bytes, len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ctl, .msg_controllen = sizeof(ctl.space)};
	const int fds[2] = {fd, fd};

	memset(&ctl, 0, sizeof(ctl));
	ctl.align.cmsg_level = SOL_SOCKET;
	ctl.align.cmsg_type = SCM_RIGHTS;
	ctl.align.cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(&ctl.align), fds, sizeof(fds));
	assert_int_equal(sendmsg(f->peer, &mh, MSG_NOSIGNAL | MSG_DONTWAIT), (ssize_t)len);
}

static void fake_answer(struct fake *f, uint64_t serial, uint16_t opcode, const void *body, size_t len, int fd)
{
	char m[8192] = {0};
	struct pasid_reply r = {.msg = {.size = (uint32_t)(sizeof(r) + len), .opcode = opcode, .serial = serial}};

	assert_true(sizeof(r) + len <= sizeof(m));
	r.msg.fds = fd >= 0;
	memcpy(m, &r, sizeof(r));
	if (len)
		memcpy(m + sizeof(r), body, len);
	fake_raw(f, m, sizeof(r) + len, fd);
}

static void fake_reply(struct fake *f, uint16_t opcode, const void *body, size_t len)
{
	fake_answer(f, f->serial, opcode, body, len, -1);
}

static void fake_refuse(struct fake *f, uint16_t opcode, int code, uint32_t reason, uint32_t index, uint64_t n1,
			uint64_t n2)
{
	struct pasid_reply r = {.msg = {.size = sizeof(r), .opcode = opcode, .serial = f->serial},
				.code = code,
				.reason = reason,
				.index = index,
				.n1 = n1,
				.n2 = n2};

	fake_raw(f, &r, sizeof(r), -1);
}

static void fake_fault(struct fake *f, uint32_t ctx, uint64_t job, uint64_t addr, uint64_t dropped)
{
	struct {
		struct pasid_ev_fault ev;
		struct pasid_wire_fault fault;
	} m = {.ev = {.msg = {.size = sizeof(m), .opcode = PASID_EV_FAULT}, .ctx = ctx, .count = 1, .dropped = dropped},
	       .fault = {.job = job,
			 .addr = addr,
			 .access = 2,
			 .code = PASID_FAULT_UNMAPPED,
			 .near_first = 0x1000,
			 .near_last = 0x1fff}};

	fake_raw(f, &m, sizeof(m), -1);
}

static void fake_lost(struct fake *f, uint32_t ctx, uint32_t why, uint64_t job)
{
	struct pasid_ev_lost m = {
		.msg = {.size = sizeof(m), .opcode = PASID_EV_LOST}, .ctx = ctx, .why = why, .job = job};

	fake_raw(f, &m, sizeof(m), -1);
}

/* ---- What it hears. ---- */

/* The next request, which must have this opcode and the next serial. Its body's length; an fd goes to *fd. */
static size_t fake_request(struct fake *f, uint16_t opcode, void *body, size_t room, int *fd)
{
	static char buf[PASID_MSG_MAX];
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} ctl;
	struct iovec iov = {buf, sizeof(buf)};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ctl, .msg_controllen = sizeof(ctl.space)};
	struct pasid_msg m;
	ssize_t n = recvmsg(f->peer, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	assert_true(n >= (ssize_t)sizeof(m));
	memcpy(&m, buf, sizeof(m));
	assert_int_equal(m.size, n);
	assert_int_equal(m.opcode, opcode);
	assert_int_equal(m.serial, f->serial);
	f->serial++;
	assert_int_equal(m.fds, fd ? 1 : 0);
	assert_int_equal(mh.msg_controllen != 0, fd ? 1 : 0);
	if (fd)
		memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&mh)), sizeof(*fd));
	assert_true((size_t)n - sizeof(m) <= room);
	memcpy(body, buf + sizeof(m), (size_t)n - sizeof(m));
	return (size_t)n - sizeof(m);
}

static void fake_silence(struct fake *f)
{
	char c;

	assert_int_equal(recv(f->peer, &c, 1, MSG_DONTWAIT), -1);
	assert_int_equal(errno, EAGAIN);
}

/* ---- Connecting. ---- */

static const struct pasid_hello_reply hello_ok = {.version = PASID_PROTOCOL_VERSION,
						  .msg_max = PASID_MSG_MAX,
						  .bind_max = PASID_BIND_MAX,
						  .in_flight = PASID_IN_FLIGHT,
						  .fence_bytes = FENCE_BYTES};

static void fake_open(struct fake *f, int *client)
{
	int sv[2];

	memset(f, 0, sizeof(*f));
	f->fds_before = count_fds();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	*client = sv[0];
	f->peer = sv[1];
	f->serial = 1;
	f->fences = memfd_create("fences", MFD_CLOEXEC);
	assert_int_equal(ftruncate(f->fences, FENCE_BYTES), 0);
	f->line = mmap(NULL, FENCE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, f->fences, 0);
	assert_ptr_not_equal(f->line, MAP_FAILED);
}

static void fake_close(struct fake *f)
{
	assert_null(pasid_disconnect(f->p));
	munmap(f->line, FENCE_BYTES);
	close(f->fences);
	if (f->peer >= 0)
		close(f->peer);
	assert_int_equal(count_fds(), f->fds_before);
}

static int setup(void **state)
{
	struct fake *f = calloc(1, sizeof(*f));
	struct pasid_hello h;
	char path[64];
	int client, ro;

	fake_open(f, &client);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fences);
	ro = open(path, O_RDONLY | O_CLOEXEC); /* as the daemon does: waiting must work on a read-only mapping */
	assert_true(ro >= 0);
	fake_answer(f, 1, PASID_OP_HELLO, &hello_ok, sizeof(hello_ok), ro);
	close(ro);
	assert_int_equal(pasid_connect_fd(&f->p, client), 0);
	assert_int_equal(fake_request(f, PASID_OP_HELLO, &h, sizeof(h), NULL), sizeof(h));
	assert_int_equal(h.magic, PASID_PROTOCOL_MAGIC);
	assert_int_equal(h.version, PASID_PROTOCOL_VERSION);
	assert_int_equal(h.capabilities, 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	fake_close(*state);
	free(*state);
	return 0;
}

/* A context with this id on this line of the fence memory. */
static void make_ctx(struct fake *f, uint32_t id, uint32_t line)
{
	struct pasid_ctx_new_reply r = {.ctx = id, .pasid = id, .fence_line = line};
	struct pasid_ctx_new q;
	uint32_t ctx = 0;

	fake_reply(f, PASID_OP_CTX_NEW, &r, sizeof(r));
	assert_int_equal(pasid_ctx_new(f->p, NULL, &ctx), 0);
	assert_int_equal(ctx, id);
	assert_int_equal(fake_request(f, PASID_OP_CTX_NEW, &q, sizeof(q), NULL), sizeof(q));
}

static void make_job(struct fake *f, uint32_t ctx, uint64_t number)
{
	struct pasid_submit_reply r = {.job = number};
	struct pasid_wire_submit q;
	uint64_t job = 0;

	fake_reply(f, PASID_OP_SUBMIT, &r, sizeof(r));
	assert_int_equal(pasid_submit(f->p, ctx, 0x4000, 64, &job), 0);
	assert_int_equal(job, number);
	assert_int_equal(fake_request(f, PASID_OP_SUBMIT, &q, sizeof(q), NULL), sizeof(q));
	assert_int_equal(q.ctx, ctx);
	assert_int_equal(q.iova, 0x4000);
	assert_int_equal(q.len, 64);
}

/* ---- Handshake. ---- */

static void test_connect_cloexec(void **state)
{
	struct fake *f = *state;

	assert_true(fcntl(pasid_fd(f->p), F_GETFD) & FD_CLOEXEC);
	assert_non_null(pasid_error(f->p));
}

static void test_connect_nowhere(void **state)
{
	struct pasid *p = (void *)1;
	char longer[300];

	(void)state;
	assert_int_equal(pasid_connect(&p, "/nonexistent/socket"), -ENOENT);
	assert_null(p);
	assert_non_null(strstr(pasid_error(NULL), "/nonexistent/socket"));
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	assert_int_equal(pasid_connect(&p, longer), -ENAMETOOLONG);
	setenv("PASIDD_SOCKET", "/nonexistent/by-env", 1);
	assert_int_equal(pasid_connect(&p, NULL), -ENOENT);
	assert_non_null(strstr(pasid_error(NULL), "/nonexistent/by-env"));
	unsetenv("PASIDD_SOCKET");
	assert_int_equal(pasid_connect_fd(&p, -1), -EBADF);
	assert_null(p);
	assert_null(pasid_disconnect(NULL));
}

/* A daemon that dies `deaths` times before it greets anybody. */
struct mortal {
	struct fake f;
	int listener, deaths;
};

static void *mortal_thread(void *arg)
{
	struct mortal *m = arg;

	for (int i = 0; i < m->deaths; i++)
		close(accept(m->listener, NULL, NULL));
	if (m->deaths < 5) {
		m->f.peer = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC);
		fake_answer(&m->f, 1, PASID_OP_HELLO, &hello_ok, sizeof(hello_ok), m->f.fences);
	}
	return NULL;
}

static void connect_to_mortal(int deaths, int want)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct mortal m = {.deaths = deaths};
	char dir[] = "/tmp/pasidd-libpasid-XXXXXX";
	struct fake *f = &m.f;
	pthread_t thread;
	int client;

	fake_open(f, &client);
	close(client);
	close(f->peer);
	f->peer = -1;
	assert_non_null(mkdtemp(dir));
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/socket", dir);
	m.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(m.listener, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(m.listener, 16), 0);
	assert_int_equal(pthread_create(&thread, NULL, mortal_thread, &m), 0);
	assert_int_equal(pasid_connect(&f->p, sa.sun_path), want);
	pthread_join(thread, NULL);
	/* Nobody else waits there. */
	assert_int_equal(fcntl(m.listener, F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(accept(m.listener, NULL, NULL), -1);
	close(m.listener);
	unlink(sa.sun_path);
	rmdir(dir);
	fake_close(f);
}

static void test_connect_until_greeted(void **state)
{
	(void)state;
	connect_to_mortal(1, 0);
	connect_to_mortal(4, 0);
	connect_to_mortal(5, -ECONNRESET);
}

/* One handshake that must end with `want` and leave no fd behind. */
static void bad_hello(const void *reply, size_t len, bool with_fd, off_t fence_size, int want)
{
	struct fake f;
	int client;

	fake_open(&f, &client);
	assert_int_equal(ftruncate(f.fences, fence_size), 0);
	fake_answer(&f, 1, PASID_OP_HELLO, reply, len, with_fd ? f.fences : -1);
	assert_int_equal(pasid_connect_fd(&f.p, client), want);
	assert_null(f.p);
	fake_close(&f);
}

static void test_connect_bad_hello(void **state)
{
	struct {
		struct pasid_reply head;
		struct pasid_hello_reply reply;
	} two = {.head = {.msg = {.size = sizeof(two), .opcode = PASID_OP_HELLO, .fds = 2, .serial = 1}}};
	struct pasid_hello_reply r = hello_ok;
	struct fake f;
	int client;

	(void)state;
	bad_hello(&r, sizeof(r) - 1, true, FENCE_BYTES, -ECONNRESET);
	bad_hello(&r, sizeof(r), false, FENCE_BYTES, -ECONNRESET);
	bad_hello(&r, sizeof(r), true, FENCE_BYTES - 1, -ECONNRESET);
	r.fence_bytes = 0;
	bad_hello(&r, sizeof(r), true, FENCE_BYTES, -ECONNRESET);
	r.fence_bytes = UINT64_MAX;
	bad_hello(&r, sizeof(r), true, FENCE_BYTES, -ECONNRESET);
	r = hello_ok;
	r.version = 2;
	bad_hello(&r, sizeof(r), true, FENCE_BYTES, -EOPNOTSUPP);

	fake_open(&f, &client);
	fake_refuse(&f, PASID_OP_HELLO, -EDQUOT, PASID_WHY_QUOTA_UID + PASID_RES_CONNECTIONS, 0, 64, 64);
	assert_int_equal(pasid_connect_fd(&f.p, client), -EDQUOT);
	assert_non_null(strstr(pasid_error(NULL), "64 of at most 64 connections"));
	fake_close(&f);

	/* More fds than belong there: the connection works, and fake_close() counts. */
	fake_open(&f, &client);
	two.reply = hello_ok;
	fake_raw_two_fds(&f, &two, sizeof(two), f.fences);
	assert_int_equal(pasid_connect_fd(&f.p, client), 0);
	fake_close(&f);

	fake_open(&f, &client);
	close(f.peer);
	f.peer = -1;
	assert_int_equal(pasid_connect_fd(&f.p, client), -ECONNRESET);
	fake_close(&f);
}

/* ---- Verbs. ---- */

static void test_devices(void **state)
{
	struct fake *f = *state;
	struct pasid_wire_device w[3] = {{"gpu0", PASID_MODE_GPU_MMU, 1}, {"gpu1", PASID_MODE_GLOBAL, 0}, {"x", 1, 1}};
	struct pasid_device v[2] = {{.size = sizeof(v[0])}};
	struct {
		struct pasid_device device;
		uint64_t newer;
	} w2[2] = {{.device.size = sizeof(w2[0]), .newer = 5}, {.newer = 5}};
	size_t n = 2;
	char none;

	fake_reply(f, PASID_OP_DEVICES, w, sizeof(w));
	assert_int_equal(pasid_devices(f->p, v, &n), 0);
	assert_int_equal(fake_request(f, PASID_OP_DEVICES, &none, 0, NULL), 0);
	assert_int_equal(n, 3);
	assert_string_equal(v[0].name, "gpu0");
	assert_string_equal(v[1].name, "gpu1");
	assert_int_equal(v[1].mode, PASID_MODE_GLOBAL);
	assert_int_equal(v[1].present, 0);

	/* A program that is newer than the library has a longer struct, and finds zeros in what is new. */
	fake_reply(f, PASID_OP_DEVICES, w, sizeof(w));
	assert_int_equal(pasid_devices(f->p, &w2[0].device, &(size_t){2}), 0);
	fake_request(f, PASID_OP_DEVICES, &none, 0, NULL);
	assert_string_equal(w2[1].device.name, "gpu1");
	assert_int_equal(w2[1].device.size, sizeof(w2[0]));
	assert_int_equal(w2[0].newer, 0);
	assert_int_equal(w2[1].newer, 0);
	w2[0].device.size = 1;
	assert_int_equal(pasid_devices(f->p, &w2[0].device, &(size_t){2}), -EINVAL);

	n = 0;
	fake_reply(f, PASID_OP_DEVICES, NULL, 0);
	assert_int_equal(pasid_devices(f->p, NULL, &n), 0);
	fake_request(f, PASID_OP_DEVICES, &none, 0, NULL);
	assert_int_equal(n, 0);
	assert_int_equal(pasid_devices(f->p, NULL, NULL), -EINVAL);
	fake_silence(f);
}

static void ask_info(struct fake *f, void *info, int want)
{
	struct pasid_wire_device_info w = {.name = "gpu0",
					   .engine = "refgpu",
					   .mode = 1,
					   .present = 1,
					   .page_sizes = 0x40201000,
					   .iova_first = 0x1000,
					   .iova_last = 0xffffffffffff,
					   .features = 3,
					   .pasid_bits = 20,
					   .slots = 8,
					   .job_limit_ms = 2000,
					   .submit_max = 65536};
	struct pasid_device_query q;

	fake_reply(f, PASID_OP_DEVICE_INFO, &w, sizeof(w));
	assert_int_equal(pasid_device_info(f->p, "gpu0", info), want);
	assert_int_equal(fake_request(f, PASID_OP_DEVICE_INFO, &q, sizeof(q), NULL), sizeof(q));
	assert_string_equal(q.name, "gpu0");
	assert_int_equal(q.name[PASID_NAME_MAX - 1], 0);
}

/* Out structs of other sizes: smaller gets what it has room for, larger gets zeroes behind. */
static void test_device_info_sizes(void **state)
{
	struct fake *f = *state;
	struct {
		struct pasid_device_info i;
		unsigned char more[32];
	} big;
	struct pasid_device_info info;

	memset(&info, 0xaa, sizeof(info));
	info.size = sizeof(info);
	ask_info(f, &info, 0);
	assert_int_equal(info.size, sizeof(info));
	assert_string_equal(info.engine, "refgpu");
	assert_int_equal(info.iova_last, 0xffffffffffff);
	assert_int_equal(info.submit_max, 65536);

	memset(&info, 0xaa, sizeof(info));
	info.size = offsetof(struct pasid_device_info, mode);
	ask_info(f, &info, 0);
	assert_string_equal(info.name, "gpu0");
	assert_int_equal(info.mode, 0xaaaaaaaa);

	memset(&big, 0xaa, sizeof(big));
	big.i.size = sizeof(big);
	ask_info(f, &big.i, 0);
	assert_int_equal(big.i.size, sizeof(big));
	assert_int_equal(big.i.slots, 8);
	assert_int_equal(big.more[0] | big.more[31], 0);

	info.size = 3;
	ask_info(f, &info, -EINVAL);
	info.size = SIZE_MAX;
	ask_info(f, &info, -EINVAL);
	assert_int_equal(pasid_device_info(f->p, NULL, NULL), -EINVAL);
	assert_int_equal(pasid_device_info(f->p, "a name that has more than 31 bytes", &info), -ENAMETOOLONG);
	fake_silence(f);
}

static void test_contexts(void **state)
{
	struct fake *f = *state;
	struct pasid_wire_ctx_info w = {.ctx = 5,
					.pasid = 9,
					.state = PASID_CTX_LOST,
					.mappings = 1,
					.mapped_bytes = 2,
					.table_bytes = 3,
					.submitted = 4,
					.completed = 5,
					.faults = 6,
					.switches = 7};
	struct pasid_ctx_info info = {.size = sizeof(info)};
	struct {
		struct pasid_ctx_args a;
		char more[16];
	} args = {.a = {.size = sizeof(args), .device = "gpu1"}};
	struct pasid_ctx_new_reply r = {.ctx = 7, .fence_line = 2};
	struct pasid_ctx_query q;
	struct pasid_ctx_new nq;
	uint32_t ctx;
	uint64_t job;

	make_ctx(f, 5, 1);
	fake_reply(f, PASID_OP_CTX_INFO, &w, sizeof(w));
	assert_int_equal(pasid_ctx_info(f->p, 5, &info), 0);
	fake_request(f, PASID_OP_CTX_INFO, &q, sizeof(q), NULL);
	assert_int_equal(q.ctx, 5);
	assert_int_equal(info.pasid, 9);
	assert_int_equal(info.lost, 1);
	assert_int_equal(info.switches, 7);

	fake_reply(f, PASID_OP_CTX_NEW, &r, sizeof(r));
	assert_int_equal(pasid_ctx_new(f->p, &args.a, &ctx), 0);
	fake_request(f, PASID_OP_CTX_NEW, &nq, sizeof(nq), NULL);
	assert_string_equal(nq.device, "gpu1");
	assert_int_equal(nq.flags, 0);
	assert_int_equal(ctx, 7);
	args.a.flags = PASID_CTX_OPAQUE;
	r.ctx = 9;
	fake_reply(f, PASID_OP_CTX_NEW, &r, sizeof(r));
	assert_int_equal(pasid_ctx_new(f->p, &args.a, &ctx), 0);
	fake_request(f, PASID_OP_CTX_NEW, &nq, sizeof(nq), NULL);
	assert_int_equal(nq.flags, PASID_CTX_NEW_OPAQUE);
	args.a.size = sizeof(size_t); /* an old program, whose struct has no device */
	r.ctx = 8;
	fake_reply(f, PASID_OP_CTX_NEW, &r, sizeof(r));
	assert_int_equal(pasid_ctx_new(f->p, &args.a, &ctx), 0);
	fake_request(f, PASID_OP_CTX_NEW, &nq, sizeof(nq), NULL);
	assert_string_equal(nq.device, "");
	assert_int_equal(nq.flags, 0);

	assert_int_equal(pasid_fence(f->p, 5, &job), 0);
	fake_refuse(f, PASID_OP_CTX_FREE, -ENOENT, PASID_WHY_NO_CONTEXT, 0, 6, 0);
	assert_int_equal(pasid_ctx_free(f->p, 6), -ENOENT);
	fake_request(f, PASID_OP_CTX_FREE, &q, sizeof(q), NULL);
	fake_reply(f, PASID_OP_CTX_FREE, NULL, 0);
	assert_int_equal(pasid_ctx_free(f->p, 5), 0);
	fake_request(f, PASID_OP_CTX_FREE, &q, sizeof(q), NULL);
	assert_int_equal(pasid_fence(f->p, 5, &job), -ENOENT);
	assert_int_equal(pasid_wait(f->p, 5, 1, 0), -ENOENT);
	assert_int_equal(pasid_fence(f->p, 7, &job), 0);
}

/* Many contexts, freed from both ends and the middle: each keeps its own fence line. */
static void test_many_contexts(void **state)
{
	struct fake *f = *state;
	struct pasid_ctx_query q;
	uint64_t job;
	uint32_t i;

	for (i = 0; i < LINES; i++) {
		f->line[i].done = 0;
		make_ctx(f, 100 + i * 3, i);
		f->line[i].done = 1000 + i;
	}
	for (i = 0; i < LINES; i++) {
		uint32_t victim = (i * 37) % LINES;

		assert_int_equal(pasid_fence(f->p, 100 + victim * 3, &job), 0);
		assert_int_equal(job, 1000 + victim);
		fake_reply(f, PASID_OP_CTX_FREE, NULL, 0);
		assert_int_equal(pasid_ctx_free(f->p, 100 + victim * 3), 0);
		fake_request(f, PASID_OP_CTX_FREE, &q, sizeof(q), NULL);
		assert_int_equal(pasid_fence(f->p, 100 + victim * 3, &job), -ENOENT);
	}
}

static void test_fence_line_outside(void **state)
{
	struct fake *f = *state;
	struct pasid_ctx_new_reply r = {.ctx = 1, .fence_line = LINES};
	uint32_t ctx;

	fake_reply(f, PASID_OP_CTX_NEW, &r, sizeof(r));
	assert_int_equal(pasid_ctx_new(f->p, NULL, &ctx), -ECONNRESET);
}

static void test_buf_new(void **state)
{
	struct fake *f = *state;
	struct pasid_buf_import_reply r = {.size = 8192, .buf = 3, .writable = 1};
	struct pasid_buf_import q;
	struct pasid_buf_query fq;
	uint32_t buf = 0;
	void *map = NULL;
	char *other;
	int fd = -1;

	fake_reply(f, PASID_OP_BUF_IMPORT, &r, sizeof(r));
	assert_int_equal(pasid_buf_new(f->p, "gpu0", 4097, &buf, &map), 0);
	assert_int_equal(fake_request(f, PASID_OP_BUF_IMPORT, &q, sizeof(q), &fd), sizeof(q));
	assert_string_equal(q.device, "gpu0");
	assert_int_equal(buf, 3);
	assert_int_equal(fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW), F_SEAL_SHRINK | F_SEAL_GROW);
	assert_int_equal(lseek(fd, 0, SEEK_END), 8192);
	other = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
	((char *)map)[8191] = 42;
	assert_int_equal(other[8191], 42);
	munmap(other, 8192);
	close(fd);

	fake_refuse(f, PASID_OP_BUF_FREE, -ENOENT, PASID_WHY_NO_BUFFER, 0, 9, 0);
	assert_int_equal(pasid_buf_free(f->p, 9), -ENOENT);
	fake_request(f, PASID_OP_BUF_FREE, &fq, sizeof(fq), NULL);
	assert_int_equal(((char *)map)[8191], 42);
	fake_reply(f, PASID_OP_BUF_FREE, NULL, 0);
	assert_int_equal(pasid_buf_free(f->p, 3), 0);
	fake_request(f, PASID_OP_BUF_FREE, &fq, sizeof(fq), NULL);
	assert_int_equal(fq.buf, 3);
	assert_int_equal(msync(map, 8192, MS_ASYNC), -1);
	assert_int_equal(errno, ENOMEM);
}

static void test_buf_new_refused(void **state)
{
	struct fake *f = *state;
	struct pasid_buf_import q;
	uint32_t buf = 77;
	void *map = (void *)1;
	int fd, before = count_fds();

	fake_refuse(f, PASID_OP_BUF_IMPORT, -EDQUOT, PASID_WHY_QUOTA_CONNECTION + PASID_RES_BYTES, 0, 100, 200);
	assert_int_equal(pasid_buf_new(f->p, NULL, 1 << 20, &buf, &map), -EDQUOT);
	assert_non_null(strstr(pasid_error(f->p), "connection has 100 of at most 200 bytes"));
	fake_request(f, PASID_OP_BUF_IMPORT, &q, sizeof(q), &fd);
	close(fd);
	assert_ptr_equal(map, (void *)1);
	assert_int_equal(pasid_buf_new(f->p, NULL, UINT64_MAX, &buf, &map), -ENOMEM);
	assert_int_equal(pasid_buf_new(f->p, NULL, 1ull << 63, &buf, &map), -ENOMEM);
	assert_int_equal(pasid_buf_new(f->p, NULL, 4096, NULL, &map), -EINVAL);
	assert_int_equal(count_fds(), before);
	fake_silence(f);
}

static void import(struct fake *f, int mine, int seals)
{
	struct pasid_buf_import_reply r = {.size = 4096, .buf = 4};
	struct pasid_buf_import q;
	uint32_t buf;
	int fd;

	fake_reply(f, PASID_OP_BUF_IMPORT, &r, sizeof(r));
	assert_int_equal(pasid_buf_import(f->p, NULL, mine, &buf), 0);
	assert_int_equal(buf, 4);
	fake_request(f, PASID_OP_BUF_IMPORT, &q, sizeof(q), &fd);
	assert_int_equal(fcntl(fd, F_GET_SEALS), seals);
	close(fd);
	close(mine);
}

/* The library seals against shrinking where it can and leaves the judgement to the daemon. */
static void test_buf_import(void **state)
{
	struct fake *f = *state;
	uint64_t serial = f->serial;
	uint32_t buf;
	int fd;

	import(f, memfd_create("a", MFD_CLOEXEC | MFD_ALLOW_SEALING), F_SEAL_SHRINK);
	import(f, memfd_create("b", MFD_CLOEXEC), F_SEAL_SEAL);
	fd = memfd_create("c", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	import(f, fd, F_SEAL_WRITE | F_SEAL_SHRINK);
	import(f, open("/dev/null", O_RDWR | O_CLOEXEC), -1);
	assert_int_equal(f->serial, serial + 4);

	/* A bad fd is not sent, and takes no serial. */
	assert_int_equal(pasid_buf_import(f->p, NULL, -1, &buf), -EBADF);
	assert_int_equal(pasid_buf_import(f->p, NULL, 1 << 20, &buf), -EBADF);
	fake_silence(f);
	import(f, memfd_create("d", MFD_CLOEXEC | MFD_ALLOW_SEALING), F_SEAL_SHRINK);
}

struct bind_msg {
	struct pasid_bind_head head;
	struct pasid_wire_bind_op op[8];
};

static void test_map_unmap(void **state)
{
	struct fake *f = *state;
	uint64_t at = 0xabc000, iova = 0x5555;
	struct bind_msg m;

	fake_reply(f, PASID_OP_BIND, &at, sizeof(at));
	assert_int_equal(pasid_map(f->p, 1, 2, 4096, 8192, PASID_READ, &iova), 0);
	assert_int_equal(iova, at);
	assert_int_equal(fake_request(f, PASID_OP_BIND, &m, sizeof(m), NULL), sizeof(m.head) + sizeof(m.op[0]));
	assert_int_equal(m.head.ctx, 1);
	assert_int_equal(m.head.count, 1);
	assert_int_equal(m.op[0].kind, PASID_BIND_MAP);
	assert_int_equal(m.op[0].iova, 0); /* not fixed: whatever the variable held is not sent */
	assert_int_equal(m.op[0].off, 4096);
	assert_int_equal(m.op[0].buf, 2);

	iova = 0x7000;
	fake_refuse(f, PASID_OP_BIND, -EEXIST, PASID_WHY_OVERLAP, 0, 0x6000, 0x7fff);
	assert_int_equal(pasid_map(f->p, 1, 2, 0, 4096, PASID_READ | PASID_WRITE | PASID_FIXED, &iova), -EEXIST);
	assert_non_null(strstr(pasid_error(f->p), "0x6000-0x7fff"));
	assert_non_null(strstr(pasid_error(f->p), "0x7000"));
	fake_request(f, PASID_OP_BIND, &m, sizeof(m), NULL);
	assert_int_equal(m.op[0].iova, 0x7000);
	assert_int_equal(m.op[0].flags, PASID_MAP_READ | PASID_MAP_WRITE | PASID_MAP_FIXED);

	fake_reply(f, PASID_OP_BIND, &at, sizeof(at));
	assert_int_equal(pasid_unmap(f->p, 1, 0x6000, 8192), 0);
	fake_request(f, PASID_OP_BIND, &m, sizeof(m), NULL);
	assert_int_equal(m.op[0].kind, PASID_BIND_UNMAP);
	assert_int_equal(m.op[0].flags | m.op[0].buf | m.op[0].off, 0);
	assert_int_equal(m.op[0].iova, 0x6000);
	assert_int_equal(m.op[0].len, 8192);
	assert_int_equal(pasid_map(f->p, 1, 2, 0, 4096, PASID_READ, NULL), -EINVAL);
	fake_silence(f);
}

/* Operations of a program that knows more fields than the library. */
struct big_op {
	struct pasid_bind_op op;
	uint64_t more;
};

static void test_bind(void **state)
{
	struct fake *f = *state;
	struct big_op ops[3];
	uint64_t at[3] = {0x10000, 0x20000, 0x30000};
	struct bind_msg m;
	size_t i, failed = 99;

	memset(ops, 0xee, sizeof(ops));
	for (i = 0; i < 3; i++)
		ops[i].op = (struct pasid_bind_op){.size = sizeof(ops[0]),
						   .type = PASID_MAP,
						   .flags = PASID_READ,
						   .buf = (uint32_t)i,
						   .len = 4096};
	ops[1].op.type = PASID_UNMAP;
	ops[1].op.flags = 0;
	ops[1].op.iova = 0x20000;
	fake_reply(f, PASID_OP_BIND, at, sizeof(at));
	assert_int_equal(pasid_bind_any(f->p, 6, &ops[0].op, 3, &failed), 0);
	fake_request(f, PASID_OP_BIND, &m, sizeof(m), NULL);
	assert_int_equal(m.head.count, 3);
	assert_int_equal(m.op[2].buf, 2);
	assert_int_equal(m.op[1].iova, 0x20000);
	assert_int_equal(ops[0].op.iova, 0x10000);
	assert_int_equal(ops[2].op.iova, 0x30000);
	assert_int_equal(ops[2].more, 0xeeeeeeeeeeeeeeee);
	assert_int_equal(failed, 99);

	fake_refuse(f, PASID_OP_BIND, -EACCES, PASID_WHY_READ_ONLY, 2, 0, 0);
	assert_int_equal(pasid_bind(f->p, 6, &ops[0].op, 3, &failed), -EACCES);
	fake_request(f, PASID_OP_BIND, &m, sizeof(m), NULL);
	assert_int_equal(failed, 2);
	assert_non_null(strstr(pasid_error(f->p), "operation 2 of the 3"));

	ops[1].op.size = sizeof(ops[0].op); /* not the stride */
	assert_int_equal(pasid_bind(f->p, 6, &ops[0].op, 3, &failed), -EINVAL);
	assert_int_equal(failed, 1);
	assert_int_equal(pasid_bind(f->p, 6, &ops[0].op, PASID_BIND_MAX + 1, NULL), -EINVAL);
	assert_int_equal(pasid_bind(f->p, 6, NULL, 1, NULL), -EINVAL);
	fake_silence(f);
}

/* Operations of an old program, which end before iova: nothing is read or written beyond them. */
static void test_bind_small(void **state)
{
	struct fake *f = *state;
	const size_t size = offsetof(struct pasid_bind_op, iova);
	unsigned char *ops = malloc(2 * size);
	uint64_t at[2] = {1, 2};
	struct bind_msg m;
	uint32_t type = PASID_MAP;

	memset(ops, 0, 2 * size);
	memcpy(ops, &size, sizeof(size));
	memcpy(ops + size, &size, sizeof(size));
	memcpy(ops + offsetof(struct pasid_bind_op, type), &type, sizeof(type));
	fake_reply(f, PASID_OP_BIND, at, sizeof(at));
	assert_int_equal(pasid_bind_any(f->p, 6, (void *)ops, 2, NULL), 0);
	fake_request(f, PASID_OP_BIND, &m, sizeof(m), NULL);
	assert_int_equal(m.op[0].kind, PASID_BIND_MAP);
	assert_int_equal(m.op[0].len, 0);
	free(ops);
}

static void test_bind_largest(void **state)
{
	struct fake *f = *state;
	struct pasid_bind_op *ops = calloc(PASID_BIND_MAX, sizeof(*ops));
	char *body = malloc(PASID_MSG_MAX);
	uint64_t *at = calloc(PASID_BIND_MAX, sizeof(*at));
	size_t i;

	for (i = 0; i < PASID_BIND_MAX; i++) {
		at[i] = i * 4096;
		ops[i].size = sizeof(*ops);
		ops[i].type = PASID_MAP;
	}
	memset(body, 0, sizeof(struct pasid_reply));
	((struct pasid_msg *)(void *)body)->size = sizeof(struct pasid_reply) + PASID_BIND_MAX * 8;
	((struct pasid_msg *)(void *)body)->opcode = PASID_OP_BIND;
	((struct pasid_msg *)(void *)body)->serial = f->serial;
	memcpy(body + sizeof(struct pasid_reply), at, PASID_BIND_MAX * 8);
	fake_raw(f, body, sizeof(struct pasid_reply) + PASID_BIND_MAX * 8, -1);
	assert_int_equal(pasid_bind_any(f->p, 1, ops, PASID_BIND_MAX, NULL), 0);
	assert_int_equal(fake_request(f, PASID_OP_BIND, body, PASID_MSG_MAX, NULL), 8 + PASID_BIND_MAX * 40);
	assert_int_equal(ops[1023].iova, 1023 * 4096);
	free(ops);
	free(body);
	free(at);
}

/* ---- Replies and events in any order. ---- */

static void test_events_before_reply(void **state)
{
	struct fake *f = *state;
	struct pasid_ev_device back = {.msg = {.size = sizeof(back), .opcode = PASID_EV_DEVICE_BACK}, .device = "gpu0"};
	struct pasid_msg resumed = {.size = sizeof(resumed), .opcode = PASID_EV_RESUMED};
	struct pasid_msg unknown = {.size = sizeof(unknown), .opcode = 0x80ff};
	struct pasid_event ev = {.size = sizeof(ev)};

	make_ctx(f, 1, 0);
	make_ctx(f, 2, 1);
	fake_fault(f, 2, 3, 0x3000, 5);
	fake_raw(f, &unknown, sizeof(unknown), -1);
	fake_lost(f, 1, PASID_LOST_HANG, 9);
	fake_raw(f, &back, sizeof(back), -1);
	fake_raw(f, &back, sizeof(back), -1);
	fake_raw(f, &resumed, sizeof(resumed), -1);
	fake_fault(f, 77, 3, 0x3000, 0); /* nobody's */
	make_job(f, 2, 1);
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.type, PASID_EVENT_RESUMED);
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.type, PASID_EVENT_DEVICE_BACK);
	assert_string_equal(ev.device, "gpu0");
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.type, PASID_EVENT_FAULT);
	assert_int_equal(ev.ctx, 2);
	assert_int_equal(ev.job, 3);
	assert_int_equal(ev.addr, 0x3000);
	assert_int_equal(ev.dropped, 5);
	assert_non_null(strstr(ev.text, "job 3 of context 2 wrote 0x3000"));
	assert_non_null(strstr(ev.text, "4096 bytes behind its mapping 0x1000-0x1fff"));
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.type, PASID_EVENT_LOST);
	assert_int_equal(ev.ctx, 1);
	assert_int_equal(ev.why, PASID_LOST_TO_HANG);
	assert_int_equal(pasid_next_event(f->p, &ev), 0);
	fake_lost(f, 2, PASID_LOST_CLOSED, 0);
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.why, PASID_LOST_TO_CLOSE);
	assert_non_null(strstr(ev.text, "context 2 is lost: an administrator closed it; free it"));
}

static void test_event_sizes(void **state)
{
	struct fake *f = *state;
	struct {
		struct pasid_event e;
		unsigned char more[8];
	} big;
	struct pasid_event ev = {.size = offsetof(struct pasid_event, addr)};

	make_ctx(f, 1, 0);
	fake_fault(f, 1, 3, 0x3000, 0);
	fake_fault(f, 1, 4, 0x3000, 0);
	ev.addr = 0x1234;
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.job, 3);
	assert_int_equal(ev.addr, 0x1234);
	memset(&big, 0xaa, sizeof(big));
	big.e.size = sizeof(big);
	assert_int_equal(pasid_next_event(f->p, &big.e), 1);
	assert_int_equal(big.e.job, 4);
	assert_int_equal(big.more[0], 0);
	ev.size = 0;
	assert_int_equal(pasid_next_event(f->p, &ev), -EINVAL);
	assert_int_equal(pasid_next_event(f->p, NULL), -EINVAL);
}

/* A flood: at most 16 faults a context are kept, the newest; not one is miscounted. */
static void test_event_flood(void **state)
{
	struct fake *f = *state;
	struct pasid_event ev = {.size = sizeof(ev)};
	uint64_t total = 0, job = 1, round, i;

	make_ctx(f, 1, 0);
	make_ctx(f, 2, 1);
	for (round = 0; round < 200; round++) {
		for (i = 0; i < 32; i++)
			fake_fault(f, 1, job++, 0x9000, i == 7 ? 3 : 0);
		fake_lost(f, 2, PASID_LOST_RESET, job);
		make_job(f, 1, round + 1);
	}
	for (i = 0; i < PASID_FAULTS_MAX; i++) {
		assert_int_equal(pasid_next_event(f->p, &ev), 1);
		assert_int_equal(ev.type, PASID_EVENT_FAULT);
		assert_int_equal(ev.job, job - PASID_FAULTS_MAX + i);
		total += 1 + ev.dropped;
	}
	assert_int_equal(total, 200 * (32 + 3));
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.type, PASID_EVENT_RESET);
	assert_int_equal(ev.job, job);
	assert_int_equal(pasid_next_event(f->p, &ev), 0);
}

static void test_events_of_freed(void **state)
{
	struct fake *f = *state;
	struct pasid_event ev = {.size = sizeof(ev)};
	struct pasid_ctx_query q;
	uint32_t i;

	for (i = 1; i <= 3; i++) {
		make_ctx(f, i, i);
		fake_fault(f, i, i, 0x9000, 0);
	}
	for (i = 3; i >= 2; i--) { /* the last in the queue, then the new last */
		fake_fault(f, i, 9, 0x9000, 0);
		fake_reply(f, PASID_OP_CTX_FREE, NULL, 0);
		assert_int_equal(pasid_ctx_free(f->p, i), 0);
		fake_request(f, PASID_OP_CTX_FREE, &q, sizeof(q), NULL);
	}
	fake_fault(f, 1, 2, 0x9000, 0);
	fake_fault(f, 2, 2, 0x9000, 0);
	for (i = 1; i <= 2; i++) {
		assert_int_equal(pasid_next_event(f->p, &ev), 1);
		assert_int_equal(ev.ctx, 1);
		assert_int_equal(ev.job, i);
	}
	assert_int_equal(pasid_next_event(f->p, &ev), 0);
	make_ctx(f, 4, 4);
	make_ctx(f, 5, 5);
	fake_fault(f, 4, 1, 0x9000, 0);
	fake_fault(f, 5, 1, 0x9000, 0);
	make_job(f, 4, 1);
	fake_reply(f, PASID_OP_CTX_FREE, NULL, 0);
	assert_int_equal(pasid_ctx_free(f->p, 5), 0);
	fake_request(f, PASID_OP_CTX_FREE, &q, sizeof(q), NULL);
	fake_fault(f, 1, 3, 0x9000, 0);
	for (i = 0; i < 2; i++) {
		assert_int_equal(pasid_next_event(f->p, &ev), 1);
		assert_int_equal(ev.ctx, i ? 1 : 4);
	}
	assert_int_equal(pasid_next_event(f->p, &ev), 0);
}

static void test_garbled_events_are_ignored(void **state)
{
	struct fake *f = *state;
	struct pasid_ev_fault m = {.msg = {.size = sizeof(m), .opcode = PASID_EV_FAULT}, .ctx = 1, .count = 1};
	struct {
		struct pasid_ev_fault ev;
		struct pasid_wire_fault fault[PASID_FAULTS_MAX + 1];
	} many = {.ev = {.msg = {.size = sizeof(many), .opcode = PASID_EV_FAULT},
			 .ctx = 1,
			 .count = PASID_FAULTS_MAX + 1}};
	struct pasid_event ev = {.size = sizeof(ev)};

	make_ctx(f, 1, 0);
	fake_raw(f, &many, sizeof(many), -1); /* one more than there can be */
	fake_raw(f, &m, sizeof(m), -1); /* says one fault, has none */
	m.count = UINT32_MAX;
	fake_raw(f, &m, sizeof(m), -1);
	m.msg.size = sizeof(struct pasid_msg);
	fake_raw(f, &m, sizeof(struct pasid_msg), -1);
	m.msg.opcode = PASID_EV_LOST;
	fake_raw(f, &m, sizeof(struct pasid_msg), -1);
	m.msg.opcode = PASID_EV_DEVICE_BACK;
	fake_raw(f, &m, sizeof(struct pasid_msg), -1);
	assert_int_equal(pasid_next_event(f->p, &ev), 0);
	m.msg.size = sizeof(m);
	m.msg.opcode = PASID_EV_FAULT;
	m.count = 0;
	m.dropped = 4;
	fake_raw(f, &m, sizeof(m), -1);
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.dropped, 4);
	assert_int_equal(pasid_next_event(f->p, &ev), 0);
}

/* Replies with serials that nobody waits for go, with the fds that they carry. */
static void test_repeated_replies(void **state)
{
	struct fake *f = *state;
	struct pasid_submit_reply r = {.job = 99};
	int i, before = count_fds();

	make_ctx(f, 1, 0);
	fake_answer(f, 1, PASID_OP_HELLO, &hello_ok, sizeof(hello_ok), f->fences);
	for (i = 0; i < 3; i++)
		fake_answer(f, f->serial - 1, PASID_OP_CTX_NEW, NULL, 0, f->fences);
	fake_answer(f, f->serial + 1, PASID_OP_SUBMIT, &r, sizeof(r), -1);
	make_job(f, 1, 1);
	fake_answer(f, f->serial - 1, PASID_OP_SUBMIT, &r, sizeof(r), -1);
	make_job(f, 1, 2);
	assert_int_equal(count_fds(), before);
}

/* ---- Every call, and everything that can go wrong on the wire. ---- */

static uint32_t any_buf;

static int call_devices(struct pasid *p)
{
	struct pasid_device v[2] = {{.size = sizeof(v[0])}};
	size_t n = 2;

	return pasid_devices(p, v, &n);
}

static int call_info(struct pasid *p)
{
	struct pasid_device_info i = {.size = sizeof(i)};

	return pasid_device_info(p, NULL, &i);
}

static int call_ctx_new(struct pasid *p)
{
	uint32_t ctx;

	return pasid_ctx_new(p, NULL, &ctx);
}

static int call_ctx_free(struct pasid *p)
{
	return pasid_ctx_free(p, 1);
}

static int call_ctx_info(struct pasid *p)
{
	struct pasid_ctx_info i = {.size = sizeof(i)};

	return pasid_ctx_info(p, 1, &i);
}

static int call_buf_new(struct pasid *p)
{
	void *map;

	return pasid_buf_new(p, NULL, 4096, &any_buf, &map);
}

static int call_buf_import(struct pasid *p)
{
	int fd = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING), r;

	r = pasid_buf_import(p, NULL, fd, &any_buf);
	close(fd);
	return r;
}

static int call_buf_free(struct pasid *p)
{
	return pasid_buf_free(p, 1);
}

static int call_map(struct pasid *p)
{
	uint64_t iova;

	return pasid_map(p, 1, 1, 0, 4096, PASID_READ, &iova);
}

static int call_unmap(struct pasid *p)
{
	return pasid_unmap(p, 1, 0, 4096);
}

static int call_bind(struct pasid *p)
{
	struct pasid_bind_op ops[2] = {{.size = sizeof(ops[0])}, {.size = sizeof(ops[0])}};

	return pasid_bind(p, 1, ops, 2, NULL);
}

static int call_submit(struct pasid *p)
{
	return pasid_submit(p, 1, 0, 64, NULL);
}

static const struct {
	int (*call)(struct pasid *p);
	uint16_t opcode;
} calls[] = {
	{call_devices, PASID_OP_DEVICES},
	{call_info, PASID_OP_DEVICE_INFO},
	{call_ctx_new, PASID_OP_CTX_NEW},
	{call_ctx_free, PASID_OP_CTX_FREE},
	{call_ctx_info, PASID_OP_CTX_INFO},
	{call_buf_new, PASID_OP_BUF_IMPORT},
	{call_buf_import, PASID_OP_BUF_IMPORT},
	{call_buf_free, PASID_OP_BUF_FREE},
	{call_map, PASID_OP_BIND},
	{call_unmap, PASID_OP_BIND},
	{call_bind, PASID_OP_BIND},
	{call_submit, PASID_OP_SUBMIT},
};
#define CALLS (sizeof(calls) / sizeof(calls[0]))

/* A connection that is over stays over, for every call. */
static void check_over(struct pasid *p)
{
	struct pasid_event ev = {.size = sizeof(ev)};
	uint64_t job;
	size_t i;

	for (i = 0; i < CALLS; i++)
		assert_int_equal(calls[i].call(p), -ECONNRESET);
	assert_int_equal(pasid_next_event(p, &ev), -ECONNRESET);
	assert_int_equal(pasid_wait(p, 1, 1, FOREVER), -ECONNRESET);
	assert_int_equal(pasid_fence(p, 1, &job), -ECONNRESET);
	assert_true(strlen(pasid_error(p)) > 20);
}

static void test_hangup_before_request(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < CALLS; i++) {
		void *s = NULL;
		struct fake *f;

		setup(&s);
		f = s;
		close(f->peer);
		f->peer = -1;
		assert_int_equal(calls[i].call(f->p), -ECONNRESET);
		check_over(f->p);
		teardown(&s);
	}
}

static void test_hangup_before_reply(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < CALLS; i++) {
		void *s = NULL;
		struct fake *f;

		setup(&s);
		f = s;
		shutdown(f->peer, SHUT_WR); /* the request still gets through */
		assert_int_equal(calls[i].call(f->p), -ECONNRESET);
		assert_non_null(strstr(pasid_error(f->p), "pasidd is gone"));
		check_over(f->p);
		teardown(&s);
	}
}

/* Everything that is not a reply, one after the other, in place of the reply to each call. */
static bool garble(struct fake *f, unsigned int how, uint16_t opcode)
{
	struct {
		struct pasid_reply r;
		char body[72 + 8];
	} m = {.r = {.msg = {.size = sizeof(m), .opcode = opcode, .serial = f->serial}}};
	static char longest[PASID_MSG_MAX + 32]; /* a whole number of devices */

	switch (how) {
	case 0: /* a record of one byte, */
		fake_raw(f, &m, 1, -1);
		return true;
	case 1: /* a header cut short, */
		fake_raw(f, &m, sizeof(struct pasid_msg) - 1, -1);
		return true;
	case 2: /* a size that is not the record's, */
		fake_raw(f, &m, sizeof(m) - 1, -1);
		return true;
	case 3: /* a frame that is no whole reply, */
		m.r.msg.size = sizeof(struct pasid_reply) - 1;
		fake_raw(f, &m, m.r.msg.size, -1);
		return true;
	case 4: /* another opcode, */
		m.r.msg.opcode = 99;
		fake_raw(f, &m, sizeof(m), -1);
		return true;
	case 5: /* a positive code, */
		m.r.code = 1;
		fake_raw(f, &m, sizeof(m), -1);
		return true;
	case 6: /* a code that is no errno, */
		m.r.code = INT32_MIN;
		fake_raw(f, &m, sizeof(m), -1);
		return true;
	case 7: /* a body one byte off any that exists, */
		m.r.msg.size = sizeof(m) - 1;
		fake_raw(f, &m, m.r.msg.size, -1);
		return true;
	case 8: /* a record beyond the limit. */
		m.r.msg.size = sizeof(longest);
		memcpy(longest, &m, sizeof(m));
		fake_raw(f, longest, sizeof(longest), -1);
		return true;
	}
	return false;
}

static void test_garbled_replies(void **state)
{
	unsigned int how;
	bool more = true;
	size_t i;

	(void)state;
	for (how = 0; more; how++) {
		for (i = 0; i < CALLS; i++) {
			void *s = NULL;
			struct fake *f;

			setup(&s);
			f = s;
			more = garble(f, how, calls[i].opcode);
			if (more) {
				assert_int_equal(calls[i].call(f->p), -ECONNRESET);
				assert_non_null(strstr(pasid_error(f->p), "not of this protocol"));
				check_over(f->p);
			}
			teardown(&s);
		}
	}
	assert_int_equal(how, 10);
}

/* Every reason in the protocol has a sentence of its own, with the numbers in it. */
static void test_sentences(void **state)
{
	static const uint32_t numbered[] = {1,  3,  4,  6,  7,  8,  9,  11, 20,  21,  23, 30,
					    40, 41, 42, 43, 60, 71, 80, 82, 130, 131, 132};
	static const uint32_t plain[] = {2, 5, 10, 22, 50, 70, 72, 81, 133};
	struct fake *f = *state;
	struct pasid_ctx_query q;
	uint32_t i;

	for (i = 0; i < sizeof(numbered) / 4 + sizeof(plain) / 4 + 2 * PASID_RES_COUNT; i++) {
		const uint32_t a = sizeof(numbered) / 4, b = a + sizeof(plain) / 4;
		uint32_t reason = i < a                     ? numbered[i]
				  : i < b                   ? plain[i - a]
				  : i - b < PASID_RES_COUNT ? PASID_WHY_QUOTA_UID + i - b
							    : PASID_WHY_QUOTA_CONNECTION + i - b - PASID_RES_COUNT;

		fake_refuse(f, PASID_OP_CTX_FREE, -EINVAL, reason, 0, 9, 9);
		assert_int_equal(pasid_ctx_free(f->p, 123), -EINVAL);
		fake_request(f, PASID_OP_CTX_FREE, &q, sizeof(q), NULL);
		assert_non_null(strstr(pasid_error(f->p), "cannot free context 123: "));
		assert_null(strstr(pasid_error(f->p), "too old to know"));
		if (i < a || i >= b)
			assert_non_null(strchr(pasid_error(f->p) + strlen("cannot free context 123: "), '9'));
	}
	fake_refuse(f, PASID_OP_CTX_FREE, -EINVAL, 999, 0, 51, 52);
	assert_int_equal(pasid_ctx_free(f->p, 123), -EINVAL);
	assert_non_null(strstr(pasid_error(f->p), "reason 999 (EINVAL; 51, 52)"));
}

/* ---- Waiting. ---- */

static void test_wait_done(void **state)
{
	struct fake *f = *state;
	uint64_t job = 0;

	f->line[3].done = 0;
	make_ctx(f, 1, 3);
	make_job(f, 1, 1);
	assert_int_equal(pasid_wait(f->p, 1, 1, 0), -ETIMEDOUT);
	assert_non_null(strstr(pasid_error(f->p), "job 1 did not complete in time"));
	assert_int_equal(pasid_wait(f->p, 1, 1, 3000000), -ETIMEDOUT);
	assert_int_equal(pasid_wait(f->p, 1, 2, FOREVER), -ENOENT); /* never submitted: nobody would end this */
	f->line[3].done = 1;
	assert_int_equal(pasid_wait(f->p, 1, 1, 0), 0);
	assert_int_equal(pasid_wait(f->p, 1, 1, FOREVER), 0);
	assert_int_equal(pasid_wait(f->p, 1, 0, 0), 0);
	assert_int_equal(pasid_fence(f->p, 1, &job), 0);
	assert_int_equal(job, 1);
	assert_int_equal(pasid_fence(f->p, 1, NULL), -EINVAL);
	assert_int_equal(pasid_wait(f->p, 9, 1, 0), -ENOENT);
	fake_silence(f);
}

static void test_wait_disrupted(void **state)
{
	struct fake *f = *state;
	struct pasid_event ev = {.size = sizeof(ev)};
	uint64_t i;

	make_ctx(f, 1, 0);
	make_ctx(f, 2, 1);
	for (i = 1; i <= 4; i++)
		make_job(f, 1, i);
	make_job(f, 2, 1);
	fake_fault(f, 1, 2, 0x9000, 0);
	fake_lost(f, 1, PASID_LOST_RESET, 3);
	f->line[0].disrupted = 2;
	f->line[0].done = 4;
	f->line[1].done = 1;
	assert_int_equal(pasid_wait(f->p, 1, 1, FOREVER), 0);
	assert_int_equal(pasid_wait(f->p, 1, 2, 0), PASID_JOB_FAULTED);
	assert_int_equal(pasid_wait(f->p, 1, 3, 0), PASID_JOB_RESET);
	assert_int_equal(pasid_wait(f->p, 1, 4, 0), 0);
	assert_int_equal(pasid_wait(f->p, 2, 1, 0), 0);
	assert_int_equal(pasid_wait(f->p, 1, 2, 0), PASID_JOB_FAULTED); /* as often as one asks */
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.type, PASID_EVENT_FAULT);
	assert_int_equal(pasid_next_event(f->p, &ev), 1);
	assert_int_equal(ev.type, PASID_EVENT_RESET);
	assert_int_equal(pasid_next_event(f->p, &ev), 0);
}

static void test_wait_latest_disrupted(void **state)
{
	struct fake *f = *state;
	uint64_t i;

	make_ctx(f, 1, 0);
	for (i = 1; i <= 70; i++) {
		make_job(f, 1, i);
		fake_fault(f, 1, i, 0x9000, 0);
	}
	f->line[0].disrupted = 70;
	f->line[0].done = 70;
	for (i = 7; i <= 70; i++)
		assert_int_equal(pasid_wait(f->p, 1, i, 0), PASID_JOB_FAULTED);
}

static void test_wait_lost(void **state)
{
	struct fake *f = *state;
	uint64_t job;

	make_ctx(f, 1, 0);
	make_job(f, 1, 1);
	make_job(f, 1, 2);
	f->line[0].done = 1;
	f->line[0].state = PASID_CTX_LOST;
	fake_lost(f, 1, PASID_LOST_HANG, 2);
	assert_int_equal(pasid_wait(f->p, 1, 1, FOREVER), 0); /* that one did complete */
	assert_int_equal(pasid_wait(f->p, 1, 2, FOREVER), -EIO);
	assert_non_null(strstr(pasid_error(f->p), "beyond the job limit"));
	job = 0;
	assert_int_equal(pasid_fence(f->p, 1, &job), -EIO);
	assert_int_equal(job, 1);
}

static void futex_wake_one(uint64_t *word)
{
	while (syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0) == 0)
		sched_yield(); /* until somebody really slept there */
}

static void *complete_thread(void *arg)
{
	struct pasid_fence_line *line = arg;

	futex_wake_one(&line->done);
	__atomic_store_n(&line->done, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, &line->done, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	return NULL;
}

static void *lose_thread(void *arg)
{
	struct pasid_fence_line *line = arg;

	futex_wake_one(&line->done);
	__atomic_store_n(&line->state, (uint32_t)PASID_CTX_LOST, __ATOMIC_RELEASE);
	syscall(SYS_futex, &line->done, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	return NULL;
}

static void *hangup_thread(void *arg)
{
	struct fake *f = arg;

	futex_wake_one(&f->line[0].done);
	shutdown(f->peer, SHUT_RDWR);
	return NULL;
}

static void wait_with(struct fake *f, void *(*thread)(void *), void *arg, int want)
{
	pthread_t t;

	make_ctx(f, 1, 0);
	make_job(f, 1, 1);
	assert_int_equal(pthread_create(&t, NULL, thread, arg), 0);
	assert_int_equal(pasid_wait(f->p, 1, 1, LONG_NS), want);
	pthread_join(t, NULL);
}

static void test_wait_wakes(void **state)
{
	struct fake *f = *state;

	wait_with(f, complete_thread, &f->line[0], 0);
}

static void test_wait_wakes_when_lost(void **state)
{
	struct fake *f = *state;

	wait_with(f, lose_thread, &f->line[0], -EIO);
}

static void test_wait_hangup(void **state)
{
	struct fake *f = *state;

	wait_with(f, hangup_thread, f, -ECONNRESET);
	check_over(f->p);
}

/* ---- A socket that the program made non-blocking, and a daemon that is slow to read. ---- */

static void *slow_daemon(void *arg)
{
	struct pasid_reply r = {.msg = {.size = sizeof(r), .opcode = PASID_OP_DEVICES}};
	struct fake *f = arg;
	struct pasid_msg m;

	do {
		if (recv(f->peer, &m, sizeof(m), 0) != sizeof(m))
			return NULL;
	} while (m.opcode != PASID_OP_DEVICES);
	r.msg.serial = m.serial;
	return send(f->peer, &r, sizeof(r), MSG_NOSIGNAL) == sizeof(r) ? f : NULL;
}

static void test_nonblocking_and_full(void **state)
{
	struct fake *f = *state;
	struct pasid_msg junk = {.size = sizeof(junk)};
	int fd = pasid_fd(f->p);
	pthread_t t;
	size_t n = 0;
	void *ok;

	assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	while (send(fd, &junk, sizeof(junk), MSG_DONTWAIT) > 0)
		;
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(pthread_create(&t, NULL, slow_daemon, f), 0);
	assert_int_equal(pasid_devices(f->p, NULL, &n), 0);
	pthread_join(t, &ok);
	assert_ptr_equal(ok, f);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_connect_cloexec),
		cmocka_unit_test(test_connect_nowhere),
		cmocka_unit_test(test_connect_until_greeted),
		cmocka_unit_test(test_connect_bad_hello),
		TEST(test_devices),
		TEST(test_device_info_sizes),
		TEST(test_contexts),
		TEST(test_many_contexts),
		TEST(test_fence_line_outside),
		TEST(test_buf_new),
		TEST(test_buf_new_refused),
		TEST(test_buf_import),
		TEST(test_map_unmap),
		TEST(test_bind),
		TEST(test_bind_small),
		TEST(test_bind_largest),
		TEST(test_events_before_reply),
		TEST(test_event_sizes),
		TEST(test_event_flood),
		TEST(test_events_of_freed),
		TEST(test_garbled_events_are_ignored),
		TEST(test_repeated_replies),
		cmocka_unit_test(test_hangup_before_request),
		cmocka_unit_test(test_hangup_before_reply),
		cmocka_unit_test(test_garbled_replies),
		TEST(test_sentences),
		TEST(test_wait_done),
		TEST(test_wait_disrupted),
		TEST(test_wait_latest_disrupted),
		TEST(test_wait_lost),
		TEST(test_wait_wakes),
		TEST(test_wait_wakes_when_lost),
		TEST(test_wait_hangup),
		TEST(test_nonblocking_and_full),
	};

	return cmocka_run_group_tests_name("libpasid", tests, NULL, NULL);
}
