/* SPDX-License-Identifier: MIT */
/*
 * The MSI-X vectors: eventfds that the client armed. Any thread may fire one; the message loop arms them.
 */
#ifndef REFGPU_IRQ_H
#define REFGPU_IRQ_H

#include <pthread.h>
#include <stdbool.h>

#include <pasid/refgpu.h>

struct irqs {
	pthread_mutex_t lock;
	int fd[REFGPU_VECTORS]; /* -1: not armed */
};

void irqs_init(struct irqs *q);
void irqs_fini(struct irqs *q);
/* Whether an fd could be armed. Anything but an eventfd could block whoever fires it. */
bool irqs_can_arm(int fd);
/* Takes *fd, leaving -1 there (NULL or -1: disarms); -EINVAL if it is no eventfd. */
int irqs_arm(struct irqs *q, unsigned int vector, int *fd);
void irqs_disarm_all(struct irqs *q);
void irqs_fire(struct irqs *q, unsigned int vector);

#endif
