/* SPDX-License-Identifier: MIT */
/*
 * A binding that survives a reboot: a file of rules for udev, one for each device.
 *
 * Why udev: its rule sets driver_override when the device appears, before the same event loads the module of the
 * device's usual driver, so that this never touches it; it names one device by address and kind, where vfio-pci's own
 * option "ids" takes all of a kind; it works for devices that are plugged in later; and it needs neither a new initial
 * file system nor a service. For drivers that are built in, or loaded earlier, it runs "pasidctl bind".
 */
#ifndef PASIDCTL_PERSIST_H
#define PASIDCTL_PERSIST_H

#include "device.h"

#define PERSIST_DIR "etc/udev/rules.d"

enum persist {
	PERSIST_NONE,
	PERSIST_OURS,
	PERSIST_FOREIGN, /* a file of that name that we did not write */
};

/* The file's path, without a slash in front. */
#define PERSIST_PATH_SIZE (sizeof(PERSIST_DIR "/20-pasidd-.rules") + PCI_BDF_SIZE)
void persist_path(const char *bdf, char ret[PERSIST_PATH_SIZE]);

enum persist persist_look(const struct machine *m, const char *bdf);

/* Makes the file, or makes it anew. 0, -ENOENT (there is no udev), -EEXIST (foreign), -errno. */
int persist_write(const struct machine *m, const struct device *d);

/* 0 (also if there is none), -EEXIST (foreign), -errno. */
int persist_remove(const struct machine *m, const char *bdf);

#endif
