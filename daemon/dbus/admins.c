/* SPDX-License-Identifier: MIT */
/* Who may see all and end what is others'. */
#include "dbus/private.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>

bool admins_have(const struct dbus *b, const struct sender *s)
{
	const struct admins *a = &b->admins;

	if (s->who.uid == 0)
		return true;
	for (size_t i = 0; i < a->n; i++)
		if (a->uids[i] == s->who.uid)
			return true;
	for (size_t i = 0; a->any && i < s->n_gids; i++)
		if (s->gids[i] == a->gid)
			return true;
	return false;
}

static void set_admins(struct dbus *b, struct admins a)
{
	struct sender *s;

	free(b->admins.uids);
	b->admins = a;
	TAILQ_FOREACH (s, &b->senders, in_age)
		s->who.admin = s->known && admins_have(b, s);
}

int dbus_set_admins(struct dbus *b, const char *group)
{
	struct admins a = {0};
	struct group *g;
	size_t n = 0;

	if (!group[0]) {
		set_admins(b, a);
		return 0;
	}
	g = getgrnam(group);
	if (!g)
		return -ENOENT;
	while (g->gr_mem[n])
		n++;
	a.uids = calloc(n + 1, sizeof(*a.uids));
	if (!a.uids)
		return -ENOMEM;
	a.gid = g->gr_gid;
	a.any = true;
	for (size_t i = 0; i < n; i++) {
		const struct passwd *p = getpwnam(g->gr_mem[i]);

		if (p)
			a.uids[a.n++] = p->pw_uid;
	}
	set_admins(b, a);
	return 0;
}
