/* SPDX-License-Identifier: MIT */
/*
 * Reset of a device: of the function alone where the device has one (FLR, power management, a bus with nobody else on it:
 * the kernel chooses), else of the whole slot or bus ("hot reset"), which takes along what else is on it. That is done only
 * if all of it is ours and idle. The kernel gives the device its configuration back, bus mastering and interrupts included.
 *
 * The kernel checks this, too (drivers/vfio/pci/vfio_pci_core.c, vfio_pci_dev_set_hot_reset), but it would reset a device of
 * ours that works, and says EINVAL to everything.
 *
 * Source: Linux include/uapi/linux/vfio.h, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.
 */
#include "transport/vfio_priv.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"
#include "transport/kernel_abi.h"

#define MAX_AFFECTED 256u /* the functions of a bus */

union affected {
	struct vfio_pci_hot_reset_info info;
	uint8_t bytes[sizeof(struct vfio_pci_hot_reset_info) + MAX_AFFECTED * sizeof(struct vfio_pci_dependent_device)];
};

/* Which devices would be reset? */
static int ask_affected(const struct vfio_device *d, union affected *a, struct vfio_why *why)
{
	int r;

	*a = (union affected){.info.argsz = sizeof(*a)};
	r = ioctl(d->fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &a->info) < 0 ? -errno : 0;
	if (r == 0 && a->info.count > MAX_AFFECTED)
		r = -ENOSPC;
	if (r == -ENODEV)
		return vfio_fail(why, r, "it has no reset, neither of its own nor with its bus");
	return r < 0 ? vfio_fail(why, r, "asking what a reset of its bus takes along (%u devices, of at most %u): %s",
				 a->info.count, MAX_AFFECTED, strerror(-r))
		     : 0;
}

/* A device in a group that we hold can be opened by nobody but us, and we open one of a container. With an iommufd the
 * kernel says of each device whether that holds; one that we have opened, too, has a number instead. */
static bool is_idle(const struct vfio_pci_hot_reset_info *info, const struct vfio_pci_dependent_device *one, int group)
{
	if (info->flags & KABI_VFIO_PCI_HOT_RESET_FLAG_DEV_ID)
		return one->group_id == KABI_VFIO_PCI_DEVID_OWNED;
	return one->group_id == (uint32_t)group;
}

static int judge_affected(const union affected *a, const struct pci_place *at, struct vfio_why *why)
{
	const struct vfio_pci_dependent_device *v = (const void *)(a->bytes + sizeof(a->info));

	for (uint32_t i = 0; i < a->info.count; i++) {
		char bdf[32];

		snprintf(bdf, sizeof(bdf), "%04x:%02x:%02x.%u", v[i].segment, v[i].bus, v[i].devfn >> 3,
			 v[i].devfn & 7u);
		if (strcmp(bdf, at->bdf) != 0 && !is_idle(&a->info, &v[i], at->group))
			return vfio_fail(
				why, -EPERM,
				"it can be reset with its bus only, and %s there is not ours, or is in use; bind it "
				"to vfio-pci and let nobody open it, or give the device a slot of its own",
				bdf);
	}
	return 0;
}

static int hot_reset(const struct vfio_device *d, const struct pci_place *at, int group_fd, struct vfio_why *why)
{
	union {
		struct vfio_pci_hot_reset head;
		uint8_t bytes[sizeof(struct vfio_pci_hot_reset) + sizeof(group_fd)];
	} reset = {.head.argsz = sizeof(reset), .head.count = group_fd >= 0};
	union affected a;
	int r = ask_affected(d, &a, why);

	if (r == 0)
		r = judge_affected(&a, at, why);
	if (r < 0)
		return r;
	memcpy(reset.bytes + sizeof(reset.head), &group_fd, sizeof(group_fd)); /* head.group_fds[0] */
	if (ioctl(d->fd, VFIO_DEVICE_PCI_HOT_RESET, &reset.head) == 0)
		return 0;
	return vfio_fail(why, -errno, "resetting it with its bus, %u devices in all: %s%s", a.info.count,
			 strerror(errno), errno == EINVAL ? "; bind each of them to vfio-pci" : "");
}

int vfio_device_reset(const struct vfio_device *d, const struct pci_place *at, int group_fd, struct vfio_why *why)
{
	if ((d->flags & VFIO_DEVICE_FLAGS_RESET) && ioctl(d->fd, VFIO_DEVICE_RESET) == 0)
		return 0;
	return hot_reset(d, at, group_fd, why);
}
