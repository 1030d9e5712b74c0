/* SPDX-License-Identifier: MIT */
/* pasidctl top: once a second, who has the devices. */
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/util.h"
#include "bus.h"
#include "options.h"
#include "sample.h"
#include "table.h"

#define PAUSE_MS 1000

static volatile sig_atomic_t ended;

static void on_end(int sig)
{
	ended = 1;
}

static void on_resize(int sig)
{
	/* poll() ends by that, and the next look is at the new size. */
}

struct screen {
	bool on;
	struct termios before;
};

static void screen_begin(struct screen *s)
{
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &s->before) < 0)
		return;
	raw = s->before;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	fputs("\033[?1049h\033[?25l", stdout); /* another screen, no cursor */
	s->on = true;
}

static void screen_end(struct screen *s)
{
	if (!s->on)
		return;
	fputs("\033[?25h\033[?1049l", stdout);
	fflush(stdout);
	tcsetattr(STDIN_FILENO, TCSANOW, &s->before);
}

#define AUTO_SCREEN __attribute__((cleanup(screen_end)))

/* ---- one look ---- */

struct look {
	struct json_object *manager, *devices;
	struct sample sample;
};

static void look_fini(struct look *l)
{
	json_object_put(l->manager);
	json_object_put(l->devices);
	sample_fini(&l->sample);
	*l = (struct look){0};
}

static int look_take(struct look *l, struct bus *bus, const struct look *before)
{
	AUTO_JSON struct json_object *contexts = NULL;

	*l = (struct look){0};
	if (bus_properties(bus, BUS_MANAGER, "Manager", &l->manager) < 0 || bus_list(bus, "Device", &l->devices) < 0 ||
	    bus_list(bus, "Context", &contexts) < 0)
		return -EIO;
	return sample_take(&l->sample, contexts, l->devices, util_now_ns(), &before->sample);
}

/* ---- for programs ---- */

static void print_line(const struct look *l)
{
	AUTO_JSON struct json_object *o = json_object_new_object();
	struct json_object *list = json_object_new_array();

	for (size_t i = 0; i < l->sample.n; i++) {
		const struct sample_context *c = &l->sample.v[i];
		struct json_object *v = json_object_new_object();
		char name[64];

		json_object_object_add(v, "context", json_object_new_uint64(c->id));
		json_object_object_add(
			v, "device",
			json_object_new_string(bus_device_name(bus_string(c->properties, "Device"), name)));
		json_object_object_add(v, "bytes", json_object_new_uint64(bus_number(c->properties, "Bytes")));
		json_object_object_add(v, "maps_s", json_object_new_double(c->maps_s));
		json_object_object_add(v, "switches_s", json_object_new_double(c->switches_s));
		json_object_object_add(v, "share", json_object_new_double(c->share));
		json_object_object_add(v, "faults", json_object_new_uint64(bus_number(c->properties, "Faults")));
		json_object_array_add(list, v);
	}
	json_object_object_add(o, "time_ns", json_object_new_uint64(l->sample.at_ns));
	json_object_object_add(o, "devices", json_object_get(l->devices));
	json_object_object_add(o, "contexts", list);
	printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	fflush(stdout);
}

/* ---- for people ---- */

static unsigned int busy_slots(struct json_object *device, bool *known)
{
	struct json_object *slots = NULL;
	unsigned int n = 0;

	*known = json_object_object_get_ex(device, "Slots", &slots) && json_object_is_type(slots, json_type_array) &&
		 json_object_array_length(slots) > 0;
	for (size_t i = 0; *known && i < json_object_array_length(slots); i++)
		n += bus_number_at(json_object_array_get_idx(slots, i), 2) != 0;
	return n;
}

static void draw_device(FILE *f, struct json_object *d, size_t width)
{
	char line[256];
	unsigned int busy;
	size_t n;
	bool known;

	busy = busy_slots(d, &known);
	n = (size_t)snprintf(line, sizeof(line), "%s: %s, %s, ", bus_string(d, "Name"), bus_string(d, "Mode"),
			     bus_string(d, "State"));
	if (known && n < sizeof(line))
		n += (size_t)snprintf(line + n, sizeof(line) - n, "%u of ", busy);
	if (n < sizeof(line))
		snprintf(line + n, sizeof(line) - n,
			 "%" PRIu64 " slots%s, %" PRIu64 " switches, %" PRIu64 " faults, %" PRIu64 " resets",
			 bus_number(d, "SlotCount"), known ? " busy" : "", bus_number(d, "Switches"),
			 bus_number(d, "Faults"), bus_number(d, "Resets"));
	fprintf(f, "%.*s\n", (int)width, line);
}

static void draw_contexts(FILE *f, const struct sample *s, bool coloured, size_t rows, size_t width)
{
	static const char *const columns[] = {">CTX",    "DEVICE",      ">PID",    ">UID",    ">MAPPED",
					      ">MAPS/S", ">SWITCHES/S", ">DEVICE", ">FAULTS", "STATE"};
	AUTO_TABLE struct table t = TABLE(columns);
	char bytes[16], name[64];

	for (size_t i = 0; i < s->n && i < rows; i++) {
		const struct sample_context *c = &s->v[i];
		const char *state = bus_string(c->properties, "State");

		table_row(&t, strcmp(state, "ok") ? COLOUR_RED : c->share > 0 ? COLOUR_GREEN : COLOUR_NONE);
		table_cell(&t, 0, "%" PRIu64, c->id);
		table_cell(&t, 1, "%s", bus_device_name(bus_string(c->properties, "Device"), name));
		table_cell(&t, 2, "%" PRIu64, bus_number(c->properties, "OwnerPid"));
		table_cell(&t, 3, "%" PRIu64, bus_number(c->properties, "OwnerUid"));
		table_cell(&t, 4, "%s", table_bytes(bus_number(c->properties, "Bytes"), bytes));
		table_cell(&t, 5, "%.0f", c->maps_s);
		table_cell(&t, 6, "%.0f", c->switches_s);
		table_cell(&t, 7, "%.1f %%", 100 * c->share);
		table_cell(&t, 8, "%" PRIu64, bus_number(c->properties, "Faults"));
		table_cell(&t, 9, "%s", state);
	}
	table_print(&t, f, coloured, rows, width);
}

/* The whole screen in one write, so that it does not flicker. */
static void draw(const struct look *l)
{
	size_t n_devices = json_object_array_length(l->devices), rows = 24, width = 80, head;
	char used[16], limit[16], line[256];
	struct winsize w;
	char *text;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	if (!f)
		return;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_row && w.ws_col) {
		rows = w.ws_row;
		width = w.ws_col;
	}
	snprintf(line, sizeof(line), "pasidd %s: %zu contexts, %" PRIu64 " connections, %s of %s; q quits",
		 bus_string(l->manager, "Version"), l->sample.n, bus_number(l->manager, "Connections"),
		 table_bytes(bus_number(l->manager, "TotalBytes"), used),
		 table_bytes(bus_number(l->manager, "TotalBytesLimit"), limit));
	fprintf(f, "\033[H\033[J%.*s\n", (int)width, line);
	/* The heading of the table, and the last line, where the cursor stays. */
	for (size_t i = 0; i < n_devices && i + 4 < rows; i++)
		draw_device(f, json_object_array_get_idx(l->devices, i), width);
	head = n_devices + 3;
	if (rows > head)
		draw_contexts(f, &l->sample, table_coloured(stdout), rows - head, width);
	fclose(f);
	fwrite(text, 1, size, stdout);
	fflush(stdout);
	free(text);
}

/* False: it is to end. */
static bool wait_for_key(bool keys)
{
	struct pollfd p = {.fd = keys ? STDIN_FILENO : -1, .events = POLLIN};
	char c;

	if (poll(&p, 1, PAUSE_MS) > 0 && p.revents)
		return read(STDIN_FILENO, &c, 1) == 1 && c != 'q' && c != 'Q' && !ended;
	return !ended;
}

int run_top(struct options *o)
{
	struct look before = {0}, now;
	AUTO_SCREEN struct screen screen = {0};
	AUTO_BUS struct bus bus = {0};
	int r;

	if (o->n_words)
		return wrong("that is one word too many", o->words[0]);
	if (!o->json && (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)))
		return wrong("top wants a terminal; --json needs none", NULL);
	if (bus_open(&bus, o->bus, o->command, stderr) < 0)
		return 1;
	sigaction(SIGINT, &(struct sigaction){.sa_handler = on_end}, NULL);
	sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_end}, NULL);
	sigaction(SIGHUP, &(struct sigaction){.sa_handler = on_end}, NULL);
	sigaction(SIGWINCH, &(struct sigaction){.sa_handler = on_resize}, NULL);
	do {
		r = look_take(&now, &bus, &before);
		look_fini(&before);
		before = now;
		if (r < 0)
			break;
		if (!o->json && !screen.on)
			screen_begin(&screen);
		if (o->json)
			print_line(&now);
		else
			draw(&now);
	} while (!ferror(stdout) && wait_for_key(!o->json));
	look_fini(&before);
	return r < 0 ? 1 : 0;
}
