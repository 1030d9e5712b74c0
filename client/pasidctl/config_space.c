/* SPDX-License-Identifier: MIT */
/* See config_space.h. Source: PCI Express Base Specification 6.0, 7.5.3 (Express), 7.6.3 (extended), 7.8.9 (PASID). */
#include "config_space.h"

#include <stdint.h>

#define SIZE_HEADER 64u
#define SIZE_PCI 256u
#define SIZE_EXPRESS 4096u
#define STATUS 0x06u
#define STATUS_CAPABILITIES 0x10u
#define POINTER 0x34u
#define CAP_EXPRESS 0x10u
#define EXPRESS_CAP2 0x24u
#define CAP2_PREFIX (1u << 21)
#define EXT_ATS 0x0fu
#define EXT_PRI 0x13u
#define EXT_PASID 0x1bu

static uint32_t get32(const unsigned char *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Lists may be circles: a step for each place where a capability could be. */
static void parse_capabilities(const unsigned char *bytes, struct config_space *ret)
{
	unsigned int at = bytes[POINTER] & ~3u;

	if (!(bytes[STATUS] & STATUS_CAPABILITIES))
		return;
	for (unsigned int steps = SIZE_PCI / 4; steps && at >= SIZE_HEADER && at < SIZE_PCI; steps--) {
		if (bytes[at] == CAP_EXPRESS && at + EXPRESS_CAP2 + 4 <= SIZE_PCI)
			ret->prefix = get32(bytes + at + EXPRESS_CAP2) & CAP2_PREFIX;
		at = bytes[at + 1] & ~3u;
	}
}

static void parse_extended(const unsigned char *bytes, struct config_space *ret)
{
	unsigned int at = SIZE_PCI;

	for (unsigned int steps = SIZE_EXPRESS / 4; steps && at >= SIZE_PCI && at <= SIZE_EXPRESS - 8; steps--) {
		uint32_t head = get32(bytes + at);

		if (head == 0 || head == UINT32_MAX)
			return;
		ret->ats |= (head & 0xffff) == EXT_ATS;
		ret->pri |= (head & 0xffff) == EXT_PRI;
		if ((head & 0xffff) == EXT_PASID) {
			ret->pasid = true;
			ret->width = bytes[at + 5] & 0x1f;
		}
		at = head >> 20 & ~3u;
	}
}

void config_space_parse(const unsigned char *bytes, size_t n, struct config_space *ret)
{
	*ret = (struct config_space){.state = n >= SIZE_EXPRESS  ? CONFIG_READ
					      : n >= SIZE_PCI    ? CONFIG_NO_EXTENDED
					      : n >= SIZE_HEADER ? CONFIG_NO_RIGHT
								 : CONFIG_UNREADABLE};
	if (ret->state == CONFIG_READ || ret->state == CONFIG_NO_EXTENDED)
		parse_capabilities(bytes, ret);
	if (ret->state == CONFIG_READ)
		parse_extended(bytes, ret);
}

void config_space_read(const struct machine *m, const struct device *d, struct config_space *ret)
{
	unsigned char bytes[SIZE_EXPRESS];
	size_t n = 0;
	int r = machine_bytes(m, bytes, sizeof(bytes), &n, "sys/bus/pci/devices/%s/config", d->bdf);

	config_space_parse(bytes, r < 0 ? 0 : n, ret);
}
