/* SPDX-License-Identifier: MIT */
/* pasidd: options, signals, and the one event loop. */
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/closer.h"
#include "base/log.h"
#include "base/util.h"
#include "config/config.h"
#include "ipc/ipc.h"
#include "service/service.h"
#include "transport/transport.h"

#define DEFAULT_CONFIG PASIDD_SYSCONFDIR "/pasidd/pasidd.json"
/* What pasidd.socket calls its fd. No device has such a name, for it has no dots. */
#define LISTENER_NAME "pasidd.socket"

struct options {
	const char *config;
	const char *socket;
	const char *device;
	bool check;
};

static void usage(FILE *f)
{
	fprintf(f, "Usage: pasidd [OPTION]...\n"
		   "Gives every unprivileged program its own context on a shared GPU.\n"
		   "\n"
		   "  -c, --config FILE        configuration (" DEFAULT_CONFIG ")\n"
		   "      --check-config FILE  say what is wrong with FILE, or \"ok\", and end\n"
		   "  -d, --device SPEC        one device instead of the configured ones: vfio-user:/PATH,\n"
		   "                           or vfio:, iommufd: or type1: and a PCI address; it is called\n"
		   "                           gpu0, has mode gpu-mmu, and needs no configuration file\n"
		   "  -s, --socket PATH        listen there instead\n"
		   "  -l, --log-level LEVEL    error, warn, info or debug (info)\n"
		   "  -h, --help               this text\n"
		   "      --version            the version\n");
}

/* Returns an exit status, or -1 to go on. */
static int parse_options(struct options *o, int argc, char **argv)
{
	enum { OPT_CHECK = 256, OPT_VERSION };
	static const struct option longs[] = {
		{"config", required_argument, NULL, 'c'},    {"check-config", required_argument, NULL, OPT_CHECK},
		{"device", required_argument, NULL, 'd'},    {"socket", required_argument, NULL, 's'},
		{"log-level", required_argument, NULL, 'l'}, {"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, OPT_VERSION}, {0},
	};
	enum log_level level;
	int c;

	while ((c = getopt_long(argc, argv, "c:d:s:l:h", longs, NULL)) != -1) {
		switch (c) {
		case 'c':
			o->config = optarg;
			break;
		case OPT_CHECK:
			o->config = optarg;
			o->check = true;
			break;
		case 'd':
			o->device = optarg;
			break;
		case 's':
			o->socket = optarg;
			break;
		case 'l':
			if (log_level_parse(optarg, &level) < 0) {
				fprintf(stderr,
					"pasidd: --log-level: found \"%s\"; allowed is error, warn, info, debug\n",
					optarg);
				return 2;
			}
			log_set_level(level);
			break;
		case 'h':
			usage(stdout);
			return 0;
		case OPT_VERSION:
			printf("pasidd %s\n", PASIDD_VERSION);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "pasidd: found \"%s\"; no arguments are allowed, only options (--help)\n",
			argv[optind]);
		return 2;
	}
	return -1;
}

/* No file is needed where the options say all. */
static int load_config(const struct options *o, struct config **ret, char error[CONFIG_ERROR_MAX])
{
	int r;

	if (o->device && !o->config)
		r = config_parse(ret, "{}", 2, "--device", error);
	else
		r = config_load(ret, o->config ? o->config : DEFAULT_CONFIG, error);
	if (r < 0 || !o->device)
		return r;
	r = config_only_device(*ret, o->device, error);
	if (r < 0)
		*ret = config_free(*ret);
	return r;
}

/* Buffers keep an fd each, and another where the kernel drives the device: take what the hard limit gives. */
static void raise_nofile(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur < rl.rlim_max) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
}

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
	log_info("ending on signal %d", (int)sig);
	event_base_loopexit(arg, NULL);
}

/* What such an fd is said to be for: a device by its name, or a file that is no device's. */
static const char *find_use(const struct service_config *c, const char *name)
{
	if (transport_is_file(name))
		return name;
	for (size_t i = 0; i < c->n_devices; i++)
		if (!strcmp(c->devices[i].name, name))
			return c->devices[i].spec;
	return NULL;
}

/* The socket that clients connect to. The service manager's comes without O_NONBLOCK. NULL, or why it will not do. */
static const char *take_listener(int fd, int *listener)
{
	int flags = fcntl(fd, F_GETFL);

	if (*listener >= 0)
		return "there is one already";
	if (sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) <= 0)
		return "it is not a Unix socket of type SOCK_SEQPACKET that listens";
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return strerror(errno);
	*listener = fd;
	return NULL;
}

static const char *take_file(const struct service_config *c, const char *name, int fd)
{
	const char *use = find_use(c, name);

	return use ? transport_hand_over(use, fd) : "no device is called that";
}

/* What the service manager opened for us (LISTEN_FDS, LISTEN_FDNAMES): device files, and the socket. *listener: -1 if
 * there is none. */
static void take_fds(const struct service_config *c, int *listener)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(true, &names);

	*listener = -1;
	for (int i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + i;
		bool listens = !strcmp(names[i], LISTENER_NAME);
		const char *why = listens ? take_listener(fd, listener) : take_file(c, names[i], fd);

		if (why) {
			log_warn("the service manager handed over an fd \"%s\": %s; it is closed", names[i], why);
			close(fd);
		} else {
			log_info("the service manager handed over %s", names[i]);
		}
		free(names[i]);
	}
	free(names);
}

struct daemon {
	struct event_base *base;
	struct event *sigterm, *sigint;
	struct event *watchdog; /* NULL: nobody asks whether the loop still turns */
	struct service *service;
	struct ipc *ipc;
};

static void on_watchdog(evutil_socket_t fd, short what, void *arg)
{
	sd_notify(0, "WATCHDOG=1");
}

/* The service manager ends us if it does not hear from the loop for a while: WATCHDOG_USEC. */
static int watchdog_start(struct daemon *d)
{
	uint64_t us = 0;
	struct timeval half;

	if (sd_watchdog_enabled(true, &us) <= 0)
		return 0;
	half = (struct timeval){.tv_sec = (time_t)(us / 2000000), .tv_usec = (suseconds_t)(us / 2 % 1000000)};
	d->watchdog = event_new(d->base, -1, EV_PERSIST, on_watchdog, NULL);
	if (!d->watchdog || event_add(d->watchdog, &half) < 0)
		return -ENOMEM;
	return 0;
}

/* listener: -1, or a socket that is used instead of one at `path`, and taken. */
static int daemon_listen(struct daemon *d, const char *path, mode_t mode, int listener)
{
	int r = ipc_new(&d->ipc, d->base, d->service, path, mode, listener);

	if (r < 0)
		log_error("cannot listen at %s: %s", path, strerror(-r));
	else if (listener >= 0)
		log_info("listening at the socket of the service manager");
	else
		log_info("listening at %s", path);
	return r;
}

static int daemon_start(struct daemon *d, const struct config *config, const char *path, int listener)
{
	AUTO_CLOSE int owned = listener;
	int r;

	d->base = event_base_new();
	if (!d->base)
		return -ENOMEM;
	d->sigterm = evsignal_new(d->base, SIGTERM, on_signal, d->base);
	d->sigint = evsignal_new(d->base, SIGINT, on_signal, d->base);
	if (!d->sigterm || !d->sigint || event_add(d->sigterm, NULL) < 0 || event_add(d->sigint, NULL) < 0)
		return -ENOMEM;
	r = watchdog_start(d);
	if (r < 0)
		return r;
	r = closer_start(d->base);
	if (r < 0) {
		log_error("cannot start the process that closes what clients sent: %s", strerror(-r));
		return r;
	}
	r = service_new(&d->service, d->base, &config->service);
	if (r < 0) {
		log_error("cannot begin: %s", strerror(-r));
		return r;
	}
	return daemon_listen(d, path, config->socket_mode, util_take_fd(&owned));
}

static void daemon_end(struct daemon *d)
{
	ipc_free(d->ipc);
	service_free(d->service);
	closer_stop();
	if (d->watchdog)
		event_free(d->watchdog);
	if (d->sigterm)
		event_free(d->sigterm);
	if (d->sigint)
		event_free(d->sigint);
	if (d->base)
		event_base_free(d->base);
	libevent_global_shutdown();
}

int main(int argc, char **argv)
{
	struct options options = {0};
	char error[CONFIG_ERROR_MAX];
	struct daemon daemon = {0};
	struct config *config = NULL;
	int listener, r = parse_options(&options, argc, argv);

	if (r >= 0)
		return r;
	if (load_config(&options, &config, error) < 0) {
		fprintf(stderr, "pasidd: %s\n", error);
		return 1;
	}
	if (options.check) {
		printf("%s: ok\n", options.config);
		config_free(config);
		return 0;
	}
	signal(SIGPIPE, SIG_IGN);
	raise_nofile();
	take_fds(&config->service, &listener);
	r = daemon_start(&daemon, config, options.socket ? options.socket : config->socket_path, listener);
	if (r == 0) {
		sd_notify(0, "READY=1");
		event_base_dispatch(daemon.base);
		sd_notify(0, "STOPPING=1");
	}
	daemon_end(&daemon);
	config_free(config);
	return r == 0 ? 0 : 1;
}
