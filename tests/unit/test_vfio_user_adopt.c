/* SPDX-License-Identifier: MIT */
/*
 * A vfio-user device whose client dies, and is followed by another one over the same socket: first with a device that the
 * test plays by hand, where closing one of two file descriptors is what is left of a death; then with pasid-refgpu and
 * processes that are really killed, at any moment. The device must notice nothing. $SEED repeats a run.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>

#include <cmocka.h>

#include <pasid/refgpu.h>

#include "pgtable_model.h"
#include "vfio_user_rig.h"

static uint64_t seed;

/* ---- One after the other. */

struct left {
	uint8_t saved[TRANSPORT_SAVE_MAX];
	size_t size;
	int fd;
};

static struct left leave(struct transport *t)
{
	int fds[TRANSPORT_KEEP_MAX];
	struct left l;

	l.size = t->ops->save(t, l.saved);
	assert_int_equal(t->ops->keep(t, fds), 1);
	l.fd = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
	assert_true(l.fd >= 0);
	return l;
}

static int adopt(struct world *w, const struct left *l, uint32_t deadline_ms)
{
	return transport_vfio_user.adopt(&w->t, w->base, "/no/matter", IRQS, deadline_ms, l->saved, l->size, &l->fd, 1,
					 &events, w);
}

/* The one is dead, the next one begins. It has asked nothing yet. */
static void succeed(struct world *w, uint32_t deadline_ms)
{
	struct left l = leave(w->t);

	w->t = w->t->ops->close(w->t);
	w->opened = 0;
	assert_int_equal(adopt(w, &l, deadline_ms), 0);
	assert_int_equal(w->t->ops->dma_unmap(w->t, 0, 4096, on_done, NULL), -ENOTCONN);
}

static void answer_adoption(struct world *w)
{
	int last = w->command == 7 ? STAGES - 1 : STAGES;

	for (int stage = 1; stage < last; stage++)
		answer_stage(w, stage);
	while (!w->opened && !w->losses)
		turn(w);
	assert_string_equal(w->why, "");
}

static void nothing_sent(const struct world *w)
{
	uint8_t byte;

	assert_int_equal(recv(w->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT), -1);
	assert_int_equal(errno, EAGAIN);
}

/* ---- A device that behaves. */

static void test_goes_on(void **state)
{
	for (unsigned int round = 0; round < 2; round++) {
		struct transport_ids ids;
		struct done d;
		struct world w;

		begin_opened(&w, DEADLINE);
		w.command = round ? 7 : 3; /* where it is right it is not written */
		succeed(&w, DEADLINE);
		nothing_sent(&w);
		answer_adoption(&w);
		nothing_sent(&w);
		w.t->ops->ids(w.t, &ids);
		assert_int_equal(ids.vendor, 0x1234);
		assert_non_null((void *)w.t->ops->region_map(w.t, 2, 4096, 4096));
		d = (struct done){&w, 0};
		assert_int_equal(map_page(&w, 0x5000, &d), 0);
		expect(&w, VFIO_USER_DMA_MAP, 32);
		reply(&w, NULL, 0);
		while (w.n_done < 1)
			turn(&w);
		assert_int_equal(w.err[0], 0);
		end(&w);
	}
}

/* Interrupts come by new eventfds; an old one means nothing. */
static void test_interrupts(void **state)
{
	const uint64_t one = 1;
	struct world w;
	int old;

	begin(&w);
	open_socketpair(&w, DEADLINE);
	answer_stages(&w, 13);
	old = fcntl(w.fds[1], F_DUPFD_CLOEXEC, 0);
	assert_true(old >= 0);
	answer_stage(&w, 13);
	answer_stage(&w, 14);
	while (!w.opened)
		turn(&w);
	succeed(&w, DEADLINE);
	for (int stage = 1; stage < 13; stage++)
		answer_stage(&w, stage);
	assert_int_equal(write(old, &one, sizeof(one)), sizeof(one));
	assert_int_equal(write(w.fds[2], &one, sizeof(one)), sizeof(one));
	answer_stage(&w, 13);
	answer_stage(&w, 14);
	while (!w.opened || !w.irqs[2])
		turn(&w);
	assert_int_equal(w.irqs[0] + w.irqs[1], 0);
	close(old);
	end(&w);
}

static void test_clear(void **state)
{
	static const struct {
		uint32_t error;
		uint64_t size;
		bool clear;
		int err;
	} cases[] = {
		{0, 4096, true, 0},         {0, 0, true, 0},     {ENOENT, 0, true, 0},
		{EINVAL, 0, true, -EINVAL}, {0, 4096, false, 0}, {ENOENT, 0, false, -ENOENT},
	};
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 0};
	assert_int_equal(w.t->ops->dma_clear(w.t, 1, 4096, on_done, &d), -EINVAL);
	assert_int_equal(w.t->ops->dma_clear(w.t, 0, 4096, NULL, NULL), -EINVAL);
	for (int i = 0; i < (int)ARRAY_SIZE(cases); i++) {
		struct vfio_user_dma_unmap m = {.argsz = sizeof(m), .address = 0x7000, .size = cases[i].size};

		assert_int_equal(
			(cases[i].clear ? w.t->ops->dma_clear : w.t->ops->dma_unmap)(w.t, 0x7000, 4096, on_done, &d),
			0);
		expect(&w, VFIO_USER_DMA_UNMAP, sizeof(m));
		if (cases[i].error)
			reply_error(&w, cases[i].error);
		else
			reply(&w, &m, sizeof(m));
		while (w.n_done <= i)
			turn(&w);
		assert_int_equal(w.err[i], cases[i].err);
	}
	/* More than nothing, and not what was asked. */
	assert_int_equal(w.t->ops->dma_clear(w.t, 0x7000, 8192, on_done, &d), 0);
	expect(&w, VFIO_USER_DMA_UNMAP, 24);
	reply(&w, &(struct vfio_user_dma_unmap){.argsz = 24, .address = 0x7000, .size = 4096}, 24);
	end_lost(&w, -EPROTO);
}

/* ---- What the predecessor had asked. */

/* Answers to its questions come first, to each of them, and mean nothing. */
static void test_late_answers(void **state)
{
	struct vfio_user_header asked[3];
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 0};
	assert_int_equal(map_page(&w, 0, &d), 0);
	assert_int_equal(w.t->ops->dma_unmap(w.t, 0x3000, 4096, on_done, &d), 0);
	assert_int_equal(w.t->ops->region_write(w.t, 0, 0, 8, 1), 0);
	assert_int_equal(w.t->ops->reset(w.t, on_done, &d), 0);
	succeed(&w, DEADLINE);
	expect(&w, VFIO_USER_DMA_MAP, 32);
	asked[0] = w.h;
	expect(&w, VFIO_USER_DMA_UNMAP, 24);
	asked[1] = w.h;
	expect(&w, VFIO_USER_REGION_WRITE, 24);
	expect(&w, VFIO_USER_DEVICE_RESET, 0);
	asked[2] = w.h;
	expect(&w, VFIO_USER_REGION_WRITE, 18);
	w.h = asked[0];
	reply_error(&w, EEXIST);
	w.h = asked[1];
	reply(&w, &(struct vfio_user_dma_unmap){.argsz = 24, .address = 0x3000, .size = 4096}, 24);
	w.h = asked[2];
	reply(&w, NULL, 0);
	answer_adoption(&w);
	assert_int_equal(w.n_done, 0);
	/* Now that it has had an answer to a question of its own, no other can come. */
	assert_int_equal(map_page(&w, 0, &d), 0);
	expect(&w, VFIO_USER_DMA_MAP, 32);
	w.h = asked[0];
	reply(&w, NULL, 0);
	end_lost(&w, -EPROTO);
}

/* Each dies with the same question out, and none takes an answer for its own; with the answer comes a file. */
static void test_many_deaths(void **state)
{
	struct vfio_user_header asked[14];
	struct world w;

	begin_opened(&w, DEADLINE);
	for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
		succeed(&w, DEADLINE);
		expect(&w, VFIO_USER_DEVICE_GET_INFO, 16);
		asked[i] = w.h;
		for (size_t k = 0; k < i; k++)
			assert_int_not_equal(asked[k].id, w.h.id);
	}
	succeed(&w, DEADLINE);
	for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
		w.h = asked[i];
		reply_fds(&w, &w.region, sizeof(w.region), w.status_fd, 1);
	}
	answer_adoption(&w);
	/* As many again, and again: the ids go round. */
	for (size_t i = 0; i < 3 * ARRAY_SIZE(asked); i++) {
		succeed(&w, DEADLINE);
		answer_adoption(&w);
	}
	end(&w);
}

/* One that begins to read an answer has it whole, or has not touched it. */
static void test_answer_in_pieces(void **state)
{
	for (size_t cut = 0; cut < 16 + 16 + 64; cut++) {
		struct vfio_user_header h;
		uint8_t m[16 + 16 + 64] = {0}, head[16];
		struct timeval soon = {.tv_usec = 2000};
		struct world w;

		begin_opened(&w, DEADLINE);
		succeed(&w, DEADLINE);
		for (int stage = 1; stage < 13; stage++)
			answer_stage(&w, stage);
		expect(&w, VFIO_USER_REGION_READ, 16);
		h = w.h;
		h.flags = VFIO_USER_TYPE_REPLY;
		h.size = sizeof(m);
		memcpy(m, &h, sizeof(h));
		memcpy(m + sizeof(h), w.body, 16);
		if (cut > 0)
			device_send(&w, m, cut, -1, 0);
		/* Half a message keeps the loop busy once at most. */
		event_base_loop(w.base, EVLOOP_NONBLOCK);
		event_base_loop(w.base, EVLOOP_NONBLOCK);
		if (cut > 0) {
			struct left l = leave(w.t);

			assert_int_equal(recv(l.fd, head, sizeof(head), MSG_PEEK | MSG_DONTWAIT), cut < 16 ? cut : 16);
			close(l.fd);
			event_base_loopexit(w.base, &soon);
			event_base_loop(w.base, EVLOOP_ONCE);
			assert_true(event_base_got_exit(w.base));
		}
		succeed(&w, DEADLINE);
		event_base_loop(w.base, EVLOOP_NONBLOCK);
		device_send(&w, m + cut, sizeof(m) - cut, -1, 0);
		answer_adoption(&w);
		end(&w);
	}
}

/* A device that has not read for long: it finds whole messages in its socket, and behind them the successor's. */
static void test_requests_are_whole(void **state)
{
	struct vfu *v;
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 0};
	v = container_of(w.t, struct vfu, transport);
	while (v->conn.out_messages < 10) {
		assert_int_equal(map_page(&w, 0, &d), 0);
		assert_int_equal(w.t->ops->region_write(w.t, 0, 0, 8, 7), 0);
	}
	succeed(&w, DEADLINE);
	do {
		await_stage(&w);
		if (w.h.command == VFIO_USER_DMA_MAP)
			assert_int_equal(w.h.size * 100 + (uint32_t)w.n_fds, 4801);
		else if (w.h.command == VFIO_USER_REGION_WRITE)
			assert_int_equal(w.h.size, 16 + 24);
	} while (w.h.command != VFIO_USER_DEVICE_GET_INFO);
	reply(&w, &(struct vfio_user_device_info){16, VFIO_DEVICE_FLAGS_PCI, 9, 5}, 16);
	for (int stage = 2; stage < STAGES; stage++)
		answer_stage(&w, stage);
	while (!w.opened)
		turn(&w);
	end(&w);
}

/* ---- A device that does not behave. */

static void test_gone_meanwhile(void **state)
{
	struct world w;

	begin_opened(&w, DEADLINE);
	succeed(&w, DEADLINE);
	util_closep(&w.fd);
	w.fd = -1;
	end_lost(&w, -ECONNRESET);
}

/* It answers what the predecessor may have asked, without end. */
static void test_endless_answers(void **state)
{
	const struct vfio_user_header h = {.command = VFIO_USER_DMA_MAP, .size = 16, .flags = VFIO_USER_TYPE_REPLY};
	struct world w;

	begin_opened(&w, SHORT);
	succeed(&w, SHORT);
	while (!w.losses) {
		while (send(w.fd, &h, sizeof(h), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(h))
			;
		turn(&w);
	}
	end_lost(&w, -ETIMEDOUT);
}

static void test_cut_header(void **state)
{
	const uint8_t half[8] = {0};
	struct world w;

	begin_opened(&w, DEADLINE);
	device_send(&w, half, sizeof(half), w.status_fd, 1);
	device_send(&w, half, sizeof(half), -1, 0);
	end_lost(&w, -EPROTO);
}

/* ---- What is not what was left. */

static void refused(struct world *w, const struct left *l, int r)
{
	assert_int_equal(adopt(w, l, DEADLINE), r);
	assert_true(fcntl(l->fd, F_GETFD) >= 0);
}

static void test_arguments(void **state)
{
	struct transport *t;
	struct left l, bad;
	int two[2], pair[2];
	struct world w;

	begin_opened(&w, DEADLINE);
	l = leave(w.t);
	w.t = w.t->ops->close(w.t);
	t = w.t;
	for (size_t i = 0; i < l.size; i++) {
		bad = l;
		bad.saved[i] ^= 0x80;
		if (i != 9) /* the bits of the process */
			refused(&w, &bad, -EBADMSG);
	}
	bad = l;
	bad.size--;
	refused(&w, &bad, -EBADMSG);
	bad.size = 0;
	refused(&w, &bad, -EBADMSG);
	bad = l;
	bad.fd = w.status_fd;
	refused(&w, &bad, -EBADMSG);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	bad.fd = pair[0];
	refused(&w, &bad, -EBADMSG);
	two[0] = two[1] = l.fd;
	assert_int_equal(
		transport_vfio_user.adopt(&w.t, w.base, "/", IRQS, DEADLINE, l.saved, l.size, two, 2, &events, &w),
		-EBADMSG);
	assert_int_equal(
		transport_vfio_user.adopt(&w.t, w.base, "/", IRQS, DEADLINE, l.saved, l.size, two, 0, &events, &w),
		-EBADMSG);
	assert_int_equal(adopt(&w, &l, 0), -EINVAL);
	assert_ptr_equal(w.t, t);
	assert_int_equal(adopt(&w, &l, DEADLINE), 0);
	answer_adoption(&w);
	close(pair[0]);
	close(pair[1]);
	end(&w);
}

/* ---- pasid-refgpu, and processes that are killed. */

#define PAGES 16u
#define AT(page) (UINT64_C(0x100000) + (page)*UINT64_C(4096))
#define DEATHS 40u

/* What would be in a journal. */
struct journal {
	uint8_t saved[TRANSPORT_SAVE_MAX];
	size_t size;
};

struct heir {
	struct world w;
	struct rng rng;
	int progress; /* a byte for each answer */
	unsigned int out;
};

static void heir_done(void *arg, int err)
{
	struct heir *h = arg;

	if (err < 0 || write(h->progress, "", 1) != 1)
		_exit(2);
	h->out--;
}

/* What nobody knows of is cleared before it is mapped, and pages go round in random order. */
static void heir_work(struct heir *h)
{
	struct transport *t = h->w.t;
	uint64_t at = AT(rng_below(&h->rng, PAGES));

	if (t->ops->dma_clear(t, at, 4096, heir_done, h) < 0 ||
	    t->ops->dma_map(t, at, 4096, h->w.status_fd, 0, TRANSPORT_READ, heir_done, h) < 0 ||
	    t->ops->region_write(t, 0, REFGPU_REG_FAULTQ_SIZE, 4, 64) < 0)
		_exit(3);
	h->out += 2;
	if (rng_below(&h->rng, 50) > 0)
		return;
	if (t->ops->reset(t, heir_done, h) < 0)
		_exit(4);
	h->out++;
}

static void __attribute__((noreturn)) heir(struct journal *j, int fd, int progress, uint64_t s)
{
	struct heir *h = calloc(1, sizeof(*h));
	struct left l = {.size = j->size, .fd = fd};

	if (!h)
		_exit(5);
	memcpy(l.saved, j->saved, sizeof(l.saved));
	begin(&h->w);
	h->rng.s = s;
	h->progress = progress;
	if (adopt(&h->w, &l, DEADLINE) < 0)
		_exit(6);
	j->size = h->w.t->ops->save(h->w.t, j->saved);
	while (!h->w.losses) {
		turn(&h->w);
		while (h->w.opened && h->out < 20)
			heir_work(h);
	}
	fprintf(stderr, "%s\n", h->w.why);
	_exit(7);
}

/* Somebody lives until he has had so many answers, and is killed with others on their way. */
static void live_and_die(struct journal *j, int fd, uint64_t answers, uint64_t s)
{
	int fds[2], status;
	char byte;
	pid_t pid;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		heir(j, fd, fds[1], s);
	close(fds[1]);
	while (answers-- > 0 && read(fds[0], &byte, 1) == 1)
		;
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFSIGNALED(status))
		fail_msg("it ended with %d before it was killed", WEXITSTATUS(status));
	close(fds[0]);
}

static pid_t spawn_refgpu(const char *exe, const char *path)
{
	char number[16], line[2];
	int fds[2];
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(fds[0]);
		snprintf(number, sizeof(number), "%d", fds[1]);
		execl(exe, exe, "--socket", path, "--ready-fd", number, (char *)NULL);
		_exit(127);
	}
	close(fds[1]);
	assert_int_equal(read(fds[0], line, sizeof(line)), sizeof(line));
	close(fds[0]);
	return pid;
}

static void until_opened(struct world *w)
{
	while (!w->opened && !w->losses)
		turn(w);
	assert_string_equal(w->why, "");
}

/* The last one lives on: nothing but what it maps is there, and nobody has ever said anything wrong. */
static void test_refgpu(void **state)
{
	const volatile struct refgpu_status *gpu;
	struct journal *j = mmap(NULL, sizeof(*j), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char dir[] = "/tmp/test-vfio-user-XXXXXX", path[64];
	const char *exe = getenv("PASID_REFGPU");
	struct rng rng = {seed};
	struct left l;
	struct done d;
	struct world w;
	pid_t pid;

	if (!exe)
		skip();
	assert_true(j != MAP_FAILED);
	begin(&w);
	d = (struct done){&w, 0};
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sock", dir);
	pid = spawn_refgpu(exe, path);
	assert_int_equal(transport_vfio_user.open(&w.t, w.base, path, IRQS, DEADLINE, &events, &w), 0);
	until_opened(&w);
	l = leave(w.t);
	w.t = w.t->ops->close(w.t);
	memcpy(j->saved, l.saved, sizeof(j->saved));
	j->size = l.size;
	for (unsigned int i = 0; i < DEATHS; i++)
		live_and_die(j, l.fd, rng_below(&rng, 3) ? rng_below(&rng, 500) : rng_below(&rng, 3), rng_next(&rng));
	memcpy(l.saved, j->saved, sizeof(l.saved));
	w.opened = 0;
	assert_int_equal(adopt(&w, &l, DEADLINE), 0);
	until_opened(&w);
	gpu = w.t->ops->region_map(w.t, REFGPU_BAR_STATUS, 0, sizeof(*gpu));
	assert_non_null((void *)(uintptr_t)gpu);
	for (unsigned int i = 0; i < PAGES; i++) {
		w.n_done = 0;
		assert_int_equal(w.t->ops->dma_clear(w.t, AT(i), 4096, on_done, &d), 0);
		while (w.n_done < 1)
			turn(&w);
		assert_int_equal(w.err[0], 0);
	}
	assert_int_equal(gpu->dma_maps, 0);
	assert_int_equal(gpu->malformed, 0);
	assert_int_equal(gpu->clients, 1);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	unlink(path);
	rmdir(dir);
	munmap(j, sizeof(*j));
	end_lost(&w, -ECONNRESET);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_goes_on),
		cmocka_unit_test(test_interrupts),
		cmocka_unit_test(test_clear),
		cmocka_unit_test(test_late_answers),
		cmocka_unit_test(test_many_deaths),
		cmocka_unit_test(test_answer_in_pieces),
		cmocka_unit_test(test_requests_are_whole),
		cmocka_unit_test(test_gone_meanwhile),
		cmocka_unit_test(test_endless_answers),
		cmocka_unit_test(test_cut_header),
		cmocka_unit_test(test_arguments),
		cmocka_unit_test(test_refgpu),
	};

	seed = rng_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
