/* SPDX-License-Identifier: MIT */
/*
 * A kernel of the tests' own, behind a transport: an array of pages for each address space, and answers that come when the
 * test says so, in the order of the requests. It refuses what a real one refuses, which is a failed test unless something
 * failed before, and what it is told to refuse.
 */
#ifndef TESTS_UNIT_KTABLES_RIG_H
#define TESTS_UNIT_KTABLES_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/util.h"
#include "service/areas.h"
#include "service/ktables.h"

#define PAGE 4096u
#define AREA (2ull << 20)
#define PAGES 65536u /* of an address space, from 0 */
#define MOST_OUT 32u /* of a change: 64 MiB of areas */
#define MOST_ANSWERS 256u

struct page {
	uint32_t mapping; /* number of the kernel's mapping that it is in; 0: none */
	const struct transport_memory *memory;
	uint64_t off;
	bool writable;
};

struct transport_memory {
	int number; /* of the caller's fd */
	int fd; /* a duplicate; -1: it was none */
	LIST_ENTRY(transport_memory) link; /* in kernel.memories */
};

struct transport_space {
	struct page page[PAGES];
	unsigned int life; /* of the last process that had it */
	LIST_ENTRY(transport_space) link; /* in kernel.spaces */
};

struct answer {
	transport_done done;
	void *arg;
	int err;
	bool undo, move;
	void *made, **ret; /* where it goes */
};

static struct kernel {
	LIST_HEAD(, transport_space) spaces;
	LIST_HEAD(, transport_memory) memories;
	LIST_HEAD(, transport_memory) pinned; /* of processes that have died */
	unsigned int life; /* processes that have */
	unsigned int n_spaces, n_memories;
	/*
	 * As a type1 container: one address space, and all spaces are lists of the process. With `left` the container is told
	 * apart from the list of the space that the device is in, until a successor moves the device away from there.
	 */
	bool lists;
	enum { LEFT_NOTHING, LEFT_UNSEEN, LEFT_CURRENT } inherited; /* UNSEEN: nothing was attached since */
	struct page left[PAGES];
	bool asked_to_move; /* the answer is out, and it may not have begun: */
	struct page before[PAGES]; /* what the container mapped then */
	bool moves; /* to the target: the container maps nothing of where it was any more */
	const struct transport_space *target;
	void (*moment)(void); /* the process may die now; NULL: it does not */
	bool many; /* changes at a time: nothing is known of the order between them */
	bool counts; /* requests only: they are of more than it knows */
	uint64_t maps, unmaps;
	uint32_t last; /* mapping */
	struct answer answers[MOST_ANSWERS];
	size_t n_answers;
	size_t room; /* answers that may wait; -EBUSY beyond */
	unsigned int busy; /* one request in so many is refused with -EBUSY; 0: none */
	unsigned int asked; /* what was not */
	unsigned int fail_at; /* that one fails; 0: none */
	unsigned int fail_again; /* one in so many behind it, too; 0: none */
	int error; /* how */
	bool fail_in_call; /* by the call itself, not by its answer */
	unsigned int n_failed, n_undo_failed;
	int told; /* of what failed, the first that the asker knows of */
	unsigned int changes; /* changed() was called */
	struct transport_space *current; /* that the device is in; NULL: its own */
	uint32_t attached; /* PASID */
} kernel;

/* What the device finds at a page of the addresses. */
static inline const struct page *kernel_sees(size_t at)
{
	return kernel.inherited ? &kernel.left[at] : &kernel.current->page[at];
}

static bool is_left_in(const struct transport_space *s)
{
	return kernel.inherited == LEFT_CURRENT && s == kernel.current;
}

static uint32_t draw(uint32_t n)
{
	return (uint32_t)random() % n;
}

static void kernel_begin(void)
{
	kernel = (struct kernel){.room = MOST_OUT, .error = -ENOMEM};
}

static bool kernel_busy(void)
{
	return kernel.n_answers >= kernel.room || (kernel.busy && !draw(kernel.busy));
}

/* For lists of mappings, which leave some places to others. */
static bool kernel_busy_for_lists(void)
{
	return kernel.n_answers >= kernel.room - kernel.room / 4 || kernel_busy();
}

static int tell(int err)
{
	if (err < 0 && !kernel.told)
		kernel.told = err;
	return err;
}

/* Counts the request. Whoever takes back has waited until nothing is out any more of what is taken back. */
static bool kernel_fails(void)
{
	if (kernel.moment)
		kernel.moment();
	kernel.asked++;
	for (size_t i = 0; kernel.told && !kernel.many && i < kernel.n_answers; i++)
		assert_true(kernel.answers[i].undo);
	if (!kernel.fail_at || kernel.asked < kernel.fail_at ||
	    (kernel.asked > kernel.fail_at && (!kernel.fail_again || draw(kernel.fail_again))))
		return false;
	kernel.n_failed++;
	kernel.n_undo_failed += kernel.told < 0;
	return true;
}

static int kernel_answers(transport_done done, void *arg, bool failed, int err)
{
	if (failed && kernel.fail_in_call)
		return tell(kernel.error);
	assert_true(kernel.n_answers < MOST_ANSWERS);
	kernel.answers[kernel.n_answers++] = (struct answer){done, arg, failed ? kernel.error : err, kernel.told < 0};
	return 0;
}

static void deliver(void)
{
	struct answer a = kernel.answers[0];

	memmove(kernel.answers, kernel.answers + 1, --kernel.n_answers * sizeof(a));
	kernel.asked_to_move &= !a.move;
	tell(a.err);
	if (a.ret && !a.err)
		*a.ret = a.made;
	a.done(a.arg, a.err);
}

/* What is made is told of with the answer. */
static int kernel_gives(transport_done done, void *arg, void *made, void *ret)
{
	int r = kernel_answers(done, arg, false, 0);

	kernel.answers[kernel.n_answers - 1].made = made;
	kernel.answers[kernel.n_answers - 1].ret = ret;
	return r;
}

static int kernel_make(struct transport *t, struct transport_space **ret, transport_done done, void *arg)
{
	struct transport_space *s;

	if (kernel_busy())
		return -EBUSY;
	if (kernel_fails())
		return kernel_answers(done, arg, true, 0);
	s = calloc(1, sizeof(*s));
	assert_non_null(s);
	s->life = kernel.life;
	LIST_INSERT_HEAD(&kernel.spaces, s, link);
	kernel.n_spaces++;
	return kernel_gives(done, arg, s, ret);
}

static int kernel_hold(struct transport *t, struct transport_memory **ret, int fd, uint64_t len, uint32_t prot,
		       transport_done done, void *arg)
{
	struct transport_memory *m;

	if (kernel_busy())
		return -EBUSY;
	if (kernel_fails())
		return kernel_answers(done, arg, true, 0);
	m = calloc(1, sizeof(*m));
	assert_non_null(m);
	m->number = fd;
	m->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	LIST_INSERT_HEAD(&kernel.memories, m, link);
	kernel.n_memories++;
	return kernel_gives(done, arg, m, ret);
}

static void kernel_drop_memory(struct transport_memory *m)
{
	LIST_REMOVE(m, link);
	kernel.n_memories--;
	if (m->fd >= 0)
		close(m->fd);
	free(m);
}

/* No page of any space is of it any more. */
static int kernel_release(struct transport *t, struct transport_memory *m)
{
	struct transport_space *s;

	if (kernel_busy())
		return -EBUSY;
	LIST_FOREACH (s, &kernel.spaces, link)
		for (size_t i = 0; i < PAGES; i++)
			assert_true(!s->page[i].mapping || s->page[i].memory != m);
	kernel_drop_memory(m);
	return 0;
}

static void kernel_drop_space(struct transport_space *s)
{
	LIST_REMOVE(s, link);
	kernel.n_spaces--;
	free(s);
}

static int kernel_free(struct transport *t, struct transport_space *s)
{
	if (kernel_busy())
		return -EBUSY;
	assert_true(!kernel.attached && kernel.current != s);
	kernel_drop_space(s);
	return 0;
}

/* As when it is closed: what is out is forgotten, spaces go. */
static inline void kernel_close(void)
{
	struct transport_memory *m;
	struct transport_space *s;

	kernel.n_answers = 0;
	kernel.current = NULL;
	while ((s = LIST_FIRST(&kernel.spaces)))
		kernel_drop_space(s);
	while ((m = LIST_FIRST(&kernel.memories)))
		kernel_drop_memory(m);
	while ((m = LIST_FIRST(&kernel.pinned))) {
		kernel.n_memories++;
		kernel_drop_memory(m);
	}
}

/* What a kernel refuses by itself. It only comes to that behind a request that failed: others were on their way by then. */
static int cannot(bool here, int err)
{
	assert_true(!here || (kernel.n_failed && (!kernel.told || kernel.many)));
	return here ? err : 0;
}

static bool any_mapped(const struct transport_space *s, size_t first, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (s->page[first + i].mapping)
			return true;
	return false;
}

static bool is_one_mapping(const struct page *page, size_t first, size_t n)
{
	uint32_t m = page[first].mapping;

	for (size_t i = 0; i < n; i++)
		if (!m || page[first + i].mapping != m)
			return false;
	return (first == 0 || page[first - 1].mapping != m) && (first + n == PAGES || page[first + n].mapping != m);
}

/* None reaches over an end. */
static void expect_whole_mappings(const struct page *page, size_t first, size_t n)
{
	assert_true(first == 0 || !page[first].mapping || page[first - 1].mapping != page[first].mapping);
	assert_true(first + n == PAGES || !page[first + n].mapping ||
		    page[first + n - 1].mapping != page[first + n].mapping);
}

static int kernel_map(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len,
		      struct transport_memory *m, uint64_t off, uint32_t prot, transport_done done, void *arg)
{
	size_t first = iova / PAGE, n = len / PAGE;
	bool failed;
	int err = 0;

	if (kernel_busy_for_lists())
		return -EBUSY;
	failed = kernel_fails();
	kernel.maps++;
	assert_true(n > 0 && iova / AREA == (iova + len - 1) / AREA);
	if (!failed && !kernel.counts) {
		assert_true(first + n <= PAGES);
		err = cannot(any_mapped(s, first, n), -EEXIST);
		kernel.last++;
		for (size_t i = 0; i < n && !err; i++) {
			s->page[first + i] =
				(struct page){kernel.last, m, off + i * PAGE, (prot & TRANSPORT_WRITE) != 0};
			if (!is_left_in(s))
				continue;
			assert_false(kernel.left[first + i].mapping);
			kernel.left[first + i] = s->page[first + i];
		}
	}
	return kernel_answers(done, arg, failed, err);
}

static int kernel_unmap(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len,
			transport_done done, void *arg)
{
	size_t first = iova / PAGE, n = len / PAGE;
	bool failed;
	int err = 0;

	if (kernel_busy_for_lists())
		return -EBUSY;
	failed = kernel_fails();
	kernel.unmaps++;
	if (!failed && !kernel.counts) {
		assert_true(n > 0 && first + n <= PAGES);
		err = cannot(!is_one_mapping(s->page, first, n), -ENOENT);
		if (!err)
			memset(&s->page[first], 0, n * sizeof(s->page[0]));
		if (!err && is_left_in(s)) {
			assert_true(is_one_mapping(kernel.left, first, n));
			memset(&kernel.left[first], 0, n * sizeof(kernel.left[0]));
		}
	}
	return kernel_answers(done, arg, failed, err);
}

static void container_move(const struct transport_space *s)
{
	bool unseen = kernel.inherited == LEFT_UNSEEN;

	kernel.moves = unseen ? !s : s != kernel.current;
	kernel.target = s;
	for (size_t i = 0; i < PAGES; i++)
		kernel.before[i] = kernel.inherited || kernel.current ? *kernel_sees(i) : (struct page){0};
	if (kernel.moment && kernel.lists)
		kernel.moment();
	kernel.asked_to_move = kernel.moves;
	if (kernel.moves)
		kernel.inherited = LEFT_NOTHING;
	else if (unseen)
		kernel.inherited = LEFT_CURRENT;
	kernel.moves = false;
}

static int kernel_attach(struct transport *t, struct transport_space *s, transport_done done, void *arg)
{
	bool failed;

	if (kernel_busy())
		return -EBUSY;
	failed = kernel_fails();
	container_move(s);
	if (!failed || !kernel.fail_in_call)
		kernel.current = failed ? NULL : s;
	if (failed)
		return kernel_answers(done, arg, true, 0);
	(void)kernel_answers(done, arg, false, 0);
	kernel.answers[kernel.n_answers - 1].move = true;
	return 0;
}

static int kernel_attach_pasid(struct transport *t, struct transport_space *s, uint32_t pasid, transport_done done,
			       void *arg)
{
	bool failed;

	if (kernel_busy())
		return -EBUSY;
	failed = kernel_fails();
	if (!failed)
		kernel.attached = pasid;
	return kernel_answers(done, arg, failed, 0);
}

static int kernel_detach_pasid(struct transport *t, uint32_t pasid, transport_done done, void *arg)
{
	bool failed;

	assert_int_equal(pasid, kernel.attached);
	if (kernel_busy())
		return -EBUSY;
	failed = kernel_fails();
	if (!failed)
		kernel.attached = 0;
	return kernel_answers(done, arg, failed, 0);
}

/* ---- for a successor ---- */

/* What the container maps, which may be the beginning of a move's target. */
static void container_stays(void)
{
	static const struct page nothing[PAGES];
	struct transport_space *s;

	if (kernel.moves)
		memset(kernel.left, 0, sizeof(kernel.left));
	if (kernel.moves && kernel.target)
		memcpy(kernel.left, kernel.target->page, draw(PAGES) * sizeof(kernel.left[0]));
	else if (kernel.asked_to_move && draw(2))
		memcpy(kernel.left, kernel.before, sizeof(kernel.left));
	else if (!kernel.moves && !kernel.inherited)
		memcpy(kernel.left, kernel.current ? kernel.current->page : nothing, sizeof(kernel.left));
	kernel.inherited = LEFT_UNSEEN;
	LIST_FOREACH (s, &kernel.spaces, link)
		memset(s->page, 0, sizeof(s->page));
}

/* The process dies: what it held is pinned where it is mapped. */
static inline void kernel_die(void)
{
	struct transport_memory *m;

	if (kernel.lists)
		container_stays();
	kernel.moves = kernel.asked_to_move = false;
	kernel.n_answers = 0;
	kernel.life++;
	while ((m = LIST_FIRST(&kernel.memories))) {
		LIST_REMOVE(m, link);
		kernel.n_memories--;
		LIST_INSERT_HEAD(&kernel.pinned, m, link);
	}
}

static bool kernel_are_lists(const struct transport *t)
{
	return kernel.lists;
}

static size_t kernel_save(const struct transport *t, const struct transport_space *s, void *buf)
{
	memcpy(buf, &s, sizeof(s));
	return sizeof(s);
}

static int kernel_adopt(struct transport *t, struct transport_space **ret, const void *saved, size_t size,
			transport_done done, void *arg)
{
	struct transport_space *s, *was;

	assert_int_equal(size, sizeof(was));
	memcpy(&was, saved, sizeof(was));
	if (kernel_busy())
		return -EBUSY;
	(void)kernel_fails();
	LIST_FOREACH (s, &kernel.spaces, link)
		if (s == was)
			break;
	assert_non_null(s);
	assert_true(s->life < kernel.life); /* once */
	s->life = kernel.life;
	return kernel_gives(done, arg, s, ret);
}

/* Whole mappings only, as many as there are. */
static int kernel_clear(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len,
			transport_done done, void *arg)
{
	size_t first = iova / PAGE, n = len / PAGE;

	if (kernel_busy_for_lists())
		return -EBUSY;
	(void)kernel_fails();
	assert_true(n > 0 && first + n <= PAGES);
	expect_whole_mappings(s->page, first, n);
	if (is_left_in(s)) {
		expect_whole_mappings(kernel.left, first, n);
		memset(&kernel.left[first], 0, n * sizeof(kernel.left[0]));
	}
	memset(&s->page[first], 0, n * sizeof(s->page[0]));
	return kernel_answers(done, arg, false, 0);
}

/* What nobody has taken over goes. */
static int kernel_adopted(struct transport *t, transport_done done, void *arg)
{
	struct transport_space *s, *next;

	if (kernel_busy())
		return -EBUSY;
	(void)kernel_fails();
	for (size_t i = 0; kernel.inherited && i < PAGES; i++) {
		const struct page *p = &kernel.left[i], *listed = &kernel.current->page[i];

		assert_int_equal(p->mapping != 0, listed->mapping != 0);
		assert_true(!p->mapping || (p->off == listed->off && p->writable == listed->writable));
	}
	for (s = LIST_FIRST(&kernel.spaces); s; s = next) {
		next = LIST_NEXT(s, link);
		if (s->life == kernel.life)
			continue;
		assert_ptr_not_equal(s, kernel.current);
		kernel_drop_space(s);
	}
	return kernel_answers(done, arg, false, 0);
}

static const struct transport_space_ops kernel_spaces = {
	.make = kernel_make,
	.free = kernel_free,
	.hold = kernel_hold,
	.release = kernel_release,
	.map = kernel_map,
	.unmap = kernel_unmap,
	.attach = kernel_attach,
	.attach_pasid = kernel_attach_pasid,
	.detach_pasid = kernel_detach_pasid,
	.are_lists = kernel_are_lists,
	.save = kernel_save,
	.adopt = kernel_adopt,
	.clear = kernel_clear,
	.adopted = kernel_adopted,
};
static const struct transport_ops kernel_ops = {.spaces = &kernel_spaces};
static struct transport kernel_transport = {.ops = &kernel_ops};

static inline void changed(void *arg)
{
	kernel.changes++;
}

#endif
