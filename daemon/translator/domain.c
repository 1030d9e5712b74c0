/* SPDX-License-Identifier: MIT */
/* See domain.h. */
#include "translator/domain.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/util.h"
#include "transport/transport.h"

struct domain {
	struct translator translator;
	struct transport *transport;
	void (*changed)(void *arg);
	void *arg;
	struct transport_space *current; /* where the device is; NULL: in its own */
	struct transport_space *target; /* while it moves */
	bool moving;
	bool lost; /* nobody knows where it is */
	bool elsewhere; /* ... yet, for it is where a predecessor had it */
};

static struct domain *of_translator(struct translator *t)
{
	return container_of(t, struct domain, translator);
}

static void on_moved(void *arg, int err)
{
	struct domain *d = arg;

	d->moving = d->elsewhere = false;
	d->current = err == 0 ? d->target : NULL;
	d->lost = err == -EIO;
	d->changed(d->arg);
}

static int move(struct domain *d, struct transport_space *to)
{
	int r;

	if (d->lost)
		return -EIO;
	if (d->moving)
		return -EAGAIN;
	if (d->current == to && !d->elsewhere)
		return 0;
	r = d->transport->ops->spaces->attach(d->transport, to, on_moved, d);
	if (r < 0)
		return r == -EBUSY ? -EAGAIN : r;
	d->target = to;
	d->moving = true;
	return 1;
}

static int domain_install(struct translator *t, unsigned int slot, const struct translator_space *s)
{
	return move(of_translator(t), s->kernel);
}

static int domain_remove(struct translator *t, unsigned int slot, const struct translator_space *s)
{
	struct domain *d = of_translator(t);

	if (d->lost)
		return -EIO;
	if (d->moving)
		return -EAGAIN;
	return d->current == s->kernel ? move(d, NULL) : 0;
}

/* Who asks is told of itself: another's move, done or failed, is not an answer. */
static int domain_ready(struct translator *t, unsigned int slot, const struct translator_space *s)
{
	struct domain *d = of_translator(t);

	if (d->lost)
		return -EIO;
	if (d->moving)
		return 0;
	return d->current == s->kernel ? 1 : -ECANCELED;
}

static const struct translator_ops domain_ops = {
	.install = domain_install,
	.remove = domain_remove,
	.ready = domain_ready,
};

int domain_new(struct translator **ret, struct transport *t, void (*changed)(void *arg), void *arg)
{
	struct domain *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	*d = (struct domain){.translator.ops = &domain_ops, .transport = t, .changed = changed, .arg = arg};
	*ret = &d->translator;
	return 0;
}

void domain_adopted(struct translator *t)
{
	of_translator(t)->elsewhere = true;
}

struct translator *domain_free(struct translator *t)
{
	if (t)
		free(of_translator(t));
	return NULL;
}
