/* SPDX-License-Identifier: MIT */
/* See fdstore.h. What is stored, or on its way there, is in a table by name, and counted. */
#include "store/fdstore.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>

#include "base/closer.h"
#include "base/util.h"
#include "store/fdstore_private.h"

#define FIRST_FD 3 /* SD_LISTEN_FDS_START */
#define DIGITS 62u

/* ---- names ---- */

static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

static bool name_parse(const char *name, uint32_t *number)
{
	if (name[0] <= ' ' || name[0] > '~' || name[0] == ':')
		return false;
	*number = 0;
	for (unsigned int i = 1; i < FDSTORE_NAME; i++) {
		const char *d = name[i] ? strchr(digits, name[i]) : NULL;

		if (!d)
			return false;
		*number = *number * DIGITS + (uint32_t)(d - digits);
	}
	return name[FDSTORE_NAME] == '\0';
}

static void name_print(char kind, uint32_t number, char name[FDSTORE_NAME + 1])
{
	name[0] = kind;
	name[1] = digits[number / (DIGITS * DIGITS)];
	name[2] = digits[number / DIGITS % DIGITS];
	name[3] = digits[number % DIGITS];
	name[4] = '\0';
}

/* The place of a name, in use or not. */
static int name_find(struct fdstore *fs, const char *name, struct message ***ret)
{
	struct names **n;
	uint32_t number;

	if (!name_parse(name, &number))
		return -EINVAL;
	n = &fs->names[(unsigned char)name[0]];
	if (!*n)
		*n = calloc(1, sizeof(**n));
	if (!*n)
		return -ENOMEM;
	*ret = &(*n)->used[number];
	return 0;
}

int fdstore_name(struct fdstore *fs, char kind, char name[FDSTORE_NAME + 1])
{
	const char first[] = {kind, '0', '0', '0', '\0'};
	struct message **unused;
	struct names *n;
	int r = name_find(fs, first, &unused);

	if (r < 0)
		return r;
	n = fs->names[(unsigned char)kind];
	while (n->low < FDSTORE_NUMBERS && n->used[n->low])
		n->low++;
	if (n->low == FDSTORE_NUMBERS)
		return -ENOSPC;
	name_print(kind, n->low, name);
	return 0;
}

static void name_use(struct fdstore *fs, struct message **place, struct message *m)
{
	*place = m;
	m->copies = 1;
	fs->count++;
}

static struct message *name_free(struct fdstore *fs, struct message **place)
{
	struct message *m = TAKE_PTR(*place);
	struct names *n = fs->names[(unsigned char)m->text[0]];

	fs->count -= m->copies;
	if (place - n->used < n->low)
		n->low = (uint32_t)(place - n->used);
	return m;
}

/* ---- what callers want stored ---- */

int fdstore_put(struct fdstore *fs, const char *name, int fd)
{
	struct message **place, *m;
	int r;

	if (fs->socket < 0)
		return -EOPNOTSUPP;
	if (fd < 0)
		return -EBADF;
	r = name_find(fs, name, &place);
	if (r < 0)
		return r;
	if (*place)
		return -EEXIST;
	if (fdstore_left(fs) == 0)
		return -ENOSPC;
	m = message_new(PUT, name);
	if (!m)
		return -ENOMEM;
	r = fdstore_say(fs, m, fd);
	if (r < 0) {
		message_free(m);
		return r;
	}
	name_use(fs, place, m);
	return 0;
}

int fdstore_drop(struct fdstore *fs, const char *name)
{
	struct message **place, *m;
	int r;

	if (fs->socket < 0)
		return -EOPNOTSUPP;
	r = name_find(fs, name, &place);
	if (r < 0)
		return r;
	if (!*place)
		return -ENOENT;
	m = name_free(fs, place);
	if (m->queued) { /* the manager never heard of it */
		outbox_remove(fs, m);
		message_free(m);
		return 0;
	}
	m->kind = DROP;
	(void)fdstore_say(fs, m, -1);
	if (!m->queued)
		message_free(m);
	return 0;
}

/* ---- what the manager handed over ---- */

/* The number in an environment variable, at most `max`; 0 if there is none. */
static uint32_t env_number(const char *variable, uint32_t max)
{
	const char *text = getenv(variable);
	char *end;
	unsigned long n;

	if (!text || *text < '0' || *text > '9')
		return 0;
	errno = 0;
	n = strtoul(text, &end, 10);
	if (errno || *end)
		return 0;
	return n < max ? (uint32_t)n : max;
}

/* The first word of *names, up to a colon, which is passed over; "unknown" if there is none. */
static const char *next_name(char **names)
{
	char *name = *names ? strsep(names, ":") : NULL;

	return name && *name ? name : "unknown";
}

/* 1: it is one of ours, and the first of its name; 0: it is something else; -EEXIST: another one of ours. */
static int adopt(struct fdstore *fs, const char *kinds, const char *name)
{
	struct message **place, *m;
	uint32_t number;
	int r;

	if (!name[0] || !strchr(kinds, name[0]) || !name_parse(name, &number) || fs->socket < 0)
		return 0;
	r = name_find(fs, name, &place);
	if (r < 0)
		return r;
	if (*place) {
		(*place)->copies++;
		fs->count++;
		return -EEXIST;
	}
	m = message_new(PUT, name);
	if (!m)
		return -ENOMEM;
	name_use(fs, place, m);
	return 1;
}

/* Before anything is opened that could be taken for one of them. */
static uint32_t count_open(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (fcntl(FIRST_FD + (int)i, F_SETFD, FD_CLOEXEC) == 0)
			continue;
		log_warn("the service manager says that it handed over %u fds, but fd %u is not open: %u are used", n,
			 FIRST_FD + i, i);
		return i;
	}
	return n;
}

int fdstore_take(struct fdstore *fs, const char *kinds, void (*each)(void *arg, const char *name, int fd, bool stored),
		 void *arg)
{
	const char *env = getenv("LISTEN_FDNAMES");
	AUTO_FREE char *copy = strdup(env ? env : "");
	char *names = copy;
	struct rlimit rl;
	uint32_t n;

	if (!copy)
		return -ENOMEM;
	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return -errno;
	n = env_number("LISTEN_PID", UINT32_MAX) == (uint32_t)getpid() ? env_number("LISTEN_FDS", (uint32_t)rl.rlim_cur)
								       : 0;
	/* They are not for our children. */
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_PIDFDID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	n = count_open(n);
	for (int fd = FIRST_FD; fd < FIRST_FD + (int)n; fd++) {
		const char *name = next_name(&names);
		int r = adopt(fs, kinds, name);

		if (r >= 0) {
			each(arg, name, fd, r == 1);
			continue;
		}
		log_warn("of the %u fds that the service manager handed over, fd %d is not used: %s", n, fd,
			 r == -EEXIST ? "its name is there twice" : strerror(-r));
		closer_close(fd, 0);
	}
	return (int)n;
}

/* ---- its life ---- */

int fdstore_new(struct fdstore **ret, struct event_base *base, uint32_t max)
{
	struct fdstore *fs = calloc(1, sizeof(*fs));
	const char *address = getenv("NOTIFY_SOCKET");
	uint32_t told = env_number("FDSTORE", UINT32_MAX);
	int r;

	if (!fs)
		return -ENOMEM;
	fs->base = base;
	fs->max = told && told < max ? told : max;
	fs->socket = fs->answer_fd = -1;
	TAILQ_INIT(&fs->outbox);
	TAILQ_INIT(&fs->asked);
	TAILQ_INIT(&fs->next);
	TAILQ_INIT(&fs->finished);
	r = address ? fdstore_say_init(fs, address) : 0;
	if (r < 0) {
		fdstore_free(fs);
		return r;
	}
	*ret = fs;
	return 0;
}

static void free_names(struct names *n)
{
	for (uint32_t i = 0; n && i < FDSTORE_NUMBERS; i++)
		if (n->used[i] && !n->used[i]->queued)
			message_free(n->used[i]);
	free(n);
}

struct fdstore *fdstore_free(struct fdstore *fs)
{
	if (!fs)
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(fs->names); i++)
		free_names(fs->names[i]);
	fdstore_say_fini(fs);
	free(fs);
	return NULL;
}

bool fdstore_there(const struct fdstore *fs)
{
	return fs->socket >= 0;
}

uint32_t fdstore_count(const struct fdstore *fs)
{
	return fs->count;
}

uint32_t fdstore_left(const struct fdstore *fs)
{
	return fs->count < fs->max ? fs->max - fs->count : 0;
}
