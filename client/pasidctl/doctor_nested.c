/* SPDX-License-Identifier: MIT */
/* See doctor.h: what speaks for and against mode `nested` (docs/vfio.md) before a device is opened. */
#include "doctor.h"

#include <stdlib.h>

#include "engine/engine.h"

#define REST                                                                                                       \
	"; what else it takes pasidd sees when it opens the device: CONFIG_ARM_SMMU_V3_IOMMUFD, an SMMU with two " \
	"stages, "                                                                                                 \
	"4 KiB pages and 40 address bits, a device with one stream id"
#define S2FWB ": mode nested only if its SMMU has S2FWB"

_Static_assert(KERNEL_NESTED == KERNEL_PASID, "doctor_without() speaks of both");

/* As service/setup.c has it; a driver yet to be written may be. */
static bool driver_fits(const struct device *d)
{
	const struct engine_ops *e = device_engine(d);

	return !e || (e->reads && !e->ro_bytes && !e->rw_bytes);
}

static uint32_t segment(const struct device *d)
{
	return (uint32_t)strtoul(d->bdf, NULL, 16);
}

void nested_look(const struct machine *m, const struct platform *p, const struct device *d, struct nested *ret)
{
	const struct unit *u = platform_unit(p, d->unit);

	*ret = (struct nested){.can = CAN_NOT_MEANT};
	if (!u || u->kind != UNIT_SMMU3 || !driver_fits(d))
		return;
	ret->why_not = doctor_without(p, doctor_way(m, p, d));
	if (ret->why_not) {
		ret->can = CAN_NOT;
		return;
	}
	ret->iort = iort_read(m, segment(d));
	ret->can = ret->iort == IORT_COHERENT ? CAN_LIKELY : CAN_MAYBE;
}

/* Sysfs does not show S2FWB, with which an SMMU does without the firmware's word. */
static const char *firmware_says(enum iort iort)
{
	switch (iort) {
	case IORT_NONE:
		return "the firmware has no ACPI table IORT, the one place where Linux looks whether a device's "
		       "accesses are "
		       "coherent (CANWBS)" S2FWB;
	case IORT_NO_ROOT:
		return "the firmware's table IORT does not know its PCI segment, so that nothing says that its "
		       "accesses are "
		       "coherent (CANWBS)" S2FWB;
	case IORT_NOT_COHERENT:
		return "the firmware does not say that its accesses are coherent (CANWBS in IORT)" S2FWB;
	default:
		return "the firmware's table IORT is not understood; unless it says that accesses are coherent "
		       "(CANWBS)" S2FWB;
	}
}

void doctor_nested(const struct device *d, const struct nested *n, struct report *r)
{
	char todo[64];

	snprintf(todo, sizeof(todo), "sudo pasidctl doctor %s", d->bdf);
	if (n->can == CAN_NOT)
		report_add(r, LEVEL_WARN, "nested", NULL, "%s: no mode nested", n->why_not);
	else if (n->can == CAN_LIKELY)
		report_add(r, LEVEL_OK, "nested", NULL,
			   "the firmware says that its accesses are coherent (CANWBS in IORT)" REST);
	else if (n->can == CAN_MAYBE && n->iort == IORT_NO_RIGHT)
		report_add(r, LEVEL_WARN, "nested", todo,
			   "only root may read whether the firmware says that its accesses are coherent (CANWBS in "
			   "IORT)" REST);
	else if (n->can == CAN_MAYBE)
		report_add(r, LEVEL_WARN, "nested",
			   "in pasidd's configuration \"mode\": \"nested\", \"fallback\": \"exclusive\"", "%s" REST,
			   firmware_says(n->iort));
}
