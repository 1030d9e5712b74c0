/* SPDX-License-Identifier: MIT */
/* pasidd: options, signals, and the one event loop. */
#include <errno.h>
#include <event2/event.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/closer.h"
#include "base/log.h"
#include "base/util.h"
#include "config/config.h"
#include "dbus/dbus.h"
#include "ipc/ipc.h"
#include "manager.h"
#include "service/entries.h"
#include "service/service.h"
#include "store/store.h"

#define DEFAULT_CONFIG PASIDD_SYSCONFDIR "/pasidd/pasidd.json"

struct options {
	const char *config;
	const char *socket;
	const char *device;
	const char *bus;
	const char *log_level;
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
		   "  -b, --bus BUS            the D-Bus to be on: system, session, an address, or none (system)\n"
		   "  -l, --log-level LEVEL    error, warn, info or debug (info)\n"
		   "  -h, --help               this text\n"
		   "      --version            the version\n");
}

/* Returns an exit status, or -1 to go on. */
static int parse_options(struct options *o, int argc, char **argv)
{
	enum { OPT_CHECK = 256, OPT_VERSION };
	static const struct option longs[] = {
		{"config", required_argument, NULL, 'c'},
		{"check-config", required_argument, NULL, OPT_CHECK},
		{"device", required_argument, NULL, 'd'},
		{"socket", required_argument, NULL, 's'},
		{"bus", required_argument, NULL, 'b'},
		{"log-level", required_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, OPT_VERSION},
		{0},
	};
	enum log_level level;
	int c;

	while ((c = getopt_long(argc, argv, "c:d:s:b:l:h", longs, NULL)) != -1) {
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
		case 'b':
			o->bus = optarg;
			break;
		case 'l':
			if (log_level_parse(optarg, &level) < 0) {
				fprintf(stderr,
					"pasidd: --log-level: found \"%s\"; allowed is error, warn, info, debug\n",
					optarg);
				return 2;
			}
			o->log_level = optarg;
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

typedef int (*read_config)(struct config **ret, const char *file, char error[CONFIG_ERROR_MAX]);

/* No file is needed where the options say all. */
static int load_config(const struct options *o, read_config how, struct config **ret, char error[CONFIG_ERROR_MAX])
{
	int r;

	if (o->device && !o->config)
		r = config_parse(ret, "{}", 2, "--device", error);
	else
		r = how(ret, o->config ? o->config : DEFAULT_CONFIG, error);
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

struct daemon {
	const struct options *options;
	struct config *config;
	struct event_base *base;
	struct event *sigterm, *sigint, *sighup;
	struct event *watchdog; /* NULL: nobody asks */
	struct manager_given given;
	struct store *store; /* NULL: nothing outlives this process */
	struct service *service;
	struct ipc *ipc;
	struct dbus *dbus;
};

/* An option holds whatever the file says. */
static void set_log_level(const struct options *o, const struct config *c)
{
	enum log_level level;

	if (log_level_parse(o->log_level ? o->log_level : c->log_level, &level) == 0)
		log_set_level(level);
}

static int daemon_reload(void *arg, char error[DBUS_ERROR_MAX])
{
	struct config *now = NULL;
	struct daemon *d = arg;
	int r;

	_Static_assert(CONFIG_ERROR_MAX == DBUS_ERROR_MAX, "the same sentence");
	r = load_config(d->options, config_read, &now, error);
	if (r == 0)
		r = dbus_set_admins(d->dbus, now->admin_group);
	if (r == -ENOENT && now)
		snprintf(error, DBUS_ERROR_MAX, "admin_group: found \"%s\"; there is no such group", now->admin_group);
	else if (r < 0 && now)
		snprintf(error, DBUS_ERROR_MAX, "admin_group: %s", strerror(-r));
	if (r == 0) {
		config_apply(d->config, now);
		service_limits_changed(d->service);
		set_log_level(d->options, d->config);
		log_info("the configuration was read again");
	}
	config_free(now);
	return r;
}

static void on_hangup(evutil_socket_t sig, short what, void *arg)
{
	char error[DBUS_ERROR_MAX];
	int r;

	manager_reloading();
	r = daemon_reload(arg, error);
	if (r < 0)
		log_error("%s; nothing has changed", error);
	manager_reloaded(r < 0 ? error : NULL);
}

static int daemon_connect(void *arg, int fd, uid_t uid, pid_t pid)
{
	struct daemon *d = arg;

	return ipc_add(d->ipc, fd, uid, pid);
}

static int start_dbus(struct daemon *d)
{
	const struct dbus_host host = {.connect = daemon_connect, .reload = daemon_reload, .arg = d};
	int r = dbus_new(&d->dbus, d->base, d->service, d->options->bus ? d->options->bus : d->config->bus, &host);

	if (r == 0)
		r = dbus_set_admins(d->dbus, d->config->admin_group);
	if (r == -EINVAL)
		log_error("bus: found \"%s\"; allowed is \"system\", \"session\", \"none\", \"unix:path=...\" or "
			  "\"unix:abstract=...\"",
			  d->options->bus ? d->options->bus : d->config->bus);
	else if (r < 0)
		log_error("cannot begin: %s%s: %s", r == -ENOENT ? "admin_group " : "D-Bus",
			  r == -ENOENT ? d->config->admin_group : "",
			  r == -ENOENT ? "there is no such group" : strerror(-r));
	return r;
}

static int catch_signals(struct daemon *d)
{
	d->sigterm = evsignal_new(d->base, SIGTERM, on_signal, d->base);
	d->sigint = evsignal_new(d->base, SIGINT, on_signal, d->base);
	d->sighup = evsignal_new(d->base, SIGHUP, on_hangup, d);
	if (!d->sigterm || !d->sigint || !d->sighup)
		return -ENOMEM;
	return event_add(d->sigterm, NULL) < 0 || event_add(d->sigint, NULL) < 0 ? -ENOMEM : 0;
}

/* ---- what outlives us ---- */

/* Connections, devices and contexts of a newer daemon are kept for it; nobody is served. */
static void keep_for_a_newer_one(const char *why)
{
	char status[JOURNAL_WHY_MAX + 128];

	snprintf(status, sizeof(status), "keeping the contexts of a newer pasidd, and serving nobody: %s", why);
	log_error("%s; install that version again, or stop pasidd, which ends them", status);
	manager_says(status);
}

/* 0; -EPROTONOSUPPORT: nobody is to be served. */
static int open_store(struct daemon *d)
{
	char why[JOURNAL_WHY_MAX] = "";
	int r = store_open(&d->store, d->base, manager_fdstore_max(), ENTRIES_VERSION, manager_take, &d->given, why);

	if (r == -EPROTONOSUPPORT)
		keep_for_a_newer_one(why);
	if (r == -EBADMSG) {
		service_lose(d->store, why);
		r = store_begin_anew(d->store, ENTRIES_VERSION);
	}
	if (r < 0 && r != -EPROTONOSUPPORT)
		log_error(d->store ? "what the last pasidd left cannot be opened: %s"
				   : "nothing can be kept for a successor: %s",
			  strerror(-r));
	/* Whoever served now would leave another's journal to his successor. */
	return d->store || r == -ENOMEM ? r : 0;
}

/* With what the last process left; without it, if it contradicts itself. */
static int start_service(struct daemon *d)
{
	char why[SERVICE_WHY_MAX];
	int r = service_new(&d->service, d->base, &d->config->service, d->store, why);

	if (r == -EBADMSG) {
		service_lose(d->store, why);
		if (store_begin_anew(d->store, ENTRIES_VERSION) < 0)
			d->store = store_free(d->store);
		r = service_new(&d->service, d->base, &d->config->service, d->store, why);
	}
	if (r < 0)
		log_error("cannot begin: %s", strerror(-r));
	return r;
}

/* Where a socket was handed over, what the configuration says of it means nothing. */
static int start_listening(struct daemon *d)
{
	const char *path = d->options->socket ? d->options->socket : d->config->socket_path;
	int listener = util_take_fd(&d->given.listener);
	bool given = listener >= 0;
	int r = ipc_new(&d->ipc, d->base, d->service, path, d->config->socket_mode, listener, d->store);

	if (r < 0)
		log_error("cannot listen at %s: %s", path, strerror(-r));
	else if (given)
		log_info("listening at the socket that was handed over");
	else
		log_info("listening at %s", path);
	return r;
}

static int daemon_start(struct daemon *d)
{
	int r;

	d->base = event_base_new();
	if (!d->base)
		return -ENOMEM;
	r = catch_signals(d);
	if (r == 0)
		r = manager_watch(&d->watchdog, d->base);
	if (r < 0)
		return r;
	r = closer_start(d->base);
	if (r < 0) {
		log_error("cannot start the process that closes what clients sent: %s", strerror(-r));
		return r;
	}
	r = open_store(d);
	if (r < 0)
		return r == -EPROTONOSUPPORT ? 0 : r;
	r = start_service(d);
	if (r == 0)
		r = start_listening(d);
	if (r == 0)
		r = start_dbus(d);
	/* Not before there is something to read again for. */
	return r == 0 && event_add(d->sighup, NULL) < 0 ? -ENOMEM : r;
}

static void daemon_end(struct daemon *d)
{
	dbus_free(d->dbus);
	ipc_free(d->ipc);
	service_free(d->service);
	store_free(d->store);
	util_closep(&d->given.listener);
	closer_stop();
	if (d->sigterm)
		event_free(d->sigterm);
	if (d->sigint)
		event_free(d->sigint);
	if (d->sighup)
		event_free(d->sighup);
	if (d->watchdog)
		event_free(d->watchdog);
	if (d->base)
		event_base_free(d->base);
	libevent_global_shutdown();
}

int main(int argc, char **argv)
{
	struct options options = {0};
	char error[CONFIG_ERROR_MAX];
	struct daemon daemon = {.options = &options, .given = {.listener = -1}};
	int r = parse_options(&options, argc, argv);

	if (r >= 0)
		return r;
	if (load_config(&options, config_load, &daemon.config, error) < 0) {
		fprintf(stderr, "pasidd: %s\n", error);
		if (!options.check)
			manager_failed();
		return 1;
	}
	if (options.check) {
		printf("%s: ok\n", options.config);
		config_free(daemon.config);
		return 0;
	}
	set_log_level(&options, daemon.config);
	signal(SIGPIPE, SIG_IGN);
	raise_nofile();
	daemon.given.config = &daemon.config->service;
	r = daemon_start(&daemon);
	if (r == 0) {
		manager_ready();
		event_base_dispatch(daemon.base);
		manager_stopping();
	} else {
		manager_failed();
	}
	/* What outlives us is left as a crash would leave it. */
	if (daemon.store)
		_exit(r == 0 ? 0 : 1);
	daemon_end(&daemon);
	config_free(daemon.config);
	return r == 0 ? 0 : 1;
}
