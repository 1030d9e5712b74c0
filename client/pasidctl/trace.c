/* SPDX-License-Identifier: MIT */
/* pasidctl trace: what pasidd says of its devices, as a timeline. */
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "bus.h"
#include "options.h"
#include "timeline.h"
#include "trace_ring.h"

#define PAUSE_MS 10 /* between two looks: the ring has room for what happens meanwhile, and more */
#define ALIVE_NS 1000000000ull /* between two looks whether pasidd is there */
#define SECONDS_MOST 86400u

static volatile sig_atomic_t ended;

static void on_end(int sig)
{
	ended = 1;
}

struct recording {
	struct bus bus;
	struct trace_ring ring;
	struct timeline *timeline;
	uint64_t events, lost; /* lost: as told */
	uint64_t begun_ns, alive_ns;
};

/* All that is there now. */
static int take_events(struct recording *r)
{
	struct pasid_trace_record event;

	for (uint64_t n = 0; n < r->ring.capacity && trace_ring_next(&r->ring, &event); n++) {
		if (r->ring.lost != r->lost)
			timeline_lost(r->timeline, r->ring.lost - r->lost);
		r->lost = r->ring.lost;
		if (timeline_add(r->timeline, &event) < 0) {
			fprintf(stderr, "pasidctl: there is no memory for more contexts\n");
			return -ENOMEM;
		}
		r->events++;
	}
	return 0;
}

static int still_there(struct recording *r)
{
	uint64_t now = util_now_ns();

	if (now - r->alive_ns < ALIVE_NS)
		return 0;
	r->alive_ns = now;
	return bus_alive(&r->bus);
}

static int record(struct recording *r, uint64_t seconds, FILE *f)
{
	int ret = 0;

	r->begun_ns = r->alive_ns = util_now_ns();
	while (ret == 0 && !ended && !ferror(f) &&
	       (!seconds || util_now_ns() - r->begun_ns < seconds * 1000000000ull)) {
		poll(NULL, 0, PAUSE_MS);
		ret = still_there(r);
		if (ret == 0)
			ret = take_events(r);
	}
	return ret == 0 ? take_events(r) : ret;
}

static void summary(const struct recording *r, const struct options *o)
{
	double seconds = (double)(util_now_ns() - r->begun_ns) / 1e9;
	FILE *f = o->output ? stdout : stderr;

	if (o->json) {
		AUTO_JSON struct json_object *v = json_object_new_object();

		json_object_object_add(v, "file", o->output ? json_object_new_string(o->output) : NULL);
		json_object_object_add(v, "seconds", json_object_new_double(seconds));
		json_object_object_add(v, "events", json_object_new_uint64(r->events));
		json_object_object_add(v, "lost", json_object_new_uint64(r->lost));
		bus_print(v, f);
		return;
	}
	fprintf(f, "%" PRIu64 " events in %.1f s", r->events, seconds);
	if (r->lost)
		fprintf(f, ", and %" PRIu64 " that were overwritten before they were read", r->lost);
	fprintf(f, "; open %s in https://ui.perfetto.dev\n", o->output ? o->output : "the timeline");
}

static int open_ring(struct recording *r, const struct options *o)
{
	const char *why;
	int fd;

	if (bus_open(&r->bus, o->bus, o->command, stderr) < 0)
		return 1;
	fd = bus_open_trace(&r->bus);
	if (fd < 0)
		return 1;
	if (trace_ring_open(&r->ring, fd, &why) < 0) {
		fprintf(stderr, "pasidctl: what pasidd gave cannot be read: %s\n", why);
		return 1;
	}
	return 0;
}

static int record_to(struct recording *r, const struct options *o, uint64_t seconds, FILE *f)
{
	int ret = timeline_new(&r->timeline, f, (const char(*)[32])r->ring.devices, r->ring.n_devices);

	if (ret < 0)
		return 1;
	fflush(f); /* whoever waits for it sees that it has begun */
	ret = record(r, seconds, f);
	r->timeline = timeline_end(r->timeline);
	if (fflush(f) != 0 || ferror(f)) {
		fprintf(stderr, "pasidctl: the timeline cannot be written to %s: %s\n",
			o->output ? o->output : "standard output", strerror(errno));
		return 1;
	}
	summary(r, o);
	return ret < 0 ? 1 : 0;
}

int run_trace(struct options *o)
{
	struct recording r = {0};
	uint64_t seconds = 0;
	FILE *f = stdout;
	int ret;

	if (o->n_words > 1)
		return wrong("that is one word too many", o->words[1]);
	if (o->n_words) {
		ret = take_number(o->words[0], "how many seconds, at most a day?", SECONDS_MOST, &seconds);
		if (ret >= 0)
			return ret;
	}
	if (!o->output && isatty(STDOUT_FILENO))
		return wrong("a timeline is long: name a file with -o", NULL);
	sigaction(SIGINT, &(struct sigaction){.sa_handler = on_end}, NULL);
	sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_end}, NULL);
	ret = open_ring(&r, o);
	if (ret == 0 && o->output) {
		f = fopen(o->output, "we");
		if (!f) {
			fprintf(stderr, "pasidctl: %s cannot be written: %s\n", o->output, strerror(errno));
			ret = 1;
		}
	}
	if (ret == 0)
		ret = record_to(&r, o, seconds, f);
	if (f && f != stdout)
		fclose(f);
	trace_ring_close(&r.ring);
	bus_close(&r.bus);
	return ret;
}
