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
	void *p; /* our mapping, zeroed; NULL: nothing here */
	uint64_t bytes;
	int fd, ro_fd;
};

/* bytes: a multiple of 4096. 0, or -errno and *s as before. */
int shm_init(struct shm *s, const char *name, uint64_t bytes);
/* Undoes shm_init(), and does nothing to memory that is zeroed or was undone. */
void shm_fini(struct shm *s);

#endif
