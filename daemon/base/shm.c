/* SPDX-License-Identifier: MIT */
/* See shm.h. */
#include "base/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/util.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int open_readonly(int fd)
{
	AUTO_CLOSE int ro = -1;
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	if (ro < 0 || fchmod(fd, 0) < 0)
		return -errno;
	return util_take_fd(&ro);
}

int shm_init(struct shm *s, const char *name, uint64_t bytes)
{
	AUTO_CLOSE int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	AUTO_CLOSE int ro_fd = -1;
	void *p;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0)
		return -errno;
	ro_fd = open_readonly(fd);
	if (ro_fd < 0)
		return ro_fd;
	p = util_map_shared(bytes, PROT_READ | PROT_WRITE, fd, 0);
	if (!p)
		return -errno;
	*s = (struct shm){.p = p, .bytes = bytes, .fd = util_take_fd(&fd), .ro_fd = util_take_fd(&ro_fd)};
	return 0;
}

/* Only a memfd has seals, so looking at it waits for nobody. */
static bool is_ours(int fd, int ro_fd, uint64_t bytes)
{
	int mode = fcntl(fd, F_GETFL), ro_mode = fcntl(ro_fd, F_GETFL);
	struct stat st, ro_st;

	if (fcntl(fd, F_GET_SEALS) != SEALS || fcntl(ro_fd, F_GET_SEALS) != SEALS)
		return false;
	if (mode < 0 || (mode & O_ACCMODE) != O_RDWR || ro_mode < 0 || (ro_mode & O_ACCMODE) != O_RDONLY)
		return false;
	if (fstat(fd, &st) < 0 || fstat(ro_fd, &ro_st) < 0)
		return false;
	return st.st_dev == ro_st.st_dev && st.st_ino == ro_st.st_ino && (st.st_mode & ~S_IFMT) == 0 &&
	       (uint64_t)st.st_size == bytes;
}

int shm_adopt(struct shm *s, uint64_t bytes, int fd, int ro_fd)
{
	void *p;

	if (!is_ours(fd, ro_fd, bytes))
		return -EBADMSG;
	p = util_map_shared(bytes, PROT_READ | PROT_WRITE, fd, 0);
	if (!p)
		return -errno;
	*s = (struct shm){.p = p, .bytes = bytes, .fd = fd, .ro_fd = ro_fd};
	return 0;
}

void shm_fini(struct shm *s)
{
	if (!s->p)
		return;
	munmap(s->p, s->bytes);
	close(s->fd);
	close(s->ro_fd);
	*s = (struct shm){0};
}
