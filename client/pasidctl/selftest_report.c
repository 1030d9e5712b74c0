/* SPDX-License-Identifier: MIT */
/* See selftest_run.h: what a maintainer asks first. */
#include <inttypes.h>
#include <json-c/json.h>
#include <sys/utsname.h>

#include "base/util.h"
#include "device.h"
#include "selftest_run.h"

static const char *mode_name(uint32_t mode)
{
	static const char *const names[] = {
		[PASID_MODE_GPU_MMU] = "gpu-mmu",     [PASID_MODE_GLOBAL] = "global (no isolation)",
		[PASID_MODE_EXCLUSIVE] = "exclusive", [PASID_MODE_NESTED] = "nested",
		[PASID_MODE_PASID] = "pasid",
	};

	return mode < ARRAY_SIZE(names) && names[mode] ? names[mode] : "unknown to this pasidctl";
}

/* Which of them the daemon drives it does not tell; most machines have one. */
static void report_vfio(FILE *out, const struct machine *m)
{
	AUTO_NAMES struct names names = {0};
	bool none = true;

	fprintf(out, "vfio-pci:  ");
	(void)machine_list(m, &names, "sys/bus/pci/devices");
	for (size_t i = 0; i < names.n; i++) {
		char bdf[PCI_BDF_SIZE];
		struct device d;

		if (!pci_parse_bdf(names.v[i], bdf) || device_find(m, bdf, &d) < 0 || !device_has_vfio(&d))
			continue;
		fprintf(out, "%s%s (%04x:%04x)%s", none ? "" : ", ", d.bdf, d.vendor, d.device,
			d.cdev[0] ? " with a device file" : "");
		none = false;
	}
	fprintf(out, "%s\n", none ? "no device" : "");
}

static void report_device(FILE *out, const struct pasid_device_info *i)
{
	fprintf(out, "device:    %.31s, driver %.31s, mode %s\n", i->name, i->engine, mode_name(i->mode));
	fprintf(out,
		"           slots %u, page sizes 0x%" PRIx64 ", addresses 0x%" PRIx64 "-0x%" PRIx64
		", features 0x%" PRIx64 ", PASID bits %u, submit_max %u, job_limit_ms %u\n",
		i->slots, i->page_sizes, i->iova_first, i->iova_last, i->features, i->pasid_bits, i->submit_max,
		i->job_limit_ms);
}

static void report_result(const struct run *r)
{
	const unsigned int *n = r->count;
	unsigned int all = n[OUTCOME_OK] + n[OUTCOME_FAIL] + n[OUTCOME_SKIP] + n[OUTCOME_UNTRIED];

	fprintf(r->out, "result:    ");
	if (n[OUTCOME_FAIL])
		fprintf(r->out, "%u of %u checks FAILED", n[OUTCOME_FAIL], all);
	else if (n[OUTCOME_UNTRIED])
		fprintf(r->out, "%u of %u checks could not be made, nothing failed", n[OUTCOME_UNTRIED], all);
	else
		fprintf(r->out, "all is well");
	fprintf(r->out, "; %u ok, %u not for this device; %.1f s\n", n[OUTCOME_OK], n[OUTCOME_SKIP],
		(double)(util_now_ns() - r->begun) / 1e9);
}

/* ---- for programs ---- */

static void add_number(struct json_object *o, const char *name, uint64_t v)
{
	json_object_object_add(o, name, json_object_new_uint64(v));
}

static void add_string(struct json_object *o, const char *name, const char *v)
{
	json_object_object_add(o, name, v ? json_object_new_string(v) : NULL);
}

static struct json_object *device_json(const struct pasid_device_info *i)
{
	struct json_object *o = json_object_new_object();

	add_string(o, "name", i->name);
	add_string(o, "driver", i->engine);
	add_string(o, "mode", mode_name(i->mode));
	add_number(o, "slots", i->slots);
	add_number(o, "page_sizes", i->page_sizes);
	add_number(o, "iova_first", i->iova_first);
	add_number(o, "iova_last", i->iova_last);
	add_number(o, "features", i->features);
	add_number(o, "pasid_bits", i->pasid_bits);
	add_number(o, "submit_max", i->submit_max);
	add_number(o, "job_limit_ms", i->job_limit_ms);
	return o;
}

static void report_json(const struct run *r, const struct utsname *u)
{
	struct json_object *o = json_object_new_object(), *counts = json_object_new_object();

	add_string(o, "version", PASIDD_VERSION);
	add_number(o, "seed", r->o->seed);
	add_string(o, "kernel", u->release);
	add_string(o, "machine", u->machine);
	json_object_object_add(o, "device", device_json(&r->told->info));
	add_string(o, "one_user", r->why_one_uid);
	add_number(o, "job_ns", r->told->job_ns);
	json_object_object_add(o, "checks", json_object_get(r->checks_said));
	add_number(counts, "ok", r->count[OUTCOME_OK]);
	add_number(counts, "failed", r->count[OUTCOME_FAIL]);
	add_number(counts, "skipped", r->count[OUTCOME_SKIP]);
	add_number(counts, "untried", r->count[OUTCOME_UNTRIED]);
	json_object_object_add(o, "counts", counts);
	json_object_object_add(o, "seconds", json_object_new_double((double)(util_now_ns() - r->begun) / 1e9));
	fprintf(r->out, "%s\n",
		json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}

/* ---- both ---- */

void report_run(const struct run *r, const struct machine *m)
{
	struct utsname u = {0};

	(void)uname(&u);
	if (r->checks_said) {
		report_json(r, &u);
		return;
	}
	fprintf(r->out, "\npasidctl:  %s selftest %s --seed 0x%" PRIx64 "\n", PASIDD_VERSION, r->o->device, r->o->seed);
	fprintf(r->out, "kernel:    %s %s\n", u.release, u.machine);
	report_device(r->out, &r->told->info);
	report_vfio(r->out, m);
	if (r->why_one_uid)
		fprintf(r->out, "bank, thief: two processes of one user: %s\n", r->why_one_uid);
	else
		fprintf(r->out, "bank, thief: uids %u and %u\n", r->bank_uid, r->thief_uid);
	if (r->told->job_ns)
		fprintf(r->out, "a job:     %.3f ms\n", (double)r->told->job_ns / 1e6);
	report_result(r);
}
