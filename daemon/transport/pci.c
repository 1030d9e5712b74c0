/* SPDX-License-Identifier: MIT */
/* See pci.h. Source: Linux Documentation/ABI/testing/sysfs-bus-pci, Documentation/driver-api/vfio.rst. */
#include "transport/pci.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Is text of the form of pattern, where 'h' stands for a hexadecimal digit, 'o' for an octal one? */
static bool has_form(const char *text, const char *pattern)
{
	for (; *pattern; pattern++, text++) {
		if (*pattern == 'h'   ? !isxdigit((unsigned char)*text)
		    : *pattern == 'o' ? *text < '0' || *text > '7'
				      : *text != *pattern)
			return false;
	}
	return *text == '\0';
}

bool pci_parse_bdf(const char *text, char bdf[PCI_BDF_SIZE])
{
	const char *domain = "";

	if (has_form(text, "hh:hh.o"))
		domain = "0000:";
	else if (!has_form(text, "hhhh:hh:hh.o"))
		return false;
	snprintf(bdf, PCI_BDF_SIZE, "%s%s", domain, text);
	for (char *c = bdf; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	return true;
}

/* The last component of what a link of the device points to; "" if there is no such link. */
static int link_name(const char *device, const char *link, char *ret, size_t size)
{
	char path[PATH_MAX], target[PATH_MAX];
	const char *name;
	ssize_t n;

	if (snprintf(path, sizeof(path), "%s/%s", device, link) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0 && errno != ENOENT)
		return -errno;
	target[n < 0 ? 0 : n] = '\0';
	name = strrchr(target, '/');
	name = name ? name + 1 : target;
	return snprintf(ret, size, "%s", name) < (int)size ? 0 : -ENAMETOOLONG;
}

static int find_cdev(const char *device, char *ret, size_t size)
{
	char path[PATH_MAX], number[300];
	struct dirent *e;
	DIR *d;

	ret[0] = '\0';
	if (snprintf(path, sizeof(path), "%s/vfio-dev", device) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	d = opendir(path);
	if (!d)
		return errno == ENOENT ? 0 : -errno;
	while ((e = readdir(d))) {
		/* Without a number there is no file: Linux 6.1 to 6.5, or CONFIG_VFIO_DEVICE_CDEV is off. */
		snprintf(number, sizeof(number), "%s/dev", e->d_name);
		if (!strncmp(e->d_name, "vfio", 4) && strlen(e->d_name) < size &&
		    faccessat(dirfd(d), number, F_OK, 0) == 0)
			strcpy(ret, e->d_name);
	}
	closedir(d);
	return 0;
}

int pci_find(const char *sysfs, const char *bdf, struct pci_place *ret)
{
	char device[PATH_MAX], group[16];
	int r;

	if (snprintf(device, sizeof(device), "%s/bus/pci/devices/%s", sysfs, bdf) >= (int)sizeof(device))
		return -ENAMETOOLONG;
	if (access(device, F_OK) < 0)
		return errno == ENOENT ? -ENODEV : -errno;
	*ret = (struct pci_place){.group = -1};
	snprintf(ret->bdf, sizeof(ret->bdf), "%s", bdf);
	r = link_name(device, "driver", ret->driver, sizeof(ret->driver));
	if (r == 0)
		r = link_name(device, "iommu_group", group, sizeof(group));
	if (r == 0 && group[0])
		ret->group = atoi(group);
	return r == 0 ? find_cdev(device, ret->cdev, sizeof(ret->cdev)) : r;
}

int pci_msi_window(const char *sysfs, int group, struct range *ret)
{
	char path[PATH_MAX], line[128], type[16];
	unsigned long long first, last;
	int r = -ENOENT;
	FILE *f;

	if (snprintf(path, sizeof(path), "%s/kernel/iommu_groups/%d/reserved_regions", sysfs, group) >=
	    (int)sizeof(path))
		return -ENAMETOOLONG;
	f = fopen(path, "re");
	if (!f)
		return -errno;
	while (r < 0 && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%llx %llx %15s", &first, &last, type) != 3 || strcmp(type, "msi") != 0 ||
		    first > last)
			continue;
		*ret = (struct range){first, last};
		r = 0;
	}
	fclose(f);
	return r;
}
