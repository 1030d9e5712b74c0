/* SPDX-License-Identifier: MIT */
/* What a process left that is spoken of by nobody, or cannot be believed: see adopt.h and service_lose(). */
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "service/adopt.h"
#include "service/persist.h"

struct keys {
	uint64_t *v;
	size_t n, max;
	bool missing; /* there was no memory for some: then all are known */
};

static void add_key(struct keys *k, uint64_t key)
{
	uint64_t *v = util_grow(k->v, k->n, &k->max, sizeof(*v));

	if (!v) {
		k->missing = true;
		return;
	}
	k->v = v;
	v[k->n++] = key;
}

static int by_number(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static bool is_known(void *arg, uint64_t key)
{
	const struct keys *k = arg;

	return k->missing || (k->n && bsearch(&key, k->v, k->n, sizeof(key), by_number));
}

static void client_keys(struct keys *k, const struct client *c)
{
	const struct buffer_entry *e;
	const struct context *ctx;

	add_key(k, ((const struct service_client *)c->tag)->fence_key);
	add_key(k, ((const struct service_client *)c->tag)->fence_key + 1);
	TAILQ_FOREACH (e, &c->all_buffers, in_client)
		add_key(k, ((const struct buf *)e->tag)->key);
	TAILQ_FOREACH (ctx, &c->contexts, in_client)
		for (uint64_t key = ((const struct ctx *)ctx->tag)->window_key, n = 0; key && n < 2; n++)
			add_key(k, key + n);
}

void adopt_forget_unknown(struct service *s)
{
	struct keys k = {0};
	struct client *c = NULL;

	while ((c = books_next_client(s->books, c)))
		client_keys(&k, c);
	for (size_t i = 0; i < s->n_devices; i++)
		for (uint32_t m = 0; m < 2 * VAULT_MEMORIES && s->devices[i].recorded; m++)
			add_key(&k, s->devices[i].memory_key + m);
	if (k.n)
		qsort(k.v, k.n, sizeof(*k.v), by_number);
	vault_forget_others(s->store->vault, is_known, &k);
	free(k.v);
}

static void lose_lines(int fd)
{
	struct pasid_fence_line *line;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return;
	line = util_map_shared((size_t)st.st_size, PROT_READ | PROT_WRITE, fd, 0);
	for (size_t i = 0; line && i < (size_t)st.st_size / sizeof(*line); i++)
		fence_line_lose(&line[i]);
	if (line)
		munmap(line, (size_t)st.st_size);
}

static void note_fence(void *arg, uint64_t key)
{
	if (key >> 60 == VAULT_FENCE)
		add_key(arg, key);
}

void service_lose(struct store *store, const char *why)
{
	struct keys k = {0};

	log_error("what the last pasidd left cannot be believed: %s; all its contexts are lost", why);
	vault_each(store->vault, note_fence, &k);
	for (size_t i = 0; i < k.n; i++) {
		int fd = vault_get(store->vault, k.v[i]);

		if (fd >= 0)
			lose_lines(fd);
		util_closep(&fd);
	}
	log_warn("%zu clients were told so", k.n / 2);
	free(k.v);
}
