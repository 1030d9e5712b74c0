/* SPDX-License-Identifier: MIT */
/* See doctor.h: what all findings come to. */
#include "doctor.h"

#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

/* Before it is bound, a device has no device file: then what the kernel would give it is said. */
const char *doctor_way(const struct machine *m, const struct platform *p, const struct device *d)
{
	bool file = device_has_vfio(d) ? d->cdev[0] && machine_has(m, "dev/vfio/devices/%s", d->cdev)
				       : p->kernel >= KERNEL_CDEV;

	if (p->iommufd && file)
		return "iommufd";
	return p->container ? "type1" : NULL;
}

const char *doctor_without(const struct platform *p, const char *way)
{
	if (!p->iommufd)
		return "this kernel has no iommufd";
	if (p->kernel && p->kernel < KERNEL_PASID)
		return "this kernel is older than 6.15";
	if (!way || strcmp(way, "iommufd") != 0)
		return "the device has no file in /dev/vfio/devices";
	return NULL;
}

static const char *unit_without_pasid(const struct platform *p, const struct unit *u)
{
	if (!u)
		return NULL; /* not said: nothing known against it */
	if (u->kind == UNIT_AMD)
		return "AMD's IOMMU attaches none of user space";
	if (u->kind != UNIT_INTEL)
		return NULL;
	if (!u->scalable)
		return "the IOMMU has no scalable mode";
	if (p->scalable == SETTING_OFF)
		return "scalable mode is off";
	return u->pasid ? NULL : "the IOMMU has no PASIDs";
}

static const char *device_without_pasid(const struct config_space *c)
{
	if (c->state == CONFIG_NO_RIGHT || c->state == CONFIG_UNREADABLE)
		return "only root can see whether the device has PASIDs";
	if (!c->pasid)
		return "the device has no PASID capability";
	return c->prefix ? NULL : "the device has no End-End TLP Prefixes";
}

/* The first reason, from the kernel to the driver; NULL: none. */
static const char *why_not_pasid(const struct platform *p, const struct device *d, const struct config_space *c,
				 const char *how)
{
	const char *why = doctor_without(p, how);

	if (!why)
		why = unit_without_pasid(p, platform_unit(p, d->unit));
	return why ? why : device_without_pasid(c);
}

/* Those that need no PASID, as service/setup.c has it; with a driver yet to be written, what needs least of the device. */
static const char *plain_modes(const struct engine_ops *e)
{
	return e && e->translator ? "gpu-mmu, global" : "exclusive";
}

static const struct finding *first_bad(const struct report *r)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->v[i].level == LEVEL_BAD)
			return &r->v[i];
	return NULL;
}

void verdict_make(const struct machine *m, const struct platform *p, const struct device *d,
		  const struct config_space *config, const struct nested *nested, const struct report *r,
		  struct verdict *ret)
{
	const char *why;
	bool pasid;

	*ret = (struct verdict){.how = doctor_way(m, p, d), .engine = device_engine(d), .worst = first_bad(r)};
	ret->shared = !ret->worst && ret->how;
	why = why_not_pasid(p, d, config, ret->how);
	pasid = !why && (!ret->engine || ret->engine->tags_pasid);
	/* What is the best for the device comes first. */
	snprintf(ret->modes, sizeof(ret->modes), "%s%s%s%s", nested->can == CAN_LIKELY ? "nested, " : "",
		 plain_modes(ret->engine), pasid ? ", pasid" : "", nested->can == CAN_MAYBE ? ", maybe nested" : "");
	ret->not_nested = nested->can == CAN_NOT ? nested->why_not : NULL;
	if (why)
		snprintf(ret->not_pasid, sizeof(ret->not_pasid), "%s", why);
	else if (!pasid)
		snprintf(ret->not_pasid, sizeof(ret->not_pasid),
			 "the driver %s tags no access with its PASID, the machine could (%u bits)", ret->engine->name,
			 config->width);
}

char *verdict_text(const struct verdict *v)
{
	const char *driver = v->engine ? v->engine->name : "none, see docs/driver.md";
	const char *todo = v->worst && v->worst->todo ? v->worst->todo : NULL;
	char *text = NULL;
	int n;

	if (v->shared)
		n = asprintf(&text, "can be shared: %s (%s)%s%s%s%s; driver: %s", v->modes, v->how,
			     v->not_nested ? "; not nested: " : "", v->not_nested ? v->not_nested : "",
			     v->not_pasid[0] ? "; not pasid: " : "", v->not_pasid, driver);
	else
		n = asprintf(&text, "cannot be shared as it is: %s: %s%s%s; driver: %s",
			     v->worst ? v->worst->about : "vfio",
			     v->worst ? v->worst->text : "the kernel offers no way", todo ? "; type: " : "",
			     todo ? todo : "", driver);
	return n < 0 ? NULL : text;
}
