/* SPDX-License-Identifier: MIT */
/*
 * pasid-refgpu: the command line, the socket, and ending in an orderly way.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "server.h"

#ifndef REFGPU_PROGRAM_VERSION
#define REFGPU_PROGRAM_VERSION "unversioned"
#endif

#define DEFAULT_SLOTS 8

struct options {
	const char *socket;
	const char *status;
	unsigned int slots;
	unsigned int mode;
	bool apart;
	int ready_fd;
};

static struct stop stop = {.fd = -1};

static void usage(FILE *to)
{
	fputs("usage: pasid-refgpu --socket PATH [--slots N] [--status FILE] [--ready-fd N] [--apart]\n"
	      "\n"
	      "A small software GPU behind a vfio-user socket.\n"
	      "\n"
	      "  --socket PATH   listen here; a stale socket is replaced\n"
	      "  --mode OCTAL    of the socket: who may be the driver (0600)\n"
	      "  --slots N       address-space slots, 1 to 64 (8)\n"
	      "  --status FILE   keep the status page in this file, for others to watch\n"
	      "  --ready-fd N    write \"1\\n\" there once clients can connect\n"
	      "  --apart         as a PCI function, say that it is kept apart from others of its slot (ACS)\n"
	      "  --help, --version\n",
	      to);
}

static int parse_number(const char *text, int base, long min, long max, long *ret)
{
	char *end;
	long val;

	errno = 0;
	val = strtol(text, &end, base);
	if (errno || end == text || *end || val < min || val > max)
		return -EINVAL;
	*ret = val;
	return 0;
}

static int bad_option(const char *name, const char *text, const char *allowed)
{
	fprintf(stderr, "pasid-refgpu: %s: \"%s\" is not %s\n", name, text, allowed);
	return -EINVAL;
}

/* 0: run; 1: done already; negative: wrong. */
static int options_parse(struct options *o, int argc, char **argv)
{
	static const struct option known[] = {
		{"socket", required_argument, NULL, 's'},
		{"slots", required_argument, NULL, 'n'},
		{"status", required_argument, NULL, 'p'},
		{"ready-fd", required_argument, NULL, 'r'},
		{"apart", no_argument, NULL, 'a'},
		{"mode", required_argument, NULL, 'm'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'v'},
		{0},
	};
	long val;
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 's':
			o->socket = optarg;
			break;
		case 'p':
			o->status = optarg;
			break;
		case 'n':
			if (parse_number(optarg, 10, 1, REFGPU_MAX_SLOTS, &val) < 0)
				return bad_option("--slots", optarg, "a number from 1 to 64");
			o->slots = (unsigned int)val;
			break;
		case 'r':
			if (parse_number(optarg, 10, 0, INT_MAX, &val) < 0)
				return bad_option("--ready-fd", optarg, "a file descriptor");
			o->ready_fd = (int)val;
			break;
		case 'm':
			if (parse_number(optarg, 8, 0, 0777, &val) < 0)
				return bad_option("--mode", optarg, "an octal number to 0777");
			o->mode = (unsigned int)val;
			break;
		case 'a':
			o->apart = true;
			break;
		case 'h':
			usage(stdout);
			return 1;
		case 'v':
			puts("pasid-refgpu " REFGPU_PROGRAM_VERSION);
			return 1;
		default:
			usage(stderr);
			return -EINVAL;
		}
	}
	if (!o->socket || optind != argc) {
		usage(stderr);
		return -EINVAL;
	}
	return 0;
}

/* A path that is a socket nobody listens on is in the way and goes; anything else stays. */
static int socket_remove_stale(const struct sockaddr_un *sun)
{
	struct stat st;
	int fd, r;

	if (lstat(sun->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	r = connect(fd, (const struct sockaddr *)sun, sizeof(*sun)) == 0 || errno != ECONNREFUSED ? -EADDRINUSE : 0;
	close(fd);
	if (r == 0 && unlink(sun->sun_path) < 0)
		return -errno;
	return r;
}

static int socket_listen(const char *path, mode_t mode)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	mode_t mask;
	int fd, r;

	if (strlen(path) >= sizeof(sun.sun_path))
		return -ENAMETOOLONG;
	strcpy(sun.sun_path, path);
	r = socket_remove_stale(&sun);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	mask = umask(~mode & 0777);
	r = bind(fd, (const struct sockaddr *)&sun, sizeof(sun));
	if (r < 0)
		r = -errno;
	umask(mask);
	if (r == 0 && listen(fd, 16) < 0)
		r = -errno;
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

static void on_signal(int sig)
{
	static const uint64_t one = 1;
	int saved = errno;

	(void)sig;
	atomic_store(&stop.asked, true);
	if (write(stop.fd, &one, sizeof(one)) < 0) {
		/* Full means that it was asked before. */
	}
	errno = saved;
}

static int signals_init(void)
{
	struct sigaction sa = {.sa_handler = on_signal};

	sigemptyset(&sa.sa_mask);
	stop.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (stop.fd < 0)
		return -errno;
	if (sigaction(SIGTERM, &sa, NULL) < 0 || sigaction(SIGINT, &sa, NULL) < 0)
		return -errno;
	signal(SIGPIPE, SIG_IGN);
	return bus_catch_sigbus();
}

static int say_ready(int fd)
{
	if (fd < 0)
		return 0;
	if (write(fd, "1\n", 2) != 2)
		return -EIO;
	close(fd);
	return 0;
}

static int serve(const struct options *o)
{
	struct server server = {0};
	int listener, r;

	r = device_new(&server.dev, o->slots, o->status);
	if (r < 0)
		return r;
	if (o->apart)
		device_set_apart(server.dev);
	listener = socket_listen(o->socket, o->mode);
	r = listener;
	if (listener >= 0) {
		r = say_ready(o->ready_fd);
		if (r == 0)
			r = server_run(&server, listener, &stop);
		unlink(o->socket);
		close(listener);
	}
	device_free(server.dev);
	return r;
}

int main(int argc, char **argv)
{
	struct options o = {.slots = DEFAULT_SLOTS, .mode = 0600, .ready_fd = -1};
	int r = options_parse(&o, argc, argv);

	if (r)
		return r < 0 ? 2 : 0;
	r = signals_init();
	if (r == 0)
		r = serve(&o);
	if (stop.fd >= 0)
		close(stop.fd);
	if (r < 0)
		fprintf(stderr, "pasid-refgpu: %s: %s\n", o.socket, strerror(-r));
	return r < 0 ? 1 : 0;
}
