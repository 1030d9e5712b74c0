/* SPDX-License-Identifier: MIT */
/*
 * The reference GPU as a whole: the real server in a process of its own, driven by raw vfio-user messages.
 *
 * Most tests run once for each table format. What is waited for is memory that the device writes, never time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>

#include <linux/pci_regs.h>

#include "rig.h"

/* GPU addresses of the usual context: commands, data in scattered pages, data in a 2 MiB block, a read-only page. */
#define CMDS 0x10000ul
#define DATA 0x200000ul
#define DATA_PAGES 64u
#define BLOCK 0x40000000ul
#define READ_ONLY 0x300000ul
#define NOWHERE 0x7000000000ul
#define ASID 7u

#define BUS_CMDS (RIG_BUS + RIG_DATA)
#define BUS_READ_ONLY (RIG_BUS + RIG_DATA + 0x1000)
#define BUS_DATA (RIG_BUS + RIG_DATA + 0x10000)
#define BUS_BLOCK (RIG_BUS + 0x800000)

static uint8_t *at_bus(struct rig *g, uint64_t bus)
{
	return g->mem + (bus - RIG_BUS);
}

static struct refgpu_cmd *cmds(struct rig *g)
{
	return (struct refgpu_cmd *)(void *)at_bus(g, BUS_CMDS);
}

/* Scattered: neighbours in the GPU's addresses are never neighbours on the bus. */
static uint64_t data_bus(uint64_t va)
{
	uint64_t page = (va - DATA) / 4096;

	return BUS_DATA + (page * 37 % DATA_PAGES) * 4096 + va % 4096;
}

static uint64_t context_new(struct rig *g)
{
	uint64_t root = rig_table(g), va;

	rig_map(g, root, CMDS, BUS_CMDS, 12, true);
	rig_map(g, root, READ_ONLY, BUS_READ_ONLY, 12, false);
	for (va = DATA; va < DATA + DATA_PAGES * 4096; va += 4096)
		rig_map(g, root, va, data_bus(va), 12, true);
	rig_map(g, root, BLOCK, BUS_BLOCK, 21, true);
	return root;
}

static void run_n(struct rig *g, unsigned int slot, size_t n)
{
	static uint64_t job;

	rig_put_run(g, slot, CMDS, n * sizeof(struct refgpu_cmd), ++job);
	rig_doorbell(g, slot);
}

static void run(struct rig *g, const struct refgpu_cmd *c)
{
	cmds(g)[0] = *c;
	run_n(g, 0, 1);
}

#define CMD(...) (&(struct refgpu_cmd){__VA_ARGS__})

static uint64_t start(struct rig *g, void **state)
{
	uint64_t root;

	rig_start(g, *(enum refgpu_format *)*state);
	root = context_new(g);
	rig_switch(g, 0, root, ASID);
	return root;
}

static void get_data(struct rig *g, uint64_t va, uint8_t *to, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		to[i] = *at_bus(g, data_bus(va + i));
}

static void put_data(struct rig *g, uint64_t va, const uint8_t *from, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		*at_bus(g, data_bus(va + i)) = from[i];
}

/* ---- What it says it is. ---- */

static void test_identity(void **state)
{
	struct vfio_user_region_access x = {0, VFIO_PCI_CONFIG_REGION_INDEX, 256};
	struct vfio_device_info dev = {.argsz = 16};
	struct vfio_irq_info irq = {.argsz = sizeof(irq)};
	struct vfio_region_info info = {.argsz = sizeof(info)};
	struct rig_reply reply;
	uint16_t ids[2];
	struct rig g;

	start(&g, state);
	assert_int_equal(rig_call(&g, VFIO_USER_DEVICE_GET_INFO, &dev, 16, NULL, 0, &reply), 0);
	memcpy(&dev, reply.data, 16);
	assert_int_equal(dev.flags, VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI);
	assert_int_equal(dev.num_regions, VFIO_PCI_NUM_REGIONS);
	for (irq.index = 0; irq.index < VFIO_PCI_NUM_IRQS; irq.index++) {
		assert_int_equal(rig_call(&g, VFIO_USER_DEVICE_GET_IRQ_INFO, &irq, sizeof(irq), NULL, 0, &reply), 0);
		assert_int_equal(((struct vfio_irq_info *)(void *)reply.data)->count,
				 irq.index == VFIO_PCI_MSIX_IRQ_INDEX ? REFGPU_VECTORS : 0);
	}
	for (info.index = 0; info.index < VFIO_PCI_NUM_REGIONS; info.index++) {
		assert_int_equal(rig_call(&g, VFIO_USER_DEVICE_GET_REGION_INFO, &info, sizeof(info), NULL, 0, &reply),
				 0);
		if (reply.fd < 0)
			continue;
		assert_int_equal(info.index, REFGPU_BAR_STATUS);
		assert_ptr_equal(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, reply.fd, 0), MAP_FAILED);
		close(reply.fd);
	}
	assert_int_equal(rig_call(&g, VFIO_USER_REGION_READ, &x, sizeof(x), NULL, 0, &reply), 0);
	memcpy(ids, reply.data + sizeof(x), sizeof(ids));
	assert_int_equal(ids[0], REFGPU_PCI_VENDOR);
	assert_int_equal(ids[1], REFGPU_PCI_DEVICE);
	assert_int_equal(rig_reg_read(&g, REFGPU_REG_MAGIC, 4), REFGPU_MAGIC);
	assert_int_equal(rig_reg_read(&g, REFGPU_REG_CAPS, 4), RIG_SLOTS | 3 << 8);
	assert_int_equal(rig_reg_read(&g, REFGPU_REG_MAILBOX, 8), RIG_BUS + RIG_MAILBOX);
	assert_int_equal(g.status->magic, REFGPU_MAGIC);
	assert_int_equal(g.status->dma_maps, 1);
	assert_int_equal(g.status->dma_bytes, RIG_SIZE);
	rig_end(&g);
}

static uint32_t config_read(struct rig *g, uint32_t offset, uint32_t len)
{
	struct vfio_user_region_access x = {offset, VFIO_PCI_CONFIG_REGION_INDEX, len};
	struct rig_reply reply;
	uint32_t val = 0;

	assert_int_equal(rig_call(g, VFIO_USER_REGION_READ, &x, sizeof(x), NULL, 0, &reply), 0);
	memcpy(&val, reply.data + sizeof(x), len);
	return val;
}

static void config_write(struct rig *g, uint32_t offset, uint32_t len, uint32_t val)
{
	assert_int_equal(rig_region_write(g, VFIO_PCI_CONFIG_REGION_INDEX, offset, len, val), 0);
}

/* The offset of an extended capability; 0: it has none. */
static uint32_t config_ext(struct rig *g, uint32_t id)
{
	uint32_t at = PCI_CFG_SPACE_SIZE, head;

	do {
		head = config_read(g, at, 4);
		if (PCI_EXT_CAP_ID(head) == id)
			return at;
		at = PCI_EXT_CAP_NEXT(head);
	} while (at);
	return 0;
}

/* The offset of a capability; 0: it has none. */
static uint32_t config_cap(struct rig *g, uint32_t id)
{
	uint32_t at = config_read(g, PCI_CAPABILITY_LIST, 1);

	while (at && config_read(g, at, 1) != id)
		at = config_read(g, at + PCI_CAP_LIST_NEXT, 1);
	return at;
}

/* What Linux asks for before it attaches a PASID; what it writes there stays, and nothing else does. */
static void test_pasid_capabilities(void **state)
{
	uint32_t express, pasid, ats, pri, i;
	uint64_t resets;
	struct rig g;

	start(&g, state);
	express = config_cap(&g, PCI_CAP_ID_EXP);
	assert_true(express && config_cap(&g, PCI_CAP_ID_MSIX));
	assert_true(config_read(&g, express + PCI_EXP_DEVCAP2, 4) & PCI_EXP_DEVCAP2_EE_PREFIX);
	pasid = config_ext(&g, PCI_EXT_CAP_ID_PASID);
	ats = config_ext(&g, PCI_EXT_CAP_ID_ATS);
	pri = config_ext(&g, PCI_EXT_CAP_ID_PRI);
	assert_true(pasid && ats && pri && !config_ext(&g, PCI_EXT_CAP_ID_SRIOV));
	assert_int_equal(config_read(&g, pasid + PCI_PASID_CAP, 2), 20 << 8);
	assert_int_equal(config_read(&g, pri + PCI_PRI_STATUS, 2), PCI_PRI_STATUS_STOPPED);
	assert_true(config_read(&g, pri + PCI_PRI_MAX_REQ, 4) > 0);
	resets = g.status->resets;
	for (i = PCI_CFG_SPACE_SIZE; i < PCI_CFG_SPACE_EXP_SIZE; i += 4)
		config_write(&g, i, 4, UINT32_MAX);
	assert_int_equal(g.status->resets, resets);
	assert_int_equal(config_ext(&g, PCI_EXT_CAP_ID_PRI), pri);
	assert_int_equal(config_read(&g, pasid + PCI_PASID_CAP, 4), 20 << 8 | PCI_PASID_CTRL_ENABLE << 16);
	assert_int_equal(config_read(&g, ats + PCI_ATS_CTRL, 2), PCI_ATS_CTRL_ENABLE | PCI_ATS_CTRL_STU(UINT32_MAX));
	assert_int_equal(config_read(&g, pri + PCI_PRI_CTRL, 4), PCI_PRI_CTRL_ENABLE | PCI_PRI_STATUS_STOPPED << 16);
	assert_int_equal(config_read(&g, pri + PCI_PRI_ALLOC_REQ, 4), UINT32_MAX);
	assert_int_equal(config_read(&g, PCI_CFG_SPACE_EXP_SIZE - 4, 4), 0);
	config_write(&g, pasid + PCI_PASID_CTRL, 2, 0);
	assert_int_equal(config_read(&g, pasid + PCI_PASID_CTRL, 2), 0);
	/* The next client finds what a fresh device has. */
	rig_hang_up(&g);
	rig_bring_up(&g);
	assert_int_equal(config_read(&g, ats + PCI_ATS_CTRL, 2), 0);
	rig_end(&g);
}

/* ---- Commands, against the same done by hand. ---- */

static void test_linear(void **state)
{
	static uint8_t model[DATA_PAGES * 4096], seen[DATA_PAGES * 4096];
	uint32_t word, add;
	uint64_t len, dst, src;
	struct rig g;
	size_t i, k;

	start(&g, state);
	srand(1);
	for (i = 0; i < sizeof(model); i++)
		model[i] = (uint8_t)rand();
	put_data(&g, DATA, model, sizeof(model));
	for (k = 0; k < 60; k++) {
		len = (uint64_t)rand() % 50000 & ~3ul;
		dst = DATA + (uint64_t)rand() % (60000) + 130000;
		src = DATA + (uint64_t)rand() % 60000;
		switch (k % 3) {
		case 0:
			word = k % 2 ? 0x5a5a5a5a : (uint32_t)rand();
			run(&g, CMD(.op = REFGPU_FILL, .dst = dst, .len = len, .value = word));
			for (i = 0; i < len; i++)
				model[dst - DATA + i] = ((uint8_t *)&word)[i % 4];
			break;
		case 1:
			run(&g, CMD(.op = REFGPU_COPY, .dst = dst, .src = src, .len = len + k % 4));
			memcpy(&model[dst - DATA], &model[src - DATA], len + k % 4);
			break;
		case 2:
			dst &= ~3ul;
			src &= ~3ul;
			run(&g, CMD(.op = REFGPU_ADD32, .dst = dst, .src = src, .len = len));
			for (i = 0; i < len; i += 4) {
				memcpy(&word, &model[dst - DATA + i], 4);
				memcpy(&add, &model[src - DATA + i], 4);
				word += add;
				memcpy(&model[dst - DATA + i], &word, 4);
			}
			break;
		}
		rig_wait_done(&g, 0);
	}
	get_data(&g, DATA, seen, sizeof(seen));
	assert_memory_equal(seen, model, sizeof(model));
	assert_int_equal(g.status->faults, 0);
	assert_int_equal(g.status->stale_hits, 0);
	assert_int_equal(g.status->jobs, 60);
	rig_end(&g);
}

static void test_block_and_words(void **state)
{
	uint64_t *word;
	struct rig g;

	start(&g, state);
	word = (uint64_t *)(void *)at_bus(&g, BUS_BLOCK);
	cmds(&g)[0] = *CMD(.op = REFGPU_FILL, .dst = BLOCK, .len = 2u << 20, .value = 0x01020304);
	cmds(&g)[1] = *CMD(.op = REFGPU_FENCE, .dst = BLOCK + 8, .src = 5);
	cmds(&g)[2] = *CMD(.op = REFGPU_ATOMIC, .dst = BLOCK + 8, .value = 37);
	cmds(&g)[3] = *CMD(.op = REFGPU_NOP);
	run_n(&g, 0, 4);
	rig_wait_done(&g, 0);
	assert_int_equal(word[0], UINT64_C(0x0102030401020304));
	assert_int_equal(word[1], 42);
	assert_int_equal(word[(2u << 20) / 8 - 1], UINT64_C(0x0102030401020304));
	assert_int_equal(rig_mailbox(&g)->slot[0].begun, 2);
	assert_true(*rig_fence(&g, 0) != 0);
	assert_int_equal(g.status->tlb_entries, 2);
	rig_until(rig_state(&g, 0) == REFGPU_SLOT_IDLE);
	rig_end(&g);
}

static void test_blit(void **state)
{
	uint8_t picture[100 * 64], seen[100 * 300];
	struct rig g;
	size_t i, row;

	start(&g, state);
	for (i = 0; i < sizeof(picture); i++)
		picture[i] = (uint8_t)(i * 7);
	put_data(&g, DATA + 100, picture, sizeof(picture));
	run(&g, CMD(.op = REFGPU_BLIT, .dst = DATA + 0x10003, .src = DATA + 100, .width = 64, .height = 100,
		    .dst_pitch = 300, .src_pitch = 64));
	rig_wait_done(&g, 0);
	get_data(&g, DATA + 0x10003, seen, sizeof(seen));
	for (row = 0; row < 100; row++)
		assert_memory_equal(seen + row * 300, picture + row * 64, 64);
	assert_int_equal(seen[64], 0);
	run(&g, CMD(.op = REFGPU_BLIT, .dst = NOWHERE, .src = NOWHERE, .width = 0, .height = 5));
	rig_wait_done(&g, 0);
	assert_int_equal(g.status->faults, 0);
	rig_end(&g);
}

static void test_scratch(void **state)
{
	uint8_t secret[5000], seen[5000];
	struct rig g;

	start(&g, state);
	memset(secret, 0xa5, sizeof(secret));
	put_data(&g, DATA + 10, secret, sizeof(secret));
	run(&g, CMD(.op = REFGPU_STORE, .dst = 100, .src = DATA + 10, .len = sizeof(secret)));
	rig_switch(&g, 0, context_new(&g), ASID + 1);
	rig_doorbell(&g, 0);
	rig_wait_done(&g, 0);
	run(&g, CMD(.op = REFGPU_LOAD, .dst = DATA + 20000, .src = 100, .len = sizeof(secret)));
	rig_wait_done(&g, 0);
	get_data(&g, DATA + 20000, seen, sizeof(seen));
	assert_memory_equal(seen, secret, sizeof(seen));
	rig_put_word(&g, 0, &(struct refgpu_ring_word){.op = REFGPU_RING_SCRUB});
	run(&g, CMD(.op = REFGPU_LOAD, .dst = DATA + 20000, .src = 100, .len = sizeof(secret)));
	rig_wait_done(&g, 0);
	get_data(&g, DATA + 20000, seen, sizeof(seen));
	memset(secret, 0, sizeof(secret));
	assert_memory_equal(seen, secret, sizeof(seen));
	assert_int_equal(g.status->scrubs, 1);
	assert_int_equal(g.status->switches, 2);
	rig_end(&g);
}

/* All slots add to one word at once, with their own contexts; rung twice, and past what there is. */
static void test_slots(void **state)
{
	unsigned int slot, i, k;
	struct rig g;
	uint64_t n;

	start(&g, state);
	for (i = 0; i < 64; i++)
		cmds(&g)[i] = *CMD(.op = REFGPU_ATOMIC, .dst = DATA, .value = 1);
	for (slot = 1; slot < RIG_SLOTS; slot++)
		rig_switch(&g, slot, context_new(&g), 100 + slot);
	for (k = 0; k < 20; k++)
		for (slot = 0; slot < RIG_SLOTS; slot++)
			rig_put_run(&g, slot, CMDS, 4096, k + 1);
	for (slot = 0; slot < RIG_SLOTS; slot++) {
		rig_doorbell(&g, slot);
		rig_doorbell(&g, slot);
	}
	for (slot = 0; slot < RIG_SLOTS; slot++) {
		rig_wait_done(&g, slot);
		rig_doorbell(&g, slot);
		assert_int_equal(rig_reg64(&g, REFGPU_SLOT_REG(slot, REFGPU_SLOT_RING_TAIL), 1), 0);
		assert_int_equal(
			rig_reg64(&g, REFGPU_SLOT_REG(slot, REFGPU_SLOT_RING_TAIL), g.tail[slot] + RIG_WORDS + 1),
			EINVAL);
		assert_int_equal(*rig_fence(&g, slot), 20);
	}
	assert_int_equal(*(uint64_t *)(void *)at_bus(&g, data_bus(DATA)), 20 * 64 * RIG_SLOTS);
	assert_int_equal(g.status->jobs, 20 * RIG_SLOTS);
	assert_int_equal(read(g.irq[0], &n, sizeof(n)), sizeof(n));
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[3].begun), g.tail[3]);
	rig_end(&g);
}

/* ---- The TLB. ---- */

static void test_stale_hit(void **state)
{
	uint64_t root, n;
	struct rig g;

	root = start(&g, state);
	run(&g, CMD(.op = REFGPU_FILL, .dst = DATA, .len = 4096, .value = 1));
	rig_wait_done(&g, 0);
	rig_unmap(&g, root, DATA, 12);
	rig_switch(&g, 0, rig_table(&g), ASID + 1);
	rig_switch(&g, 0, root, ASID);
	run(&g, CMD(.op = REFGPU_FILL, .dst = DATA, .len = 4096, .value = 2));
	rig_wait_done(&g, 0);
	assert_int_equal(*at_bus(&g, data_bus(DATA)), 2);
	assert_int_equal(g.status->stale_hits, 1);
	assert_int_equal(g.status->faults, 0);
	rig_invalidate(&g, REFGPU_INV_RANGE, ASID + 1, DATA, DATA + 4095);
	rig_invalidate(&g, REFGPU_INV_RANGE, ASID, DATA + 4096, DATA + 8191);
	run(&g, CMD(.op = REFGPU_FILL, .dst = DATA, .len = 4096, .value = 3));
	rig_wait_done(&g, 0);
	assert_int_equal(g.status->stale_hits, 2);
	rig_invalidate(&g, REFGPU_INV_RANGE, ASID, DATA, DATA + 4095);
	run(&g, CMD(.op = REFGPU_FILL, .dst = DATA, .len = 4096, .value = 4));
	rig_wait_done(&g, 0);
	assert_int_equal(*at_bus(&g, data_bus(DATA)), 3);
	assert_int_equal(g.status->stale_hits, 2);
	assert_int_equal(rig_fault(&g, 0)->code, REFGPU_FAULT_TRANSLATION);
	assert_int_equal(rig_fault(&g, 0)->addr, DATA);
	assert_int_equal(rig_fault(&g, 0)->asid, ASID);
	assert_int_equal(rig_fault(&g, 0)->access, REFGPU_WRITE);
	assert_int_equal(rig_fault(&g, 0)->level, g.format == REFGPU_FORMAT_X86_64 ? 1 : 3);
	assert_int_equal(g.status->invalidations, 3);
	assert_int_equal(read(g.irq[REFGPU_VECTOR_INVALIDATE], &n, sizeof(n)), sizeof(n));
	assert_int_equal(read(g.irq[REFGPU_VECTOR_FAULT], &n, sizeof(n)), sizeof(n));
	rig_end(&g);
}

/* A table that was replaced, with no page of it ever in the TLB: the walk cache remembers it all the same. */
static void test_stale_table(void **state)
{
	const uint64_t va = 0x80000000;
	uint64_t root, *above;
	struct rig g;

	root = start(&g, state);
	rig_map(&g, root, va, BUS_DATA, 12, true);
	run(&g, CMD(.op = REFGPU_FILL, .dst = va, .len = 4, .value = 1));
	rig_wait_done(&g, 0);
	above = rig_pte(&g, root, va, 21);
	__atomic_store_n(above, 0, __ATOMIC_RELEASE);
	rig_map(&g, root, va + 4096, BUS_DATA + 4096, 12, true);
	run(&g, CMD(.op = REFGPU_FILL, .dst = va + 4096, .len = 4, .value = 1));
	rig_wait_done(&g, 0);
	assert_int_equal(g.status->stale_hits, 1);
	assert_int_equal(g.status->faults, 1);
	rig_invalidate(&g, REFGPU_INV_RANGE, ASID, va + 4096, va + 8191);
	run(&g, CMD(.op = REFGPU_FILL, .dst = va + 4096, .len = 4, .value = 9));
	rig_wait_done(&g, 0);
	assert_int_equal(*at_bus(&g, BUS_DATA + 4096), 9);
	assert_int_equal(g.status->stale_hits, 1);
	rig_invalidate(&g, REFGPU_INV_ASID, ASID, 0, 0);
	assert_int_equal(g.status->tlb_entries, 0);
	rig_end(&g);
}

static void split_block(struct rig *g, uint64_t root)
{
	uint64_t table = rig_table(g);
	unsigned int i;

	for (i = 0; i < 512; i++)
		*rig_entry(g, table, i) = (BUS_BLOCK + i * 4096) | rig_leaf_bits(g, 12, true);
	__atomic_store_n(rig_pte(g, root, BLOCK, 21), table | rig_table_bits(g), __ATOMIC_RELEASE);
}

static void test_conflict(void **state)
{
	uint64_t root;
	struct rig g;

	root = start(&g, state);
	run(&g, CMD(.op = REFGPU_FILL, .dst = BLOCK, .len = 4, .value = 1));
	rig_wait_done(&g, 0);
	split_block(&g, root);
	run(&g, CMD(.op = REFGPU_FILL, .dst = BLOCK + 4, .len = 4, .value = 1));
	rig_wait_done(&g, 0);
	assert_int_equal(g.status->conflicts, 1);
	assert_int_equal(rig_fault(&g, 0)->code, REFGPU_FAULT_TLB_CONFLICT);
	rig_invalidate(&g, REFGPU_INV_ALL, 0, 0, 0);
	run(&g, CMD(.op = REFGPU_FILL, .dst = BLOCK + 4, .len = 4, .value = 1));
	rig_wait_done(&g, 0);
	assert_int_equal(g.status->faults, 1);
	/* The other way: a block over pages, one of which is remembered. */
	rig_map(&g, root, BLOCK, BUS_BLOCK, 21, true);
	rig_invalidate(&g, REFGPU_INV_RANGE, ASID, BLOCK + 0x2000, BLOCK + 0x2fff);
	run(&g, CMD(.op = REFGPU_FILL, .dst = BLOCK + 0x3000, .len = 4, .value = 1));
	rig_wait_done(&g, 0);
	assert_int_equal(g.status->conflicts, 2);
	rig_end(&g);
}

/* ---- Faults. ---- */

struct wrong {
	struct refgpu_cmd cmd;
	uint32_t code;
	uint64_t addr;
	uint32_t access;
};

static void expect_fault(struct rig *g, const struct wrong *w)
{
	uint64_t tail = rig_load(&rig_mailbox(g)->faultq_tail);
	const struct refgpu_fault *f = rig_fault(g, tail);

	run(g, &w->cmd);
	rig_wait_done(g, 0);
	assert_int_equal(rig_load(&rig_mailbox(g)->faultq_tail), tail + 1);
	assert_int_equal(f->code, w->code);
	assert_int_equal(f->addr, w->addr);
	assert_int_equal(f->access, w->access);
	assert_int_equal(f->stalled, 0);
	assert_int_equal(*rig_fence(g, 0), f->job);
	assert_int_equal(rig_reg64(g, REFGPU_REG_FAULTQ_HEAD, tail + 1), 0);
}

static void test_faults(void **state)
{
	static const struct wrong wrongs[] = {
		{{.op = REFGPU_FILL, .dst = NOWHERE, .len = 4}, REFGPU_FAULT_TRANSLATION, NOWHERE, REFGPU_WRITE},
		{{.op = REFGPU_COPY, .src = NOWHERE + 5, .dst = DATA, .len = 4},
		 REFGPU_FAULT_TRANSLATION,
		 NOWHERE + 5,
		 REFGPU_READ},
		{{.op = REFGPU_FILL, .dst = DATA + DATA_PAGES * 4096 - 100, .len = 400},
		 REFGPU_FAULT_TRANSLATION,
		 DATA + DATA_PAGES * 4096,
		 REFGPU_WRITE},
		{{.op = REFGPU_FILL, .dst = READ_ONLY + 8, .len = 4},
		 REFGPU_FAULT_PERMISSION,
		 READ_ONLY + 8,
		 REFGPU_WRITE},
		{{.op = REFGPU_ATOMIC, .dst = READ_ONLY, .value = 1}, REFGPU_FAULT_PERMISSION, READ_ONLY, REFGPU_WRITE},
		{{.op = REFGPU_FENCE, .dst = UINT64_C(0x0001000000000000)},
		 REFGPU_FAULT_ADDRESS_SIZE,
		 UINT64_C(0x0001000000000000),
		 REFGPU_WRITE},
		{{.op = REFGPU_SET_TTBR, .dst = 1}, REFGPU_FAULT_PRIVILEGED, CMDS, REFGPU_FETCH},
		{{.op = 99}, REFGPU_FAULT_COMMAND, CMDS, REFGPU_FETCH},
		{{.op = REFGPU_FILL, .dst = DATA, .len = 3}, REFGPU_FAULT_COMMAND, CMDS, REFGPU_FETCH},
		{{.op = REFGPU_NOP, .reserved = {0, 1}}, REFGPU_FAULT_COMMAND, CMDS, REFGPU_FETCH},
		{{.op = REFGPU_COPY, .dst = DATA, .src = UINT64_MAX - 3, .len = 8},
		 REFGPU_FAULT_COMMAND,
		 CMDS,
		 REFGPU_FETCH},
		{{.op = REFGPU_ADD32, .dst = DATA + 2, .src = DATA, .len = 8},
		 REFGPU_FAULT_COMMAND,
		 CMDS,
		 REFGPU_FETCH},
		{{.op = REFGPU_ATOMIC, .dst = DATA + 4}, REFGPU_FAULT_COMMAND, CMDS, REFGPU_FETCH},
		{{.op = REFGPU_LOAD, .dst = DATA, .src = 16000, .len = 400}, REFGPU_FAULT_COMMAND, CMDS, REFGPU_FETCH},
		{{.op = REFGPU_STORE, .dst = UINT64_MAX, .src = DATA, .len = 4},
		 REFGPU_FAULT_COMMAND,
		 CMDS,
		 REFGPU_FETCH},
		{{.op = REFGPU_BLIT, .dst = DATA, .src = DATA, .width = 8, .height = 2, .dst_pitch = 7, .src_pitch = 8},
		 REFGPU_FAULT_COMMAND,
		 CMDS,
		 REFGPU_FETCH},
		{{.op = REFGPU_HANG, .value = 2}, REFGPU_FAULT_COMMAND, CMDS, REFGPU_FETCH},
	};
	uint64_t root;
	struct rig g;
	size_t i;

	root = start(&g, state);
	for (i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++)
		expect_fault(&g, &wrongs[i]);
	assert_int_equal(rig_fault(&g, 2)->slot, 0);
	/* The part before the faulting page was done. */
	assert_int_equal(g.status->faults, sizeof(wrongs) / sizeof(wrongs[0]));
	/* Translated, but nothing is there. */
	rig_map(&g, root, NOWHERE, RIG_BUS + RIG_SIZE, 12, true);
	expect_fault(&g, &(struct wrong){{.op = REFGPU_FILL, .dst = NOWHERE + 4, .len = 4},
					 REFGPU_FAULT_BUS,
					 NOWHERE + 4,
					 REFGPU_WRITE});
	if (g.format == REFGPU_FORMAT_VMSA64) {
		*rig_pte(&g, root, NOWHERE + 4096, 12) = BUS_DATA | 0x43; /* no AF */
		expect_fault(&g, &(struct wrong){{.op = REFGPU_FILL, .dst = NOWHERE + 4096, .len = 4},
						 REFGPU_FAULT_ACCESS_FLAG,
						 NOWHERE + 4096,
						 REFGPU_WRITE});
	}
	rig_end(&g);
}

/* Ring words that make no sense end, with their fence; no tables at all; commands that cannot be fetched. */
static void test_bad_words(void **state)
{
	struct rig g;

	start(&g, state);
	rig_put_run(&g, 0, CMDS, 63, 71);
	rig_put_run(&g, 0, UINT64_MAX - 63, 128, 72);
	rig_doorbell(&g, 0);
	rig_wait_done(&g, 0);
	assert_int_equal(*rig_fence(&g, 0), 72);
	assert_int_equal(rig_fault(&g, 0)->code, REFGPU_FAULT_COMMAND);
	assert_int_equal(rig_fault(&g, 0)->addr, CMDS);
	rig_put_word(&g, 0, &(struct refgpu_ring_word){.op = 77});
	rig_switch(&g, 0, 0x1234, ASID);
	rig_doorbell(&g, 0);
	rig_wait_done(&g, 0);
	assert_int_equal(rig_load(&rig_mailbox(&g)->faultq_tail), 4);
	rig_switch(&g, 0, 0, ASID);
	rig_put_run(&g, 0, CMDS, 64, 73);
	rig_doorbell(&g, 0);
	rig_wait_done(&g, 0);
	/* The queue holds four: the fifth is lost and counted, and the job ends all the same. */
	assert_int_equal(rig_load(&rig_mailbox(&g)->faultq_tail), 4);
	assert_int_equal(rig_load(&rig_mailbox(&g)->faultq_lost), 1);
	assert_int_equal(*rig_fence(&g, 0), 73);
	assert_int_equal(rig_reg64(&g, REFGPU_REG_FAULTQ_HEAD, 5), EINVAL);
	assert_int_equal(rig_reg64(&g, REFGPU_REG_FAULTQ_HEAD, 4), 0);
	rig_put_run(&g, 0, CMDS, 64, 74);
	rig_doorbell(&g, 0);
	rig_wait_done(&g, 0);
	assert_int_equal(rig_fault(&g, 4)->code, REFGPU_FAULT_TRANSLATION);
	assert_int_equal(rig_fault(&g, 4)->access, REFGPU_FETCH);
	assert_int_equal(rig_fault(&g, 4)->job, 74);
	rig_end(&g);
}

/* Memory that vanishes under the device is a bus error, at the byte where it began. */
static void test_vanishing_memory(void **state)
{
	const uint64_t bus = RIG_BUS + 2 * (uint64_t)RIG_SIZE;
	int fd = memfd_create("vanishes", MFD_CLOEXEC);
	uint64_t root;
	struct rig g;

#ifdef __SANITIZE_THREAD__
	print_message("skipped: ThreadSanitizer does not survive a jump out of memset\n");
	close(fd);
	skip();
#endif
	root = start(&g, state);
	assert_int_equal(ftruncate(fd, 2 << 20), 0);
	assert_int_equal(rig_dma_map(&g, bus, 2 << 20, 3, fd, 0), 0);
	assert_int_equal(ftruncate(fd, 0x3000), 0);
	rig_map(&g, root, 0x80000000, bus, 21, true);
	expect_fault(&g, &(struct wrong){{.op = REFGPU_FILL, .dst = 0x80000010, .len = 0x10000, .value = 5},
					 REFGPU_FAULT_BUS,
					 0x80003000,
					 REFGPU_WRITE});
	expect_fault(&g, &(struct wrong){{.op = REFGPU_COPY, .src = 0x80008010, .dst = DATA, .len = 0x100},
					 REFGPU_FAULT_BUS,
					 0x80008010,
					 REFGPU_READ});
	assert_int_equal(rig_dma_unmap(&g, bus, 2 << 20), 0);
	/* What is mapped for reading only cannot be written, whatever the tables say. */
	assert_int_equal(rig_dma_map(&g, bus, 0x3000, 1, fd, 0), 0);
	expect_fault(&g, &(struct wrong){{.op = REFGPU_FILL, .dst = 0x80000010, .len = 4, .value = 5},
					 REFGPU_FAULT_BUS,
					 0x80000010,
					 REFGPU_WRITE});
	close(fd);
	rig_end(&g);
}

/* An IOMMU's unmap names a range, whatever was mapped in it; what it would cut stays whole. */
static void test_unmap_ranges(void **state)
{
	const uint64_t bus = UINT64_C(0x8000000000), page = 0x1000;
	struct rig g;
	uint64_t i;

	start(&g, state);
	for (i = 0; i < 8; i++)
		assert_int_equal(rig_dma_map(&g, bus + 2 * i * page, page, 3, g.memfd, i * page), 0);
	assert_int_equal(rig_dma_map(&g, bus + 16 * page, 4 * page, 3, g.memfd, 0), 0);
	assert_int_equal(rig_dma_unmap(&g, bus + page, page), 0); /* a hole */
	assert_int_equal(rig_dma_unmap(&g, bus + 14 * page, 4 * page), EINVAL); /* its end lies in the last one */
	assert_int_equal(rig_dma_unmap(&g, bus + 18 * page, 8 * page), EINVAL);
	assert_int_equal(rig_dma_unmap(&g, bus + 17 * page, page), EINVAL);
	assert_int_equal(g.status->dma_maps, 10);
	assert_int_equal(g.status->dma_bytes, RIG_SIZE + 12 * page);
	assert_int_equal(rig_dma_unmap(&g, bus + 3 * page, 6 * page), 0); /* pages 4, 6 and 8, with holes around */
	assert_int_equal(g.status->dma_maps, 7);
	assert_int_equal(g.status->dma_bytes, RIG_SIZE + 9 * page);
	assert_int_equal(rig_dma_map(&g, bus + 4 * page, 5 * page, 3, g.memfd, 0), 0);
	assert_int_equal(rig_dma_map(&g, bus + 2 * page, 2 * page, 3, g.memfd, 0), EEXIST);
	assert_int_equal(rig_dma_unmap(&g, bus, UINT64_C(1) << 39), 0);
	assert_int_equal(g.status->dma_maps, 1);
	assert_int_equal(g.status->dma_bytes, RIG_SIZE);
	run(&g, CMD(.op = REFGPU_NOP));
	rig_wait_done(&g, 0);
	rig_end(&g);
}

/* ---- Control. ---- */

static void test_stall(void **state)
{
	uint64_t root, job;
	struct rig g;

	root = start(&g, state);
	assert_int_equal(rig_reg32(&g, REFGPU_SLOT_REG(0, REFGPU_SLOT_FAULT_MODE), 1), 0);
	cmds(&g)[0] = *CMD(.op = REFGPU_ATOMIC, .dst = DATA, .value = 1);
	cmds(&g)[1] = *CMD(.op = REFGPU_FILL, .dst = NOWHERE - 0x1000, .len = 0x2000, .value = 0x77777777);
	rig_map(&g, root, NOWHERE - 0x1000, BUS_DATA + 0x50000, 12, true);
	run_n(&g, 0, 2);
	rig_until(rig_state(&g, 0) == REFGPU_SLOT_STALLED);
	rig_until(rig_load(&rig_mailbox(&g)->faultq_tail) == 1);
	assert_int_equal(rig_fault(&g, 0)->stalled, 1);
	assert_int_equal(rig_fault(&g, 0)->addr, NOWHERE);
	job = rig_fault(&g, 0)->job;
	assert_int_not_equal(*rig_fence(&g, 0), job);
	rig_control(&g, 0, REFGPU_CTRL_PAUSE);
	assert_int_equal(rig_state(&g, 0), REFGPU_SLOT_STALLED);
	rig_map(&g, root, NOWHERE, BUS_DATA + 0x52000, 12, true);
	rig_control(&g, 0, REFGPU_CTRL_RESUME);
	rig_wait_done(&g, 0);
	assert_int_equal(*rig_fence(&g, 0), job);
	assert_int_equal(*at_bus(&g, BUS_DATA + 0x52fff), 0x77);
	assert_int_equal(*at_bus(&g, data_bus(DATA)), 1);
	/* Terminated: the fence is written. */
	run(&g, CMD(.op = REFGPU_FILL, .dst = NOWHERE + 0x100000, .len = 4));
	rig_until(rig_state(&g, 0) == REFGPU_SLOT_STALLED);
	rig_control(&g, 0, REFGPU_CTRL_TERMINATE);
	rig_wait_done(&g, 0);
	assert_int_equal(*rig_fence(&g, 0), job + 1);
	/* Stopped: it is not, and the words behind it are gone. */
	run(&g, CMD(.op = REFGPU_FILL, .dst = NOWHERE + 0x100000, .len = 4));
	rig_until(rig_state(&g, 0) == REFGPU_SLOT_STALLED);
	run_n(&g, 0, 1);
	rig_control(&g, 0, REFGPU_CTRL_STOP);
	rig_wait_done(&g, 0);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].begun), g.tail[0] - 1);
	assert_int_equal(rig_state(&g, 0), REFGPU_SLOT_IDLE);
	assert_int_equal(*rig_fence(&g, 0), job + 1);
	/* And the tables are forgotten. */
	run(&g, CMD(.op = REFGPU_NOP));
	rig_until(rig_load(&rig_mailbox(&g)->faultq_tail) == 4);
	assert_int_equal(rig_state(&g, 0), REFGPU_SLOT_STALLED);
	assert_int_equal(rig_fault(&g, 3)->access, REFGPU_FETCH);
	rig_end(&g);
}

static void test_pause(void **state)
{
	uint64_t *word, root, value;
	struct rig g;

	root = start(&g, state);
	word = (uint64_t *)(void *)at_bus(&g, data_bus(DATA));
	rig_doorbell(&g, 0);
	rig_wait_done(&g, 0);
	rig_control(&g, 0, REFGPU_CTRL_TERMINATE);
	rig_control(&g, 0, REFGPU_CTRL_PAUSE);
	assert_int_equal(rig_state(&g, 0), REFGPU_SLOT_PAUSED);
	run(&g, CMD(.op = REFGPU_ATOMIC, .dst = DATA, .value = 1));
	rig_control(&g, 0, REFGPU_CTRL_TERMINATE);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].begun), 1);
	rig_control(&g, 0, REFGPU_CTRL_RESUME);
	rig_wait_done(&g, 0);
	assert_int_equal(*word, 1);
	/* A hang that obeys. */
	cmds(&g)[1] = *CMD(.op = REFGPU_ATOMIC, .dst = DATA, .value = 1);
	cmds(&g)[0] = *CMD(.op = REFGPU_HANG);
	run_n(&g, 0, 2);
	rig_until(rig_state(&g, 0) == REFGPU_SLOT_RUNNING);
	rig_control(&g, 0, REFGPU_CTRL_PAUSE);
	assert_int_equal(rig_state(&g, 0), REFGPU_SLOT_PAUSED);
	rig_control(&g, 0, REFGPU_CTRL_RESUME);
	assert_int_equal(rig_state(&g, 0), REFGPU_SLOT_RUNNING);
	rig_control(&g, 0, REFGPU_CTRL_PAUSE);
	rig_control(&g, 0, REFGPU_CTRL_TERMINATE);
	rig_wait_done(&g, 0);
	assert_int_equal(*word, 1);
	/* STOP drops what was rung before it, and only that. */
	run_n(&g, 0, 2);
	run_n(&g, 0, 1);
	value = rig_post_control(&g, 0, REFGPU_CTRL_STOP);
	rig_switch(&g, 0, root, ASID);
	cmds(&g)[0] = *CMD(.op = REFGPU_ATOMIC, .dst = DATA, .value = 1);
	run_n(&g, 0, 1);
	rig_wait_done(&g, 0);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].ctrl_ack), value);
	assert_int_equal(*word, 2);
	assert_int_equal(rig_reg64(&g, REFGPU_SLOT_REG(0, REFGPU_SLOT_CTRL), 5), EINVAL);
	rig_end(&g);
}

static void test_reset_of_hang(void **state)
{
	struct rig_reply reply;
	uint64_t mark, ack;
	struct rig g;

	start(&g, state);
	memset(at_bus(&g, BUS_READ_ONLY), 0xa5, 64);
	run(&g, CMD(.op = REFGPU_STORE, .dst = 0, .src = READ_ONLY, .len = 64));
	rig_wait_done(&g, 0);
	run(&g, CMD(.op = REFGPU_HANG, .value = 1));
	rig_until(rig_load(&rig_mailbox(&g)->slot[0].begun) == g.tail[0]);
	rig_switch(&g, 1, context_new(&g), 9);
	rig_put_run(&g, 1, CMDS, 64, 1);
	rig_doorbell(&g, 1);
	rig_until(rig_load(&rig_mailbox(&g)->slot[1].begun) == 2);
	mark = rig_load(&rig_mailbox(&g)->slot[0].begun);
	ack = rig_load(&rig_mailbox(&g)->slot[0].ctrl_ack);
	rig_post_control(&g, 0, REFGPU_CTRL_PAUSE);
	rig_post_control(&g, 0, REFGPU_CTRL_STOP);
	/* It keeps no one else from anything. */
	rig_invalidate(&g, REFGPU_INV_ALL, 0, 0, 0);
	rig_switch(&g, 2, context_new(&g), 10);
	rig_put_run(&g, 2, CMDS, 64, 1);
	rig_doorbell(&g, 2);
	rig_until(g.status->tlb_entries > 0);
	assert_int_equal(rig_call(&g, VFIO_USER_DEVICE_RESET, NULL, 0, NULL, 0, &reply), 0);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].begun), mark);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].done), mark - 1);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].ctrl_ack), ack);
	assert_int_equal(rig_reg_read(&g, REFGPU_REG_ENABLE, 4), 0);
	assert_int_equal(rig_reg_read(&g, REFGPU_REG_MAILBOX, 8), 0);
	assert_int_equal(rig_reg64(&g, REFGPU_SLOT_REG(0, REFGPU_SLOT_RING_TAIL), 3), EINVAL);
	assert_int_equal(g.status->resets, 1);
	assert_int_equal(g.status->dma_maps, 1);
	assert_int_equal(g.status->tlb_entries, 0);
	rig_enable(&g);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].begun), 0);
	rig_switch(&g, 0, context_new(&g), ASID);
	cmds(&g)[1] = *CMD(.op = REFGPU_LOAD, .dst = DATA + 16, .src = 0, .len = 64);
	cmds(&g)[0] = *CMD(.op = REFGPU_FILL, .dst = DATA, .len = 80, .value = 0x03030303);
	run_n(&g, 0, 2);
	rig_wait_done(&g, 0);
	assert_int_equal(*at_bus(&g, data_bus(DATA)), 3);
	assert_int_equal(*at_bus(&g, data_bus(DATA + 16)), 0);
	rig_end(&g);
}

/* ---- Memory that the client keeps to itself. ---- */

#define REMOTE_BUS UINT64_C(0x900000000)
#define REMOTE_VA 0x900000000ul

static uint8_t remote_memory[0x10000];

/* Answers the device's DMA messages until it says something else, which is returned. */
static void serve_remote(struct rig *g, struct rig_reply *m)
{
	struct vfio_user_dma_access x;
	uint8_t bytes[sizeof(struct vfio_user_header) + sizeof(x) + 8192];
	struct vfio_user_header hdr;
	size_t size;

	for (;;) {
		rig_listen(g, m);
		if ((m->hdr.flags & VFIO_USER_TYPE_MASK) != VFIO_USER_TYPE_COMMAND)
			return;
		memcpy(&x, m->data, sizeof(x));
		assert_true(x.address >= REMOTE_BUS && x.address + x.count <= REMOTE_BUS + sizeof(remote_memory));
		size = sizeof(hdr) + sizeof(x);
		memcpy(bytes + sizeof(hdr), &x, sizeof(x));
		if (m->hdr.command == VFIO_USER_DMA_READ) {
			memcpy(bytes + size, remote_memory + (x.address - REMOTE_BUS), x.count);
			size += x.count;
		} else {
			memcpy(remote_memory + (x.address - REMOTE_BUS), m->data + sizeof(x), x.count);
		}
		hdr = (struct vfio_user_header){.id = m->hdr.id,
						.command = m->hdr.command,
						.size = (uint32_t)size,
						.flags = VFIO_USER_TYPE_REPLY};
		memcpy(bytes, &hdr, sizeof(hdr));
		rig_send(g, bytes, size, NULL, 0);
	}
}

/* Serves until slot 0 is done: asks for a register again and again, so that there is always an answer to wait for. */
static void serve_until_done(struct rig *g)
{
	struct vfio_user_region_access x = {0, REFGPU_BAR_REGS, 4};
	struct rig_reply m;

	while (rig_load(&rig_mailbox(g)->slot[0].done) != g->tail[0]) {
		rig_command(g, VFIO_USER_REGION_READ, 0, &x, sizeof(x), NULL, 0);
		serve_remote(g, &m);
	}
}

static uint64_t start_remote(struct rig *g, void **state)
{
	uint64_t root = start(g, state), i;

	assert_int_equal(rig_dma_map(g, REMOTE_BUS, sizeof(remote_memory), 3, -1, 0), 0);
	for (i = 0; i < sizeof(remote_memory); i += 4096)
		rig_map(g, root, REMOTE_VA + i, REMOTE_BUS + i, 12, true);
	memset(remote_memory, 0x11, sizeof(remote_memory));
	return root;
}

static void test_remote(void **state)
{
	uint64_t word;
	struct rig g;

	start_remote(&g, state);
	cmds(&g)[0] = *CMD(.op = REFGPU_FILL, .dst = REMOTE_VA, .len = 0x3000, .value = 0x01020304);
	cmds(&g)[1] = *CMD(.op = REFGPU_COPY, .dst = REMOTE_VA + 0x4001, .src = REMOTE_VA + 0x1000, .len = 0x1800);
	cmds(&g)[2] = *CMD(.op = REFGPU_ADD32, .dst = REMOTE_VA, .src = REMOTE_VA + 0x2000, .len = 8);
	cmds(&g)[3] = *CMD(.op = REFGPU_ATOMIC, .dst = REMOTE_VA + 0x8000, .value = 5);
	cmds(&g)[4] = *CMD(.op = REFGPU_FENCE, .dst = REMOTE_VA + 0x8008, .src = 77);
	cmds(&g)[5] = *CMD(.op = REFGPU_COPY, .dst = DATA, .src = REMOTE_VA + 0x8000, .len = 16);
	run_n(&g, 0, 6);
	serve_until_done(&g);
	assert_int_equal(g.status->faults, 0);
	assert_int_equal(remote_memory[8], 4);
	assert_int_equal(remote_memory[0], 8);
	assert_memory_equal(remote_memory + 0x4001, remote_memory + 0x1000, 0x1800);
	assert_int_equal(remote_memory[0x4000], 0x11);
	memcpy(&word, at_bus(&g, data_bus(DATA)), 8);
	assert_int_equal(word, UINT64_C(0x1111111111111116));
	memcpy(&word, at_bus(&g, data_bus(DATA) + 8), 8);
	assert_int_equal(word, 77);
	rig_end(&g);
}

static void reply_error(struct rig *g, const struct rig_reply *m)
{
	struct vfio_user_header hdr = {.id = m->hdr.id,
				       .command = m->hdr.command,
				       .size = sizeof(hdr),
				       .flags = VFIO_USER_TYPE_REPLY | VFIO_USER_ERROR,
				       .error = EIO};

	rig_send(g, &hdr, sizeof(hdr), NULL, 0);
}

/* While the client owes the device an answer, the access is under way: invalidation and unmap wait for it. */
static void test_waiting_for_accesses(void **state)
{
	struct vfio_user_dma_unmap unmap = {sizeof(unmap), 0, RIG_BUS + (UINT64_C(1) << 40), 4096};
	struct rig_reply m, dummy;
	struct refgpu_inv *q;
	struct rig g;
	uint16_t id;
	int i;

	start_remote(&g, state);
	assert_int_equal(rig_dma_map(&g, unmap.address, 4096, 3, g.memfd, 0), 0);
	run(&g, CMD(.op = REFGPU_COPY, .dst = DATA, .src = REMOTE_VA, .len = 16));
	rig_listen(&g, &m);
	assert_int_equal(m.hdr.command, VFIO_USER_DMA_READ);
	q = (struct refgpu_inv *)(void *)(g.mem + RIG_INVQ);
	q[g.inv_tail++] = (struct refgpu_inv){.op = REFGPU_INV_ALL};
	assert_int_equal(rig_reg64(&g, REFGPU_REG_INVQ_TAIL, g.inv_tail), 0);
	rig_until(g.status->invalidations == 1);
	for (i = 0; i < 200; i++)
		assert_int_equal(rig_reg_read(&g, REFGPU_REG_MAGIC, 4), REFGPU_MAGIC);
	assert_int_equal(rig_load(&rig_mailbox(&g)->invq_head), 0);
	id = rig_command(&g, VFIO_USER_DMA_UNMAP, 0, &unmap, sizeof(unmap), NULL, 0);
	rig_until(g.status->dma_maps == 2);
	assert_int_equal(recv(g.sock, &dummy, 1, MSG_DONTWAIT | MSG_PEEK), -1);
	reply_error(&g, &m);
	assert_true(rig_receive(&g, &m));
	assert_int_equal(m.hdr.id, id);
	assert_int_equal(m.hdr.flags, VFIO_USER_TYPE_REPLY);
	rig_until(rig_load(&rig_mailbox(&g)->invq_head) == 1);
	rig_wait_done(&g, 0);
	assert_int_equal(rig_fault(&g, 0)->code, REFGPU_FAULT_BUS);
	assert_int_equal(rig_fault(&g, 0)->addr, REMOTE_VA);
	/* A reset waits for nobody's answer. */
	run(&g, CMD(.op = REFGPU_COPY, .dst = DATA, .src = REMOTE_VA, .len = 16));
	rig_listen(&g, &m);
	assert_int_equal(rig_call(&g, VFIO_USER_DEVICE_RESET, NULL, 0, NULL, 0, &m), 0);
	assert_int_equal(rig_load(&rig_mailbox(&g)->faultq_tail), 1);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].done), g.tail[0] - 1);
	rig_end(&g);
}

static void reply_read(struct rig *g, const struct rig_reply *m, uint64_t val)
{
	struct {
		struct vfio_user_header hdr;
		struct vfio_user_dma_access x;
		uint64_t val;
	} r = {{.id = m->hdr.id, .command = m->hdr.command, .size = sizeof(r), .flags = VFIO_USER_TYPE_REPLY},
	       {0},
	       val};

	memcpy(&r.x, m->data, sizeof(r.x));
	assert_int_equal(m->hdr.command, VFIO_USER_DMA_READ);
	assert_int_equal(r.x.count, sizeof(val));
	rig_send(g, &r, sizeof(r), NULL, 0);
}

/*
 * A walk that read its entry before the invalidation, and learns of it after: the access is one of those that the
 * invalidation waits for, but the TLB must not keep what it found. The last table is where only the client can read it.
 */
static void test_late_walk(void **state)
{
	const uint64_t va = UINT64_C(1) << 40; /* far off: no table on the way is remembered */
	uint64_t root, old, new;
	struct refgpu_inv *q;
	struct rig_reply m;
	struct rig g;

	root = start_remote(&g, state);
	*rig_pte(&g, root, va, 21) = REMOTE_BUS | rig_table_bits(&g);
	old = (BUS_DATA + 0x60000) | rig_leaf_bits(&g, 12, true);
	new = (BUS_DATA + 0x70000) | rig_leaf_bits(&g, 12, true);
	run(&g, CMD(.op = REFGPU_FILL, .dst = va, .len = 4, .value = 1));
	rig_listen(&g, &m);
	q = (struct refgpu_inv *)(void *)(g.mem + RIG_INVQ);
	q[g.inv_tail++] = (struct refgpu_inv){.op = REFGPU_INV_RANGE, .asid = ASID, .first = va, .last = va};
	assert_int_equal(rig_reg64(&g, REFGPU_REG_INVQ_TAIL, g.inv_tail), 0);
	rig_until(g.status->invalidations == 1);
	assert_int_equal(rig_load(&rig_mailbox(&g)->invq_head), 0);
	reply_read(&g, &m, old);
	rig_until(rig_load(&rig_mailbox(&g)->invq_head) == 1);
	rig_wait_done(&g, 0);
	assert_int_equal(*at_bus(&g, BUS_DATA + 0x60000), 1);
	run(&g, CMD(.op = REFGPU_FILL, .dst = va, .len = 4, .value = 2));
	rig_listen(&g, &m);
	reply_read(&g, &m, new);
	rig_wait_done(&g, 0);
	assert_int_equal(*at_bus(&g, BUS_DATA + 0x60000), 1);
	assert_int_equal(*at_bus(&g, BUS_DATA + 0x70000), 2);
	assert_int_equal(g.status->stale_hits, 0);
	rig_end(&g);
}

/* STOP drops what was rung before it, however late the slot comes to see it. */
static void test_late_stop(void **state)
{
	uint64_t root, value;
	struct rig_reply m;
	struct rig g;

	root = start_remote(&g, state);
	run(&g, CMD(.op = REFGPU_COPY, .dst = DATA, .src = REMOTE_VA, .len = 8));
	rig_listen(&g, &m);
	run_n(&g, 0, 1);
	value = rig_post_control(&g, 0, REFGPU_CTRL_STOP);
	rig_switch(&g, 0, root, ASID);
	run(&g, CMD(.op = REFGPU_FILL, .dst = DATA + 8, .len = 4, .value = 5));
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].ctrl_ack), 0);
	reply_read(&g, &m, 7);
	rig_wait_done(&g, 0);
	assert_int_equal(rig_load(&rig_mailbox(&g)->slot[0].ctrl_ack), value);
	assert_int_equal(*at_bus(&g, data_bus(DATA + 8)), 5);
	rig_end(&g);
}

/* ---- Messages that are wrong. ---- */

static int count_fds(pid_t pid)
{
	char path[64];
	DIR *dir;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

struct malformed {
	uint16_t command;
	uint32_t words[12]; /* the payload */
	size_t size;
	size_t n_fds;
	int error;
};

#define IRQ_SET(flags, index, start, count)    \
	{                                      \
		20, flags, index, start, count \
	}
#define FD_TRIGGER (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER)

static const struct malformed malformed[] = {
	{0, {0}, 0, 0, EOPNOTSUPP},
	{14, {0}, 4, 1, EOPNOTSUPP},
	{VFIO_USER_DMA_READ, {0}, 16, 0, EOPNOTSUPP},
	{VFIO_USER_REGION_WRITE_MULTI, {0}, 16, 0, EOPNOTSUPP},
	{0xffff, {0}, 48, 8, EOPNOTSUPP},
	{VFIO_USER_VERSION, {0}, 4, 0, EINVAL}, /* again */
	{VFIO_USER_VERSION, {0}, 3, 0, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0x1000, 0, 0x1000}, 28, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0x1000, 0, 0x1000}, 36, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {31, 3, 0, 0, 0x1000, 0, 0x1000}, 32, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 4, 0, 0, 0x1000, 0, 0x1000}, 32, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0x1000, 0, 0x1000}, 32, 2, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0x1001, 0, 0x1000}, 32, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0x1000, 0, 0x1008}, 32, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 4, 0, 0x1000, 0, 0x1000}, 32, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0x1000, 0, 0}, 32, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0xfffff000, 0xffffffff, 0x2000}, 32, 0, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0xfffff000, 0x7fffffff, 0x1000, 0, 0x1000}, 32, 1, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0x1000, 0, 0x1000, 0, 0x1000}, 32, 0, EINVAL},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0, 1, 0x1000}, 32, 1, EEXIST},
	{VFIO_USER_DMA_MAP, {32, 3, 0, 0, 0xfffff000, 0, 0x2000}, 32, 0, EEXIST},
	{VFIO_USER_DMA_UNMAP, {24, 0, 0, 1, 0x1000}, 24, 0, EINVAL}, /* a part of a mapping: its first page */
	{VFIO_USER_DMA_UNMAP, {24, 0, 0xfffff000, 0, 0x2000}, 24, 0, EINVAL},
	{VFIO_USER_DMA_UNMAP, {24, 0, 0, 1, 0}, 24, 0, EINVAL},
	{VFIO_USER_DMA_UNMAP, {24, 0, 0xfffff000, 0xffffffff, 0x2000}, 24, 0, EINVAL},
	{VFIO_USER_DMA_UNMAP, {24, 8, 0, 1, 0x1000}, 24, 0, EINVAL},
	{VFIO_USER_DMA_UNMAP, {24, 2, 0, 1, 0x1000}, 24, 0, EINVAL},
	{VFIO_USER_DMA_UNMAP, {24, 0, 0, 1, 0x1000}, 24, 1, EINVAL},
	{VFIO_USER_DEVICE_GET_INFO, {15}, 16, 0, EINVAL},
	{VFIO_USER_DEVICE_GET_INFO, {16}, 4, 0, EINVAL},
	{VFIO_USER_DEVICE_GET_REGION_INFO, {32, 0, 9}, 32, 0, EINVAL},
	{VFIO_USER_DEVICE_GET_REGION_INFO, {8, 0, 0}, 32, 0, EINVAL},
	{VFIO_USER_DEVICE_GET_IRQ_INFO, {16, 0, 5}, 16, 0, EINVAL},
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(FD_TRIGGER, 2, 0, 4), 20, 4, EINVAL},
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(FD_TRIGGER, 2, 0xffffffff, 2), 20, 2, EINVAL},
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(FD_TRIGGER, 2, 0, 2), 20, 1, EINVAL},
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(FD_TRIGGER, 2, 0, 1), 20, 1, EINVAL}, /* no eventfd */
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(FD_TRIGGER, 1, 0, 1), 20, 1, EINVAL},
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(FD_TRIGGER, 5, 0, 0), 20, 0, EINVAL},
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(FD_TRIGGER | 1, 2, 0, 1), 20, 1, EINVAL},
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(VFIO_IRQ_SET_DATA_BOOL | 0x20, 2, 0, 3), 20, 0, EINVAL},
	{VFIO_USER_DEVICE_SET_IRQS, IRQ_SET(VFIO_IRQ_SET_DATA_NONE | 8, 2, 0, 1), 20, 0, EINVAL},
	{VFIO_USER_REGION_READ, {0, 0, 1, 4}, 16, 0, EINVAL},
	{VFIO_USER_REGION_READ, {0, 0, 99, 4}, 16, 0, EINVAL},
	{VFIO_USER_REGION_READ, {2, 0, 0, 4}, 16, 0, EINVAL},
	{VFIO_USER_REGION_READ, {0, 0, 0, 2}, 16, 0, EINVAL},
	{VFIO_USER_REGION_READ, {0x10000, 0, 0, 4}, 16, 0, EINVAL},
	{VFIO_USER_REGION_READ, {0xfffffffc, 0xffffffff, 7, 8}, 16, 0, EINVAL},
	{VFIO_USER_REGION_READ, {4092, 0, 7, 8}, 16, 0, EINVAL},
	{VFIO_USER_REGION_READ, {0, 0, 7, 0xffffffff}, 16, 0, EINVAL},
	{VFIO_USER_REGION_READ, {0, 0, 7, 0}, 16, 0, EINVAL},
	{VFIO_USER_REGION_WRITE, {0x20, 0, 0, 8, 1}, 20, 0, EINVAL},
	{VFIO_USER_REGION_WRITE, {0x20, 0, 0, 4, 1, 2}, 24, 0, EINVAL},
	{VFIO_USER_REGION_WRITE, {0, 0, 2, 4, 1}, 20, 0, EPERM},
	{VFIO_USER_REGION_WRITE, {REFGPU_REG_ENABLE, 0, 0, 4, 2}, 20, 0, EINVAL},
	{VFIO_USER_REGION_WRITE, {REFGPU_REG_INVQ_TAIL, 0, 0, 8, 1000, 0}, 24, 0, EINVAL},
	{VFIO_USER_DEVICE_RESET, {0}, 4, 0, EINVAL},
	{VFIO_USER_DEVICE_RESET, {0}, 0, 1, EINVAL},
};

static void test_malformed(void **state)
{
	const size_t n = sizeof(malformed) / sizeof(malformed[0]);
	struct rig_reply reply;
	int fds[40], before;
	struct rig g;
	size_t i;

	start(&g, state);
	for (i = 0; i < 40; i++)
		fds[i] = g.memfd;
	before = count_fds(g.pid);
	for (i = 0; i < n; i++) {
		const struct malformed *m = &malformed[i];
		int r = rig_call(&g, m->command, m->words, m->size, fds, m->n_fds, &reply);

		if (r != m->error)
			fail_msg("line %zu: %d, not %d", i, r, m->error);
		assert_int_equal(reply.hdr.size, sizeof(reply.hdr));
	}
	assert_int_equal(rig_call(&g, VFIO_USER_DMA_MAP, malformed[9].words, 32, fds, 40, &reply), EINVAL);
	assert_int_equal(g.status->malformed, n + 1);
	/* Without an answer they count as well; an answer that nobody waits for is none. */
	rig_command(&g, 0x99, VFIO_USER_NO_REPLY, fds, 8, fds, 3);
	rig_command(&g, VFIO_USER_DMA_READ, VFIO_USER_TYPE_REPLY, fds, 32, fds, 3);
	rig_command(&g, VFIO_USER_DMA_READ, 7, fds, 32, fds, 3);
	rig_until(g.status->malformed == n + 4);
	rig_reg_read(&g, 0, 4);
	assert_int_equal(count_fds(g.pid), before);
	assert_int_equal(g.status->dma_maps, 1);
	run(&g, CMD(.op = REFGPU_NOP));
	rig_wait_done(&g, 0);
	rig_end(&g);
}

/* What breaks the framing, or the handshake, ends the connection; the next client finds a fresh device. */
static void test_broken_frames(void **state)
{
	static const struct vfio_user_header frames[] = {
		{.command = VFIO_USER_VERSION, .size = 15},
		{.command = VFIO_USER_VERSION, .size = 0},
		{.command = VFIO_USER_REGION_WRITE, .size = UINT32_MAX},
		{.command = VFIO_USER_REGION_WRITE, .size = 3u << 20},
	};
	static const uint32_t major1[1] = {1};
	struct rig_reply reply;
	struct rig g;
	int before;
	size_t i;

	start(&g, state);
	before = count_fds(g.pid);
	for (i = 0; i < 6; i++) {
		rig_hang_up(&g);
		rig_connect(&g);
		if (i == 4) { /* cut in the middle */
			rig_send(&g, &frames[3], 9, &g.memfd, 1);
			shutdown(g.sock, SHUT_WR);
			assert_false(rig_receive(&g, &reply));
		} else if (i == 5) {
			assert_int_equal(rig_call(&g, VFIO_USER_DEVICE_RESET, NULL, 0, NULL, 0, &reply), EINVAL);
			rig_call(&g, VFIO_USER_VERSION, major1, 4, NULL, 0, &reply);
			assert_false(rig_receive(&g, &reply));
		} else {
			rig_send(&g, &frames[i], sizeof(frames[i]), &g.memfd, 1);
			assert_false(rig_receive(&g, &reply));
		}
		close(g.sock);
		rig_bring_up(&g);
		assert_int_equal(count_fds(g.pid), before);
		assert_int_equal(g.status->dma_maps, 1);
		assert_int_equal(g.status->clients, 3 + 2 * i);
		rig_switch(&g, 0, context_new(&g), ASID);
		run(&g, CMD(.op = REFGPU_HANG, .value = 1));
		rig_until(rig_load(&rig_mailbox(&g)->slot[0].begun) == 2);
	}
	rig_end(&g);
}

static enum refgpu_format vmsa = REFGPU_FORMAT_VMSA64, x86 = REFGPU_FORMAT_X86_64;

#define BOTH(f)                                   \
	{#f " vmsa64", f, NULL, NULL, &vmsa},     \
	{                                         \
#f " x86-64", f, NULL, NULL, &x86 \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(test_identity),
		BOTH(test_pasid_capabilities),
		BOTH(test_linear),
		BOTH(test_block_and_words),
		BOTH(test_blit),
		BOTH(test_scratch),
		BOTH(test_slots),
		BOTH(test_stale_hit),
		BOTH(test_stale_table),
		BOTH(test_conflict),
		BOTH(test_faults),
		BOTH(test_bad_words),
		BOTH(test_vanishing_memory),
		BOTH(test_unmap_ranges),
		BOTH(test_stall),
		BOTH(test_pause),
		BOTH(test_reset_of_hang),
		BOTH(test_remote),
		BOTH(test_waiting_for_accesses),
		BOTH(test_late_walk),
		BOTH(test_late_stop),
		BOTH(test_malformed),
		BOTH(test_broken_frames),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
