/* SPDX-License-Identifier: MIT */
/* See smmu.h. */
#include "translator/smmu.h"

#include <errno.h>
#include <stdlib.h>

#include <pasid/pasid.h>

#include "base/util.h"

/* ---- what it can do ---- */

#define BITS(v, from, n) ((v) >> (from) & ((1u << (n)) - 1))
#define IDR0_TTF(v) BITS(v, 2, 2)
#define TTF_AARCH64 2u
#define IDR0_ASID16(v) BITS(v, 12, 1)
#define IDR0_CD2L(v) BITS(v, 19, 1)
#define IDR0_TTENDIAN(v) BITS(v, 21, 2)
#define TTENDIAN_BIG 3u
#define IDR0_STALL_MODEL(v) BITS(v, 24, 2)
#define STALL_FORCED 2u
#define IDR1_SSIDSIZE(v) BITS(v, 6, 5)
#define IDR3_RIL(v) BITS(v, 10, 1)
#define IDR5_OAS(v) BITS(v, 0, 3)
#define IDR5_GRAN4K(v) BITS(v, 4, 1)

/* The most that a table of ours can have: ASIDs, of which each substream takes one, have no more bits. */
#define SUBSTREAM_BITS_MAX ENGINE_MAX_ASID_BITS

const char *smmu_judge(const struct transport_smmu *smmu, struct smmu_traits *ret)
{
	/* 52 bits are more than the format reaches. */
	static const uint8_t sizes[] = {32, 36, 40, 42, 44, 48, 48, 48};
	const uint32_t *idr = smmu->idr;
	unsigned int substream_bits = IDR1_SSIDSIZE(idr[1]);

	*ret = (struct smmu_traits){
		.asid_bits = IDR0_ASID16(idr[0]) ? 16 : 8,
		.address_bits = sizes[IDR5_OAS(idr[5])],
		.substream_bits = substream_bits < SUBSTREAM_BITS_MAX ? substream_bits : SUBSTREAM_BITS_MAX,
		.two_levels = IDR0_CD2L(idr[0]),
		.ranges = IDR3_RIL(idr[3]),
		.repeat = smmu->flags & TRANSPORT_SMMU_REPEAT,
	};
	if (!(IDR0_TTF(idr[0]) & TTF_AARCH64))
		return "its SMMU knows no 64-bit tables (SMMU_IDR0.TTF)";
	if (!IDR5_GRAN4K(idr[5]))
		return "its SMMU knows no pages of 4 KiB (SMMU_IDR5.GRAN4K)";
	if (IDR0_TTENDIAN(idr[0]) == TTENDIAN_BIG)
		return "its SMMU reads big-endian tables only (SMMU_IDR0.TTENDIAN)";
	if (IDR0_STALL_MODEL(idr[0]) == STALL_FORCED)
		return "its SMMU cannot end an access that faults (SMMU_IDR0.STALL_MODEL)";
	if (ret->address_bits < SMMU_ADDRESS_BITS_MIN)
		return "its SMMU puts out too few address bits (SMMU_IDR5.OAS): it takes 40";
	return NULL;
}

/* ---- commands ---- */

#define CMD_CFGI_CD UINT64_C(0x05)
#define CMD_CFGI_CD_ALL UINT64_C(0x06)
#define CMD_TLBI_NH_ALL UINT64_C(0x10)
#define CMD_TLBI_NH_ASID UINT64_C(0x11)
#define CMD_TLBI_NH_VA UINT64_C(0x12)
#define CFGI_SUBSTREAM_SHIFT 12
#define CFGI_STREAM_SHIFT 32
#define TLBI_NUM_SHIFT 12
#define TLBI_SCALE_SHIFT 20
#define TLBI_ASID_SHIFT 48
#define TLBI_TG_4K (UINT64_C(1) << 10)
#define RANGE_MOST 32u /* of NUM: so many of a power of two of pages */
#define SCALE_MOST 31u /* of its five bits; there is a sixth where addresses have 52 bits */
#define PAGE UINT64_C(4096)

/*
 * More than these, and the whole ASID is forgotten instead, at the price of all that has to be walked again. A call with so
 * many takes less than twice as long as one with a single command, as measured (docs/performance.md), and the kernel puts
 * them into its queue in one piece, with one wait (it does with up to 63).
 */
#define VA_COMMANDS 32u

_Static_assert(VA_COMMANDS <= TRANSPORT_SMMU_COMMANDS, "one call");

struct smmu {
	struct translator translator;
	struct transport *transport;
	struct smmu_traits traits;
	struct cdtable table;
	struct translator *device;
	bool stale; /* a command failed: the SMMU may have a descriptor that is not in memory any more */
	uint64_t tickets;
	struct transport_smmu_event events[TRANSPORT_SMMU_EVENTS];
	int n_events, next_event;
};

static struct smmu *of_translator(struct translator *t)
{
	return container_of(t, struct smmu, translator);
}

/* 0: they are complete, and so is what accesses under what they named had begun. Otherwise any of them may not be. */
static int command(struct smmu *s, const struct transport_smmu_command *v, uint32_t n)
{
	int r = s->transport->ops->nested->invalidate(s->transport, v, n);

	if (r == 0 && s->traits.repeat)
		r = s->transport->ops->nested->invalidate(s->transport, v, n);
	return r;
}

/* Has the SMMU forget its copy of a descriptor, and of the table above it; after a failure, of all that there are. */
static int forget_descriptor(struct smmu *s, uint32_t substream)
{
	const uint64_t stream = (uint64_t)TRANSPORT_SMMU_STREAM << CFGI_STREAM_SHIFT;
	const struct transport_smmu_command one = {
		{CMD_CFGI_CD | (uint64_t)substream << CFGI_SUBSTREAM_SHIFT | stream}};
	const struct transport_smmu_command all = {{CMD_CFGI_CD_ALL | stream}};
	int r = command(s, s->stale ? &all : &one, 1);

	s->stale = r < 0;
	return r;
}

/* ---- descriptors ---- */

static uint32_t substream_of(const struct smmu *s, const struct translator_space *space)
{
	return s->table.bits ? space->pasid : 0;
}

static int clear(struct smmu *s, uint32_t substream)
{
	cdtable_clear(&s->table, substream);
	return forget_descriptor(s, substream);
}

/*
 * Break before make: the descriptor is not valid, and the SMMU has no copy that is, before anything of it changes; it has no
 * copy from before that change when the descriptor becomes valid, for it reads one in pieces and in any order; and it has no
 * copy that says "not valid" when work begins. The TLB is left alone: what it has is by ASID, and an ASID that was
 * another's was forgotten when that one ended. What was unmapped since was forgotten then.
 */
static int put_descriptor(struct smmu *s, uint32_t substream, const struct translator_space *space)
{
	bool may_remember = s->stale || cdtable_valid(&s->table, substream);
	int r = may_remember ? clear(s, substream) : 0;

	if (r < 0)
		return r;
	cdtable_fill(&s->table, substream, space->root);
	r = forget_descriptor(s, substream);
	if (r < 0)
		return r;
	cdtable_validate(&s->table, substream, space->asid);
	r = forget_descriptor(s, substream);
	if (r < 0)
		(void)clear(s, substream);
	return r;
}

static int smmu_install(struct translator *t, unsigned int slot, const struct translator_space *space)
{
	struct smmu *s = of_translator(t);
	uint32_t substream = substream_of(s, space);

	/* One of a PASID that is valid stays: the SMMU has been told of it, whatever it may remember of others. */
	if (!s->table.bits || !cdtable_valid(&s->table, substream))
		if (put_descriptor(s, substream, space) < 0)
			return -ECANCELED;
	return s->device ? s->device->ops->install(s->device, slot, space) : 0;
}

static int smmu_remove(struct translator *t, unsigned int slot, const struct translator_space *space)
{
	struct smmu *s = of_translator(t);
	uint32_t substream = substream_of(s, space);

	if (!s->stale && !cdtable_has(&s->table, substream, space->asid))
		return 0;
	return clear(s, substream) < 0 ? -EAGAIN : 0;
}

/* ---- invalidation ---- */

static uint64_t asid_field(uint32_t asid)
{
	return (uint64_t)asid << TLBI_ASID_SHIFT;
}

/* How many of `pages` pages one command takes; *scale: in units of two to the power of that. */
static uint64_t command_pages(const struct smmu *s, uint64_t pages, unsigned int *scale)
{
	uint64_t units;

	*scale = 0;
	if (!s->traits.ranges)
		return 1;
	*scale = (unsigned int)__builtin_ctzll(pages);
	if (*scale > SCALE_MOST)
		*scale = SCALE_MOST;
	units = pages >> *scale;
	return ((units - 1) % RANGE_MOST + 1) << *scale;
}

/* Adds commands for a range. How many there are then; more than VA_COMMANDS: too many. Entries of tables, too: a range may
 * have emptied some. */
static uint32_t add_range(const struct smmu *s, uint32_t asid, struct range r, struct transport_smmu_command *v,
			  uint32_t n)
{
	uint64_t pages = range_len(r) / PAGE, at = r.first, part;
	unsigned int scale;

	for (; pages && n < VA_COMMANDS; pages -= part, at += part * PAGE, n++) {
		part = command_pages(s, pages, &scale);
		v[n] = (struct transport_smmu_command){{CMD_TLBI_NH_VA | asid_field(asid), at}};
		if (part == 1)
			continue; /* as a range it has no code */
		v[n].word[0] |= ((part >> scale) - 1) << TLBI_NUM_SHIFT | (uint64_t)scale << TLBI_SCALE_SHIFT;
		v[n].word[1] |= TLBI_TG_4K;
	}
	return pages ? VA_COMMANDS + 1 : n;
}

static int smmu_invalidate(struct translator *t, uint32_t asid, const struct range *r, size_t n, uint64_t *ticket)
{
	const struct transport_smmu_command all = {{asid ? CMD_TLBI_NH_ASID | asid_field(asid) : CMD_TLBI_NH_ALL}};
	struct transport_smmu_command v[VA_COMMANDS];
	struct smmu *s = of_translator(t);
	uint32_t count = 0;
	int ret;

	for (size_t i = 0; i < n && count <= VA_COMMANDS; i++)
		count = add_range(s, asid, r[i], v, count);
	ret = count && count <= VA_COMMANDS ? command(s, v, count) : command(s, &all, 1);
	if (ret < 0)
		return -EIO;
	*ticket = ++s->tickets;
	return 0;
}

static int smmu_invalidated(struct translator *t, uint64_t *ticket)
{
	*ticket = of_translator(t)->tickets;
	return 0;
}

/* ---- faults ---- */

#define EVENT_F_TRANSLATION 0x10u
#define EVENT_F_ADDR_SIZE 0x11u
#define EVENT_F_PERMISSION 0x13u
#define EVENT_ID(w) ((uint32_t)((w)[0] & 0xff))
#define EVENT_SSV(w) ((w)[0] >> 11 & 1)
#define EVENT_SUBSTREAM(w) ((uint32_t)((w)[0] >> 12 & 0xfffff))
#define EVENT_FETCH(w) ((w)[1] >> 34 & 1)
#define EVENT_READ(w) ((w)[1] >> 35 & 1)
#define EVENT_ADDRESS(w) ((w)[2])

/* F_ACCESS cannot be, for the access flag is set in all entries; descriptors that are none (C_BAD_CD, C_BAD_STE, ...) and
 * streams that may not be have no address. */
static uint32_t fault_code(uint32_t id)
{
	switch (id) {
	case EVENT_F_TRANSLATION:
		return PASID_FAULT_UNMAPPED;
	case EVENT_F_ADDR_SIZE:
		return PASID_FAULT_ADDRESS;
	case EVENT_F_PERMISSION:
		return PASID_FAULT_PERMISSION;
	default:
		return PASID_FAULT_OTHER;
	}
}

static struct translator_fault decode(const struct transport_smmu_event *e)
{
	const uint64_t *w = e->word;

	return (struct translator_fault){
		.pasid = EVENT_SSV(w) ? EVENT_SUBSTREAM(w) : 0,
		.addr = fault_code(EVENT_ID(w)) == PASID_FAULT_OTHER ? 0 : EVENT_ADDRESS(w),
		.access = EVENT_FETCH(w)  ? 4
			  : EVENT_READ(w) ? 1
					  : 2,
		.code = fault_code(EVENT_ID(w)),
	};
}

static int smmu_next_fault(struct translator *t, struct translator_fault *ret, uint64_t *lost)
{
	struct smmu *s = of_translator(t);

	if (s->next_event == s->n_events) {
		s->next_event = s->n_events = 0;
		s->n_events = s->transport->ops->nested->events(s->transport, s->events, TRANSPORT_SMMU_EVENTS, lost);
		if (s->n_events <= 0) {
			int r = s->n_events;

			s->n_events = 0;
			return r < 0 && r != -ENODEV ? -EPROTO : 0; /* a device that is lost says so itself */
		}
	}
	*ret = decode(&s->events[s->next_event++]);
	return 1;
}

/* ---- coming and going ---- */

static const struct translator_ops smmu_ops = {
	.install = smmu_install,
	.remove = smmu_remove,
	.invalidate = smmu_invalidate,
	.invalidated = smmu_invalidated,
	.next_fault = smmu_next_fault,
	.max_ranges = VA_COMMANDS,
};

int smmu_new(struct translator **ret, struct transport *t, const struct smmu_traits *traits,
	     const struct cdtable *table, struct translator *device)
{
	struct smmu *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->translator.ops = &smmu_ops;
	s->transport = t;
	s->traits = *traits;
	s->table = *table;
	s->device = device;
	*ret = &s->translator;
	return 0;
}

int smmu_adopted(struct translator *t, bool (*right)(void *arg, uint32_t substream, uint32_t asid, uint64_t ttbr0),
		 void *arg)
{
	struct smmu *s = of_translator(t);
	uint64_t ttbr0;
	uint32_t asid;

	for (uint32_t n = 0; n < 1u << s->table.bits; n++)
		if (cdtable_get(&s->table, n, &asid, &ttbr0) && !right(arg, n, asid, ttbr0))
			cdtable_clear(&s->table, n);
	s->stale = true;
	return forget_descriptor(s, 0) < 0 ? -EIO : 0;
}

struct translator *smmu_free(struct translator *t)
{
	if (t)
		free(of_translator(t));
	return NULL;
}
