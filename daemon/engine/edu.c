/* SPDX-License-Identifier: MIT */
/*
 * The driver of QEMU's "edu" device, the worked example of a GPU without an MMU (docs/driver.md): one DMA channel between
 * memory and 4 KiB inside of the device, an interrupt when a transfer is done, no way to stop one, no reset.
 *
 * The driver is the command processor: it reads the commands of a job when it is put on the slot, and makes transfers of
 * them, one after the other, each begun when the last one is done. What comes from a client is checked when it is used:
 * addresses must lie in what clients may map, so that neither the window nor an interrupt controller's address can be
 * named. The device's memory keeps what the last transfer left there; SCRUB overwrites it with zeros from the window.
 *
 * What a successor needs stands in the memory that is kept (struct kept): the jobs, and where the oldest of them is. That moves
 * on when a transfer is over and before the next one is begun, so that whoever finds the device idle there begins that
 * transfer, again perhaps: until its end is noted nothing else has changed what it reads, and twice is as good as once.
 *
 * It uses nothing but installed headers. In a shared object its one symbol would be called `pasid_driver`, and that is all
 * the difference; the tests build it that way, too.
 *
 * Source: QEMU docs/specs/edu.rst.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <pasid/driver.h>
#include <pasid/edu.h>

#define BAR 0u
#define REG_ID 0x00u
#define REG_IRQ_STATUS 0x24u
#define REG_IRQ_ACK 0x64u
#define REG_DMA_SRC 0x80u
#define REG_DMA_DST 0x88u
#define REG_DMA_COUNT 0x90u
#define REG_DMA_CMD 0x98u
#define ID_MASK 0xffu
#define ID 0xedu
#define CMD_START 1u
#define CMD_FROM_DEVICE 2u
#define CMD_IRQ 4u
#define DEVICE_MEMORY 0x40000u
#define DEVICE_BYTES 4096u

#define EDU_VENDOR 0x1234u
#define EDU_DEVICE 0x11e8u

#define RING_JOBS 4u
#define SUBMIT_MAX 4096u

enum phase { PHASE_IN, PHASE_OUT, PHASE_SCRUB };

struct job {
	struct pasid_edu_cmd cmds[SUBMIT_MAX / PASID_EDU_CMD_SIZE];
	uint32_t n;
	uint32_t scrub; /* clear the device's memory first */
	uint64_t window_iova;
};

/* Jobs, absolute; also their marks. Each word is stored at once. */
struct kept {
	uint64_t rung, done;
	uint64_t place; /* in the oldest job; of another job: at its beginning */
	struct job jobs[RING_JOBS]; /* a ring: the oldest that is not done at `done` % RING_JOBS */
};

#define KEEP_BYTES ((sizeof(struct kept) + ENGINE_PAGE - 1) / ENGINE_PAGE * ENGINE_PAGE)

/* A place in one word: whose it is, the phase, the command, and how many pieces of that are done. */
#define PLACE_MARK_BITS 16u
#define PLACE_PHASE_BITS 2u
#define PLACE_CMD_BITS 8u
#define PLACE_PIECES_SHIFT (PLACE_MARK_BITS + PLACE_PHASE_BITS + PLACE_CMD_BITS)

_Static_assert(SUBMIT_MAX / PASID_EDU_CMD_SIZE < 1u << PLACE_CMD_BITS, "a command has its number");

struct edu {
	struct engine engine; /* first, so that a pointer to it is one to the edu */
	struct engine_device *device;
	struct range iova;
	struct kept *kept;
	void *windows[RING_JOBS]; /* of kept->jobs */
	uint64_t put; /* jobs; those above kept->rung are forgotten by a successor */
	uint64_t begun;
	bool scrub_next; /* the next job that is put clears the device's memory first */
	bool running; /* a transfer */
	bool stopping, paused, settled;
	/* kept->place, taken apart */
	enum phase phase;
	uint32_t cmd;
	uint64_t pieces;
};

static const struct engine_ops edu_ops;

static struct edu *of_engine(struct engine *e)
{
	return (struct edu *)e;
}

static void write64(struct edu *d, uint64_t reg, uint64_t v)
{
	d->device->ops->region_write(d->device, BAR, reg, 8, v);
}

/* All ones where it cannot be read, as of a PCI device that is gone. */
static uint32_t read32(struct engine_device *device, uint32_t reg)
{
	uint64_t v;

	return device->ops->region_read(device, BAR, reg, 4, &v) < 0 ? UINT32_MAX : (uint32_t)v;
}

/* ---- coming and going ---- */

static bool edu_match(const struct transport_ids *ids)
{
	return ids->vendor == EDU_VENDOR && ids->device == EDU_DEVICE;
}

/* In the order in which the program has them: a successor sees what was stored up to any instruction. */
static void keep(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static void keep_place(struct edu *d)
{
	uint64_t mark = (d->kept->done + 1) & ((1u << PLACE_MARK_BITS) - 1);

	keep(&d->kept->place, mark | (uint64_t)d->phase << PLACE_MARK_BITS |
				      (uint64_t)d->cmd << (PLACE_MARK_BITS + PLACE_PHASE_BITS) |
				      d->pieces << PLACE_PIECES_SHIFT);
}

/* The oldest job's beginning. */
static void begin_job(struct edu *d)
{
	d->phase = d->kept->jobs[d->kept->done % RING_JOBS].scrub ? PHASE_SCRUB : PHASE_IN;
	d->cmd = 0;
	d->pieces = 0;
}

static void find_place(struct edu *d)
{
	uint64_t place = d->kept->place, mark = (d->kept->done + 1) & ((1u << PLACE_MARK_BITS) - 1);

	begin_job(d);
	if ((place & ((1u << PLACE_MARK_BITS) - 1)) != mark)
		return;
	d->phase = place >> PLACE_MARK_BITS & ((1u << PLACE_PHASE_BITS) - 1);
	d->cmd = place >> (PLACE_MARK_BITS + PLACE_PHASE_BITS) & ((1u << PLACE_CMD_BITS) - 1);
	d->pieces = place >> PLACE_PIECES_SHIFT;
}

static void edu_restart(struct engine *e)
{
	struct edu *d = of_engine(e);

	keep(&d->kept->rung, 0); /* before `done`: no job is left over */
	keep(&d->kept->done, 0);
	keep(&d->kept->place, 0);
	d->put = d->begun = 0;
	d->running = d->stopping = d->paused = d->scrub_next = false;
	d->settled = true;
}

static void acknowledge(struct engine_device *device)
{
	uint32_t status = read32(device, REG_IRQ_STATUS);

	if (status)
		device->ops->region_write(device, BAR, REG_IRQ_ACK, 4, status);
}

static int check_device(struct engine_device *device)
{
	return (read32(device, REG_ID) & ID_MASK) == ID ? 0 : -ENODEV;
}

static bool is_busy(struct engine_device *device)
{
	return read32(device, REG_DMA_CMD) & CMD_START;
}

static struct engine *edu_detach(struct engine *e)
{
	if (e)
		free(of_engine(e));
	return NULL;
}

static int new_edu(struct edu **ret, struct engine_device *device, const struct engine_memory *mem,
		   const struct engine_config *config)
{
	struct edu *d;

	acknowledge(device); /* a transfer from before */
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->device = device;
	d->iova = config->iova;
	d->kept = mem->keep;
	d->engine.ops = &edu_ops;
	*ret = d;
	return 0;
}

static int edu_attach(struct engine **ret, struct engine_device *device, const struct engine_memory *mem,
		      const struct engine_config *config)
{
	struct edu *d;
	int r = check_device(device);

	/* A transfer from before goes on, and until it has ended the registers take nothing. It is tried again. */
	if (r == 0 && is_busy(device))
		r = -EBUSY;
	if (r == 0)
		r = new_edu(&d, device, mem, config);
	if (r < 0)
		return r;
	edu_restart(&d->engine);
	*ret = &d->engine;
	return 0;
}

/* What the device does is the transfer of where the oldest job is. */
static int edu_adopt(struct engine **ret, struct engine_device *device, const struct engine_memory *mem,
		     const struct engine_config *config)
{
	struct kept *k = mem->keep;
	struct edu *d;
	int r = check_device(device);

	if (r == 0)
		r = new_edu(&d, device, mem, config);
	if (r < 0)
		return r;
	/* They were being dropped, or the device was being started again. */
	if (k->rung < k->done)
		keep(&k->rung, k->done);
	if (k->rung - k->done > RING_JOBS || (k->rung != k->done && (!config->windows || !config->windows[0]))) {
		edu_detach(&d->engine);
		return -ENODEV;
	}
	for (size_t i = 0; config->windows && i < RING_JOBS; i++)
		d->windows[i] = config->windows[0];
	d->put = k->rung;
	d->running = is_busy(device);
	d->begun = k->done + (k->rung != k->done);
	d->settled = true;
	find_place(d);
	*ret = &d->engine;
	return 0;
}

static unsigned int edu_slots(const struct engine *e)
{
	return 1;
}

/* ---- transfers ---- */

static void transfer(struct edu *d, uint64_t from, uint64_t to, uint64_t len, uint32_t direction)
{
	write64(d, REG_DMA_SRC, from);
	write64(d, REG_DMA_DST, to);
	write64(d, REG_DMA_COUNT, len);
	write64(d, REG_DMA_CMD, CMD_START | direction | CMD_IRQ);
	d->running = true;
}

static void transfer_in(struct edu *d, uint64_t iova, uint64_t len)
{
	transfer(d, iova, DEVICE_MEMORY, len, 0);
}

static void transfer_out(struct edu *d, uint64_t iova, uint64_t len)
{
	transfer(d, DEVICE_MEMORY, iova, len, CMD_FROM_DEVICE);
}

static bool may_touch(const struct edu *d, uint64_t iova, uint64_t len)
{
	struct range r;

	return range_make(&r, iova, len) && range_contains(d->iova, r);
}

/* A command that cannot be is skipped: the device has no way to report one, and the client only cheats itself. */
static bool is_possible(const struct edu *d, const struct pasid_edu_cmd *c)
{
	if (c->op == PASID_EDU_FILL)
		return may_touch(d, c->dst, c->len);
	return c->op == PASID_EDU_COPY && may_touch(d, c->dst, c->len) && may_touch(d, c->src, c->len);
}

static void fill_window(const struct edu *d, uint32_t value)
{
	uint8_t *p = d->windows[d->kept->done % RING_JOBS];

	for (uint32_t i = 0; i < DEVICE_BYTES; i++)
		p[i] = (uint8_t)(value >> 8 * (i % 4));
}

static uint64_t done_of(const struct edu *d)
{
	return d->pieces * DEVICE_BYTES;
}

static uint64_t piece(const struct edu *d, const struct pasid_edu_cmd *c)
{
	return c->len - done_of(d) < DEVICE_BYTES ? c->len - done_of(d) : DEVICE_BYTES;
}

/* Begins the transfer of where the job is; false if it has none left. */
static bool step(struct edu *d, const struct job *j)
{
	const struct pasid_edu_cmd *c;

	if (d->phase != PHASE_SCRUB)
		while (d->cmd < j->n && !is_possible(d, &j->cmds[d->cmd]))
			d->cmd++;
	if (d->phase != PHASE_SCRUB && d->cmd >= j->n)
		return false;
	keep_place(d);
	c = &j->cmds[d->cmd];
	if (d->phase == PHASE_SCRUB) {
		fill_window(d, 0);
		transfer_in(d, j->window_iova, DEVICE_BYTES);
	} else if (d->phase == PHASE_OUT) {
		transfer_out(d, c->dst + done_of(d), piece(d, c));
	} else if (c->op == PASID_EDU_COPY) {
		transfer_in(d, c->src + done_of(d), piece(d, c));
	} else {
		fill_window(d, c->value);
		transfer_in(d, j->window_iova, DEVICE_BYTES);
	}
	return true;
}

/* A transfer is over. */
static void advance(struct edu *d, const struct job *j)
{
	const struct pasid_edu_cmd *c = &j->cmds[d->cmd];

	if (d->phase != PHASE_OUT) {
		d->phase = d->phase == PHASE_SCRUB ? PHASE_IN : PHASE_OUT;
		return;
	}
	d->pieces++;
	/* The pattern of a fill is in the device already. */
	d->phase = c->op == PASID_EDU_COPY || done_of(d) >= c->len ? PHASE_IN : PHASE_OUT;
	if (done_of(d) >= c->len) {
		d->pieces = 0;
		d->cmd++;
	}
}

/* `done` first: until `rung` follows there seem to be jobs less than none. */
static void drop_all(struct edu *d)
{
	keep(&d->kept->done, d->put);
	keep(&d->kept->rung, d->put);
	d->begun = d->put;
	d->stopping = false;
	d->settled = true;
	begin_job(d);
}

static void go_on(struct edu *d)
{
	struct kept *k = d->kept;

	if (d->running) {
		if (is_busy(d->device))
			return;
		d->running = false;
		advance(d, &k->jobs[k->done % RING_JOBS]);
	}
	if (d->stopping)
		drop_all(d);
	d->settled = true;
	while (!d->paused && k->done != k->rung) {
		d->begun = k->done + 1;
		if (step(d, &k->jobs[k->done % RING_JOBS]))
			return;
		keep(&k->done, k->done + 1);
		begin_job(d);
	}
}

static void edu_interrupt(struct engine *e)
{
	struct edu *d = of_engine(e);

	acknowledge(d->device);
	go_on(d);
}

/* ---- jobs ---- */

static int edu_submit(struct engine *e, unsigned int slot, const struct engine_job *job, uint64_t *mark)
{
	struct edu *d = of_engine(e);
	struct job *j = &d->kept->jobs[d->put % RING_JOBS];

	if (d->put - d->kept->done == RING_JOBS)
		return -EAGAIN;
	/* They are there during this call only. What they say is checked when it is used. */
	memcpy(j->cmds, job->commands, job->len);
	j->n = (uint32_t)(job->len / PASID_EDU_CMD_SIZE);
	j->window_iova = job->window_iova;
	j->scrub = d->scrub_next;
	d->windows[d->put % RING_JOBS] = job->window;
	d->scrub_next = false;
	if (d->put == d->kept->done)
		begin_job(d);
	*mark = ++d->put;
	return 0;
}

static int edu_scrub(struct engine *e, unsigned int slot)
{
	of_engine(e)->scrub_next = true;
	return 0;
}

static void edu_kick(struct engine *e, unsigned int slot)
{
	struct edu *d = of_engine(e);

	keep(&d->kept->rung, d->put);
	if (!d->running)
		go_on(d);
}

/* A transfer that has begun cannot be stopped: controls take effect when it is over. */
static void edu_control(struct engine *e, unsigned int slot, enum engine_control what)
{
	struct edu *d = of_engine(e);

	d->paused = what == ENGINE_PAUSE;
	d->stopping |= what == ENGINE_STOP;
	d->settled = false;
	go_on(d);
}

static int edu_look(struct engine *e, unsigned int slot, struct engine_slot *ret)
{
	struct edu *d = of_engine(e);

	go_on(d);
	*ret = (struct engine_slot){
		.begun = d->begun,
		.done = d->kept->done,
		.settled = d->settled,
		.still = !d->running,
		.told = d->kept->rung,
	};
	return 0;
}

/* Marks count from 1. A command may read and write: even numbers are what it writes. */
static bool edu_names(const struct engine *e, unsigned int slot, uint64_t mark, uint32_t i, struct engine_access *ret)
{
	const struct edu *d = (const struct edu *)e;
	const struct job *j = &d->kept->jobs[(mark - 1) % RING_JOBS];
	const struct pasid_edu_cmd *c = &j->cmds[i / 2];
	bool reads = i % 2;

	if (i / 2 >= j->n)
		return false;
	/* Those that are skipped, and fills, read nothing. */
	if (!is_possible(d, c) || (reads && c->op != PASID_EDU_COPY)) {
		*ret = (struct engine_access){.access = 0};
		return true;
	}
	ret->access = reads ? 1 : 2;
	return range_make(&ret->at, reads ? c->src : c->dst, c->len);
}

/* ---- what a test program wants to know ---- */

static size_t edu_fill(void *cmd, uint64_t dst, uint64_t len, uint32_t value)
{
	const struct pasid_edu_cmd c = {.op = PASID_EDU_FILL, .value = value, .dst = dst, .len = len};

	memcpy(cmd, &c, sizeof(c));
	return sizeof(c);
}

static size_t edu_copy(void *cmd, uint64_t dst, uint64_t src, uint64_t len)
{
	const struct pasid_edu_cmd c = {.op = PASID_EDU_COPY, .dst = dst, .src = src, .len = len};

	memcpy(cmd, &c, sizeof(c));
	return sizeof(c);
}

static const struct pasid_driver_verbs edu_verbs = {.fill = edu_fill, .copy = edu_copy};

static const struct engine_ops edu_ops = {
	.name = "edu",
	.irqs = 1,
	.ring_jobs = RING_JOBS,
	.cmd_align = PASID_EDU_CMD_SIZE,
	.submit_max = SUBMIT_MAX,
	.reads = true,
	.keep_bytes = KEEP_BYTES,
	.window_bytes = DEVICE_BYTES,
	/* QEMU's default dma_mask; wider ones exist, but nothing tells. */
	.iova_bits = 28,
	.match = edu_match,
	.attach = edu_attach,
	.adopt = edu_adopt,
	.restart = edu_restart,
	.detach = edu_detach,
	.slots = edu_slots,
	.submit = edu_submit,
	.scrub = edu_scrub,
	.kick = edu_kick,
	.control = edu_control,
	.look = edu_look,
	.names = edu_names,
	.interrupt = edu_interrupt,
};

const struct pasid_driver edu_driver = {
	.abi = PASID_DRIVER_ABI,
	.engine = &edu_ops,
	.verbs = &edu_verbs,
};
