/* SPDX-License-Identifier: MIT */
/*
 * Calls from the device to its client: DMA_READ and DMA_WRITE, for memory that came without an fd.
 *
 * A slot's thread sends and waits; the message loop hands it the answer. A wait ends after two seconds, when the
 * connection dies, or when the thread is told to abandon it (reset): then the access is a bus error.
 */
#ifndef REFGPU_REMOTE_H
#define REFGPU_REMOTE_H

#include "conn.h"

void remote_init(struct dma_remote *r, struct conn *c);
/* For the message loop: m is a reply. Negative if nobody waits for it or it is not what was asked for. */
int remote_answer(struct conn *c, const struct message *m);

/* conn.c: sends a message of up to three parts whole, or breaks the connection. */
int conn_send(struct conn *c, const struct vfio_user_header *hdr, const void *head, size_t head_size, const void *data,
	      size_t size, int fd);

#endif
