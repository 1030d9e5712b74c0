/* SPDX-License-Identifier: MIT */
/*
 * Memory that we share with others, clients or devices: a memfd of a fixed size, sealed, so that no holder of an fd of it
 * can make our own loads fault. Pages cost nothing before they are used.
 *
 * Who may write gets `fd`. Who may not gets `ro_fd`, a second open of the file; the file's mode is 0, so that its holder
 * cannot open it once more for writing (root, and whoever has our uid, still could).
 */
#ifndef BASE_SHM_H
#define BASE_SHM_H

#include <stdint.h>

struct shm {
	void *p; /* our mapping, zeroed when it was made; NULL: nothing here */
	uint64_t bytes;
	int fd, ro_fd;
};

/* bytes: a multiple of 4096. 0, or -errno and *s as before. */
int shm_init(struct shm *s, const char *name, uint64_t bytes);
/* The same over a memfd that shm_init() of a predecessor made, with all that it holds. Both fds are taken if it returns 0.
 * -EBADMSG: they are not what shm_init() makes of so many bytes; another -errno: it cannot be mapped now. */
int shm_adopt(struct shm *s, uint64_t bytes, int fd, int ro_fd);
/* Undoes shm_init() or shm_adopt(), and does nothing to memory that is zeroed or was undone. */
void shm_fini(struct shm *s);

#endif
