/* SPDX-License-Identifier: MIT */
/*
 * See platform.h. Source: Linux Documentation/admin-guide/kernel-parameters.txt (intel_iommu, amd_iommu, iommu),
 * Documentation/ABI/testing/sysfs-class-iommu-intel-iommu, drivers/iommu/arm/arm-smmu-v3 (the name of a unit); Intel VT-d specification 5.0, 11.4.3 (ECAP).
 */
#include "platform.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

#define CMDLINE_MAX 16384u /* the largest of any architecture is 4096 */
#define ECAP_PASID (1ull << 40)
#define ECAP_SMTS (1ull << 43)

unsigned int platform_parse_release(const char *release)
{
	unsigned int v[2] = {0};

	for (int i = 0; i < 2; i++) {
		if (!isdigit((unsigned char)*release))
			return 0;
		while (isdigit((unsigned char)*release) && v[i] < 1000)
			v[i] = 10 * v[i] + (unsigned int)(*release++ - '0');
		if (i == 0 && *release++ != '.')
			return 0;
	}
	return KERNEL(v[0], v[1]);
}

static bool begins_with(const char *text, const char *with)
{
	return !strncmp(text, with, strlen(with));
}

/* As the kernel: by their beginnings, the last one counts. */
static void parse_intel(struct platform *p, const char *word)
{
	if (begins_with(word, "on"))
		p->intel = SETTING_ON;
	else if (begins_with(word, "off"))
		p->intel = SETTING_OFF;
	else if (begins_with(word, "sm_on"))
		p->scalable = SETTING_ON;
	else if (begins_with(word, "sm_off"))
		p->scalable = SETTING_OFF;
}

static void parse_parameter(struct platform *p, char *parameter)
{
	char *name = strsep(&parameter, "="), *word;
	bool intel = !strcmp(name, "intel_iommu"), amd = !strcmp(name, "amd_iommu"), any = !strcmp(name, "iommu");

	if (!intel && !amd && !any)
		return;
	while ((word = strsep(&parameter, ","))) {
		if (intel)
			parse_intel(p, word);
		else if (begins_with(word, "off"))
			*(amd ? &p->amd : &p->any) = SETTING_OFF;
	}
}

void platform_parse_cmdline(struct platform *p, char *cmdline)
{
	char *parameter;

	while ((parameter = strsep(&cmdline, " \t\n"))) {
		if (!strcmp(parameter, "--"))
			return; /* from here on it is init's */
		parse_parameter(p, parameter);
	}
}

static void read_kernel(const struct machine *m, struct platform *p)
{
	char *cmdline = malloc(CMDLINE_MAX);

	if (cmdline && machine_read(m, cmdline, CMDLINE_MAX, "proc/cmdline") == 0)
		platform_parse_cmdline(p, cmdline);
	free(cmdline);
	machine_read(m, p->release, sizeof(p->release), "proc/sys/kernel/osrelease");
	p->kernel = platform_parse_release(p->release);
}

static void read_ecap(const struct machine *m, struct unit *u)
{
	char text[32], *end;
	unsigned long long ecap;

	if (machine_read(m, text, sizeof(text), "sys/class/iommu/%s/intel-iommu/ecap", u->name) < 0)
		return;
	errno = 0;
	ecap = strtoull(text, &end, 16);
	if (errno || end == text || *end)
		return;
	u->scalable = ecap & ECAP_SMTS;
	u->pasid = u->scalable && (ecap & ECAP_PASID);
}

static void read_unit(const struct machine *m, struct unit *u)
{
	if (machine_has(m, "sys/class/iommu/%s/intel-iommu", u->name))
		u->kind = UNIT_INTEL;
	else if (machine_has(m, "sys/class/iommu/%s/amd-iommu", u->name))
		u->kind = UNIT_AMD;
	else if (begins_with(u->name, "smmu3."))
		u->kind = UNIT_SMMU3;
	else
		u->kind = UNIT_OTHER;
	if (u->kind == UNIT_INTEL)
		read_ecap(m, u);
}

static int read_units(const struct machine *m, struct platform *p)
{
	AUTO_NAMES struct names names = {0};

	if (machine_list(m, &names, "sys/class/iommu") == 0 && names.n) {
		p->units = calloc(names.n, sizeof(*p->units));
		if (!p->units)
			return -ENOMEM;
	}
	for (p->n_units = 0; p->n_units < names.n; p->n_units++) {
		strcpy(p->units[p->n_units].name, names.v[p->n_units]);
		read_unit(m, &p->units[p->n_units]);
	}
	return 0;
}

static bool is_node(const struct machine *m, const char *path)
{
	struct stat st;

	return machine_stat(m, &st, "%s", path) == 0 && !S_ISDIR(st.st_mode);
}

static void read_vfio(const struct machine *m, struct platform *p)
{
	char yes[8];

	p->vfio_pci = machine_has(m, "sys/bus/pci/drivers/vfio-pci");
	p->type1 = machine_has(m, "sys/module/vfio_iommu_type1");
	p->container = is_node(m, "dev/vfio/vfio");
	p->iommufd = is_node(m, "dev/iommu");
	p->denylist_off = machine_read(m, yes, sizeof(yes), "sys/module/vfio_pci/parameters/disable_denylist") == 0 &&
			  yes[0] == 'Y';
}

int platform_read(const struct machine *m, struct platform *ret)
{
	AUTO_NAMES struct names groups = {0};

	*ret = (struct platform){0};
	read_kernel(m, ret);
	read_vfio(m, ret);
	ret->dmar = machine_has(m, "sys/firmware/acpi/tables/DMAR");
	ret->ivrs = machine_has(m, "sys/firmware/acpi/tables/IVRS");
	ret->iort = machine_has(m, "sys/firmware/acpi/tables/IORT");
	machine_list(m, &groups, "sys/kernel/iommu_groups");
	ret->n_groups = groups.n;
	return read_units(m, ret);
}

void platform_fini(struct platform *p)
{
	free(p->units);
	*p = (struct platform){0};
}

const struct unit *platform_unit(const struct platform *p, const char *name)
{
	for (size_t i = 0; i < p->n_units; i++)
		if (!strcmp(p->units[i].name, name))
			return &p->units[i];
	return NULL;
}

bool platform_smmu3(const struct platform *p)
{
	for (size_t i = 0; i < p->n_units; i++)
		if (p->units[i].kind == UNIT_SMMU3)
			return true;
	return false;
}

bool platform_module(const struct machine *m, const struct platform *p, const char *name)
{
	char file[MACHINE_NAME_MAX + 8];

	if (!p->release[0] || strchr(p->release, '/'))
		return false;
	snprintf(file, sizeof(file), "/%s.ko", name);
	return machine_mentions(m, file, "lib/modules/%s/modules.dep", p->release) ||
	       machine_mentions(m, file, "lib/modules/%s/modules.builtin", p->release);
}
