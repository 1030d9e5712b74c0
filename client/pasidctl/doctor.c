/* SPDX-License-Identifier: MIT */
/* See doctor.h. */
#include "doctor.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "engine/engine.h"

/* One examination: of the machine, and maybe of one device. */
struct exam {
	const struct machine *m;
	struct platform platform;
	struct report report;
	const struct device *device; /* NULL: none */
	struct config_space config;
	struct nested nested;
	struct verdict verdict;
	char *text; /* the verdict's */
};

static void exam_fini(struct exam *e)
{
	report_fini(&e->report);
	platform_fini(&e->platform);
	free(e->text);
}

/* 0 or -ENOMEM */
static int exam_make(struct exam *e, const struct machine *m, const struct device *d)
{
	*e = (struct exam){.m = m, .device = d};
	if (platform_read(m, &e->platform) < 0)
		return -ENOMEM;
	doctor_machine(m, &e->platform, &e->report);
	if (d) {
		config_space_read(m, d, &e->config);
		nested_look(m, &e->platform, d, &e->nested);
		doctor_device(m, &e->platform, d, &e->config, &e->report);
		doctor_nested(d, &e->nested, &e->report);
		verdict_make(m, &e->platform, d, &e->config, &e->nested, &e->report, &e->verdict);
		e->text = verdict_text(&e->verdict);
	}
	return e->report.no_memory || (d && !e->text) ? -ENOMEM : 0;
}

static void add_string(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, text ? json_object_new_string(text) : NULL);
}

static struct json_object *device_json(const struct exam *e)
{
	const struct verdict *v = &e->verdict;
	struct json_object *o = json_object_new_object();
	char ids[16];

	snprintf(ids, sizeof(ids), "%04x:%04x", e->device->vendor, e->device->device);
	add_string(o, "bdf", e->device->bdf);
	add_string(o, "id", ids);
	add_string(o, "bound", e->device->driver[0] ? e->device->driver : NULL);
	json_object_object_add(o, "group", e->device->group < 0 ? NULL : json_object_new_int(e->device->group));
	json_object_object_add(o, "shared", json_object_new_boolean(v->shared));
	add_string(o, "how", v->how);
	add_string(o, "modes", v->modes);
	add_string(o, "not_nested", v->not_nested);
	add_string(o, "not_pasid", v->not_pasid[0] ? v->not_pasid : NULL);
	add_string(o, "driver", v->engine ? v->engine->name : NULL);
	add_string(o, "verdict", e->text);
	return o;
}

static void print_json(const struct exam *e, struct json_object *devices, FILE *out)
{
	struct json_object *o = json_object_new_object();

	add_string(o, "kernel", e->platform.release);
	json_object_object_add(o, "findings", report_json(&e->report));
	json_object_object_add(o, "devices", devices);
	fprintf(out, "%s\n",
		json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}

static int no_memory(FILE *err)
{
	fprintf(err, "pasidctl: out of memory\n");
	return EXIT_USAGE;
}

static int examine_device(const struct machine *m, const struct device *d, bool json, FILE *out, FILE *err)
{
	__attribute__((cleanup(exam_fini))) struct exam e;
	struct json_object *devices;

	if (exam_make(&e, m, d) < 0)
		return no_memory(err);
	if (json) {
		devices = json_object_new_array();
		json_object_array_add(devices, device_json(&e));
		print_json(&e, devices, out);
	} else {
		report_print(&e.report, out);
		fprintf(out, "%s\n", e.text);
	}
	return e.verdict.shared ? EXIT_CAN : EXIT_CANNOT;
}

/* Devices that somebody may mean: those that pasidd drives, and those that vfio-pci already has. */
static bool is_meant(const struct device *d)
{
	return device_engine(d) || device_has_vfio(d);
}

static int examine_one_of_many(const struct machine *m, const char *name, struct json_object *devices, FILE *out)
{
	__attribute__((cleanup(exam_fini))) struct exam e = {0};
	char bdf[PCI_BDF_SIZE];
	struct device d;

	if (!pci_parse_bdf(name, bdf) || device_find(m, bdf, &d) < 0 || !is_meant(&d))
		return 0;
	if (exam_make(&e, m, &d) < 0)
		return -ENOMEM;
	if (devices)
		json_object_array_add(devices, device_json(&e));
	else
		fprintf(out, "%s %s\n", d.bdf, e.text);
	return 0;
}

static int examine_all(const struct machine *m, bool json, FILE *out, FILE *err)
{
	__attribute__((cleanup(exam_fini))) struct exam e;
	struct json_object *devices = json ? json_object_new_array() : NULL;
	AUTO_NAMES struct names names = {0};
	int r = exam_make(&e, m, NULL);

	if (r == 0 && !json)
		report_print(&e.report, out);
	machine_list(m, &names, "sys/bus/pci/devices");
	for (size_t i = 0; r == 0 && i < names.n; i++)
		r = examine_one_of_many(m, names.v[i], devices, out);
	if (r < 0) {
		json_object_put(devices);
		return no_memory(err);
	}
	if (json)
		print_json(&e, devices, out);
	return e.report.bad ? EXIT_CANNOT : EXIT_CAN;
}

int doctor(const struct machine *m, const char *bdf, bool json, FILE *out, FILE *err)
{
	struct device d;
	int r;

	if (!machine_has(m, "sys/bus/pci")) {
		fprintf(err, "pasidctl: there is no /sys/bus/pci: no PCI, or sysfs is not mounted\n");
		return EXIT_USAGE;
	}
	if (!bdf)
		return examine_all(m, json, out, err);
	r = device_find(m, bdf, &d);
	if (r == -ENODEV) {
		fprintf(err, "pasidctl: there is no PCI device %s; type: ls /sys/bus/pci/devices\n", bdf);
		return EXIT_USAGE;
	}
	if (r < 0) {
		fprintf(err, "pasidctl: what sysfs says of %s is not understood: %s\n", bdf, strerror(-r));
		return EXIT_USAGE;
	}
	return examine_device(m, &d, json, out, err);
}
