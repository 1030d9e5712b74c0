/* SPDX-License-Identifier: MIT */
/*
 * Accepting clients and cleaning up after them.
 */
#include "server.h"
#include "status.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#define QUIESCE_PUMP_MS 1

/* While an unmap waits for the slots, they may wait for answers that only this thread can take in. */
static void server_idle(void *arg)
{
	struct server *s = arg;

	conn_pump(&s->conn, QUIESCE_PUMP_MS);
}

static void server_forget_client(struct server *s)
{
	struct device *d = s->dev;

	conn_break(&s->conn);
	device_reset(d);
	d->dma.idle = NULL;
	dma_remove_all(&d->dma);
	d->dma.remote = NULL;
	irqs_disarm_all(&d->irqs);
	pci_init(&d->pci, d->apart);
	conn_fini(&s->conn);
}

int server_serve(struct server *s, int fd, const struct stop *stop)
{
	struct device *d = s->dev;
	struct message *m;
	int r;

	s->versioned = false;
	conn_init(&s->conn, fd, stop, d->status.page);
	d->dma.remote = &s->conn.remote;
	d->dma.idle = server_idle;
	d->dma.idle_arg = s;
	status_add(&d->status.page->clients, 1);
	while ((r = conn_next(&s->conn, &m)) == 0) {
		request_handle(s, m);
		message_free(m);
	}
	server_forget_client(s);
	return r == -ECANCELED ? r : 0;
}

static int server_accept(int listen_fd, const struct stop *stop)
{
	struct pollfd p[] = {{.fd = listen_fd, .events = POLLIN}, {.fd = stop->fd, .events = POLLIN}};
	int fd;

	for (;;) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return -errno;
		if (atomic_load(&stop->asked) || p[1].revents)
			return -ECANCELED;
		fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0)
			return fd;
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			return -errno;
	}
}

int server_run(struct server *s, int listen_fd, const struct stop *stop)
{
	int r;

	for (;;) {
		r = server_accept(listen_fd, stop);
		if (r >= 0)
			r = server_serve(s, r, stop);
		if (r == -ECANCELED)
			return 0;
		if (r < 0)
			return r;
	}
}
