/* SPDX-License-Identifier: MIT */
/* See device.h. Source: Linux Documentation/ABI/testing/sysfs-bus-pci, sysfs-kernel-iommu_groups, sysfs-class-iommu. */
#include "device.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "engine/engine.h"

#define DEVICE "sys/bus/pci/devices/%s/"
#define HEADER_TYPE 0x0eu /* of configuration space; 0 without its highest bit: no bridge */

static const uint16_t denylist[] = {
	/* all Intel's */
	0x0435, 0x0443, /* QAT DH895xCC and its virtual function */
	0x0b25, 0x0cfe, /* DSA and IAX of Sapphire Rapids */
	0x19e2, 0x19e3, /* QAT C3xxx */
	0x37c8, 0x37c9, /* QAT C62x */
};

const struct engine_ops *device_engine(const struct device *d)
{
	const struct transport_ids ids = {.vendor = d->vendor, .device = d->device, .class_code = d->class};
	const struct driver *driver = engine_find(NULL, &ids);

	return driver ? driver->exports->engine : NULL;
}

bool device_denylisted(const struct device *d)
{
	for (size_t i = 0; i < ARRAY_SIZE(denylist); i++)
		if (d->vendor == 0x8086 && d->device == denylist[i])
			return true;
	return false;
}

bool device_has_vfio(const struct device *d)
{
	return !strcmp(d->driver, "vfio-pci");
}

static int read_number(const struct machine *m, const char *bdf, const char *name, unsigned long max,
		       unsigned long *ret)
{
	char text[32], *end;
	int r = machine_read(m, text, sizeof(text), DEVICE "%s", bdf, name);

	if (r < 0)
		return r;
	errno = 0;
	*ret = strtoul(text, &end, 16);
	return errno || end == text || *end || *ret > max ? -EINVAL : 0;
}

static int read_kind(const struct machine *m, struct device *d)
{
	unsigned long vendor = 0, device = 0, class = 0;
	int r = read_number(m, d->bdf, "vendor", UINT16_MAX, &vendor);

	if (r == 0)
		r = read_number(m, d->bdf, "device", UINT16_MAX, &device);
	if (r == 0)
		r = read_number(m, d->bdf, "class", 0xffffff, &class);
	d->vendor = (uint16_t)vendor;
	d->device = (uint16_t)device;
	d->class = (uint32_t) class;
	return r;
}

/* A link that may be missing. */
static int read_link(const struct machine *m, const char *bdf, const char *name, char ret[MACHINE_NAME_MAX])
{
	int r = machine_link(m, ret, MACHINE_NAME_MAX, DEVICE "%s", bdf, name);

	return r == -ENOENT ? 0 : r;
}

static int read_group(const struct machine *m, struct device *d)
{
	char text[MACHINE_NAME_MAX], *end;
	int r = read_link(m, d->bdf, "iommu_group", text);
	long group;

	d->group = -1;
	if (r < 0 || !text[0])
		return r;
	errno = 0;
	group = strtol(text, &end, 10);
	if (errno || *end || group < 0 || group > INT_MAX)
		return -EINVAL;
	d->group = (int)group;
	return 0;
}

/* Kernels before 6.6 have no directory vfio-dev with a device file behind it; before 6.1, none at all. */
static void read_cdev(const struct machine *m, struct device *d)
{
	AUTO_NAMES struct names names = {0};

	if (machine_list(m, &names, DEVICE "vfio-dev", d->bdf) == 0 && names.n == 1 &&
	    !strncmp(names.v[0], "vfio", 4) && machine_has(m, DEVICE "vfio-dev/%s/dev", d->bdf, names.v[0]))
		strcpy(d->cdev, names.v[0]);
}

static void read_override(const struct machine *m, struct device *d)
{
	if (machine_read(m, d->override, sizeof(d->override), DEVICE "driver_override", d->bdf) == 0 &&
	    !strcmp(d->override, "(null)"))
		d->override[0] = '\0';
}

int device_find(const struct machine *m, const char *bdf, struct device *ret)
{
	unsigned char header[HEADER_TYPE + 1];
	size_t n;
	int r;

	*ret = (struct device){.group = -1};
	if (strlen(bdf) >= sizeof(ret->bdf))
		return -EINVAL;
	strcpy(ret->bdf, bdf);
	if (!machine_has(m, "sys/bus/pci/devices/%s", bdf))
		return -ENODEV;
	r = read_kind(m, ret);
	if (r == 0)
		r = read_link(m, bdf, "driver", ret->driver);
	if (r == 0)
		r = read_link(m, bdf, "iommu", ret->unit);
	if (r == 0)
		r = read_group(m, ret);
	if (r < 0)
		return r;
	read_override(m, ret);
	read_cdev(m, ret);
	ret->bridge = machine_bytes(m, header, sizeof(header), &n, DEVICE "config", bdf) == 0 && n == sizeof(header) &&
		      (header[HEADER_TYPE] & 0x7f) != 0;
	return 0;
}

int device_neighbours(const struct machine *m, const struct device *d, struct names *ret)
{
	AUTO_NAMES struct names all = {0};
	char bdf[PCI_BDF_SIZE];
	int r;

	*ret = (struct names){0};
	/* Above a device is its bridge, or the host's, which is no PCI device. */
	if (!machine_has(m, DEVICE "../vendor", d->bdf))
		return -ENOENT;
	r = machine_list(m, &all, DEVICE "..", d->bdf);
	if (r < 0)
		return r;
	for (size_t i = 0; i < all.n; i++)
		if (strcmp(all.v[i], d->bdf) != 0 && pci_parse_bdf(all.v[i], bdf))
			memcpy(all.v[ret->n++], all.v[i], sizeof(all.v[i]));
	ret->v = TAKE_PTR(all.v);
	return 0;
}

static bool ends_with(const char *text, const char *end)
{
	size_t length = strlen(text), n = strlen(end);

	return length >= n && !strcmp(text + length - n, end);
}

/*
 * Linux lets a group go to user space if each of its devices has no driver, or one that leaves DMA to others
 * (driver_managed_dma): pci-stub, the ports' driver, and the many that are a kind of vfio-pci.
 */
static bool driver_hinders(const struct machine *m, const char *path, const char *driver)
{
	if (!driver[0] || !strcmp(driver, "pci-stub") || !strcmp(driver, "pcieport"))
		return false;
	if (ends_with(driver, "vfio-pci") || ends_with(driver, "vfio_pci"))
		return false;
	return !machine_has(m, "%s/vfio-dev", path);
}

static int read_member(const struct machine *m, int group, const char *name, struct member *ret)
{
	char path[128 + MACHINE_NAME_MAX];
	int r;

	snprintf(path, sizeof(path), "sys/kernel/iommu_groups/%d/devices/%s", group, name);
	*ret = (struct member){0};
	strcpy(ret->name, name);
	r = machine_link(m, ret->driver, sizeof(ret->driver), "%s/driver", path);
	if (r < 0 && r != -ENOENT)
		return r;
	ret->hinders = driver_hinders(m, path, ret->driver);
	return 0;
}

bool group_is_made_up(const struct machine *m, int group)
{
	char name[MACHINE_NAME_MAX];

	return machine_read(m, name, sizeof(name), "sys/kernel/iommu_groups/%d/name", group) == 0 &&
	       !strcmp(name, "vfio-noiommu");
}

int group_read(const struct machine *m, const struct device *of, struct group *ret)
{
	AUTO_NAMES struct names names = {0};
	int r = of->group < 0 ? -ENOENT : machine_list(m, &names, "sys/kernel/iommu_groups/%d/devices", of->group);

	*ret = (struct group){0};
	if (r < 0)
		return r;
	ret->v = calloc(names.n ? names.n : 1, sizeof(*ret->v));
	if (!ret->v)
		return -ENOMEM;
	for (size_t i = 0; r == 0 && i < names.n; i++) {
		if (!strcmp(names.v[i], of->bdf))
			continue;
		r = read_member(m, of->group, names.v[i], &ret->v[ret->n]);
		ret->hindering += ret->v[ret->n++].hinders;
	}
	if (r < 0)
		group_fini(ret);
	return r;
}

void group_fini(struct group *g)
{
	free(g->v);
	*g = (struct group){0};
}
