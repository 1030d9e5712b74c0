/* SPDX-License-Identifier: MIT */
/*
 * Making the status pages. The memfd is sealed after our own mapping exists, so that not even a re-open of the
 * read-only fd through /proc gives anyone a second writable one.
 */
#include "status.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE REFGPU_BAR_STATUS_SIZE

static_assert(sizeof(struct refgpu_status) <= SIZE, "the page holds it");

/* Lays a page of the file over what is at `at`, adds seals (0: none). Takes fd. */
static int page_lay(void *at, int fd, int seals)
{
	void *p = mmap(at, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	int r = p == MAP_FAILED ? -errno : 0;

	if (r == 0 && seals && fcntl(fd, F_ADD_SEALS, seals) < 0)
		r = -errno;
	close(fd);
	return r;
}

static int memfd_lay(struct status_page *s)
{
	int fd = memfd_create("refgpu-status", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char name[32];
	int r;

	if (fd < 0)
		return -errno;
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	if (fchmod(fd, 0444) < 0 || ftruncate(fd, SIZE) < 0 || (s->fd_ro = open(name, O_RDONLY | O_CLOEXEC)) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return page_lay(s->page, fd, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
}

/* Room is taken now: a full disk must not turn up as a fault in the middle of counting. */
static int file_lay(struct status_page *s, const char *path)
{
	int fd, r;

	if (!path)
		return 0;
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return -errno;
	r = fchmod(fd, 0644) < 0 || ftruncate(fd, SIZE) < 0 ? -errno : -posix_fallocate(fd, 0, SIZE);
	if (r < 0) {
		close(fd);
		return r;
	}
	return page_lay((uint8_t *)s->page + SIZE, fd, 0);
}

static void page_fill(struct refgpu_status *page, unsigned int slots)
{
	memset(page, 0, SIZE);
	page->version = REFGPU_VERSION;
	page->slots = slots;
	page->formats = 1u << REFGPU_FORMAT_VMSA64 | 1u << REFGPU_FORMAT_X86_64;
	__atomic_store_n(&page->magic, REFGPU_MAGIC, __ATOMIC_RELEASE);
}

int status_page_init(struct status_page *s, const char *path, unsigned int slots)
{
	void *p = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int r;

	s->page = NULL;
	s->fd_ro = -1;
	if (p == MAP_FAILED)
		return -errno;
	s->page = p;
	r = memfd_lay(s);
	if (r == 0)
		r = file_lay(s, path);
	if (r < 0) {
		status_page_fini(s);
		return r;
	}
	page_fill(s->page, slots);
	page_fill((struct refgpu_status *)(void *)((uint8_t *)p + SIZE), slots);
	return 0;
}

void status_page_read(const struct status_page *s, uint32_t offset, void *buf, uint32_t len)
{
	const uint8_t *from = (const uint8_t *)s->page + offset;
	uint8_t *to = buf;
	uint32_t i;

	/* Eight bytes at a time where they are whole, so that a counter is never seen half changed. */
	for (i = 0; i < len;) {
		if ((offset + i) % 8 == 0 && len - i >= 8) {
			uint64_t val = __atomic_load_n((const uint64_t *)(const void *)(from + i), __ATOMIC_RELAXED);

			memcpy(to + i, &val, sizeof(val));
			i += 8;
		} else {
			to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
			i++;
		}
	}
}

void status_page_fini(struct status_page *s)
{
	if (s->fd_ro >= 0)
		close(s->fd_ro);
	if (s->page)
		munmap(s->page, 2 * SIZE);
	s->page = NULL;
	s->fd_ro = -1;
}
