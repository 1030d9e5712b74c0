/* SPDX-License-Identifier: MIT */
/* See binding.h. Source: Linux Documentation/ABI/testing/sysfs-bus-pci (driver_override, drivers_probe, unbind). */
#include "binding.h"

#include <errno.h>
#include <string.h>

int binding_init(struct binding *b, const struct machine *m, const char *bdf)
{
	int r;

	*b = (struct binding){0};
	r = device_find(m, bdf, &b->before);
	if (r == 0)
		b->persisted = persist_look(m, bdf);
	return r;
}

void binding_driver(const struct machine *m, const char *bdf, char ret[MACHINE_NAME_MAX])
{
	machine_link(m, ret, MACHINE_NAME_MAX, "sys/bus/pci/devices/%s/driver", bdf);
}

/* An empty line clears it. */
static int set_override(const struct machine *m, const char *bdf, const char *driver)
{
	return machine_store(m, driver[0] ? driver : "\n", "sys/bus/pci/devices/%s/driver_override", bdf);
}

static int leave_driver(const struct machine *m, const char *bdf)
{
	return machine_store(m, bdf, "sys/bus/pci/devices/%s/driver/unbind", bdf);
}

/* A device that has a driver which it may keep is left with it: an override says which, none says any but vfio-pci. */
static bool may_stay(const struct device *d, const char *override)
{
	if (override[0])
		return !strcmp(d->driver, override);
	return !device_has_vfio(d);
}

int binding_move(struct binding *b, const struct machine *m, const char *override)
{
	const char *bdf = b->before.bdf;
	int r;

	b->failed = "setting driver_override";
	r = set_override(m, bdf, override);
	if (r == 0 && b->before.driver[0] && !may_stay(&b->before, override)) {
		b->failed = "taking it from its driver";
		r = leave_driver(m, bdf);
	}
	if (r == 0) {
		b->failed = "letting the kernel choose its driver";
		r = machine_store(m, bdf, "sys/bus/pci/drivers_probe");
	}
	return r;
}

static int restore_driver(const struct binding *b, const struct machine *m)
{
	const char *bdf = b->before.bdf;
	char driver[MACHINE_NAME_MAX];
	int r = 0;

	binding_driver(m, bdf, driver);
	if (!strcmp(driver, b->before.driver))
		return 0;
	if (driver[0])
		r = leave_driver(m, bdf);
	if (r == 0 && b->before.driver[0])
		r = machine_store(m, bdf, "sys/bus/pci/drivers/%s/bind", b->before.driver);
	return r;
}

static int restore_persisted(const struct binding *b, const struct machine *m)
{
	enum persist now = persist_look(m, b->before.bdf);

	if (now == b->persisted || now == PERSIST_FOREIGN)
		return 0; /* a file that came in between is its maker's */
	return b->persisted == PERSIST_OURS ? persist_write(m, &b->before) : persist_remove(m, b->before.bdf);
}

/* The override first: it decides which drivers may have the device. */
int binding_restore(const struct binding *b, const struct machine *m)
{
	char now[MACHINE_NAME_MAX] = "";
	int r = 0, r2, r3;

	machine_read(m, now, sizeof(now), "sys/bus/pci/devices/%s/driver_override", b->before.bdf);
	if (strcmp(strcmp(now, "(null)") ? now : "", b->before.override) != 0)
		r = set_override(m, b->before.bdf, b->before.override);
	r2 = restore_driver(b, m);
	r3 = restore_persisted(b, m);
	return r < 0 ? r : r2 < 0 ? r2 : r3;
}
