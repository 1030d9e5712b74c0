/* SPDX-License-Identifier: MIT */
/* See doctor.h: what concerns one device. */
#include "doctor.h"

#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "engine/engine.h"

#define TODO_SIZE 512u

static void check_kind(const struct platform *p, const struct device *d, struct report *r)
{
	const struct engine_ops *e = device_engine(d);

	if (d->bridge)
		report_add(r, LEVEL_BAD, "device", NULL, "%s (%04x:%04x) is a bridge, which vfio-pci does not take",
			   d->bdf, d->vendor, d->device);
	else if (e)
		report_add(r, LEVEL_OK, "device", NULL, "%s (%04x:%04x) has pasidd's driver %s", d->bdf, d->vendor,
			   d->device, e->name);
	else
		report_add(r, LEVEL_WARN, "device", NULL,
			   "%s (%04x:%04x) has no driver in pasidd: write one, see docs/driver.md", d->bdf, d->vendor,
			   d->device);
	if (!device_denylisted(d))
		return;
	if (p->denylist_off)
		report_add(
			r, LEVEL_WARN, "denylist", NULL,
			"vfio-pci has it on its list of devices that are not safe with untrusted users, and was told "
			"to take it all the same");
	else
		report_add(r, LEVEL_BAD, "denylist", DEVICE_DENYLIST_TODO,
			   "vfio-pci refuses this device: it is not safe with untrusted users on all systems");
}

static void say_member(const struct device *d, const struct member *v, struct report *r)
{
	report_add(r, v->hinders ? LEVEL_BAD : LEVEL_OK, "group", NULL, "%d has also %s, %s%s%s", d->group, v->name,
		   v->driver[0] ? "bound to " : "without a driver", v->driver,
		   v->hinders ? ", which keeps the group from being given away" : "");
}

/* One command that takes the device and all that hinder it; a device that is no PCI device cannot be had this way. */
static void say_not_viable(const struct device *d, const struct group *g, struct report *r)
{
	char todo[TODO_SIZE], bdf[PCI_BDF_SIZE];
	size_t n = (size_t)snprintf(todo, sizeof(todo), "pasidctl bind %s", d->bdf);

	for (size_t i = 0; i < g->n; i++)
		if (g->v[i].hinders && pci_parse_bdf(g->v[i].name, bdf) && n + sizeof(bdf) + 1 < sizeof(todo))
			n += (size_t)sprintf(todo + n, " %s", bdf);
	report_add(r, LEVEL_BAD, "group", todo,
		   "%d is not viable: %zu of the other devices in it %s used by the kernel", d->group, g->hindering,
		   g->hindering == 1 ? "is" : "are");
}

static void check_group(const struct machine *m, const struct device *d, struct report *r)
{
	AUTO_GROUP struct group g = {0};

	if (d->group < 0) {
		report_add(r, LEVEL_BAD, "group", NULL, "%s is in none: no IOMMU is in front of it", d->bdf);
		return;
	}
	if (group_is_made_up(m, d->group)) {
		report_add(r, LEVEL_BAD, "group", NULL,
			   "no IOMMU is in front of %s: VFIO was told to do without one (enable_unsafe_noiommu_mode)",
			   d->bdf);
		return;
	}
	if (group_read(m, d, &g) < 0) {
		report_add(r, LEVEL_BAD, "group", NULL, "what is in group %d cannot be read", d->group);
		return;
	}
	if (g.hindering)
		say_not_viable(d, &g, r);
	else
		report_add(r, LEVEL_OK, "group", NULL, "%d is viable: %s", d->group,
			   g.n ? "the others in it are in nobody's way" : "the device is alone in it");
	for (size_t i = 0; i < g.n; i++)
		say_member(d, &g.v[i], r);
}

static void check_driver(const struct device *d, struct report *r)
{
	char todo[64];

	snprintf(todo, sizeof(todo), "pasidctl bind %s", d->bdf);
	if (device_has_vfio(d))
		report_add(r, LEVEL_OK, "driver", NULL, "it is bound to vfio-pci");
	else if (d->driver[0])
		report_add(r, LEVEL_BAD, "driver", todo, "it is bound to %s, not to vfio-pci", d->driver);
	else
		report_add(r, LEVEL_BAD, "driver", todo, "it is bound to no driver");
}

static const char *user_name(uid_t uid, char *buf, size_t size)
{
	const struct passwd *pw = getpwuid(uid);

	snprintf(buf, size, "%s%.32s", pw ? "" : "uid ", pw ? pw->pw_name : "");
	if (!pw)
		snprintf(buf, size, "uid %u", (unsigned int)uid);
	return buf;
}

/* Who may open it, and may we? As a service pasidd may by its group (systemd/70-pasidd.rules), or is handed it open. */
static void check_node(const struct machine *m, const char *about, enum level missing, struct report *r,
		       const char *fmt, ...) __attribute__((format(printf, 5, 6)));
static void check_node(const struct machine *m, const char *about, enum level missing, struct report *r,
		       const char *fmt, ...)
{
	char path[128], owner[64];
	struct stat st;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(path, sizeof(path), fmt, ap);
	va_end(ap);
	if (machine_stat(m, &st, "%s", path) < 0) {
		report_add(r, missing, about, NULL, "there is no /%s", path);
		return;
	}
	user_name(st.st_uid, owner, sizeof(owner));
	report_add(r, LEVEL_OK, about, NULL, "/%s is there: mode %04o, of %s%s", path, (unsigned int)st.st_mode & 07777,
		   owner, machine_may_open(m, path) ? "" : "; you may not open it");
}

static void check_files(const struct machine *m, const struct platform *p, const struct device *d, struct report *r)
{
	if (!device_has_vfio(d))
		return;
	if (d->group >= 0 && (p->container || !p->iommufd))
		check_node(m, "type1", d->cdev[0] && p->iommufd ? LEVEL_WARN : LEVEL_BAD, r, "dev/vfio/%d", d->group);
	if (!p->iommufd)
		return;
	if (d->cdev[0])
		check_node(m, "iommufd", LEVEL_WARN, r, "dev/vfio/devices/%s", d->cdev);
	else
		report_add(r, p->container ? LEVEL_WARN : LEVEL_BAD, "iommufd", NULL,
			   "the device has no file in /dev/vfio/devices: a kernel with CONFIG_VFIO_DEVICE_CDEV");
}

/* With its bus: so resets pasidd a device that has no reset of its own, if nobody else is on it (transport/vfio_reset.c). */
static void check_bus_reset(const struct machine *m, const struct device *d, struct report *r)
{
	AUTO_NAMES struct names others = {0};
	struct device other;
	char todo[64];

	if (device_neighbours(m, d, &others) < 0) {
		report_add(r, LEVEL_WARN, "reset", NULL,
			   "it cannot be reset: if it hangs, it is closed and tried again, and may stay lost until "
			   "the machine is started again");
		return;
	}
	for (size_t i = 0; i < others.n; i++) {
		if (device_find(m, others.v[i], &other) < 0 || other.group != d->group) {
			report_add(r, LEVEL_WARN, "reset", NULL,
				   "it cannot be reset without its bus, and %s there is in another group", others.v[i]);
			return;
		}
		if (!device_has_vfio(&other)) {
			snprintf(todo, sizeof(todo), "pasidctl bind %s", other.bdf);
			report_add(r, LEVEL_WARN, "reset", todo,
				   "it cannot be reset without its bus, and %s there is not bound to vfio-pci",
				   other.bdf);
			return;
		}
	}
	report_add(r, LEVEL_OK, "reset", NULL, "it can be, with all of its bus: %zu %s", others.n + 1,
		   others.n ? "devices" : "device");
}

static void check_reset(const struct machine *m, const struct device *d, struct report *r)
{
	char methods[128];

	if (machine_read(m, methods, sizeof(methods), "sys/bus/pci/devices/%s/reset_method", d->bdf) < 0 || !methods[0])
		check_bus_reset(m, d, r);
	else
		report_add(r, LEVEL_OK, "reset", NULL, "it can be: %s", methods);
}

static void check_pasid(const struct device *d, const struct config_space *c, struct report *r)
{
	char todo[64];

	snprintf(todo, sizeof(todo), "sudo pasidctl doctor %s", d->bdf);
	if (c->state == CONFIG_NO_RIGHT)
		report_add(r, LEVEL_WARN, "pasid", todo, "only root may read all of its configuration space");
	else if (c->state == CONFIG_UNREADABLE)
		report_add(r, LEVEL_WARN, "pasid", NULL, "its configuration space cannot be read");
	else if (!c->pasid)
		report_add(r, LEVEL_WARN, "pasid", NULL,
			   "it has no PASID capability (read from sysfs, not through VFIO, "
			   "which hides it)");
	else
		report_add(r, c->prefix ? LEVEL_OK : LEVEL_WARN, "pasid", NULL,
			   "it has PASIDs of %u bits, %s ATS, %s PRI%s (read from sysfs, not through VFIO, which hides "
			   "it)",
			   c->width, c->ats ? "with" : "without", c->pri ? "with" : "without",
			   c->prefix ? "" : "; without End-End TLP Prefixes, so that Linux does not switch them on");
}

void doctor_device(const struct machine *m, const struct platform *p, const struct device *d,
		   const struct config_space *config, struct report *r)
{
	check_kind(p, d, r);
	check_group(m, d, r);
	check_driver(d, r);
	check_files(m, p, d, r);
	check_reset(m, d, r);
	check_pasid(d, config, r);
}
