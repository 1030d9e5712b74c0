/* SPDX-License-Identifier: MIT */
/* A service manager's fd store in the test's own process: it hears what is said when the test lets it. */
#ifndef TESTS_MANAGER_RIG_H
#define TESTS_MANAGER_RIG_H

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MANAGER_MAX 4096u

struct manager {
	int socket;
	char address[64]; /* for $NOTIFY_SOCKET */
	uint32_t n;
	struct {
		char name[16];
		int fd;
	} stored[MANAGER_MAX];
	uint32_t heard, barriers, notes;
	char last_note[256];
	bool holds_barriers; /* keeps them open */
	int held[64];
	uint32_t n_held;
};

static inline void manager_listen(struct manager *m)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(m->address));

	memcpy(a.sun_path + 1, m->address + 1, strlen(m->address) - 1);
	m->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (m->socket < 0 || bind(m->socket, (struct sockaddr *)&a, len) < 0)
		abort();
}

static inline void manager_init(struct manager *m)
{
	static unsigned int number;

	memset(m, 0, sizeof(*m));
	snprintf(m->address, sizeof(m->address), "@pasidd-test-%d-%u", (int)getpid(), number++);
	manager_listen(m);
	setenv("NOTIFY_SOCKET", m->address, 1);
	unsetenv("FDSTORE");
}

static inline int manager_find(const struct manager *m, const char *name)
{
	for (uint32_t i = 0; i < m->n; i++)
		if (!strcmp(m->stored[i].name, name))
			return m->stored[i].fd;
	return -1;
}

static inline void manager_remove(struct manager *m, uint32_t i)
{
	close(m->stored[i].fd);
	m->stored[i] = m->stored[--m->n];
}

static inline void manager_obey(struct manager *m, const char *text, int fd)
{
	char name[16] = "stored";
	const char *at = strstr(text, "FDNAME=");

	m->heard++;
	if (at)
		sscanf(at, "FDNAME=%15[^\n]", name);
	if (!strcmp(text, "BARRIER=1")) {
		m->barriers++;
		if (m->holds_barriers && m->n_held < 64) {
			m->held[m->n_held++] = fd;
			return;
		}
	} else if (strstr(text, "FDSTOREREMOVE=1\n")) {
		for (uint32_t i = m->n; i > 0; i--)
			if (!strcmp(m->stored[i - 1].name, name))
				manager_remove(m, i - 1);
	} else if (strstr(text, "FDSTORE=1\n") && strstr(text, "FDPOLL=0\n") && fd >= 0 && m->n < MANAGER_MAX) {
		snprintf(m->stored[m->n].name, sizeof(m->stored[0].name), "%s", name);
		m->stored[m->n++].fd = fd;
		return;
	} else {
		m->notes++;
		snprintf(m->last_note, sizeof(m->last_note), "%s", text);
	}
	if (fd >= 0)
		close(fd);
}

/* One message; false: there is none. */
static inline bool manager_hear_one(struct manager *m)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	char text[256];
	struct iovec v = {text, sizeof(text) - 1};
	struct msghdr h = {
		.msg_iov = &v, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space)};
	ssize_t n = recvmsg(m->socket, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fd = -1;

	if (n < 0)
		return false;
	text[n] = '\0';
	if (h.msg_controllen >= CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(&control.head), sizeof(fd));
	manager_obey(m, text, fd);
	return true;
}

static inline void manager_hear(struct manager *m)
{
	while (manager_hear_one(m))
		;
}

static inline void manager_answer(struct manager *m)
{
	while (m->n_held)
		close(m->held[--m->n_held]);
}

static inline void manager_fini(struct manager *m)
{
	while (m->n)
		manager_remove(m, m->n - 1);
	manager_answer(m);
	close(m->socket);
	unsetenv("NOTIFY_SOCKET");
}

/* This process's open fds. */
static inline unsigned int count_fds(void)
{
	unsigned int n = 0;
	DIR *d = opendir("/proc/self/fd");

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static inline bool same_file(int a, int b)
{
	struct stat s, t;

	return fstat(a, &s) == 0 && fstat(b, &t) == 0 && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

#endif
