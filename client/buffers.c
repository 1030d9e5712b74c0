/* SPDX-License-Identifier: MIT */
/*
 * Memory: memfds that the library makes, and those that the program brings. The daemon takes only what can never
 * shrink; the library seals that, the daemon judges. Of the program's own mappings made here, each belongs to one
 * buffer and goes with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3; newer than some C libraries */
#endif

#define PAGE 4096u

/* A zeroed memfd that keeps its size. The fd or -errno. */
static int memory_fd(uint64_t size)
{
	int fd, err;

	fd = memfd_create("pasid-buffer", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create("pasid-buffer", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0)
		return fd;
	err = errno;
	close(fd);
	return -err;
}

static int buf_import(struct pasid *p, const char *device, int fd, uint32_t *buf)
{
	const struct conn_call call = {.opcode = PASID_OP_BUF_IMPORT,
				       .body = sizeof(struct pasid_buf_import),
				       .fd = &fd,
				       .reply = sizeof(struct pasid_buf_import_reply)};
	struct pasid_buf_import *q = conn_body(p);
	struct pasid_buf_import_reply reply;
	int r;

	memset(q, 0, sizeof(*q));
	r = name_in(p, q->device, device);
	if (r == 0)
		r = conn_call(p, &call);
	if (r == 0) {
		memcpy(&reply, conn_reply(p), sizeof(reply));
		*buf = reply.buf;
	}
	return r;
}

int pasid_buf_import(struct pasid *p, const char *device, int fd, uint32_t *buf)
{
	int r, seals;

	if (!buf) {
		r = failure(p, -EINVAL, LOCAL_ARGUMENT, 0, 0);
	} else {
		seals = fcntl(fd, F_GET_SEALS);
		if (seals >= 0 && !(seals & F_SEAL_SHRINK)) /* where this fails, the daemon says what is missing */
			(void)fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
		r = buf_import(p, device, fd, buf);
	}
	return r < 0 ? error_call(p, r, "import fd %d for device %.40s", fd, device ? device : "(the first)") : 0;
}

/* Imports fd, and maps it into the program if addr is not NULL; the order makes the undo local. */
static int buf_new_from(struct pasid *p, const char *device, int fd, size_t size, uint32_t *buf, void **addr)
{
	void *m = NULL, *array = p->map;
	int r;

	if (!array_room(&array, &p->map_room, p->maps, sizeof(*p->map)))
		return failure(p, -ENOMEM, LOCAL_SYSTEM, 0, 0);
	p->map = array;
	if (addr && size) {
		m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (m == MAP_FAILED)
			return failure(p, -errno, LOCAL_SYSTEM, 0, 0);
	}
	r = buf_import(p, device, fd, buf);
	if (r < 0) {
		if (m)
			munmap(m, size);
		return r;
	}
	if (m)
		p->map[p->maps++] = (struct own_map){.buf = *buf, .addr = m, .len = size};
	if (addr)
		*addr = m;
	return 0;
}

int pasid_buf_new(struct pasid *p, const char *device, uint64_t size, uint32_t *buf, void **map)
{
	uint64_t full = (size + PAGE - 1) & ~(uint64_t)(PAGE - 1);
	int fd, r;

	if (!buf) {
		r = failure(p, -EINVAL, LOCAL_ARGUMENT, 0, 0);
	} else if (full < size || full > INT64_MAX || full > SIZE_MAX) {
		r = failure(p, -ENOMEM, LOCAL_SYSTEM, 0, 0);
	} else {
		r = conn_check(p);
		fd = r < 0 ? r : memory_fd(full);
		if (r == 0 && fd < 0)
			r = failure(p, fd, LOCAL_SYSTEM, 0, 0);
		if (r == 0)
			r = buf_new_from(p, device, fd, (size_t)full, buf, map);
		if (fd >= 0)
			close(fd);
	}
	return r < 0 ? error_call(p, r, "make a buffer of %llu bytes for device %.40s", (unsigned long long)size,
				  device ? device : "(the first)")
		     : 0;
}

static void own_map_drop(struct pasid *p, uint32_t buf)
{
	size_t i;

	for (i = 0; i < p->maps; i++) {
		if (p->map[i].buf != buf)
			continue;
		munmap(p->map[i].addr, p->map[i].len);
		p->map[i] = p->map[--p->maps];
		return;
	}
}

int pasid_buf_free(struct pasid *p, uint32_t buf)
{
	static const struct conn_call call = {.opcode = PASID_OP_BUF_FREE, .body = sizeof(struct pasid_buf_query)};
	const struct pasid_buf_query q = {.buf = buf};
	int r;

	memcpy(conn_body(p), &q, sizeof(q));
	r = conn_call(p, &call);
	if (r < 0)
		return error_call(p, r, "free buffer %u", buf);
	own_map_drop(p, buf);
	return 0;
}
