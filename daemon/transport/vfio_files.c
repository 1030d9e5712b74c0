/* SPDX-License-Identifier: MIT */
/* See vfio_files.h. Source: Linux Documentation/ABI/testing/sysfs-class (the file "dev"), sysfs-devices-vfio-dev. */
#include "transport/vfio_files.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/util.h"

struct kept {
	SLIST_ENTRY(kept) link; /* in all_kept */
	int fd;
	dev_t number;
};

/* From the start until a device's thread takes it. */
static SLIST_HEAD(, kept) all_kept = SLIST_HEAD_INITIALIZER(all_kept);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

const struct vfio_file vfio_file_container = {"/dev/vfio/vfio", "/sys/class/misc/vfio/dev"};
const struct vfio_file vfio_file_iommufd = {"/dev/iommu", "/sys/class/misc/iommu/dev"};

struct vfio_file vfio_file_group(const struct pci_place *at)
{
	struct vfio_file f;

	snprintf(f.path, sizeof(f.path), "/dev/vfio/%d", at->group);
	snprintf(f.number, sizeof(f.number), "/sys/class/vfio/%d/dev", at->group);
	return f;
}

struct vfio_file vfio_file_cdev(const struct pci_place *at)
{
	struct vfio_file f;

	snprintf(f.path, sizeof(f.path), "/dev/vfio/devices/%s", at->cdev);
	snprintf(f.number, sizeof(f.number), "/sys/bus/pci/devices/%s/vfio-dev/%s/dev", at->bdf, at->cdev);
	return f;
}

/* False: there is no such device now. */
static bool number_of(const struct vfio_file *f, dev_t *ret)
{
	unsigned int major, minor;
	FILE *file = fopen(f->number, "re");
	bool ok;

	if (!file)
		return false;
	ok = fscanf(file, "%u:%u", &major, &minor) == 2;
	fclose(file);
	*ret = makedev(major, minor);
	return ok;
}

static bool is_open_file_of(int fd, dev_t number)
{
	int flags = fcntl(fd, F_GETFL);
	struct stat st;

	return flags >= 0 && (flags & O_ACCMODE) == O_RDWR && fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) &&
	       st.st_rdev == number;
}

bool vfio_file_is(const struct vfio_file *f, int fd)
{
	dev_t number;

	return number_of(f, &number) && is_open_file_of(fd, number);
}

/* Under the lock. */
static struct kept *find(const struct vfio_file *f)
{
	struct kept *k;
	dev_t number;

	if (SLIST_EMPTY(&all_kept) || !number_of(f, &number))
		return NULL;
	SLIST_FOREACH (k, &all_kept, link)
		if (k->number == number)
			return k;
	return NULL;
}

bool vfio_file_kept(const struct vfio_file *f)
{
	bool is;

	pthread_mutex_lock(&lock);
	is = find(f) != NULL;
	pthread_mutex_unlock(&lock);
	return is;
}

bool vfio_file_there(const struct vfio_file *f)
{
	return vfio_file_kept(f) || access(f->path, F_OK) == 0;
}

bool vfio_file_keep(const struct vfio_file *f, int fd)
{
	struct kept *k;
	dev_t number;

	if (!number_of(f, &number) || !is_open_file_of(fd, number))
		return false;
	k = malloc(sizeof(*k));
	if (!k)
		return false;
	*k = (struct kept){.fd = fd, .number = number};
	pthread_mutex_lock(&lock);
	SLIST_INSERT_HEAD(&all_kept, k, link);
	pthread_mutex_unlock(&lock);
	return true;
}

static int take(const struct vfio_file *f)
{
	struct kept *k;
	int fd = -1;

	pthread_mutex_lock(&lock);
	k = find(f);
	if (k) {
		SLIST_REMOVE(&all_kept, k, kept, link);
		fd = k->fd;
	}
	pthread_mutex_unlock(&lock);
	free(k);
	return fd;
}

static const char *what_to_do(int error)
{
	switch (error) {
	case EACCES:
	case EPERM:
		return "; let pasidd's user open it, or hand it over open (docs/vfio.md)";
	case EBUSY:
		return "; another process uses it";
	case ENOENT:
	case ENXIO:
	case ENODEV:
		return "; load vfio-pci";
	default:
		return "";
	}
}

int vfio_file_open(const struct vfio_file *f, bool *kept, struct vfio_why *why)
{
	int fd = take(f);

	*kept = fd >= 0;
	if (fd < 0)
		fd = open(f->path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return vfio_fail(why, -errno, "%s: %s%s", f->path, strerror(errno), what_to_do(errno));
	return fd;
}

void vfio_file_return(const struct vfio_file *f, int *fd, bool kept)
{
	if (*fd >= 0 && (!kept || !vfio_file_keep(f, *fd)))
		close(*fd);
	*fd = -1;
}

/* The files by which the device of a spec can be opened. */
static size_t files_of_spec(const char *spec, struct vfio_file ret[2])
{
	size_t n = 0;
	char bdf[PCI_BDF_SIZE];
	struct pci_place at;
	const char *address;
	const struct transport_ops *t = transport_find(spec, &address);

	if (!t || !pci_parse_bdf(address, bdf) || pci_find("/sys", bdf, &at) < 0)
		return 0;
	if (t != &transport_type1)
		ret[n++] = vfio_file_cdev(&at);
	if (t != &transport_iommufd)
		ret[n++] = vfio_file_group(&at);
	return n;
}

static const char not_it[] = "it is not the device file for that, open for reading and writing";

static const char *hand_over_device(const char *spec, int fd)
{
	struct vfio_file file[2];
	size_t n = files_of_spec(spec, file);

	if (!n)
		return "that is no PCI device of this machine";
	for (size_t i = 0; i < n; i++)
		/* A second one would keep the device from being unbound when the first is closed for that. */
		if (vfio_file_kept(&file[i]))
			return "there is one already";
	for (size_t i = 0; i < n; i++)
		if (vfio_file_keep(&file[i], fd))
			return NULL;
	return not_it;
}

static const struct vfio_file *file_of_no_device(const char *what)
{
	if (!strcmp(what, "iommu"))
		return &vfio_file_iommufd;
	return !strcmp(what, "vfio") ? &vfio_file_container : NULL;
}

bool transport_is_file(const char *what)
{
	return file_of_no_device(what);
}

const char *transport_hand_over(const char *what, int fd)
{
	const struct vfio_file *file = file_of_no_device(what);

	if (!file)
		return hand_over_device(what, fd);
	return vfio_file_keep(file, fd) ? NULL : not_it;
}
