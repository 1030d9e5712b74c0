/* SPDX-License-Identifier: MIT */
/* See bind.h. */
#include "bind.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "base/util.h"
#include "binding.h"
#include "platform.h"
#include "users.h"

#define EXIT_REFUSED 1
#define EXIT_NOT_THERE 2

struct job {
	const struct machine *m;
	const struct bind_options *o;
	const char *verb;
	struct binding v[BIND_MAX];
	size_t n;
};

static bool job_has(const struct job *j, const char *bdf)
{
	for (size_t i = 0; i < j->n; i++)
		if (!strcmp(j->v[i].before.bdf, bdf))
			return true;
	return false;
}

/* 0 or an exit status. */
static int job_init(struct job *j, const struct machine *m, char (*bdfs)[PCI_BDF_SIZE], size_t n,
		    const struct bind_options *o, const char *verb)
{
	*j = (struct job){.m = m, .o = o, .verb = verb};
	for (size_t i = 0; i < n; i++) {
		int r = job_has(j, bdfs[i]) ? 0 : binding_init(&j->v[j->n++], m, bdfs[i]);

		if (r == 0)
			continue;
		if (r == -ENODEV)
			fprintf(o->err, "pasidctl: there is no PCI device %s; type: ls /sys/bus/pci/devices\n",
				bdfs[i]);
		else
			fprintf(o->err, "pasidctl: what sysfs says of %s is not understood: %s\n", bdfs[i],
				strerror(-r));
		return EXIT_NOT_THERE;
	}
	return 0;
}

/* ---- refusals ---- */

static int refuse_bind_kind(const struct job *j, const struct device *d, const struct platform *p)
{
	FILE *err = j->o->err;

	if (d->bridge)
		fprintf(err, "pasidctl: %s is a bridge, which vfio-pci does not take\n", d->bdf);
	else if (d->group < 0 || group_is_made_up(j->m, d->group))
		fprintf(err, "pasidctl: %s is behind no IOMMU: it would reach all memory; type: pasidctl doctor\n",
			d->bdf);
	else if (!p->vfio_pci)
		fprintf(err, "pasidctl: the driver vfio-pci is not there; type: modprobe vfio-pci\n");
	else if (device_denylisted(d) && !p->denylist_off)
		fprintf(err,
			"pasidctl: vfio-pci refuses %s (%04x:%04x): it is not safe with untrusted users on all "
			"systems; "
			"to take it all the same, type: " DEVICE_DENYLIST_TODO "\n",
			d->bdf, d->vendor, d->device);
	else
		return 0;
	return EXIT_REFUSED;
}

/* Others in the group that come along, or will at the next boot, are in nobody's way. */
static bool is_in_the_way(const struct job *j, const struct member *v)
{
	char bdf[PCI_BDF_SIZE];

	return v->hinders && !job_has(j, v->name) &&
	       !(pci_parse_bdf(v->name, bdf) && persist_look(j->m, bdf) == PERSIST_OURS);
}

static int refuse_bind_group(const struct job *j, const struct device *d)
{
	FILE *err = j->o->err;
	AUTO_GROUP struct group g = {0};
	char bdf[PCI_BDF_SIZE];
	size_t n = 0;

	if (group_read(j->m, d, &g) < 0) {
		fprintf(err, "pasidctl: what is in group %d cannot be read\n", d->group);
		return EXIT_REFUSED;
	}
	for (size_t i = 0; i < g.n; i++) {
		if (!is_in_the_way(j, &g.v[i]))
			continue;
		fprintf(err, "pasidctl: %s is in the same group (%d) as %s, and %s has it\n", g.v[i].name, d->group,
			d->bdf, g.v[i].driver);
		n++;
	}
	if (n == 0)
		return 0;
	fprintf(err,
		"pasidctl: group %d would not be viable: all of it goes to user space or none; type: pasidctl bind %s",
		d->group, d->bdf);
	for (size_t i = 0; i < g.n; i++)
		if (is_in_the_way(j, &g.v[i]) && pci_parse_bdf(g.v[i].name, bdf))
			fprintf(err, " %s", bdf);
	fputc('\n', err);
	return EXIT_REFUSED;
}

static int refuse_persist(const struct job *j, const struct binding *b)
{
	char path[PERSIST_PATH_SIZE];

	persist_path(b->before.bdf, path);
	if (b->persisted == PERSIST_FOREIGN) {
		fprintf(j->o->err, "pasidctl: /%s is not pasidctl's; move it away\n", path);
		return EXIT_REFUSED;
	}
	if (machine_has(j->m, PERSIST_DIR))
		return 0;
	fprintf(j->o->err, "pasidctl: there is no /" PERSIST_DIR ": --persist needs udev\n");
	return EXIT_REFUSED;
}

static int refuse_rights(const struct job *j, const struct device *d)
{
	char path[128];

	snprintf(path, sizeof(path), "sys/bus/pci/devices/%s/driver_override", d->bdf);
	if (!machine_has(j->m, "%s", path)) {
		fprintf(j->o->err, "pasidctl: there is no /%s: this needs Linux 3.16 or newer\n", path);
		return EXIT_REFUSED;
	}
	if (machine_may_open(j->m, path))
		return 0;
	fprintf(j->o->err, "pasidctl: only root may change the driver of %s; type: sudo pasidctl %s %s\n", d->bdf,
		j->verb, d->bdf);
	return EXIT_REFUSED;
}

/* The kernel would wait, maybe for ever. */
static int refuse_use(const struct job *j, const struct device *d)
{
	struct user u;

	if (!device_has_vfio(d) || !users_find(j->m, d, &u))
		return 0;
	fprintf(j->o->err, "pasidctl: %s is in use by process %s (%s); end that first\n", d->bdf, u.pid, u.name);
	return EXIT_REFUSED;
}

static int refuse_bind(const struct job *j)
{
	__attribute__((cleanup(platform_fini))) struct platform p = {0};
	int r = platform_read(j->m, &p) < 0 ? EXIT_REFUSED : 0;

	for (size_t i = 0; r == 0 && i < j->n; i++) {
		const struct device *d = &j->v[i].before;

		r = refuse_bind_kind(j, d, &p);
		if (r == 0)
			r = refuse_bind_group(j, d);
		if (r == 0 && j->o->persist)
			r = refuse_persist(j, &j->v[i]);
		if (r == 0 && !j->o->dry_run && !device_has_vfio(d))
			r = refuse_rights(j, d);
	}
	return r;
}

static bool is_ours(const struct binding *b)
{
	return device_has_vfio(&b->before) || !strcmp(b->before.override, "vfio-pci") || b->persisted == PERSIST_OURS;
}

static int refuse_unbind(const struct job *j)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < j->n; i++) {
		if (!is_ours(&j->v[i]))
			continue;
		r = refuse_use(j, &j->v[i].before);
		if (r == 0 && !j->o->dry_run)
			r = refuse_rights(j, &j->v[i].before);
	}
	return r;
}

/* ---- what will be done ---- */

static void say_move(FILE *f, const struct device *d, const char *override, const char *to)
{
	fprintf(f, "%s (%04x:%04x), bound to %s, goes to %s:\n", d->bdf, d->vendor, d->device,
		d->driver[0] ? d->driver : "no driver", to);
	fprintf(f, "  %s > /sys/bus/pci/devices/%s/driver_override", override[0] ? override : "(nothing)", d->bdf);
	if (d->override[0] && strcmp(d->override, override) != 0)
		fprintf(f, ", where %s was", d->override);
	fputc('\n', f);
}

static void say_steps(FILE *f, const struct device *d, bool leaves)
{
	if (leaves)
		fprintf(f, "  %s > /sys/bus/pci/drivers/%s/unbind: %s loses it\n", d->bdf, d->driver, d->driver);
	fprintf(f, "  %s > /sys/bus/pci/drivers_probe\n", d->bdf);
}

static void plan_bind(const struct job *j, const struct binding *b)
{
	const struct device *d = &b->before;
	char path[PERSIST_PATH_SIZE];

	if (device_has_vfio(d)) {
		fprintf(j->o->out, "%s (%04x:%04x) is bound to vfio-pci already\n", d->bdf, d->vendor, d->device);
	} else {
		say_move(j->o->out, d, "vfio-pci", "vfio-pci");
		say_steps(j->o->out, d, d->driver[0] != '\0');
	}
	persist_path(d->bdf, path);
	if (j->o->persist)
		fprintf(j->o->out, "  /%s %s\n", path,
			b->persisted == PERSIST_OURS ? "is there, and is written anew" : "does the same at each start");
}

static void plan_unbind(const struct job *j, const struct binding *b)
{
	const struct device *d = &b->before;
	char path[PERSIST_PATH_SIZE];

	if (!is_ours(b)) {
		fprintf(j->o->out, "%s (%04x:%04x) is bound to %s and not meant for vfio-pci: nothing to do\n", d->bdf,
			d->vendor, d->device, d->driver[0] ? d->driver : "no driver");
		return;
	}
	say_move(j->o->out, d, "", "the driver that the kernel chooses");
	say_steps(j->o->out, d, device_has_vfio(d));
	persist_path(d->bdf, path);
	if (b->persisted == PERSIST_OURS)
		fprintf(j->o->out, "  /%s is removed\n", path);
}

static void plan(const struct job *j, void (*say)(const struct job *, const struct binding *))
{
	for (size_t i = 0; i < j->n; i++)
		say(j, &j->v[i]);
	fflush(j->o->out);
}

/* ---- doing it ---- */

static int fail(const struct job *j, const struct binding *b, const char *step, int error)
{
	fprintf(j->o->err, "pasidctl: %s: %s failed: %s\n", b->before.bdf, step, strerror(-error));
	return EXIT_REFUSED;
}

/* The first n, the last of them first. */
static void undo(const struct job *j, size_t n)
{
	while (n-- > 0) {
		const struct binding *b = &j->v[n];
		int r = binding_restore(b, j->m);

		if (r == 0)
			fprintf(j->o->err, "pasidctl: %s is as it was, bound to %s\n", b->before.bdf,
				b->before.driver[0] ? b->before.driver : "no driver");
		else
			fprintf(j->o->err, "pasidctl: %s could not be given back to %s: %s; type: pasidctl unbind %s\n",
				b->before.bdf, b->before.driver[0] ? b->before.driver : "no driver", strerror(-r),
				b->before.bdf);
	}
}

static int bind_one(const struct job *j, struct binding *b)
{
	char driver[MACHINE_NAME_MAX];
	int r;

	if (device_has_vfio(&b->before))
		return 0;
	r = binding_move(b, j->m, "vfio-pci");
	if (r < 0)
		return fail(j, b, b->failed, r);
	binding_driver(j->m, b->before.bdf, driver);
	if (!strcmp(driver, "vfio-pci"))
		return 0;
	fprintf(j->o->err, "pasidctl: %s: vfio-pci did not take it; type: dmesg | tail\n", b->before.bdf);
	return EXIT_REFUSED;
}

static int unbind_one(const struct job *j, struct binding *b)
{
	char driver[MACHINE_NAME_MAX];
	int r;

	if (!is_ours(b))
		return 0;
	r = binding_move(b, j->m, "");
	if (r < 0)
		return fail(j, b, b->failed, r);
	binding_driver(j->m, b->before.bdf, driver);
	if (strcmp(driver, "vfio-pci") != 0)
		return 0;
	fprintf(j->o->err,
		"pasidctl: %s: vfio-pci takes it again, for it was told to take all %04x:%04x (its option ids, or "
		"new_id); "
		"type: echo %04x %04x > /sys/bus/pci/drivers/vfio-pci/remove_id\n",
		b->before.bdf, b->before.vendor, b->before.device, b->before.vendor, b->before.device);
	return EXIT_REFUSED;
}

/* Rules last: only what has worked is to be done again at each start. */
static int keep(const struct job *j, struct binding *b, bool bind)
{
	int r = 0;

	if (bind && j->o->persist)
		r = persist_write(j->m, &b->before);
	else if (!bind && b->persisted == PERSIST_OURS)
		r = persist_remove(j->m, b->before.bdf);
	return r < 0 ? fail(j, b, "changing the rule for udev", r) : 0;
}

static int carry_out(struct job *j, bool bind)
{
	size_t done = 0;
	int r = 0;

	for (size_t i = 0; r == 0 && i < j->n; i++) {
		done = i + 1;
		r = bind ? bind_one(j, &j->v[i]) : unbind_one(j, &j->v[i]);
	}
	for (size_t i = 0; r == 0 && i < j->n; i++)
		r = keep(j, &j->v[i], bind);
	if (r != 0)
		undo(j, done);
	return r;
}

static void say_result(const struct job *j)
{
	for (size_t i = 0; i < j->n; i++) {
		char driver[MACHINE_NAME_MAX];
		const char *bdf = j->v[i].before.bdf;

		binding_driver(j->m, bdf, driver);
		if (driver[0])
			fprintf(j->o->out, "%s is bound to %s\n", bdf, driver);
		else
			fprintf(j->o->out,
				"%s is bound to no driver: none of this kernel's that are loaded is for it\n", bdf);
	}
}

static void add_string(struct json_object *o, const char *name, const char *v)
{
	json_object_object_add(o, name, v[0] ? json_object_new_string(v) : NULL);
}

static void say_json(const struct job *j)
{
	struct json_object *all = json_object_new_object(), *list = json_object_new_array();

	for (size_t i = 0; i < j->n; i++) {
		const struct device *d = &j->v[i].before;
		struct json_object *o = json_object_new_object();
		char driver[MACHINE_NAME_MAX], id[16];

		snprintf(id, sizeof(id), "%04x:%04x", d->vendor, d->device);
		binding_driver(j->m, d->bdf, driver);
		add_string(o, "bdf", d->bdf);
		add_string(o, "id", id);
		add_string(o, "before", d->driver);
		add_string(o, "now", driver);
		json_object_object_add(o, "at_each_start",
				       json_object_new_boolean(persist_look(j->m, d->bdf) == PERSIST_OURS));
		json_object_array_add(list, o);
	}
	json_object_object_add(all, "dry_run", json_object_new_boolean(j->o->dry_run));
	json_object_object_add(all, "devices", list);
	fprintf(j->o->out, "%s\n",
		json_object_to_json_string_ext(all, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(all);
}

static int run(struct job *j, bool bind)
{
	int r = bind ? refuse_bind(j) : refuse_unbind(j);

	if (r != 0)
		return r;
	if (!j->o->json)
		plan(j, bind ? plan_bind : plan_unbind);
	if (!j->o->dry_run)
		r = carry_out(j, bind);
	if (r == 0 && j->o->json)
		say_json(j);
	else if (r == 0 && !j->o->dry_run)
		say_result(j);
	return r;
}

int bind_devices(const struct machine *m, char (*bdfs)[PCI_BDF_SIZE], size_t n, const struct bind_options *o)
{
	struct job j;
	int r = job_init(&j, m, bdfs, n, o, "bind");

	return r ? r : run(&j, true);
}

int unbind_devices(const struct machine *m, char (*bdfs)[PCI_BDF_SIZE], size_t n, const struct bind_options *o)
{
	struct job j;
	int r = job_init(&j, m, bdfs, n, o, "unbind");

	return r ? r : run(&j, false);
}
