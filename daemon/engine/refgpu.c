/* SPDX-License-Identifier: MIT */
/*
 * The driver of the reference GPU (<pasid/refgpu.h>): an engine whose GPU has its own MMU, hence a translator, too.
 *
 * Ring words, queue entries and doorbells are written here and nowhere else. Doorbells carry absolute tails. Marks are
 * ring positions: a job's mark is the number of words written up to and including its own.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <pasid/driver.h>
#include <pasid/pasid.h>
#include <pasid/refgpu.h>

#include "base/util.h"

#define RING_WORDS 64u /* a turn's jobs, the switch before them, and room to spare */
#define RING_JOBS 16u /* jobs in a ring at a time; with install and scrub words well below RING_WORDS */
#define INVQ_ENTRIES 1024u
#define FAULTQ_ENTRIES 256u /* every slot stalls on its first fault, so 64 would do */
#define INV_RANGES 64u /* in one request; more than that is the whole ASID */

/* What the device reads, and what it writes: the two halves of engine_memory. */
struct shared_ro {
	struct refgpu_inv invq[INVQ_ENTRIES];
	struct refgpu_ring_word ring[REFGPU_MAX_SLOTS][RING_WORDS];
};

struct shared_rw {
	struct refgpu_mailbox mailbox;
	uint8_t pad[4096 - sizeof(struct refgpu_mailbox) % 4096];
	struct refgpu_fault faultq[FAULTQ_ENTRIES];
};

struct slot {
	uint64_t tail; /* words written */
	uint64_t rung; /* ... and made known */
	uint64_t done; /* the device's mark, as last judged */
	uint64_t control; /* the last CTRL value */
	uint64_t sequence;
};

/* What is true beyond the daemon's life, in engine_memory.keep. A queue's entries are written first, then the tail here,
 * then the device's register: whoever finds the first two makes good for the third. */
struct kept {
	struct slot slots[REFGPU_MAX_SLOTS];
	uint64_t inv_base; /* tickets given before the last restart */
	uint64_t inv_tail; /* entries written since */
	uint64_t inv_head; /* the device's mark, as last judged */
	uint64_t fault_head;
	uint64_t fault_lost;
};

struct refgpu {
	struct engine engine;
	struct translator translator;
	struct engine_device *device;
	struct shared_ro *ro;
	struct shared_rw *rw;
	struct kept *kept;
	struct engine_memory mem;
	uint32_t format;
	unsigned int n_slots;
};

static const struct engine_ops refgpu_ops;
static const struct translator_ops refgpu_translator;

static struct refgpu *of_engine(struct engine *e)
{
	return container_of(e, struct refgpu, engine);
}

static struct refgpu *of_translator(struct translator *t)
{
	return container_of(t, struct refgpu, translator);
}

static void reg32(struct refgpu *g, uint64_t reg, uint32_t v)
{
	g->device->ops->region_write(g->device, REFGPU_BAR_REGS, reg, 4, v);
}

static void reg64(struct refgpu *g, uint64_t reg, uint64_t v)
{
	g->device->ops->region_write(g->device, REFGPU_BAR_REGS, reg, 8, v);
}

static uint64_t device_word(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

/* ---- coming and going ---- */

static bool refgpu_match(const struct transport_ids *ids)
{
	return ids->vendor == REFGPU_PCI_VENDOR && ids->device == REFGPU_PCI_DEVICE;
}

static void refgpu_restart(struct engine *e)
{
	struct refgpu *g = of_engine(e);

	memset(&g->rw->mailbox, 0, sizeof(g->rw->mailbox));
	*g->kept = (struct kept){.inv_base = g->kept->inv_base + g->kept->inv_tail};
	reg32(g, REFGPU_REG_FORMAT, g->format);
	reg64(g, REFGPU_REG_MAILBOX, g->mem.rw_bus + offsetof(struct shared_rw, mailbox));
	reg64(g, REFGPU_REG_INVQ, g->mem.ro_bus + offsetof(struct shared_ro, invq));
	reg32(g, REFGPU_REG_INVQ_SIZE, INVQ_ENTRIES);
	reg64(g, REFGPU_REG_FAULTQ, g->mem.rw_bus + offsetof(struct shared_rw, faultq));
	reg32(g, REFGPU_REG_FAULTQ_SIZE, FAULTQ_ENTRIES);
	for (unsigned int s = 0; s < g->n_slots; s++) {
		reg64(g, REFGPU_SLOT_REG(s, REFGPU_SLOT_RING),
		      g->mem.ro_bus + offsetof(struct shared_ro, ring) + s * sizeof(g->ro->ring[0]));
		reg32(g, REFGPU_SLOT_REG(s, REFGPU_SLOT_RING_SIZE), RING_WORDS);
		reg32(g, REFGPU_SLOT_REG(s, REFGPU_SLOT_FAULT_MODE), 1);
	}
	reg32(g, REFGPU_REG_ENABLE, 1);
}

static int check_status(const volatile struct refgpu_status *st, uint32_t format, unsigned int *slots)
{
	uint32_t n = st->slots;

	if (st->magic != REFGPU_MAGIC || st->version != REFGPU_VERSION || n < 1 || n > REFGPU_MAX_SLOTS)
		return -ENODEV;
	if (!(st->formats >> format & 1))
		return -EOPNOTSUPP;
	if (!*slots || *slots > n)
		*slots = n;
	return 0;
}

/* What attach and adopt have in common: the driver's side of it. */
static int refgpu_new(struct refgpu **ret, struct engine_device *d, const struct engine_memory *mem,
		      const struct engine_config *config)
{
	AUTO_FREE struct refgpu *g = calloc(1, sizeof(*g));
	const volatile struct refgpu_status *st;
	int r;

	if (!g)
		return -ENOMEM;
	/* Where the kernel keeps the tables none come to its MMU, and it does not matter which they would be. */
	if (!config->format || !strcmp(config->format, "vmsa64"))
		g->format = REFGPU_FORMAT_VMSA64;
	else if (!strcmp(config->format, "x86-64"))
		g->format = REFGPU_FORMAT_X86_64;
	else
		return -EOPNOTSUPP;
	st = d->ops->region_map(d, REFGPU_BAR_STATUS, 0, REFGPU_BAR_STATUS_SIZE);
	if (!st)
		return -ENODEV;
	g->n_slots = config->slots;
	r = check_status(st, g->format, &g->n_slots);
	if (r < 0)
		return r;
	g->device = d;
	g->mem = *mem;
	g->ro = mem->ro;
	g->rw = mem->rw;
	g->kept = mem->keep;
	g->engine.ops = &refgpu_ops;
	g->translator.ops = &refgpu_translator;
	*ret = TAKE_PTR(g);
	return 0;
}

static int refgpu_attach(struct engine **ret, struct engine_device *d, const struct engine_memory *mem,
			 const struct engine_config *config)
{
	struct refgpu *g;
	int r = refgpu_new(&g, d, mem, config);

	if (r < 0)
		return r;
	refgpu_restart(&g->engine);
	*ret = &g->engine;
	return 0;
}

/* Its registers and queues stay. Tails are absolute: to say them once more is harmless. */
static int refgpu_adopt(struct engine **ret, struct engine_device *d, const struct engine_memory *mem,
			const struct engine_config *config)
{
	struct refgpu *g;
	int r = refgpu_new(&g, d, mem, config);

	if (r < 0)
		return r;
	for (unsigned int s = 0; s < g->n_slots; s++) {
		struct slot *slot = &g->kept->slots[s];

		slot->tail = slot->rung;
		reg64(g, REFGPU_SLOT_REG(s, REFGPU_SLOT_RING_TAIL), slot->rung);
	}
	reg64(g, REFGPU_REG_INVQ_TAIL, g->kept->inv_tail);
	reg64(g, REFGPU_REG_FAULTQ_HEAD, g->kept->fault_head);
	*ret = &g->engine;
	return 0;
}

static struct engine *refgpu_detach(struct engine *e)
{
	if (e)
		free(of_engine(e));
	return NULL;
}

static unsigned int refgpu_slots(const struct engine *e)
{
	return container_of(e, const struct refgpu, engine)->n_slots;
}

static struct translator *refgpu_get_translator(struct engine *e)
{
	return &of_engine(e)->translator;
}

/* ---- rings ---- */

static int ring_put(struct refgpu *g, unsigned int s, const struct refgpu_ring_word *w)
{
	struct slot *slot = &g->kept->slots[s];

	if (slot->tail - slot->done >= RING_WORDS)
		return -EAGAIN;
	g->ro->ring[s][slot->tail % RING_WORDS] = *w;
	slot->tail++;
	return 0;
}

static int refgpu_submit(struct engine *e, unsigned int s, const struct engine_job *job, uint64_t *mark)
{
	struct refgpu *g = of_engine(e);
	struct refgpu_ring_word w = {
		.op = REFGPU_RING_RUN,
		.addr = job->iova,
		.len = job->len,
		.job = job->number,
		.fence = job->fence,
	};
	int r = ring_put(g, s, &w);

	*mark = g->kept->slots[s].tail;
	return r;
}

static int refgpu_scrub(struct engine *e, unsigned int s)
{
	return ring_put(of_engine(e), s, &(struct refgpu_ring_word){.op = REFGPU_RING_SCRUB});
}

static int refgpu_install(struct translator *t, unsigned int s, const struct translator_space *space)
{
	return ring_put(
		of_translator(t), s,
		&(struct refgpu_ring_word){.op = REFGPU_RING_SET_TTBR, .asid = space->asid, .addr = space->root});
}

static void refgpu_kick(struct engine *e, unsigned int s)
{
	struct refgpu *g = of_engine(e);
	struct slot *slot = &g->kept->slots[s];

	if (slot->rung == slot->tail)
		return;
	slot->rung = slot->tail;
	atomic_thread_fence(memory_order_release);
	reg64(g, REFGPU_SLOT_REG(s, REFGPU_SLOT_RING_TAIL), slot->tail);
}

static void refgpu_control(struct engine *e, unsigned int s, enum engine_control what)
{
	static const uint8_t ctrl[] = {
		[ENGINE_PAUSE] = REFGPU_CTRL_PAUSE,
		[ENGINE_RESUME] = REFGPU_CTRL_RESUME,
		[ENGINE_TERMINATE] = REFGPU_CTRL_TERMINATE,
		[ENGINE_STOP] = REFGPU_CTRL_STOP,
	};
	struct refgpu *g = of_engine(e);
	struct slot *slot = &g->kept->slots[s];

	if (what == ENGINE_STOP)
		refgpu_kick(e, s); /* STOP drops what is up to the tail: let there be nothing beyond it */
	slot->control = ++slot->sequence << 8 | ctrl[what];
	reg64(g, REFGPU_SLOT_REG(s, REFGPU_SLOT_CTRL), slot->control);
}

static int refgpu_look(struct engine *e, unsigned int s, struct engine_slot *ret)
{
	struct refgpu *g = of_engine(e);
	const struct refgpu_slot_mark *m = &g->rw->mailbox.slot[s];
	struct slot *slot = &g->kept->slots[s];
	uint32_t state;

	ret->settled = device_word(&m->ctrl_ack) == slot->control;
	state = __atomic_load_n(&m->state, __ATOMIC_ACQUIRE);
	ret->done = device_word(&m->done);
	ret->begun = device_word(&m->begun);
	ret->still = state != REFGPU_SLOT_RUNNING;
	ret->told = slot->rung;
	if (ret->done > slot->rung || ret->begun > slot->rung || ret->done < slot->done)
		return -EPROTO;
	slot->done = ret->done;
	return 0;
}

/* ---- the MMU ---- */

static int refgpu_invalidate(struct translator *t, uint32_t asid, const struct range *r, size_t n, uint64_t *ticket)
{
	struct refgpu *g = of_translator(t);
	size_t entries = n ? n : 1;

	if (g->kept->inv_tail + entries - g->kept->inv_head > INVQ_ENTRIES)
		return -EAGAIN;
	for (size_t i = 0; i < entries; i++) {
		struct refgpu_inv *inv = &g->ro->invq[(g->kept->inv_tail + i) % INVQ_ENTRIES];

		if (n)
			*inv = (struct refgpu_inv){REFGPU_INV_RANGE, asid, r[i].first, r[i].last, 0};
		else
			*inv = (struct refgpu_inv){asid ? REFGPU_INV_ASID : REFGPU_INV_ALL, asid, 0, 0, 0};
	}
	g->kept->inv_tail += entries;
	atomic_thread_fence(memory_order_release);
	reg64(g, REFGPU_REG_INVQ_TAIL, g->kept->inv_tail);
	*ticket = g->kept->inv_base + g->kept->inv_tail;
	return 0;
}

static int refgpu_invalidated(struct translator *t, uint64_t *ticket)
{
	struct refgpu *g = of_translator(t);
	uint64_t head = device_word(&g->rw->mailbox.invq_head);

	if (head > g->kept->inv_tail || head < g->kept->inv_head)
		return -EPROTO;
	g->kept->inv_head = head;
	*ticket = g->kept->inv_base + head;
	return 0;
}

static uint32_t fault_code(uint32_t code)
{
	static const uint8_t codes[] = {
		[REFGPU_FAULT_TRANSLATION] = PASID_FAULT_UNMAPPED,  [REFGPU_FAULT_PERMISSION] = PASID_FAULT_PERMISSION,
		[REFGPU_FAULT_ADDRESS_SIZE] = PASID_FAULT_ADDRESS,  [REFGPU_FAULT_BUS] = PASID_FAULT_BUS,
		[REFGPU_FAULT_PRIVILEGED] = PASID_FAULT_PRIVILEGED, [REFGPU_FAULT_COMMAND] = PASID_FAULT_COMMAND,
	};

	return code < ARRAY_SIZE(codes) && codes[code] ? codes[code] : PASID_FAULT_OTHER;
}

static int refgpu_next_fault(struct translator *t, struct translator_fault *ret, uint64_t *lost)
{
	struct refgpu *g = of_translator(t);
	uint64_t tail = device_word(&g->rw->mailbox.faultq_tail);
	uint64_t dropped = device_word(&g->rw->mailbox.faultq_lost);
	struct refgpu_fault f;

	if (tail < g->kept->fault_head || tail - g->kept->fault_head > FAULTQ_ENTRIES)
		return -EPROTO;
	*lost += dropped - g->kept->fault_lost;
	g->kept->fault_lost = dropped;
	if (tail == g->kept->fault_head)
		return 0;
	f = g->rw->faultq[g->kept->fault_head % FAULTQ_ENTRIES];
	g->kept->fault_head++;
	reg64(g, REFGPU_REG_FAULTQ_HEAD, g->kept->fault_head);
	if (f.slot >= g->n_slots)
		return -EPROTO;
	*ret = (struct translator_fault){
		.slot = f.slot,
		.asid = f.asid,
		.addr = f.addr,
		.access = f.access & (REFGPU_READ | REFGPU_WRITE | REFGPU_FETCH),
		.code = fault_code(f.code),
		.job = f.job,
		.stalled = f.stalled,
	};
	return 1;
}

static const struct translator_ops refgpu_translator = {
	.install = refgpu_install,
	.invalidate = refgpu_invalidate,
	.invalidated = refgpu_invalidated,
	.next_fault = refgpu_next_fault,
	.max_ranges = INV_RANGES,
};

static size_t refgpu_fill(void *cmd, uint64_t dst, uint64_t len, uint32_t value)
{
	const struct refgpu_cmd c = {.op = REFGPU_FILL, .value = value, .dst = dst, .len = len};

	memcpy(cmd, &c, sizeof(c));
	return sizeof(c);
}

static size_t refgpu_copy(void *cmd, uint64_t dst, uint64_t src, uint64_t len)
{
	const struct refgpu_cmd c = {.op = REFGPU_COPY, .dst = dst, .src = src, .len = len};

	memcpy(cmd, &c, sizeof(c));
	return sizeof(c);
}

static const struct pasid_driver_verbs refgpu_verbs = {.fill = refgpu_fill, .copy = refgpu_copy};

static const struct engine_ops refgpu_ops = {
	.name = "refgpu",
	.irqs = REFGPU_VECTORS,
	.asid_bits = 16,
	.ring_jobs = RING_JOBS,
	.cmd_align = REFGPU_CMD_SIZE,
	.submit_max = 1u << 20,
	.ro_bytes = (sizeof(struct shared_ro) + 4095) & ~4095ull,
	.rw_bytes = (sizeof(struct shared_rw) + 4095) & ~4095ull,
	.keep_bytes = (sizeof(struct kept) + 4095) & ~4095ull,
	.match = refgpu_match,
	.attach = refgpu_attach,
	.adopt = refgpu_adopt,
	.restart = refgpu_restart,
	.detach = refgpu_detach,
	.slots = refgpu_slots,
	.translator = refgpu_get_translator,
	.submit = refgpu_submit,
	.scrub = refgpu_scrub,
	.kick = refgpu_kick,
	.control = refgpu_control,
	.look = refgpu_look,
};

const struct pasid_driver refgpu_driver = {
	.abi = PASID_DRIVER_ABI,
	.engine = &refgpu_ops,
	.verbs = &refgpu_verbs,
};
