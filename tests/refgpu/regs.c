/* SPDX-License-Identifier: MIT */
/*
 * Register reads and writes, and what a write sets off.
 */
#include "regs.h"

#include <errno.h>
#include <string.h>

#include "device.h"

#define SLOT_STRIDE 0x80u
#define CAP_FORMAT_VMSA64 (1u << 8)
#define CAP_FORMAT_X86_64 (1u << 9)

/* Where a register is kept: 4 or 8 bytes wide, NULL: nowhere. */
struct cell {
	uint32_t *r32;
	uint64_t *r64;
};

static struct cell device_cell(struct regs *r, uint32_t at)
{
	switch (at) {
	case REFGPU_REG_FORMAT:
		return (struct cell){.r32 = &r->format};
	case REFGPU_REG_MAILBOX:
		return (struct cell){.r64 = &r->mailbox};
	case REFGPU_REG_INVQ:
		return (struct cell){.r64 = &r->invq};
	case REFGPU_REG_INVQ_SIZE:
		return (struct cell){.r32 = &r->invq_size};
	case REFGPU_REG_INVQ_TAIL:
		return (struct cell){.r64 = &r->invq_tail};
	case REFGPU_REG_FAULTQ:
		return (struct cell){.r64 = &r->faultq};
	case REFGPU_REG_FAULTQ_SIZE:
		return (struct cell){.r32 = &r->faultq_size};
	case REFGPU_REG_FAULTQ_HEAD:
		return (struct cell){.r64 = &r->faultq_head};
	default:
		return (struct cell){0};
	}
}

static struct cell slot_cell(struct slot_regs *r, uint32_t at)
{
	switch (at) {
	case REFGPU_SLOT_RING:
		return (struct cell){.r64 = &r->ring};
	case REFGPU_SLOT_RING_SIZE:
		return (struct cell){.r32 = &r->ring_size};
	case REFGPU_SLOT_RING_TAIL:
		return (struct cell){.r64 = &r->tail};
	case REFGPU_SLOT_CTRL:
		return (struct cell){.r64 = &r->ctrl};
	case REFGPU_SLOT_FAULT_MODE:
		return (struct cell){.r32 = &r->fault_mode};
	default:
		return (struct cell){0};
	}
}

/* The slot whose registers `at` lies among, and where in them; -1: none. */
static int slot_of(const struct device *d, uint32_t at, uint32_t *reg)
{
	uint32_t index;

	if (at < REFGPU_SLOT_REG(0u, 0u) || at >= REFGPU_SLOT_REG(d->n_slots, 0u))
		return -1;
	index = (at - REFGPU_SLOT_REG(0u, 0u)) / SLOT_STRIDE;
	*reg = (at - REFGPU_SLOT_REG(0u, 0u)) % SLOT_STRIDE;
	return (int)index;
}

static struct cell cell_of(struct device *d, uint32_t at)
{
	uint32_t reg;
	int slot = slot_of(d, at, &reg);

	return slot < 0 ? device_cell(&d->regs, at) : slot_cell(&d->regs.slot[slot], reg);
}

static uint32_t read32(struct device *d, uint32_t at)
{
	struct cell c;
	uint32_t val;

	switch (at) {
	case REFGPU_REG_MAGIC:
		return REFGPU_MAGIC;
	case REFGPU_REG_VERSION:
		return REFGPU_VERSION;
	case REFGPU_REG_CAPS:
		return d->n_slots | CAP_FORMAT_VMSA64 | CAP_FORMAT_X86_64;
	case REFGPU_REG_ENABLE:
		return d->enabled;
	}
	if (at >= REFGPU_MSIX_TABLE && at - REFGPU_MSIX_TABLE < sizeof(d->regs.msix)) {
		memcpy(&val, d->regs.msix + (at - REFGPU_MSIX_TABLE), sizeof(val));
		return val;
	}
	c = cell_of(d, at & ~7u);
	if (c.r64)
		return (uint32_t)(at & 4 ? *c.r64 >> 32 : *c.r64);
	c = cell_of(d, at);
	return c.r32 ? *c.r32 : 0;
}

static int device_effect(struct device *d, uint32_t at, uint64_t val)
{
	switch (at) {
	case REFGPU_REG_FORMAT:
		return val <= REFGPU_FORMAT_X86_64 ? 0 : -EINVAL;
	case REFGPU_REG_INVQ_TAIL:
		return invq_doorbell(&d->invq, val);
	case REFGPU_REG_FAULTQ_HEAD:
		return faultq_set_head(&d->faultq, val);
	default:
		return 0;
	}
}

static bool ring_size_ok(uint32_t size)
{
	return size <= 4096 && (size & (size - 1)) == 0;
}

/* Sees the new value before the register does. */
static int slot_effect(struct device *d, uint32_t index, uint32_t reg, uint64_t val)
{
	const struct slot_regs *r = &d->regs.slot[index];
	struct slot *s = &d->slots[index];

	switch (reg) {
	case REFGPU_SLOT_RING:
		return val % 8 ? -EINVAL : slot_set_ring(s, val, r->ring_size);
	case REFGPU_SLOT_RING_SIZE:
		return ring_size_ok((uint32_t)val) ? slot_set_ring(s, r->ring, (uint32_t)val) : -EINVAL;
	case REFGPU_SLOT_RING_TAIL:
		return slot_doorbell(s, val);
	case REFGPU_SLOT_CTRL:
		return slot_control(s, val);
	case REFGPU_SLOT_FAULT_MODE:
		if (val > 1)
			return -EINVAL;
		atomic_store(&s->fault_mode, (uint32_t)val);
		return 0;
	default:
		return 0;
	}
}

static int effect(struct device *d, uint32_t at, uint64_t val)
{
	uint32_t reg;
	int slot = slot_of(d, at, &reg);

	return slot < 0 ? device_effect(d, at, val) : slot_effect(d, (uint32_t)slot, reg, val);
}

static int write_half(struct device *d, uint32_t at, uint64_t *cell, uint32_t val)
{
	struct regs *r = &d->regs;
	uint64_t whole;
	int err;

	if (!(at & 4)) {
		r->low_at = at;
		r->low = val;
		return 0;
	}
	at &= ~7u;
	whole = (uint64_t)val << 32 | (r->low_at == at ? r->low : (uint32_t)*cell);
	r->low_at = UINT32_MAX;
	err = effect(d, at, whole);
	if (!err)
		*cell = whole;
	return err;
}

static int write_enable(struct device *d, uint32_t val)
{
	if (val > 1)
		return -EINVAL;
	if (val)
		return device_enable(d);
	device_disable(d);
	return 0;
}

static int write32(struct device *d, uint32_t at, uint32_t val)
{
	struct cell c;
	int r;

	if (at == REFGPU_REG_ENABLE)
		return write_enable(d, val);
	if (at >= REFGPU_MSIX_TABLE && at - REFGPU_MSIX_TABLE < sizeof(d->regs.msix)) {
		memcpy(d->regs.msix + (at - REFGPU_MSIX_TABLE), &val, sizeof(val));
		return 0;
	}
	c = cell_of(d, at & ~7u);
	if (c.r64)
		return write_half(d, at, c.r64, val);
	c = cell_of(d, at);
	if (!c.r32)
		return 0;
	r = effect(d, at, val);
	if (!r)
		*c.r32 = val;
	return r;
}

static int access_check(uint64_t offset, uint32_t len)
{
	if ((len != 4 && len != 8) || offset % len || offset >= REFGPU_BAR_REGS_SIZE)
		return -EINVAL;
	return 0;
}

int regs_read(struct device *d, uint64_t offset, uint32_t len, void *buf)
{
	uint32_t i, val;

	if (access_check(offset, len) < 0)
		return -EINVAL;
	for (i = 0; i < len; i += 4) {
		val = read32(d, (uint32_t)offset + i);
		memcpy((uint8_t *)buf + i, &val, sizeof(val));
	}
	return 0;
}

int regs_write(struct device *d, uint64_t offset, uint32_t len, const void *buf)
{
	uint32_t i, val;
	int r = 0, err;

	if (access_check(offset, len) < 0)
		return -EINVAL;
	for (i = 0; i < len; i += 4) {
		memcpy(&val, (const uint8_t *)buf + i, sizeof(val));
		err = write32(d, (uint32_t)offset + i, val);
		if (err < 0)
			r = err;
	}
	return r;
}
