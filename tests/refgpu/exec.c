/* SPDX-License-Identifier: MIT */
/*
 * Commands: fetched one by one through the context's tables, copied, judged, and done piece by piece.
 *
 * All that a command touches is cut into sections of at most CHUNK bytes, and control is obeyed between any two. In a
 * section the pieces are what lies in one page or block and one bus region on both sides. Where a piece cannot be
 * done, all before it is: a stalled access goes on there.
 */
#include <string.h>

#include "device.h"
#include "exec_data.h"
#include "slot.h"

#define CHUNK (256u << 10)

/* A command under way. */
struct op {
	struct slot *slot;
	struct refgpu_cmd cmd;
	uint64_t va; /* of the command */
	uint64_t pos; /* bytes done; one word operations have 8 */
	uint64_t end;
	bool uses_src;
	bool uses_dst;
	struct window src;
	struct window dst;
	struct window *touching; /* whose translation or memory is in question */
	struct refgpu_fault fault;
};

static int op_fault(struct op *op, uint32_t code, uint64_t addr, uint32_t access, uint32_t level)
{
	op->fault = (struct refgpu_fault){.code = code, .addr = addr, .access = access, .level = level};
	return (int)code;
}

/* Finds where va lies; cuts *len to what is there in one piece. */
static int window_open(struct op *op, struct window *w, uint64_t va, uint32_t access, uint64_t *len)
{
	struct mmu_page page;
	struct bus_span span;
	int r;

	w->va = va;
	w->access = access;
	w->host = NULL;
	w->level = 0;
	op->touching = w;
	r = mmu_translate(&op->slot->mmu, va, access, &page);
	w->level = page.level;
	if (r)
		return op_fault(op, (uint32_t)r, va, access, page.level);
	if (page.left < *len)
		*len = page.left;
	r = bus_span(&op->slot->port, page.bus, *len, access == REFGPU_WRITE ? DMA_WRITE : DMA_READ, &span);
	if (r < 0)
		return op_fault(op, REFGPU_FAULT_BUS, va, access, page.level);
	w->host = span.host;
	w->bus = span.bus;
	w->len = *len = span.len;
	return 0;
}

/* Opens a window at an address of the command, or at an offset of its scratch memory. */
static int side_open(struct op *op, struct window *w, uint64_t at, bool scratch, uint32_t access, uint64_t *len)
{
	if (!scratch)
		return window_open(op, w, at, access, len);
	*w = (struct window){.host = op->slot->scratch + at, .len = *len};
	return 0;
}

/* Where in a row of BLIT, or in a plain range, the byte at pos lies. */
static uint64_t place(const struct op *op, uint64_t base, uint32_t pitch, uint64_t *len)
{
	uint64_t row, column;

	if (op->cmd.op != REFGPU_BLIT)
		return base + op->pos;
	row = op->pos / op->cmd.width;
	column = op->pos % op->cmd.width;
	if (op->cmd.width - column < *len)
		*len = op->cmd.width - column;
	return base + row * pitch + column;
}

static int piece(struct op *op, uint64_t max)
{
	const struct refgpu_cmd *c = &op->cmd;
	struct data_ends ends = {.port = &op->slot->port, .src = NULL, .dst = &op->dst};
	uint64_t len = op->end - op->pos < max ? op->end - op->pos : max, at;
	int r;

	if (op->uses_src) {
		at = place(op, c->src, c->src_pitch, &len);
		r = side_open(op, &op->src, at, c->op == REFGPU_LOAD, REFGPU_READ, &len);
		if (r)
			return r;
		ends.src = &op->src;
	}
	at = place(op, c->dst, c->dst_pitch, &len);
	r = side_open(op, &op->dst, at, c->op == REFGPU_STORE, REFGPU_WRITE, &len);
	if (r)
		return r;
	ends.bounce_src = op->slot->bounce[0];
	ends.bounce_dst = op->slot->bounce[1];
	ends.lock = &op->slot->dev->remote_atomics;
	r = data_move(&ends, c, op->pos, &len, &op->touching);
	if (r < 0)
		return op_fault(op, REFGPU_FAULT_BUS, op->touching->va, op->touching->access, op->touching->level);
	op->pos += len;
	return 0;
}

/* A section: some pieces. */
static int op_section(void *arg)
{
	struct op *op = arg;
	uint64_t stop = op->pos + CHUNK;
	int r = 0;

	while (!r && op->pos < op->end && op->pos < stop)
		r = piece(op, stop - op->pos);
	return r;
}

/* The byte at which memory vanished, if the handler saw it in one of the windows. */
static void op_broke(struct op *op)
{
	const uintptr_t at = atomic_load(&op->slot->port.broke);
	struct window *w[] = {&op->src, &op->dst};
	uint64_t off;
	unsigned int i;

	for (i = 0; i < 2; i++) {
		off = at - (uintptr_t)w[i]->host;
		if (w[i]->host && off < w[i]->len) {
			op_fault(op, REFGPU_FAULT_BUS, off ? (w[i]->va + off) & ~UINT64_C(4095) : w[i]->va,
				 w[i]->access, w[i]->level);
			if (op->fault.addr < w[i]->va)
				op->fault.addr = w[i]->va;
			return;
		}
	}
	op_fault(op, REFGPU_FAULT_BUS, op->touching->va, op->touching->access, op->touching->level);
}

static enum slot_verdict op_drive(struct op *op)
{
	enum slot_verdict verdict;
	int r;

	while (op->pos < op->end) {
		verdict = slot_attend(op->slot);
		if (verdict != SLOT_GO)
			return verdict;
		r = bus_run(&op->slot->port, op_section, op);
		if (r < 0)
			op_broke(op);
		verdict = r ? slot_fault(op->slot, &op->fault) : SLOT_GO;
		if (verdict != SLOT_GO)
			return verdict;
	}
	return SLOT_GO;
}

static bool fits(uint64_t at, uint64_t len)
{
	return !len || at + (len - 1) >= at;
}

static bool in_scratch(uint64_t at, uint64_t len)
{
	return at <= REFGPU_SCRATCH_SIZE && len <= REFGPU_SCRATCH_SIZE - at;
}

static bool blit_fits(uint64_t at, const struct refgpu_cmd *c, uint32_t pitch)
{
	if (!c->width || !c->height)
		return true;
	return pitch >= c->width && fits(at, (uint64_t)(c->height - 1) * pitch + c->width);
}

/* Prepares a well-formed command; 0 or the fault code of one that is not. */
static uint32_t op_judge(struct op *op)
{
	const struct refgpu_cmd *c = &op->cmd;
	bool ok = fits(c->dst, c->len);

	op->uses_src = true;
	op->end = c->len;
	switch (c->op) {
	case REFGPU_FILL:
		op->uses_src = false;
		ok = ok && c->len % 4 == 0;
		break;
	case REFGPU_COPY:
		ok = ok && fits(c->src, c->len);
		break;
	case REFGPU_ADD32:
		ok = ok && fits(c->src, c->len) && (c->len | c->dst | c->src) % 4 == 0;
		break;
	case REFGPU_LOAD:
		ok = ok && in_scratch(c->src, c->len);
		break;
	case REFGPU_STORE:
		ok = in_scratch(c->dst, c->len) && fits(c->src, c->len);
		break;
	case REFGPU_ATOMIC:
	case REFGPU_FENCE:
		op->uses_src = false;
		op->end = 8;
		ok = c->dst % 8 == 0;
		break;
	case REFGPU_BLIT:
		op->end = (uint64_t)c->width * c->height;
		ok = blit_fits(c->dst, c, c->dst_pitch) && blit_fits(c->src, c, c->src_pitch);
		break;
	case REFGPU_SET_TTBR:
		return REFGPU_FAULT_PRIVILEGED;
	case REFGPU_NOP:
		op->end = 0;
		ok = true;
		break;
	case REFGPU_HANG:
		op->end = 0;
		ok = c->value <= 1;
		break;
	default:
		return REFGPU_FAULT_COMMAND;
	}
	return ok && !c->reserved[0] && !c->reserved[1] ? 0 : REFGPU_FAULT_COMMAND;
}

/* A section: copies the command, which may cross a page. */
static int op_fetch(void *arg)
{
	struct op *op = arg;
	uint8_t *to = (uint8_t *)&op->cmd;
	uint64_t got, len;
	int r;

	for (got = 0; got < REFGPU_CMD_SIZE; got += len) {
		len = REFGPU_CMD_SIZE - got;
		r = window_open(op, &op->src, op->va + got, REFGPU_FETCH, &len);
		if (r)
			return r;
		if (bus_read(&op->slot->port, op->src.bus, to + got, len) < 0)
			return op_fault(op, REFGPU_FAULT_BUS, op->va + got, REFGPU_FETCH, op->src.level);
	}
	return 0;
}

/* Fetches and judges until there is a command that can be done, or control says otherwise. */
static enum slot_verdict op_begin(struct op *op)
{
	enum slot_verdict verdict;
	int r;

	do {
		verdict = slot_attend(op->slot);
		if (verdict != SLOT_GO)
			return verdict;
		r = bus_run(&op->slot->port, op_fetch, op);
		if (r < 0)
			op_broke(op);
		if (!r) {
			r = (int)op_judge(op);
			if (r)
				op_fault(op, (uint32_t)r, op->va, REFGPU_FETCH, 0);
		}
		if (r)
			verdict = slot_fault(op->slot, &op->fault);
	} while (r && verdict == SLOT_GO);
	return verdict;
}

enum slot_verdict exec_run(struct slot *s, uint64_t first, uint64_t len)
{
	enum slot_verdict verdict = SLOT_GO;
	uint64_t at;

	for (at = 0; at < len && verdict == SLOT_GO; at += REFGPU_CMD_SIZE) {
		struct op op = {.slot = s, .va = first + at};

		verdict = op_begin(&op);
		if (verdict == SLOT_GO && op.cmd.op == REFGPU_HANG)
			verdict = slot_hang(s, op.cmd.value == 0);
		else if (verdict == SLOT_GO)
			verdict = op_drive(&op);
	}
	return verdict;
}
