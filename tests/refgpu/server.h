/* SPDX-License-Identifier: MIT */
/*
 * The server: one listening socket, one client at a time, one device.
 *
 * When a client leaves, however it does, the device is reset, its DMA maps and interrupts are gone, and the next
 * client finds it as the first one did.
 */
#ifndef REFGPU_SERVER_H
#define REFGPU_SERVER_H

#include "conn.h"
#include "device.h"

struct server {
	struct device *dev;
	struct conn conn; /* while a client is there */
	bool versioned; /* it has said VERSION */
};

/* Serves clients of a listening socket until stop. 0 or -errno. */
int server_run(struct server *s, int listen_fd, const struct stop *stop);
/* Serves one connected socket until it ends; takes fd. -ECANCELED if stop came first, else 0. */
int server_serve(struct server *s, int fd, const struct stop *stop);

/* request.c: does what a command says and answers. */
void request_handle(struct server *s, struct message *m);

#endif
