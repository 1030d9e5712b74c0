/* SPDX-License-Identifier: MIT */
/* What the kernel's VFIO makes for a device beside its own address space: others, and a first stage of ours. */
#include "transport/vfio_request.h"

#include <errno.h>
#include <string.h>

#include "base/util.h"

static struct vfio *vfio_of(struct transport *t)
{
	return container_of(t, struct vfio, transport);
}

static int vfio_hold(struct transport *t, struct transport_memory **ret, int fd, uint64_t len, uint32_t prot,
		     transport_done done, void *arg)
{
	struct request q = {.what = REQUEST_HOLD, .held = ret, .len = len, .prot = prot, .done = done, .arg = arg};

	return vfio_map_is_possible(0, len, 0, prot) && done ? vfio_request_ask_fd(t, &q, fd) : -EINVAL;
}

static int vfio_release(struct transport *t, struct transport_memory *m)
{
	return vfio_request_ask(t, &(struct request){.what = REQUEST_RELEASE, .memory = m, .fd = -1});
}

static int vfio_space_map(struct transport *t, struct transport_space *space, uint64_t iova, uint64_t len,
			  struct transport_memory *m, uint64_t off, uint32_t prot, transport_done done, void *arg)
{
	if (!vfio_map_is_possible(iova, len, off, prot) || !done)
		return -EINVAL;
	return vfio_request_ask(t, &(struct request){.what = REQUEST_MAP,
						     .space = space,
						     .bus = iova,
						     .len = len,
						     .memory = m,
						     .off = off,
						     .prot = prot,
						     .fd = -1,
						     .done = done,
						     .arg = arg});
}

static int vfio_space_unmap(struct transport *t, struct transport_space *space, uint64_t bus, uint64_t len,
			    transport_done done, void *arg)
{
	return vfio_request_unmap(t, space, bus, len, false, done, arg);
}

static int vfio_space_clear(struct transport *t, struct transport_space *space, uint64_t bus, uint64_t len,
			    transport_done done, void *arg)
{
	return vfio_request_unmap(t, space, bus, len, true, done, arg);
}

static int vfio_space_new(struct transport *t, struct transport_space **ret, transport_done done, void *arg)
{
	return vfio_request_ask(
		t, &(struct request){.what = REQUEST_SPACE_NEW, .made = ret, .fd = -1, .done = done, .arg = arg});
}

static bool vfio_spaces_are_lists(const struct transport *t)
{
	const struct vfio *v = container_of(t, const struct vfio, transport);

	return v->opened && v->iommu->ops->spaces_are_lists;
}

static size_t vfio_space_save(const struct transport *t, const struct transport_space *space, void *buf)
{
	const struct vfio *v = container_of(t, const struct vfio, transport);

	return v->iommu->ops->space_save(space, buf);
}

static int vfio_space_adopt(struct transport *t, struct transport_space **ret, const void *saved, size_t size,
			    transport_done done, void *arg)
{
	struct request q = {.what = REQUEST_SPACE_ADOPT, .made = ret, .len = size, .fd = -1, .done = done, .arg = arg};

	if (size > sizeof(q.saved))
		return -EINVAL;
	memcpy(q.saved, saved, size);
	return vfio_request_ask(t, &q);
}

static int vfio_adopted(struct transport *t, transport_done done, void *arg)
{
	return vfio_request_ask(t, &(struct request){.what = REQUEST_ADOPTED, .fd = -1, .done = done, .arg = arg});
}

static int vfio_space_free(struct transport *t, struct transport_space *space)
{
	return vfio_request_ask(t, &(struct request){.what = REQUEST_SPACE_FREE, .space = space, .fd = -1});
}

static int vfio_attach(struct transport *t, struct transport_space *space, transport_done done, void *arg)
{
	return vfio_request_ask(
		t, &(struct request){.what = REQUEST_ATTACH, .space = space, .fd = -1, .done = done, .arg = arg});
}

static unsigned int vfio_pasid_bits(const struct transport *t)
{
	const struct vfio *v = container_of(t, const struct vfio, transport);

	return v->opened ? v->iommu->pasid_bits : 0;
}

static int vfio_attach_pasid(struct transport *t, struct transport_space *space, uint32_t pasid, transport_done done,
			     void *arg)
{
	return vfio_request_ask(t, &(struct request){.what = REQUEST_ATTACH_PASID,
						     .space = space,
						     .pasid = pasid,
						     .fd = -1,
						     .done = done,
						     .arg = arg});
}

static int vfio_detach_pasid(struct transport *t, uint32_t pasid, transport_done done, void *arg)
{
	return vfio_request_ask(
		t, &(struct request){.what = REQUEST_DETACH_PASID, .pasid = pasid, .fd = -1, .done = done, .arg = arg});
}

const struct transport_space_ops vfio_spaces = {
	.make = vfio_space_new,
	.free = vfio_space_free,
	.hold = vfio_hold,
	.release = vfio_release,
	.map = vfio_space_map,
	.unmap = vfio_space_unmap,
	.attach = vfio_attach,
	.pasid_bits = vfio_pasid_bits,
	.attach_pasid = vfio_attach_pasid,
	.detach_pasid = vfio_detach_pasid,
	.are_lists = vfio_spaces_are_lists,
	.save = vfio_space_save,
	.adopt = vfio_space_adopt,
	.clear = vfio_space_clear,
	.adopted = vfio_adopted,
};

static int vfio_nest(struct transport *t, struct transport_smmu *ret, transport_done done, void *arg)
{
	struct vfio *v = vfio_of(t);

	if (v->opened && !v->iommu->ops->nest)
		return vfio_fail(&v->why_no_nest, -EOPNOTSUPP, "%s knows no second stage; it takes iommufd",
				 v->iommu->ops->name);
	return vfio_request_ask(
		t, &(struct request){.what = REQUEST_NEST, .nested = ret, .fd = -1, .done = done, .arg = arg});
}

static const char *vfio_why_no_nest(const struct transport *t)
{
	return container_of(t, const struct vfio, transport)->why_no_nest.text;
}

static int vfio_nest_attach(struct transport *t, const uint64_t entry[2], transport_done done, void *arg)
{
	return vfio_request_ask(t, &(struct request){.what = REQUEST_NEST_ATTACH,
						     .entry = {entry[0], entry[1]},
						     .fd = -1,
						     .done = done,
						     .arg = arg});
}

static int vfio_invalidate(struct transport *t, const struct transport_smmu_command *v, uint32_t n)
{
	struct vfio_iommu *m = vfio_of(t)->iommu;
	int r = vfio_life_check(vfio_of(t));

	return r < 0 ? r : m->ops->invalidate(m, v, n);
}

static int vfio_events(struct transport *t, struct transport_smmu_event *v, uint32_t max, uint64_t *lost)
{
	struct vfio_iommu *m = vfio_of(t)->iommu;
	int r = vfio_life_check(vfio_of(t));

	return r < 0 ? r : m->ops->events(m, v, max, lost);
}

const struct transport_nested_ops vfio_nested = {
	.prepare = vfio_nest,
	.why = vfio_why_no_nest,
	.attach = vfio_nest_attach,
	.invalidate = vfio_invalidate,
	.events = vfio_events,
};
