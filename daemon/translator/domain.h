/* SPDX-License-Identifier: MIT */
/*
 * The translator of a device that the kernel keeps in one address space at a time (mode `exclusive`): a switch moves the
 * device to another one. It has one slot.
 */
#ifndef TRANSLATOR_DOMAIN_H
#define TRANSLATOR_DOMAIN_H

#include "translator/translator.h"

struct transport;

/* changed(arg) is called from the loop when `ready` may say something else. */
int domain_new(struct translator **ret, struct transport *t, void (*changed)(void *arg), void *arg);
/* For a successor: nobody knows where the device is, until it has been moved. */
void domain_adopted(struct translator *t);
struct translator *
domain_free(struct translator *t); /* the transport calls nobody any more; takes NULL, returns NULL */

#endif
