/* SPDX-License-Identifier: MIT */
/*
 * What commands do to bytes, once it is known where they are. No addresses of programs here, no rights, no control.
 */
#ifndef REFGPU_EXEC_DATA_H
#define REFGPU_EXEC_DATA_H

#include <pthread.h>
#include <stdint.h>

#include <pasid/refgpu.h>

#include "dma.h"

/* A piece of memory that was translated and found: mapped here (host) or reached by message (bus). */
struct window {
	uint64_t va;
	uint32_t access;
	uint32_t level;
	uint8_t *host;
	uint64_t bus;
	uint64_t len;
};

struct data_ends {
	struct bus_port *port;
	struct window *src; /* NULL: the command has none */
	struct window *dst;
	uint8_t *bounce_src; /* DMA_REMOTE_MAX bytes each */
	uint8_t *bounce_dst;
	pthread_mutex_t *lock; /* makes ATOMIC on remote memory atomic; taken while no mapped memory is touched */
};

/*
 * Does the command's work on the *len bytes that begin `pos` bytes into it, or on fewer (then *len says how many).
 * Inside a section. -EFAULT with the side that failed in *touching.
 */
int data_move(const struct data_ends *e, const struct refgpu_cmd *cmd, uint64_t pos, uint64_t *len,
	      struct window **touching);

#endif
