/* SPDX-License-Identifier: MIT */
/*
 * A PCI device and the address spaces of an iommufd (iommufd.h): its cdev is bound to one and attached to one of them at
 * a time, and to more under PASIDs. Mappings of those that the device is not in stay in force, so that moving it is one
 * call.
 *
 * Source: Linux include/uapi/linux/vfio.h, Documentation/driver-api/vfio.rst.
 */
#include "transport/vfio_files.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"
#include "transport/iommufd_nest.h"
#include "transport/kernel_abi.h"

struct vfio_iommufd {
	struct vfio_iommu iommu;
	struct iommufd fd;
	uint32_t device; /* its id there */
	struct iommufd_nest nest; /* fd NULL: the first stage is not ours */
};

static struct vfio_iommufd *of_iommu(struct vfio_iommu *m)
{
	return container_of(m, struct vfio_iommufd, iommu);
}

static bool iommufd_there(const struct pci_place *at)
{
	/* /dev may be hidden from us, and its files handed over. */
	const struct vfio_file file = vfio_file_cdev(at);

	return at->cdev[0] && vfio_file_there(&vfio_file_iommufd) && vfio_file_there(&file);
}

/* ---- address spaces ---- */

static int space_new(struct vfio_iommu *m, struct transport_space **ret)
{
	/* The device's own, too, is made for PASIDs, or none could be attached beside it. */
	return iommufd_space_new(&of_iommu(m)->fd, of_iommu(m)->device,
				 m->pasid_bits > 0 ? IOMMUFD_PASID : IOMMUFD_PLAIN, ret);
}

static void space_free(struct vfio_iommu *m, struct transport_space *s)
{
	iommufd_space_free(&of_iommu(m)->fd, s);
}

/* What of struct vfio_saved a space has. */
struct saved_space {
	uint32_t ioas, hwpt;
};

static size_t space_save(const struct transport_space *s, void *buf)
{
	memcpy(buf, &(struct saved_space){s->ioas, s->hwpt}, sizeof(struct saved_space));
	return sizeof(struct saved_space);
}

static int space_adopt(struct vfio_iommu *m, const void *saved, size_t size, struct transport_space **ret)
{
	struct saved_space s;

	if (size != sizeof(s))
		return -EBADMSG;
	memcpy(&s, saved, sizeof(s));
	return s.ioas && s.hwpt ? iommufd_space_adopt(&of_iommu(m)->fd, s.ioas, s.hwpt, ret) : -EBADMSG;
}

static int own_map(struct vfio_iommu *m, uint64_t iova, uint64_t len, int fd, uint64_t off, uint32_t prot)
{
	return iommufd_map(&of_iommu(m)->fd, m->own, iova, len, fd, off, prot);
}

static int memory_hold(struct vfio_iommu *m, int fd, uint64_t len, uint32_t prot, struct transport_memory **ret)
{
	return iommufd_hold(&of_iommu(m)->fd, fd, 0, len, prot, ret);
}

static void memory_release(struct vfio_iommu *m, struct transport_memory *mem)
{
	iommufd_release(&of_iommu(m)->fd, mem);
}

static int space_map(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len,
		     struct transport_memory *mem, uint64_t off, uint32_t prot)
{
	return iommufd_map_held(&of_iommu(m)->fd, s, iova, len, mem, off, prot);
}

static int space_unmap(struct vfio_iommu *m, struct transport_space *s, uint64_t iova, uint64_t len)
{
	return iommufd_unmap(&of_iommu(m)->fd, s, iova, len);
}

static int own_ranges(struct vfio_iommu *m, struct range *v, size_t *n)
{
	return iommufd_ranges(&of_iommu(m)->fd, m->own, v, n);
}

/* ---- attaching ---- */

static int attach_to(int device, uint32_t hwpt)
{
	struct kabi_vfio_device_attach_iommufd_pt m = {.argsz = sizeof(m), .pt_id = hwpt};

	return ioctl(device, KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, &m) < 0 ? -errno : 0;
}

static int attach(int device, const struct transport_space *s)
{
	return attach_to(device, s->hwpt);
}

static int iommufd_attach(struct vfio_iommu *m, int device, struct transport_space *s)
{
	int r = attach(device, s);

	/* The kernel left it where it was. */
	return r < 0 && attach(device, m->own) < 0 ? -EIO : r;
}

static int iommufd_attach_pasid(struct vfio_iommu *m, int device, struct transport_space *s, uint32_t pasid)
{
	struct kabi_vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.flags = KABI_VFIO_DEVICE_ATTACH_PASID,
		.pt_id = s->hwpt,
		.pasid = pasid,
	};

	return ioctl(device, KABI_VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0 ? -errno : 0;
}

static int iommufd_detach_pasid(struct vfio_iommu *m, int device, uint32_t pasid)
{
	struct kabi_vfio_device_detach_iommufd_pt detach = {
		.argsz = sizeof(detach),
		.flags = KABI_VFIO_DEVICE_DETACH_PASID,
		.pasid = pasid,
	};

	return ioctl(device, KABI_VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) < 0 ? -errno : 0;
}

/* ---- a first stage of our own ---- */

/* The device into a second stage instead of its own space, with all that a first one takes. */
static int nest_over(struct vfio_iommufd *i, int device, struct transport_space *parent, struct vfio_why *why)
{
	int r = attach(device, parent);

	if (r < 0)
		return vfio_fail(why, r, "into a second stage: %s", strerror(-r));
	r = iommufd_nest_init(&i->nest, &i->fd, i->device, parent, why);
	if (r < 0 && attach(device, i->iommu.own) < 0)
		return vfio_fail(why, -EIO, "back into its address space: it is in nobody's for sure");
	return r;
}

static int iommufd_nest(struct vfio_iommu *m, const struct pci_place *at, int device, struct transport_smmu *ret,
			struct vfio_why *why)
{
	struct vfio_iommufd *i = of_iommu(m);
	struct transport_space *parent;
	int r = iommufd_smmu_info(&i->fd, i->device, ret, why);

	if (r < 0)
		return r;
	r = pci_msi_window("/sys", at->group, &ret->msi);
	if (r < 0 && r != -ENOENT)
		return vfio_fail(why, r, "/sys/kernel/iommu_groups/%d/reserved_regions: %s", at->group, strerror(-r));
	if (i->nest.fd)
		return 0; /* a predecessor has made it */
	r = iommufd_space_new(&i->fd, i->device, IOMMUFD_NEST_PARENT, &parent);
	if (r < 0)
		return r == -EOPNOTSUPP ? vfio_fail(why, r, "its SMMU does not translate in two stages")
					: vfio_fail(why, r, "making a second stage: %s", strerror(-r));
	r = nest_over(i, device, parent, why);
	if (r < 0) {
		space_free(m, parent);
		return r;
	}
	space_free(m, m->own);
	m->own = parent;
	return 0;
}

static int iommufd_nest_attach(struct vfio_iommu *m, int device, const uint64_t entry[2])
{
	struct vfio_iommufd *i = of_iommu(m);
	int r = i->nest.hwpt ? 0 : iommufd_nest_entry(&i->nest, entry);

	return r < 0 ? r : attach_to(device, i->nest.hwpt);
}

static int nest_events_fd(const struct vfio_iommu *m)
{
	return container_of(m, const struct vfio_iommufd, iommu)->nest.events;
}

static int nest_invalidate(struct vfio_iommu *m, const struct transport_smmu_command *v, uint32_t n)
{
	return iommufd_nest_invalidate(&of_iommu(m)->nest, v, n);
}

static int nest_events(struct vfio_iommu *m, struct transport_smmu_event *v, uint32_t max, uint64_t *lost)
{
	return iommufd_nest_events(&of_iommu(m)->nest, v, max, lost);
}

/* ---- opening ---- */

static struct vfio_iommu *iommufd_close(struct vfio_iommu *m)
{
	if (!m)
		return NULL;
	iommufd_nest_fini(&of_iommu(m)->nest);
	iommufd_fini(&of_iommu(m)->fd);
	free(of_iommu(m));
	return NULL;
}

static void vfio_iommufd_closep(struct vfio_iommufd **i)
{
	if (*i)
		iommufd_close(&(*i)->iommu);
}

static int bind_device(struct vfio_iommufd *i, const struct pci_place *at, int device, struct vfio_why *why)
{
	struct kabi_vfio_device_bind_iommufd bind = {.argsz = sizeof(bind), .iommufd = i->fd.fd};

	if (ioctl(device, KABI_VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0) {
		i->device = bind.out_devid;
		return 0;
	}
	if (errno == EPERM) /* iommufd_device_bind() says it of all of these */
		return vfio_fail(
			why, -EPERM,
			"%s to %s: every device in /sys/kernel/iommu_groups/%d/devices has to be bound to vfio-pci, "
			"or to no driver, and used by nobody else; and the IOMMU has to remap interrupts",
			at->bdf, vfio_file_iommufd.path, at->group);
	/* A device, or its group, can be had once. */
	return vfio_fail(why, -errno, "%s to %s: %s%s", at->bdf, vfio_file_iommufd.path, strerror(errno),
			 errno == EINVAL || errno == EBUSY ? "; another process uses it" : "");
}

static int make_own(struct vfio_iommufd *i, int device, bool *refused)
{
	int r = space_new(&i->iommu, &i->iommu.own);

	*refused = r == -EOPNOTSUPP;
	if (r < 0)
		return r;
	r = attach(device, i->iommu.own);
	*refused = r == -EOPNOTSUPP || r == -EINVAL;
	if (r < 0) {
		space_free(&i->iommu, i->iommu.own);
		i->iommu.own = NULL;
	}
	return r;
}

/* Some IOMMUs say that they can do PASIDs and refuse such a table (AMD's attach, Linux 7.3). */
static int attach_own(struct vfio_iommufd *i, const struct pci_place *at, int device, struct vfio_why *why)
{
	int r = iommufd_pasid_bits(&i->fd, i->device, &i->iommu.pasid_bits);
	bool refused = false;

	if (r == 0)
		r = make_own(i, device, &refused);
	if (refused && i->iommu.pasid_bits) {
		i->iommu.pasid_bits = 0;
		r = make_own(i, device, &refused);
	}
	return r < 0 ? vfio_fail(why, r, "%s into an address space of %s: %s", at->bdf, vfio_file_iommufd.path,
				 strerror(-r))
		     : 0;
}

static int make_store(struct vfio_iommufd *i, struct vfio_why *why)
{
	int r = iommufd_make_store(&i->fd);

	return r < 0 ? vfio_fail(why, r, "an address space of %s for memory: %s", vfio_file_iommufd.path, strerror(-r))
		     : 0;
}

/* The device and an iommufd, bound to each other. What was handed over for that may be had again after a failure: a device
 * that is not viable now may be later. */
static int bind_files(struct vfio_iommufd *i, const struct pci_place *at, int *device, struct vfio_why *why)
{
	const struct vfio_file file = vfio_file_cdev(at);
	bool kept_device, kept_iommufd = false;
	int r;

	/* The device's first: a handed-over fd that waits keeps it from being unbound. */
	*device = vfio_file_open(&file, &kept_device, why);
	if (*device < 0)
		return *device;
	i->fd.fd = vfio_file_open(&vfio_file_iommufd, &kept_iommufd, why);
	r = i->fd.fd < 0 ? i->fd.fd : bind_device(i, at, *device, why);
	if (r < 0) {
		vfio_file_return(&file, device, kept_device);
		vfio_file_return(&vfio_file_iommufd, &i->fd.fd, kept_iommufd);
	}
	return r;
}

static int iommufd_open(struct vfio_iommu **ret, const struct pci_place *at, int *device_fd, struct vfio_why *why)
{
	__attribute__((cleanup(vfio_iommufd_closep))) struct vfio_iommufd *i = calloc(1, sizeof(*i));
	AUTO_CLOSE int device = -1;
	int r;

	if (!i)
		return vfio_fail(why, -ENOMEM, "no memory");
	i->iommu.ops = &vfio_iommu_iommufd;
	iommufd_init(&i->fd, -1);
	r = bind_files(i, at, &device, why);
	if (r == 0)
		r = attach_own(i, at, device, why);
	if (r == 0)
		r = make_store(i, why);
	if (r < 0)
		return r;
	*device_fd = util_take_fd(&device);
	*ret = &TAKE_PTR(i)->iommu;
	return 0;
}

/* ---- for a successor, and of a predecessor ---- */

static bool iommufd_save(const struct vfio_iommu *m, struct vfio_saved *ret)
{
	const struct vfio_iommufd *i = container_of(m, const struct vfio_iommufd, iommu);

	*ret = (struct vfio_saved){
		.form = VFIO_SAVED_FORM,
		.device = i->device,
		.ioas = m->own->ioas,
		.hwpt = m->own->hwpt,
		.store = i->fd.store,
		.pasid_bits = m->pasid_bits,
		.viommu = i->nest.viommu,
		.vdevice = i->nest.vdevice,
		.veventq = i->nest.veventq,
		.nested_hwpt = i->nest.hwpt,
	};
	return !i->fd.by_address;
}

static size_t iommufd_keep(const struct vfio_iommu *m, int *fds)
{
	const struct vfio_iommufd *i = container_of(m, const struct vfio_iommufd, iommu);

	fds[0] = i->fd.fd;
	fds[1] = i->nest.events;
	return i->nest.fd ? 2 : 1;
}

static int judge_saved(const struct vfio_saved *s, const struct pci_place *at, const int *fds, size_t n,
		       struct vfio_why *why)
{
	const struct vfio_file cdev = vfio_file_cdev(at);

	if (!s->device || !s->ioas || !s->hwpt || !s->store || n != (s->viommu ? 3u : 2u) ||
	    !vfio_file_is(&cdev, fds[0]) || !vfio_file_is(&vfio_file_iommufd, fds[1]))
		return vfio_fail(why, -EBADMSG,
				 "the %zu files are not those of %s and of %s with objects %u, %u, %u and %u", n,
				 at->bdf, vfio_file_iommufd.path, s->device, s->ioas, s->hwpt, s->store);
	return 0;
}

static int adopt_objects(struct vfio_iommufd *i, const struct vfio_saved *s, struct vfio_why *why)
{
	int r = iommufd_adopt(&i->fd, s->store);

	if (r == 0)
		r = iommufd_space_adopt(&i->fd, s->ioas, s->hwpt, &i->iommu.own);
	return r < 0 ? vfio_fail(why, r, "taking over the objects %u, %u and %u of %s: %s", s->store, s->ioas, s->hwpt,
				 vfio_file_iommufd.path, strerror(-r))
		     : 0;
}

static int iommufd_adopt_device(struct vfio_iommu **ret, const struct pci_place *at, const struct vfio_saved *s,
				int *fds, size_t n, int *device_fd, struct vfio_why *why)
{
	__attribute__((cleanup(vfio_iommufd_closep))) struct vfio_iommufd *i = NULL;
	int r = judge_saved(s, at, fds, n, why);

	if (r < 0)
		return r;
	i = calloc(1, sizeof(*i));
	if (!i)
		return vfio_fail(why, -ENOMEM, "no memory");
	i->iommu.ops = &vfio_iommu_iommufd;
	i->iommu.pasid_bits = s->pasid_bits;
	i->device = s->device;
	i->nest.events = -1;
	iommufd_init(&i->fd, util_take_fd(&fds[1]));
	if (s->viommu)
		iommufd_nest_adopt(&i->nest, &i->fd, s, util_take_fd(&fds[2]));
	r = adopt_objects(i, s, why);
	if (r < 0)
		return r;
	*device_fd = util_take_fd(&fds[0]);
	*ret = &TAKE_PTR(i)->iommu;
	return 0;
}

static int iommufd_adopted(struct vfio_iommu *m)
{
	const struct vfio_iommufd *i = of_iommu(m);
	const uint32_t known[] = {i->device, i->nest.viommu, i->nest.vdevice, i->nest.veventq, i->nest.hwpt};

	iommufd_sweep(&i->fd, known, ARRAY_SIZE(known));
	return 0;
}

const struct vfio_iommu_ops vfio_iommu_iommufd = {
	.name = "iommufd",
	.there = iommufd_there,
	.open = iommufd_open,
	.save = iommufd_save,
	.keep = iommufd_keep,
	.adopt = iommufd_adopt_device,
	.close = iommufd_close,
	.ranges = own_ranges,
	.map = own_map,
	.hold = memory_hold,
	.release = memory_release,
	.map_held = space_map,
	.unmap = space_unmap,
	.clear = space_unmap,
	.space_new = space_new,
	.space_free = space_free,
	.space_save = space_save,
	.space_adopt = space_adopt,
	.adopted = iommufd_adopted,
	.attach = iommufd_attach,
	.attach_pasid = iommufd_attach_pasid,
	.detach_pasid = iommufd_detach_pasid,
	.nest = iommufd_nest,
	.nest_attach = iommufd_nest_attach,
	.events_fd = nest_events_fd,
	.invalidate = nest_invalidate,
	.events = nest_events,
};
