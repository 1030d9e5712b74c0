/* SPDX-License-Identifier: MIT */
/*
 * The vfio-user transport against a device that the test plays by hand. Nothing waits for time except the deadlines that
 * are under test; the transport must never leave a file descriptor behind.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "emulated.h"
#include "vfio_user_rig.h"

/* ---- A device that behaves. */

static void test_find(void **state)
{
	const char *address;

	assert_ptr_equal(transport_find("vfio-user:/a:b", &address), &transport_vfio_user);
	assert_string_equal(address, "/a:b");
	assert_null(transport_find("vfio-use:/a", &address));
	assert_null(transport_find("vfio-user", &address));
	assert_null(transport_find(":", &address));
}

static void test_open(void **state)
{
	uint64_t value;
	char dir[] = "/tmp/test-vfio-user-XXXXXX";
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct transport_ids ids;
	volatile void *map;
	struct world w;
	int listener;

	begin(&w);
	assert_non_null(mkdtemp(dir));
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/sock", dir);
	assert_int_equal(transport_vfio_user.open(&w.t, w.base, sa.sun_path, IRQS, DEADLINE, &events, &w), -ENOENT);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(transport_vfio_user.open(&w.t, w.base, sa.sun_path, IRQS, DEADLINE, &events, &w),
			 -ECONNREFUSED);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(transport_vfio_user.open(&w.t, w.base, sa.sun_path, IRQS, DEADLINE, &events, &w), 0);
	assert_int_equal(w.t->ops->region_write(w.t, 0, 0, 4, 1), -ENOTCONN);
	w.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	close(listener);
	unlink(sa.sun_path);
	rmdir(dir);
	answer_stages(&w, STAGES);
	while (!w.opened)
		turn(&w);
	w.t->ops->ids(w.t, &ids);
	assert_int_equal(ids.vendor, 0x1234);
	assert_int_equal(ids.device, 0x9a51);
	assert_int_equal(ids.class_code, 0x038007);
	map = w.t->ops->region_map(w.t, 2, 4096 + 8, 4);
	assert_non_null((void *)map);
	assert_int_equal(pwrite(w.status_fd, "x", 1, 4096 + 4096 + 8), 1);
	assert_int_equal(*(volatile char *)map, 'x');
	assert_ptr_equal((void *)w.t->ops->region_map(w.t, 2, 4096, 4096), (char *)(uintptr_t)map - 8);
	assert_null((void *)w.t->ops->region_map(w.t, 2, 0, 4));
	assert_null((void *)w.t->ops->region_map(w.t, 2, 8188, 8));
	assert_null((void *)w.t->ops->region_map(w.t, 2, UINT64_MAX, 2));
	assert_null((void *)w.t->ops->region_map(w.t, 0, 0, 4));
	assert_null((void *)w.t->ops->region_map(w.t, 99, 0, 4));
	assert_int_equal(w.t->ops->region_read(w.t, 2, 4096 + 8, 4, &value), 0);
	assert_int_equal(value, 'x');
	assert_int_equal(w.t->ops->region_read(w.t, 0, 0, 4, &value), -EOPNOTSUPP);
	assert_int_equal(w.t->ops->region_read(w.t, 2, 4096 + 8, 2, &value), -EINVAL);
	assert_int_equal(w.t->ops->region_read(w.t, 99, 0, 4, &value), -EINVAL);
	end(&w);
}

static void test_open_arguments(void **state)
{
	char long_path[200];
	struct world w;

	begin(&w);
	memset(long_path, 'a', sizeof(long_path) - 1);
	long_path[sizeof(long_path) - 1] = '\0';
	assert_int_equal(transport_vfio_user.open(&w.t, w.base, "", 0, 1, &events, &w), -EINVAL);
	assert_int_equal(transport_vfio_user.open(&w.t, w.base, long_path, 0, 1, &events, &w), -ENAMETOOLONG);
	assert_int_equal(vfio_user_open_fd(&w.t, w.base, -1, TRANSPORT_MAX_IRQS + 1, 1, &events, &w), -EINVAL);
	assert_int_equal(vfio_user_open_fd(&w.t, w.base, -1, 0, 0, &events, &w), -EINVAL);
	end(&w);
}

/* A device that says nothing of its limits takes one fd per message, so vectors are armed one by one. */
static void test_one_fd_per_message(void **state)
{
	struct world w;

	begin(&w);
	w.device_fds = 0;
	open_socketpair(&w, DEADLINE);
	answer_stages(&w, 12);
	for (uint32_t i = 0; i < IRQS; i++)
		answer_set_irqs(&w, i, 1);
	answer_read_config(&w);
	answer_write_command(&w);
	while (!w.opened)
		turn(&w);
	end(&w);
}

/* A file that could shrink under a mapping, or stretch a call, is not touched. */
static void test_unsafe_region_file(void **state)
{
	struct world w;

	begin(&w);
	close(w.status_fd);
	w.status_fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(w.status_fd, 16384), 0);
	open_socketpair(&w, DEADLINE);
	answer_stages(&w, STAGES);
	while (!w.opened)
		turn(&w);
	assert_null((void *)w.t->ops->region_map(w.t, 2, 4096, 4));
	assert_int_equal(ftruncate(w.status_fd, 8192), 0);
	assert_int_equal(fcntl(w.status_fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_null((void *)w.t->ops->region_map(w.t, 2, 4096, 4)); /* sealed now, but too short */
	end(&w);
}

static void test_dma(void **state)
{
	struct vfio_user_dma_map m;
	struct vfio_user_dma_unmap u;
	struct done d[3];
	struct stat a, b;
	struct world w;

	begin_opened(&w, DEADLINE);
	for (int i = 0; i < 3; i++)
		d[i] = (struct done){&w, i};
	assert_int_equal(w.t->ops->dma_map(w.t, 0x10000, 8192, w.status_fd, 4096, TRANSPORT_READ | TRANSPORT_WRITE,
					   on_done, &d[0]),
			 0);
	assert_int_equal(w.t->ops->dma_unmap(w.t, 0x10000, 8192, on_done, &d[1]), 0);
	assert_int_equal(map_page(&w, 0, &d[2]), 0);
	assert_int_equal(w.n_done, 0);
	expect(&w, VFIO_USER_DMA_MAP, sizeof(m));
	memcpy(&m, w.body, sizeof(m));
	assert_int_equal(m.flags, 3);
	assert_int_equal(m.address, 0x10000);
	assert_int_equal(m.size, 8192);
	assert_int_equal(m.offset, 4096);
	assert_int_equal(w.n_fds, 1);
	assert_int_equal(fstat(w.fds[0], &a), 0);
	assert_int_equal(fstat(w.status_fd, &b), 0);
	assert_int_equal(a.st_ino, b.st_ino);
	reply(&w, NULL, 0);
	expect(&w, VFIO_USER_DMA_UNMAP, sizeof(u));
	memcpy(&u, w.body, sizeof(u));
	assert_int_equal(u.address, 0x10000);
	assert_int_equal(u.size, 8192);
	reply(&w, &u, sizeof(u));
	expect(&w, VFIO_USER_DMA_MAP, sizeof(m));
	reply_error(&w, EEXIST);
	while (w.n_done < 3)
		turn(&w);
	for (int i = 0; i < 3; i++)
		assert_int_equal(w.order[i], i);
	assert_int_equal(w.err[0], 0);
	assert_int_equal(w.err[1], 0);
	assert_int_equal(w.err[2], -EEXIST);
	end(&w);
}

static void test_dma_arguments(void **state)
{
	struct world w;
	int fd;

	begin_opened(&w, DEADLINE);
	fd = w.status_fd;
#define MAP(...) w.t->ops->dma_map(w.t, __VA_ARGS__, on_done, &w)
	assert_int_equal(MAP(1, 4096, fd, 0, 1), -EINVAL);
	assert_int_equal(MAP(0, 4095, fd, 0, 1), -EINVAL);
	assert_int_equal(MAP(0, 0, fd, 0, 1), -EINVAL);
	assert_int_equal(MAP(0, 4096, fd, 1, 1), -EINVAL);
	assert_int_equal(MAP(0, 4096, fd, 0, 0), -EINVAL);
	assert_int_equal(MAP(0, 4096, fd, 0, 4), -EINVAL);
	assert_int_equal(MAP(-4096ull, 8192, fd, 0, 1), -EINVAL);
	assert_int_equal(MAP(0, 4096, fd, 1ull << 63, 1), -EINVAL);
	assert_int_equal(MAP(0, 4096, -1, 0, 1), -EBADF);
	assert_int_equal(w.t->ops->dma_unmap(w.t, 0, 1, on_done, &w), -EINVAL);
	assert_int_equal(w.t->ops->region_write(w.t, 0, 0, 2, 1), -EINVAL);
	assert_int_equal(w.t->ops->region_write(w.t, 0, 65536 - 4, 8, 1), -EINVAL);
	assert_int_equal(w.t->ops->region_write(w.t, 0, UINT64_MAX, 8, 1), -EINVAL);
	assert_int_equal(w.t->ops->region_write(w.t, 2, 0, 4, 1), -EINVAL); /* read-only */
	assert_int_equal(w.t->ops->region_write(w.t, 9, 0, 4, 1), -EINVAL);
	assert_int_equal(recv(w.fd, w.body, 1, MSG_DONTWAIT), -1); /* nothing of it was sent */
	end(&w);
}

static void test_write_and_reset(void **state)
{
	struct vfio_user_region_access a;
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 7};
	assert_int_equal(w.t->ops->region_write(w.t, 0, 0x1010, 8, 0x0102030405060708), 0);
	assert_int_equal(w.t->ops->reset(w.t, on_done, &d), 0);
	expect(&w, VFIO_USER_REGION_WRITE, 16 + 8);
	assert_true(w.h.flags & VFIO_USER_NO_REPLY);
	memcpy(&a, w.body, sizeof(a));
	assert_int_equal(a.offset, 0x1010);
	assert_int_equal(a.region, 0);
	assert_int_equal(a.count, 8);
	assert_int_equal(w.body[16], 8);
	assert_int_equal(w.body[23], 1);
	expect(&w, VFIO_USER_DEVICE_RESET, 0);
	assert_int_equal(w.h.size, 16);
	reply(&w, NULL, 0);
	expect(&w, VFIO_USER_REGION_WRITE, 16 + 2);
	assert_true(w.h.flags & VFIO_USER_NO_REPLY);
	while (w.n_done < 1)
		turn(&w);
	assert_int_equal(w.order[0], 7);
	assert_int_equal(w.err[0], 0);
	end(&w);
}

static void test_irq(void **state)
{
	int irq[IRQS];
	struct world w;

	begin(&w);
	open_socketpair(&w, DEADLINE);
	answer_stages(&w, 13);
	for (uint32_t i = 0; i < IRQS; i++)
		irq[i] = w.fds[i];
	w.n_fds = 0;
	eventfd_write(irq[0], 1); /* before the device is opened: shows afterwards */
	answer_stage(&w, 13);
	answer_stage(&w, 14);
	while (!w.irqs[0])
		turn(&w);
	assert_true(w.opened);
	/* The device empties the counter and would make a read of it hang. */
	assert_int_equal(fcntl(irq[2], F_SETFL, 0), 0);
	for (unsigned int i = 1; i <= 3; i++) {
		eventfd_t value;

		eventfd_write(irq[2], 1);
		if (i == 2)
			eventfd_read(irq[2], &value);
		while (i != 2 && w.irqs[2] < (i == 1 ? 1 : 2))
			turn(&w);
	}
	assert_int_equal(w.irqs[1], 0);
	for (uint32_t i = 0; i < IRQS; i++)
		close(irq[i]);
	end(&w);
}

static void again(void *arg, int err)
{
	struct done *d = arg;

	on_done(d, err);
	if (d->w->n_done < 3)
		assert_int_equal(d->w->t->ops->dma_unmap(d->w->t, 0, 4096, again, d), 0);
}

static void test_request_from_done(void **state)
{
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 1};
	assert_int_equal(w.t->ops->dma_unmap(w.t, 0, 4096, again, &d), 0);
	for (int i = 0; i < 3; i++) {
		expect(&w, VFIO_USER_DMA_UNMAP, 24);
		reply(&w, w.body, 24);
	}
	while (w.n_done < 3)
		turn(&w);
	end(&w);
}

static void retry(void *arg, int err)
{
	struct done *d = arg;

	on_done(d, err);
	assert_int_equal(d->w->t->ops->dma_unmap(d->w->t, 0, 4096, retry, d), -ENODEV);
}

static void test_outstanding_when_lost(void **state)
{
	struct done d[4];
	struct world w;

	begin_opened(&w, DEADLINE);
	for (int i = 0; i < 4; i++) {
		d[i] = (struct done){&w, i};
		assert_int_equal(w.t->ops->dma_unmap(w.t, 0, 4096, retry, &d[i]), 0);
	}
	assert_int_equal(w.n_done, 0);
	util_closep(&w.fd);
	until_lost(&w);
	assert_int_equal(w.n_done, 4);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(w.order[i], i);
		assert_int_equal(w.err[i], -ENODEV);
	}
	end_lost(&w, -ECONNRESET);
}

static void test_close_with_outstanding(void **state)
{
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 0};
	assert_int_equal(map_page(&w, 0, &d), 0);
	expect(&w, VFIO_USER_DMA_MAP, 32);
	reply(&w, NULL, 0);
	end(&w); /* checks that nothing is called */
}

/* ---- A device that goes away, or goes silent. */

static void test_disconnect(void **state)
{
	for (int stage = 0; stage <= STAGES; stage++) {
		for (int half = 0; half < 2; half++) {
			struct world w;

			begin(&w);
			open_socketpair(&w, DEADLINE);
			answer_stages(&w, stage);
			if (stage < STAGES)
				await_stage(&w);
			if (half)
				device_send(&w, &w.h, 7, -1, 0);
			drop_fds(&w);
			util_closep(&w.fd);
			end_lost(&w, -ECONNRESET);
		}
	}
}

static void test_silence(void **state)
{
	for (int stage = 0; stage < STAGES; stage++) {
		struct world w;

		begin(&w);
		open_socketpair(&w, SHORT);
		answer_stages(&w, stage);
		end_lost(&w, -ETIMEDOUT);
	}
}

/* Only the oldest has a deadline, and another begins when it is answered. */
static void test_silence_when_open(void **state)
{
	struct done d[2];
	struct world w;

	begin_opened(&w, SHORT);
	for (int i = 0; i < 2; i++) {
		d[i] = (struct done){&w, i};
		assert_int_equal(map_page(&w, 0, &d[i]), 0);
	}
	expect(&w, VFIO_USER_DMA_MAP, 32);
	reply(&w, NULL, 0);
	until_lost(&w);
	assert_int_equal(w.n_done, 2);
	assert_int_equal(w.err[0], 0);
	assert_int_equal(w.err[1], -ENODEV);
	end_lost(&w, -ETIMEDOUT);
}

/* A device that no longer reads: posted writes fill the socket, then the queue waits, then the deadline comes. */
static void test_silence_with_posted_writes(void **state)
{
	struct vfu *v;
	struct world w;

	begin_opened(&w, SHORT);
	v = container_of(w.t, struct vfu, transport);
	while (v->conn.out_messages < 10)
		assert_int_equal(w.t->ops->region_write(w.t, 0, 0, 8, 1), 0);
	end_lost(&w, -ETIMEDOUT);
}

static void test_queue_drains_in_order(void **state)
{
	uint64_t sent = 0;
	struct vfu *v;
	struct world w;

	begin_opened(&w, DEADLINE);
	v = container_of(w.t, struct vfu, transport);
	while (v->conn.out_messages < 100)
		assert_int_equal(w.t->ops->region_write(w.t, 0, 0, 8, sent++), 0);
	for (uint64_t i = 0; i < sent; i++) {
		uint64_t value;

		expect(&w, VFIO_USER_REGION_WRITE, 24);
		memcpy(&value, w.body + 16, sizeof(value));
		assert_int_equal(value, i);
	}
	assert_int_equal(v->conn.out_messages, 0);
	assert_int_equal(v->conn.out_bytes, 0);
	end(&w);
}

/* A device that is slow to read has place for two writes of each context that it may have. */
static void test_queue_is_bounded(void **state)
{
	const int ends = 2 * 65535;
	struct world w;
	int r = 0, n;

	begin_opened(&w, DEADLINE);
	for (n = 0; n < 1000000 && r == 0; n++)
		r = w.t->ops->region_write(w.t, 0, 0, 8, 1);
	assert_int_equal(r, -ENODEV);
	assert_true(n > ends);
	assert_int_equal(w.losses, 0); /* never from inside the call */
	end_lost(&w, -ENOBUFS);
}

static void ignore_done(void *arg, int err)
{
	(*(int *)arg)++;
}

/* Requests with an answer are refused before they could overflow the queue; their fds wait as duplicates. */
static void test_requests_are_bounded(void **state)
{
	struct world w;
	int r = 0, taken = 0, answered = 0;

	begin_opened(&w, DEADLINE);
	while (r == 0 && taken < 5000) {
		r = w.t->ops->dma_map(w.t, 0, 4096, w.status_fd, 0, TRANSPORT_READ, ignore_done, &answered);
		taken += r == 0;
	}
	if (r == -EBUSY)
		assert_int_equal(taken, VFU_MAX_PENDING);
	else
		assert_true(r == -EMFILE || r == -ETOOMANYREFS); /* this process's limits, the device is well */
	for (int i = 0; i < taken; i++) {
		expect(&w, VFIO_USER_DMA_MAP, 32);
		assert_int_equal(w.n_fds, 1);
		reply(&w, NULL, 0);
	}
	while (answered < taken)
		turn(&w);
	assert_int_equal(w.losses, 0);
	end(&w);
}

/* However much is out, a reset can be asked for: it may be what ends the waiting. */
static void test_reset_has_a_place(void **state)
{
	struct vfio_user_dma_unmap m = {.argsz = sizeof(m), .address = 4096, .size = 4096};
	int answered = 0, reset = 0;
	struct world w;

	begin_opened(&w, DEADLINE);
	for (unsigned int i = 0; i < VFU_MAX_PENDING; i++)
		assert_int_equal(w.t->ops->dma_unmap(w.t, 4096, 4096, ignore_done, &answered), 0);
	assert_int_equal(w.t->ops->dma_unmap(w.t, 4096, 4096, ignore_done, &answered), -EBUSY);
	assert_int_equal(w.t->ops->reset(w.t, ignore_done, &reset), 0);
	assert_int_equal(w.t->ops->reset(w.t, ignore_done, &reset), -EBUSY);
	for (unsigned int i = 0; i < VFU_MAX_PENDING; i++) {
		expect(&w, VFIO_USER_DMA_UNMAP, sizeof(m));
		reply(&w, &m, sizeof(m));
		while ((unsigned int)answered <= i)
			turn(&w);
		assert_int_equal(w.rooms, 1); /* told once, with the first answer */
	}
	expect(&w, VFIO_USER_DEVICE_RESET, 0);
	reply(&w, NULL, 0);
	while (!reset)
		turn(&w);
	assert_int_equal(answered, VFU_MAX_PENDING);
	assert_int_equal(w.losses, 0);
	end(&w);
}

/* ---- A device that lies about the frame. */

enum lie {
	LIE_SIZE_0,
	LIE_SIZE_15,
	LIE_SIZE_MAX,
	LIE_SIZE_BODY,
	LIE_TYPE,
	LIE_ID,
	LIE_COMMAND,
	LIE_NOT_ASKED,
	LIE_ERROR_BODY,
	LIE_ERROR_HUGE,
	LIE_FD,
	LIE_FDS,
	LIE_BODY,
	LIES
};

static void tell_lie(struct world *w, enum lie lie, int fd)
{
	struct vfio_user_header h = w->h;
	uint8_t m[16 + 5000] = {0};

	h.flags = VFIO_USER_TYPE_REPLY;
	h.size = sizeof(h);
	switch (lie) {
	case LIE_SIZE_0:
		h.size = 0;
		break;
	case LIE_SIZE_15:
		h.size = 15;
		break;
	case LIE_SIZE_MAX:
		h.size = UINT32_MAX;
		break;
	case LIE_SIZE_BODY:
		h.size = 16 + VFU_MAX_REPLY + 1;
		break;
	case LIE_TYPE:
		h.flags = 7;
		break;
	case LIE_ID:
		h.id ^= 0x8000;
		break;
	case LIE_COMMAND:
		h.command = VFIO_USER_REGION_READ == h.command ? 1 : VFIO_USER_REGION_READ;
		break;
	case LIE_NOT_ASKED:
		send_header(w, h);
		break;
	case LIE_ERROR_BODY:
		h.flags |= VFIO_USER_ERROR;
		h.size = 24;
		break;
	case LIE_ERROR_HUGE:
		h.flags |= VFIO_USER_ERROR;
		h.error = 0x80000000u;
		break;
	case LIE_BODY:
		h.size = 16 + 3;
		break;
	default:
		break;
	}
	memcpy(m, &h, sizeof(h));
	device_send(w, m, h.size > sizeof(m) || h.size < 16 ? 16 : h.size, fd,
		    lie == LIE_FD    ? 1
		    : lie == LIE_FDS ? 5
				     : 0);
}

static void test_lies_when_open(void **state)
{
	for (enum lie lie = 0; lie < LIES; lie++) {
		struct done d;
		struct world w;

		begin_opened(&w, DEADLINE);
		d = (struct done){&w, 0};
		assert_int_equal(map_page(&w, 0, &d), 0);
		expect(&w, VFIO_USER_DMA_MAP, 32);
		tell_lie(&w, lie, w.status_fd);
		until_lost(&w);
		assert_int_equal(w.n_done, 1);
		if (lie != LIE_NOT_ASKED)
			assert_int_equal(w.err[0], -ENODEV);
		end_lost(&w, -EPROTO);
	}
}

static void test_lies_while_opening(void **state)
{
	bool no_fds = emulated(EMULATED_CONTROL);

	for (int stage = 0; stage < STAGES; stage++) {
		for (enum lie lie = 0; lie < LIES; lie++) {
			struct world w;

			if (lie == LIE_FDS && no_fds)
				continue;
			begin(&w);
			open_socketpair(&w, DEADLINE);
			answer_stages(&w, stage);
			await_stage(&w);
			tell_lie(&w, lie, w.status_fd);
			assert_int_equal(w.opened, 0);
			end_lost(&w, -EPROTO);
		}
	}
}

static void test_errors_while_opening(void **state)
{
	for (int stage = 0; stage < STAGES; stage++) {
		struct world w;

		begin(&w);
		open_socketpair(&w, DEADLINE);
		answer_stages(&w, stage);
		await_stage(&w);
		reply_error(&w, stage % 2 ? EACCES : 0);
		end_lost(&w, stage % 2 ? -EACCES : -EIO);
	}
}

/* An fd with the right answer to a question about a region, but two of them; and one with a region that is none. */
static void test_surplus_fds(void **state)
{
	struct vfio_region_info m = {.argsz = sizeof(m), .flags = 3, .size = 65536};

	if (emulated(EMULATED_CONTROL))
		skip();
	for (unsigned int n = 1; n < 30; n += 7) {
		struct world w;

		begin(&w);
		open_socketpair(&w, DEADLINE);
		answer_stages(&w, 2);
		await_stage(&w);
		reply_fds(&w, &m, sizeof(m), w.status_fd, n);
		end_lost(&w, -EPROTO);
	}
}

/* The header comes with an fd, the body with another. */
static void test_fd_in_each_half(void **state)
{
	struct vfio_user_header h;
	struct world w;

	begin(&w);
	open_socketpair(&w, DEADLINE);
	answer_stages(&w, 4);
	await_stage(&w);
	h = w.h;
	h.flags = VFIO_USER_TYPE_REPLY;
	h.size = 16 + 32;
	device_send(&w, &h, sizeof(h), w.status_fd, 1);
	device_send(&w, &w.region, sizeof(w.region), w.status_fd, 1);
	end_lost(&w, -EPROTO);
}

static void test_wrong_unmap(void **state)
{
	struct vfio_user_dma_unmap m = {.argsz = sizeof(m), .address = 4096, .size = 8192};
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 0};
	assert_int_equal(w.t->ops->dma_unmap(w.t, 4096, 4096, on_done, &d), 0);
	expect(&w, VFIO_USER_DMA_UNMAP, 24);
	reply(&w, &m, sizeof(m));
	end_lost(&w, -EPROTO);
}

static void test_error_numbers(void **state)
{
	static const struct {
		uint32_t wire;
		int err;
	} table[] = {{EINVAL, -EINVAL}, {0, -EIO}, {ENODEV, -EIO}, {4095, -4095}};
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 0};
	for (int i = 0; i < (int)ARRAY_SIZE(table); i++) {
		assert_int_equal(map_page(&w, 0, &d), 0);
		expect(&w, VFIO_USER_DMA_MAP, 32);
		reply_error(&w, table[i].wire);
		while (w.n_done <= i)
			turn(&w);
		assert_int_equal(w.err[i], table[i].err);
	}
	end(&w);
}

/* ---- A device that lies about itself. */

static void expect_version_lie(const void *body, size_t len, int error)
{
	struct world w;

	begin(&w);
	open_socketpair(&w, DEADLINE);
	expect(&w, VFIO_USER_VERSION, 0);
	reply(&w, body, len);
	end_lost(&w, error);
}

static void test_version_lies(void **state)
{
	static const char *const json[] = {
		"",
		"{",
		"[]",
		"1",
		"null",
		"{\"capabilities\":1}",
		"{\"capabilities\":{\"max_msg_fds\":0}}",
		"{\"capabilities\":{\"max_msg_fds\":-1}}",
		"{\"capabilities\":{\"max_msg_fds\":\"8\"}}",
		"{\"capabilities\":{\"max_data_xfer_size\":63}}",
		"{\"capabilities\":{\"pgsizes\":8192}}",
		"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}}}}}}",
	};
	struct vfio_user_version major = {1, 0}, minor = {0, 1};

	expect_version_lie("\0\0", 2, -EPROTO);
	expect_version_lie("\0\0\0\0{}", 6, -EPROTO); /* no NUL */
	expect_version_lie(&major, sizeof(major), -EPROTONOSUPPORT);
	expect_version_lie(&minor, sizeof(minor), -EPROTONOSUPPORT);
	for (size_t i = 0; i < ARRAY_SIZE(json); i++) {
		char m[256] = {0};

		snprintf(m + 4, sizeof(m) - 4, "%s", json[i]);
		expect_version_lie(m, 4 + strlen(json[i]) + 1, -EPROTO);
	}
}

static void test_info_lies(void **state)
{
	static const struct vfio_user_device_info lies[] = {
		{16, VFIO_DEVICE_FLAGS_RESET, 9, 5},
		{16, VFIO_DEVICE_FLAGS_PCI, 7, 5},
		{16, VFIO_DEVICE_FLAGS_PCI, 9, 2},
	};

	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		struct world w;

		begin(&w);
		open_socketpair(&w, DEADLINE);
		answer_stages(&w, 1);
		expect(&w, VFIO_USER_DEVICE_GET_INFO, 16);
		reply(&w, &lies[i], sizeof(lies[i]));
		end_lost(&w, -EPROTO);
	}
}

static void lie_index(struct world *w)
{
	w->region.index = 3;
}
static void lie_argsz_small(struct world *w)
{
	w->region.argsz = 31;
}
static void lie_argsz_big(struct world *w)
{
	w->region.argsz = 81;
}
static void lie_size(struct world *w)
{
	w->region.size = 1ull << 63;
}
static void lie_offset_wraps(struct world *w)
{
	w->region.offset = INT64_MAX - 8191 + 4096;
}
static void lie_offset_unaligned(struct world *w)
{
	w->region.offset = 1;
}
static void lie_no_mmap(struct world *w)
{
	w->region.flags &= ~VFIO_REGION_INFO_FLAG_MMAP;
}
static void lie_cap_in_info(struct world *w)
{
	w->region.cap_offset = 8;
}
static void lie_cap_outside(struct world *w)
{
	w->region.cap_offset = 73;
}
static void lie_cap_far(struct world *w)
{
	w->region.cap_offset = UINT32_MAX;
}
static void lie_cap_cut(struct world *w)
{
	w->region.argsz = 32 + 12;
}
static void lie_cap_loop(struct world *w)
{
	w->cap.header.next = 32;
}
static void lie_cap_loop_unknown(struct world *w)
{
	w->cap.header.id = 99;
	w->cap.header.next = 32;
}
static void lie_cap_overlap(struct world *w)
{
	w->cap.header.next = 33;
}
static void lie_area_count(struct world *w)
{
	w->cap.nr_areas = 3;
}
static void lie_area_count_huge(struct world *w)
{
	w->cap.nr_areas = UINT32_MAX;
}
static void lie_area_outside(struct world *w)
{
	w->area[0].offset = 8192;
}
static void lie_area_long(struct world *w)
{
	w->area[0].size = 8192;
}
static void lie_area_wraps(struct world *w)
{
	w->area[0].offset = -4096ull;
	w->area[0].size = 8192;
}
static void lie_area_empty(struct world *w)
{
	w->area[0].size = 0;
}
static void lie_area_unaligned(struct world *w)
{
	w->area[0].offset = 4097;
	w->area[0].size = 4095;
}
static void lie_whole_unaligned(struct world *w)
{
	w->region.flags = 7;
	w->region.size = 100;
}

static void test_region_lies(void **state)
{
	static void (*const lies[])(struct world * w) = {
		lie_index,
		lie_argsz_small,
		lie_argsz_big,
		lie_size,
		lie_offset_wraps,
		lie_offset_unaligned,
		lie_no_mmap,
		lie_cap_in_info,
		lie_cap_outside,
		lie_cap_far,
		lie_cap_cut,
		lie_cap_loop,
		lie_cap_loop_unknown,
		lie_cap_overlap,
		lie_area_count,
		lie_area_count_huge,
		lie_area_outside,
		lie_area_long,
		lie_area_wraps,
		lie_area_empty,
		lie_area_unaligned,
		lie_whole_unaligned,
	};

	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		struct world w;

		begin(&w);
		lies[i](&w);
		open_socketpair(&w, DEADLINE);
		answer_stages(&w, 5);
		end_lost(&w, -EPROTO);
	}
}

/* Drivers of other devices may ask for more. */
static void test_fewer_irqs(void **state)
{
	for (uint32_t there = 0; there < IRQS; there++) {
		struct vfio_irq_info m = {sizeof(m), VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_MSIX_IRQ_INDEX, there};
		struct world w;

		begin(&w);
		open_socketpair(&w, DEADLINE);
		answer_stages(&w, 11);
		expect(&w, VFIO_USER_DEVICE_GET_IRQ_INFO, sizeof(m));
		reply(&w, &m, sizeof(m));
		if (there)
			answer_set_irqs(&w, 0, there);
		answer_read_config(&w);
		answer_write_command(&w);
		while (!w.opened)
			turn(&w);
		end(&w);
	}
}

static void test_irq_lies(void **state)
{
	static const struct vfio_irq_info lies[] = {
		{16, 0, VFIO_PCI_MSIX_IRQ_INDEX, 8},
		{16, VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_MSI_IRQ_INDEX, 8},
	};

	for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
		struct world w;

		begin(&w);
		open_socketpair(&w, DEADLINE);
		answer_stages(&w, 11);
		expect(&w, VFIO_USER_DEVICE_GET_IRQ_INFO, 16);
		reply(&w, &lies[i], sizeof(lies[i]));
		end_lost(&w, -EPROTO);
	}
}

static void test_config_lies(void **state)
{
	for (int i = 0; i < 3; i++) {
		struct vfio_user_region_access a = {.region = 7, .count = 64};
		uint8_t m[16 + 64] = {0};
		struct world w;

		begin(&w);
		open_socketpair(&w, DEADLINE);
		answer_stages(&w, 13);
		expect(&w, VFIO_USER_REGION_READ, 16);
		a.offset = i == 0;
		a.region += i == 1;
		a.count -= i == 2;
		memcpy(m, &a, sizeof(a));
		reply(&w, m, sizeof(m));
		end_lost(&w, -EPROTO);
	}
}

/* ---- A device that asks. */

static void ask(struct world *w, uint16_t command, uint32_t size, uint32_t flags)
{
	static uint8_t m[16 + 16 + VFU_MAX_XFER];
	struct vfio_user_header h = {.id = 0x7777, .command = command, .size = size, .flags = flags};

	memcpy(m, &h, sizeof(h));
	device_send(w, m, size, -1, 0);
}

static void test_requests_are_refused(void **state)
{
	struct done d;
	struct world w;

	begin_opened(&w, DEADLINE);
	d = (struct done){&w, 0};
	assert_int_equal(map_page(&w, 0, &d), 0);
	expect(&w, VFIO_USER_DMA_MAP, 32);
	ask(&w, VFIO_USER_DMA_READ, 32, VFIO_USER_NO_REPLY);
	ask(&w, VFIO_USER_DMA_WRITE, 16 + 16 + VFU_MAX_XFER, 0);
	reply(&w, NULL, 0);
	drop_fds(&w);
	device_read(&w, &w.h, sizeof(w.h));
	assert_int_equal(w.h.id, 0x7777);
	assert_int_equal(w.h.command, VFIO_USER_DMA_WRITE);
	assert_int_equal(w.h.size, 16);
	assert_int_equal(w.h.flags, VFIO_USER_TYPE_REPLY | VFIO_USER_ERROR);
	assert_int_equal(w.h.error, ENOTSUP);
	while (w.n_done < 1)
		turn(&w);
	assert_int_equal(w.err[0], 0);
	end(&w);
}

static void test_request_too_big(void **state)
{
	struct vfio_user_header h = {.command = VFIO_USER_DMA_WRITE, .size = 16 + 16 + VFU_MAX_XFER + 1};
	struct world w;

	begin_opened(&w, DEADLINE);
	send_header(&w, h);
	end_lost(&w, -EPROTO);
}

/* Many requests whose answers nobody reads: the queue's bound ends it. */
static void test_flood(void **state)
{
	const struct vfio_user_header h = {.command = VFIO_USER_DMA_READ, .size = 16};
	struct vfu *v;
	struct world w;

	begin_opened(&w, DEADLINE);
	v = container_of(w.t, struct vfu, transport);
	while (!w.losses) {
		while (send(w.fd, &h, sizeof(h), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(h))
			;
		assert_true(v->conn.out_messages <= VFU_MAX_REFUSALS);
		turn(&w);
	}
	end_lost(&w, -ENOBUFS);
}

/* A flood that needs no answers must leave turns for others: one turn does not read it all. */
static void test_flood_does_not_starve(void **state)
{
	const struct vfio_user_header h = {.command = VFIO_USER_DMA_READ, .size = 16, .flags = VFIO_USER_NO_REPLY};
	struct world w;
	int sent = 0;

	begin_opened(&w, DEADLINE);
	while (send(w.fd, &h, sizeof(h), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(h))
		sent++;
	assert_true(sent > 100);
	event_base_loop(w.base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
	assert_int_equal(recv(container_of(w.t, struct vfu, transport)->conn.fd, w.body, 16, MSG_PEEK | MSG_DONTWAIT),
			 16);
	end(&w);
}

/* ---- The real one, where it was built. */

static pid_t spawn_refgpu(const char *exe, const char *path)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		execl(exe, exe, "--socket", path, (char *)NULL);
		_exit(127);
	}
	return pid;
}

static void test_refgpu(void **state)
{
	const char *exe = getenv("PASID_REFGPU");
	char dir[] = "/tmp/test-vfio-user-XXXXXX", path[64];
	struct transport_ids ids;
	struct done d[3];
	struct world w;
	pid_t pid;
	int r;

	if (!exe)
		skip();
	begin(&w);
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sock", dir);
	pid = spawn_refgpu(exe, path);
	do {
		assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
		r = transport_vfio_user.open(&w.t, w.base, path, IRQS, DEADLINE, &events, &w);
	} while (r == -ENOENT || r == -ECONNREFUSED);
	assert_int_equal(r, 0);
	while (!w.opened && !w.losses)
		turn(&w);
	assert_string_equal(w.why, "");
	w.t->ops->ids(w.t, &ids);
	assert_int_equal(ids.device, 0x9a51);
	assert_non_null((void *)w.t->ops->region_map(w.t, 2, 0, 4096));
	for (int i = 0; i < 3; i++)
		d[i] = (struct done){&w, i};
	assert_int_equal(map_page(&w, 0x100000, &d[0]), 0);
	assert_int_equal(w.t->ops->reset(w.t, on_done, &d[1]), 0);
	assert_int_equal(w.t->ops->dma_unmap(w.t, 0x100000, 4096, on_done, &d[2]), 0);
	while (w.n_done < 3 && !w.losses)
		turn(&w);
	assert_string_equal(w.why, "");
	for (int i = 0; i < 3; i++)
		assert_int_equal(w.err[i], 0);
	w.t = w.t->ops->close(w.t);

	/* A stopped process misses its deadline, with nothing else going on. */
	assert_int_equal(transport_vfio_user.open(&w.t, w.base, path, IRQS, 200, &events, &w), 0);
	while (w.opened < 2 && !w.losses)
		turn(&w);
	assert_string_equal(w.why, "");
	w.n_done = 0;
	kill(pid, SIGSTOP);
	assert_int_equal(map_page(&w, 0x100000, &d[0]), 0);
	until_lost(&w);
	assert_int_equal(w.error, -ETIMEDOUT);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	unlink(path);
	rmdir(dir);
	end(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_find),
		cmocka_unit_test(test_open),
		cmocka_unit_test(test_open_arguments),
		cmocka_unit_test(test_one_fd_per_message),
		cmocka_unit_test(test_unsafe_region_file),
		cmocka_unit_test(test_dma),
		cmocka_unit_test(test_dma_arguments),
		cmocka_unit_test(test_write_and_reset),
		cmocka_unit_test(test_irq),
		cmocka_unit_test(test_request_from_done),
		cmocka_unit_test(test_outstanding_when_lost),
		cmocka_unit_test(test_close_with_outstanding),
		cmocka_unit_test(test_disconnect),
		cmocka_unit_test(test_silence),
		cmocka_unit_test(test_silence_when_open),
		cmocka_unit_test(test_silence_with_posted_writes),
		cmocka_unit_test(test_queue_drains_in_order),
		cmocka_unit_test(test_queue_is_bounded),
		cmocka_unit_test(test_requests_are_bounded),
		cmocka_unit_test(test_reset_has_a_place),
		cmocka_unit_test(test_lies_when_open),
		cmocka_unit_test(test_lies_while_opening),
		cmocka_unit_test(test_errors_while_opening),
		cmocka_unit_test(test_surplus_fds),
		cmocka_unit_test(test_fd_in_each_half),
		cmocka_unit_test(test_wrong_unmap),
		cmocka_unit_test(test_error_numbers),
		cmocka_unit_test(test_version_lies),
		cmocka_unit_test(test_info_lies),
		cmocka_unit_test(test_region_lies),
		cmocka_unit_test(test_fewer_irqs),
		cmocka_unit_test(test_irq_lies),
		cmocka_unit_test(test_config_lies),
		cmocka_unit_test(test_requests_are_refused),
		cmocka_unit_test(test_request_too_big),
		cmocka_unit_test(test_flood),
		cmocka_unit_test(test_flood_does_not_starve),
		cmocka_unit_test(test_refgpu),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
