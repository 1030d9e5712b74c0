/* SPDX-License-Identifier: MIT */
/*
 * Firing an eventfd without ever blocking on it: a full counter already says what there is to say.
 */
#include "irq.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void irqs_init(struct irqs *q)
{
	unsigned int i;

	pthread_mutex_init(&q->lock, NULL);
	for (i = 0; i < REFGPU_VECTORS; i++)
		q->fd[i] = -1;
}

void irqs_fini(struct irqs *q)
{
	irqs_disarm_all(q);
	pthread_mutex_destroy(&q->lock);
}

bool irqs_can_arm(int fd)
{
	char path[32], name[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, name, sizeof(name) - 1);
	if (n < 0)
		return false;
	name[n] = '\0';
	return strcmp(name, "anon_inode:[eventfd]") == 0;
}

int irqs_arm(struct irqs *q, unsigned int vector, int *fd)
{
	int new = fd ? *fd : -1, old;

	if (vector >= REFGPU_VECTORS || (new >= 0 && !irqs_can_arm(new)))
		return -EINVAL;
	if (fd)
		*fd = -1;
	pthread_mutex_lock(&q->lock);
	old = q->fd[vector];
	q->fd[vector] = new;
	pthread_mutex_unlock(&q->lock);
	if (old >= 0)
		close(old);
	return 0;
}

void irqs_disarm_all(struct irqs *q)
{
	unsigned int i;

	for (i = 0; i < REFGPU_VECTORS; i++)
		irqs_arm(q, i, NULL);
}

void irqs_fire(struct irqs *q, unsigned int vector)
{
	static const uint64_t one = 1;
	struct pollfd p = {.events = POLLOUT};

	pthread_mutex_lock(&q->lock);
	p.fd = q->fd[vector];
	if (p.fd >= 0 && poll(&p, 1, 0) == 1 && (p.revents & POLLOUT))
		while (write(p.fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
	pthread_mutex_unlock(&q->lock);
}
