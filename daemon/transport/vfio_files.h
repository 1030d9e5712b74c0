/* SPDX-License-Identifier: MIT */
/*
 * The kernel's files for VFIO, each either opened by its path or handed over open by whoever started the daemon
 * (transport_hand_over()), so that the daemon needs no rights on /dev. What was handed over is the file that it is by its
 * device number, which sysfs tells; its name proves nothing.
 */
#ifndef TRANSPORT_VFIO_FILES_H
#define TRANSPORT_VFIO_FILES_H

#include "transport/vfio_priv.h"

struct vfio_file {
	char path[48];
	char number[96]; /* the file in sysfs that has its device number */
};

extern const struct vfio_file vfio_file_container; /* of type1 */
extern const struct vfio_file vfio_file_iommufd;
struct vfio_file vfio_file_group(const struct pci_place *at);
struct vfio_file vfio_file_cdev(const struct pci_place *at);

/* The fd that was handed over for it, or a new one; the caller's. -errno, and why. *kept: it was handed over. */
int vfio_file_open(const struct vfio_file *f, bool *kept, struct vfio_why *why);
/* Nothing came of it: it may be had again if it was handed over, and is closed otherwise. Sets *fd to -1. */
void vfio_file_return(const struct vfio_file *f, int *fd, bool kept);
/* Keeps an fd for vfio_file_open(), of which each serves one. False, and the fd is the caller's: it is not that file, or it
 * cannot be kept. */
bool vfio_file_keep(const struct vfio_file *f, int fd);
bool vfio_file_kept(const struct vfio_file *f);
/* Is it that file, open for reading and writing? */
bool vfio_file_is(const struct vfio_file *f, int fd);
/* Kept, or at its path. */
bool vfio_file_there(const struct vfio_file *f);

#endif
