/* SPDX-License-Identifier: MIT */
/*
 * The rig of service_rig.h in mode `nested`: in front of what dma_map has mapped, which is the second stage, an SMMUv3 of the
 * test's own reads the context descriptor and walks the tables that the daemon made, in the memory that the daemon shared. It
 * shares no code with the daemon.
 *
 * It is naive and eager: it remembers every descriptor and every entry of a table that it ever read until a command names it,
 * and around each command it reads again what was used lately, as a real one may at any time. What a correct daemon never does
 * fails the test at once: a descriptor that changes while it is valid, memory that is unmapped while it is remembered, an
 * access beyond the second stage, a window with something of the last context in it.
 *
 * Records of faults come when the test lets them, as many for a transfer as it wants.
 */
#ifndef TESTS_UNIT_NESTED_RIG_H
#define TESTS_UNIT_NESTED_RIG_H

#include "service_rig.h"

#define MSI_FIRST 0x8000000ull
#define MSI_LAST 0x80fffffull
#define DOORBELL (MSI_FIRST + 0x40)
#define BUFFERS_FIRST (1ull << 36) /* of 39 bits of addresses */
#define CD_WORDS 8u
#define MOST_REMEMBERED 8192u
#define MOST_LATELY 8u
#define MOST_RECORDS 16384u
#define MOST_FAULTED 65536u
#define FOR_EVER UINT32_MAX

/* ---- the second stage ---- */

struct bus_map {
	struct range bus;
	int fd;
	uint64_t off;
	uint32_t prot;
	LIST_ENTRY(bus_map) link; /* in stage2.maps */
};

static struct stage2 {
	LIST_HEAD(, bus_map) maps;
	unsigned int n;
} stage2;

static bool range_has(struct range r, uint64_t at)
{
	return range_overlaps(r, (struct range){at, at});
}

static struct bus_map *stage2_find(uint64_t bus)
{
	struct bus_map *m;

	LIST_FOREACH (m, &stage2.maps, link)
		if (range_has(m->bus, bus))
			return m;
	return NULL;
}

static void stage2_add(struct range bus, int fd, uint64_t off, uint32_t prot)
{
	struct bus_map *m = calloc(1, sizeof(*m));

	assert_non_null(m);
	*m = (struct bus_map){.bus = bus, .fd = fcntl(fd, F_DUPFD_CLOEXEC, 0), .off = off, .prot = prot};
	assert_true(m->fd >= 0);
	LIST_INSERT_HEAD(&stage2.maps, m, link);
	stage2.n++;
}

static void stage2_drop(struct bus_map *m)
{
	LIST_REMOVE(m, link);
	stage2.n--;
	close(m->fd);
	free(m);
}

/* No page is crossed. What is not there, or not for that, no table of the daemon's may name. */
static void stage2_access(uint64_t bus, void *p, size_t len, bool write)
{
	struct bus_map *m = stage2_find(bus);
	off_t at = m ? (off_t)(m->off + (bus - m->bus.first)) : 0;

	if (!m || !(m->prot & (write ? TRANSPORT_WRITE : TRANSPORT_READ)))
		fail_msg("the device %s %#llx, which is not mapped for that", write ? "writes" : "reads",
			 (unsigned long long)bus);
	assert_int_equal(write ? pwrite(m->fd, p, len, at) : pread(m->fd, p, len, at), len);
}

/* ---- what the SMMU knows ---- */

/* An entry of a table, by whose it is and what it translates. */
struct remembered {
	uint32_t asid; /* 0: a free place */
	unsigned int level;
	struct range iova;
	uint64_t entry;
};

static struct smmu_rig {
	struct transport_smmu says;
	bool asked, attached;
	unsigned int life; /* of the last process that attached it */
	uint64_t ste[2];
	bool has_cd; /* ... a copy, valid or not */
	uint64_t cd[CD_WORDS];
	uint32_t last_asid; /* of the last valid copy */
	struct remembered known[MOST_REMEMBERED];
	uint64_t lately[MOST_LATELY]; /* IOVAs */
	unsigned int n_lately;
	/* commands */
	struct transport_smmu_command last[TRANSPORT_SMMU_COMMANDS]; /* with an erratum: of the last call */
	uint32_t n_last;
	unsigned int calls;
	uint64_t only; /* the opcode that fails; 0: any */
	uint32_t fail_after, fail_times; /* calls with it */
	bool fail_late; /* ... after they were carried out */
	/* records */
	struct transport_smmu_event records[MOST_RECORDS];
	size_t first, count;
	uint64_t lost;
	bool late; /* they do not come yet */
	bool nonsense; /* what comes are no records */
	uint32_t bytes_a_record;
	/* the device */
	bool slow; /* a transfer is done when the test says so */
	bool in_transfer;
	uint64_t doorbell; /* in says.msi */
	unsigned int msis, lost_msis;
	struct faulted {
		uint32_t ctx;
		uint64_t page;
		bool write;
	} faulted[MOST_FAULTED]; /* what truly did */
	unsigned int n_faulted;
	unsigned int transfers;
	/* preparing */
	struct transport_smmu *prepare_to;
	transport_done prepare_done;
	void *prepare_arg;
	int prepare_error;
	int refuses; /* to prepare, in the call itself; 0: it does not */
	const char *why;
	unsigned int n_prepared, n_attached; /* asked */
} smmu;

static void smmu_forget_all(void)
{
	memset(smmu.known, 0, sizeof(smmu.known));
	smmu.has_cd = smmu.asked = smmu.attached = smmu.in_transfer = smmu.late = false;
	smmu.first = smmu.count = smmu.n_lately = smmu.n_last = 0;
	smmu.lost = smmu.last_asid = 0;
}

#define BITS(v, from, n) ((v) >> (from) & ((1ull << (n)) - 1))

static bool cd_valid(const uint64_t *cd)
{
	return BITS(cd[0], 31, 1);
}

static uint32_t cd_asid(const uint64_t *cd)
{
	return (uint32_t)BITS(cd[0], 48, 16);
}

static unsigned int output_bits(uint64_t code)
{
	static const unsigned int bits[] = {32, 36, 40, 42, 44, 48};

	assert_true(code < ARRAY_SIZE(bits));
	return bits[code];
}

/* Everything that the walker below takes for granted. */
static void judge_cd(const uint64_t *cd)
{
	assert_int_equal(BITS(cd[0], 0, 6), 16); /* T0SZ: 48 bits */
	assert_int_equal(BITS(cd[0], 6, 2), 0); /* TG0: 4 KiB */
	assert_int_equal(BITS(cd[0], 8, 6), 0x35); /* IRGN0, ORGN0: write-back; SH0: inner shareable */
	assert_int_equal(BITS(cd[0], 15, 1), 0); /* ENDI: little-endian */
	assert_int_equal(BITS(cd[0], 30, 1), 1); /* EPD1 */
	assert_int_equal(BITS(cd[0], 41, 1), 1); /* AA64 */
	assert_int_equal(BITS(cd[0], 44, 4), 0xe); /* ASET, A, R, and no S */
	assert_true(output_bits(BITS(cd[0], 32, 3)) <= output_bits(smmu.says.idr[5] & 7));
	assert_int_equal(BITS(cd[3], 0, 16), 0x04ff); /* MAIR */
	assert_true(cd_asid(cd) != 0);
	assert_true(smmu.says.idr[0] >> 12 & 1 || cd_asid(cd) < 256);
}

static void read_cd(uint64_t cd[CD_WORDS])
{
	stage2_access(smmu.ste[0] & 0x000fffffffffffc0ull, cd, CD_WORDS * sizeof(cd[0]), false);
}

/* What of the last context is there is there for the next one to read. */
static void judge_window(void)
{
	const struct nest *n = &service->devices[0].nest;
	uint8_t page[PAGE];

	stage2_access(n->window_bus, page, sizeof(page), false);
	for (size_t i = 0; i < sizeof(page); i++)
		assert_int_equal(page[i], 0);
}

static void fetch_cd(void)
{
	if (smmu.has_cd)
		return;
	read_cd(smmu.cd);
	smmu.has_cd = true;
	if (!cd_valid(smmu.cd))
		return;
	judge_cd(smmu.cd);
	if (cd_asid(smmu.cd) != smmu.last_asid)
		judge_window();
	smmu.last_asid = cd_asid(smmu.cd);
}

/* Break before make: what the SMMU may have read half of never changes. */
static void judge_change(void)
{
	uint64_t now[CD_WORDS];

	if (!smmu.has_cd || !cd_valid(smmu.cd))
		return;
	read_cd(now);
	if (cd_valid(now))
		assert_memory_equal(now, smmu.cd, sizeof(now));
}

/* ---- the walk ---- */

#define LEVEL_SHIFT(level) (39 - 9 * (level))
#define ENTRY_BUS 0x0000fffffffff000ull
#define F_TRANSLATION 0x10u
#define F_ADDR_SIZE 0x11u
#define F_PERMISSION 0x13u
#define C_BAD_CD 0x0au
#define ATTR_NORMAL 0u
#define ATTR_DEVICE 1u

static bool is_leaf(unsigned int level, uint64_t entry)
{
	return level == 3 || !(entry & 2);
}

static struct remembered *known_entry(uint32_t asid, unsigned int level, uint64_t iova)
{
	for (size_t i = 0; i < MOST_REMEMBERED; i++) {
		struct remembered *k = &smmu.known[i];

		if (k->asid == asid && k->level == level && range_has(k->iova, iova))
			return k;
	}
	return NULL;
}

static const struct remembered *known_leaf(uint32_t asid, uint64_t iova)
{
	for (unsigned int level = 1; level <= 3; level++) {
		const struct remembered *k = known_entry(asid, level, iova);

		if (k && is_leaf(level, k->entry))
			return k;
	}
	return NULL;
}

static const struct remembered *remember(uint32_t asid, unsigned int level, uint64_t iova, uint64_t entry)
{
	uint64_t span = 1ull << LEVEL_SHIFT(level);
	struct remembered *k = known_entry(0, 0, 0);

	assert_non_null(k);
	*k = (struct remembered){asid, level, {iova & ~(span - 1), iova | (span - 1)}, entry};
	return k;
}

/* The leaf; NULL: there is none. */
static const struct remembered *walk(uint32_t asid, uint64_t iova)
{
	const struct remembered *k = known_leaf(asid, iova);
	uint64_t table = smmu.cd[1] & ENTRY_BUS, entry;

	for (unsigned int level = 0; !k && level <= 3; level++) {
		const struct remembered *above = known_entry(asid, level, iova);

		if (above) {
			table = above->entry & ENTRY_BUS;
			continue;
		}
		stage2_access(table + (iova >> LEVEL_SHIFT(level) & 511) * sizeof(entry), &entry, sizeof(entry), false);
		if (!(entry & 1))
			return NULL;
		assert_true(level > 0 || (entry & 2));
		assert_true(level < 3 || (entry & 2)); /* else it is reserved */
		above = remember(asid, level, iova, entry);
		if (is_leaf(level, entry))
			k = above;
		table = entry & ENTRY_BUS;
	}
	return k;
}

static void judge_leaf(uint64_t entry)
{
	assert_int_equal(BITS(entry, 6, 1), 1); /* AP[1]: unprivileged */
	assert_int_equal(BITS(entry, 8, 2), 3); /* SH: inner shareable */
	assert_int_equal(BITS(entry, 10, 2), 3); /* AF, nG */
	assert_int_equal(BITS(entry, 53, 2), 3); /* PXN, UXN */
}

/* 0 and the bus address, or the fault. */
static uint32_t translate(uint64_t iova, bool write, uint64_t *bus, unsigned int *attribute)
{
	const struct remembered *k;
	uint64_t span;

	fetch_cd();
	if (!cd_valid(smmu.cd))
		return C_BAD_CD;
	k = iova >> 48 ? NULL : walk(cd_asid(smmu.cd), iova);
	if (!k)
		return F_TRANSLATION;
	judge_leaf(k->entry);
	if (write && BITS(k->entry, 7, 1))
		return F_PERMISSION;
	span = 1ull << LEVEL_SHIFT(k->level);
	*bus = (k->entry & ENTRY_BUS & ~(span - 1)) | (iova & (span - 1));
	*attribute = (unsigned int)BITS(k->entry, 2, 3);
	return *bus >> output_bits(BITS(smmu.cd[0], 32, 3)) ? F_ADDR_SIZE : 0;
}

/* Ahead of need. */
static void speculate(void)
{
	unsigned int attribute;
	uint64_t bus;

	if (!smmu.attached)
		return;
	judge_change();
	for (unsigned int i = 0; i < MOST_LATELY && i < smmu.n_lately; i++)
		translate(smmu.lately[i], false, &bus, &attribute);
	fetch_cd();
}

/* ---- records ---- */

static void add_record(uint32_t code, uint64_t iova, bool write)
{
	if (smmu.first + smmu.count == MOST_RECORDS) {
		smmu.lost++;
		return;
	}
	smmu.records[smmu.first + smmu.count++] = (struct transport_smmu_event){
		{code | (uint64_t)TRANSPORT_SMMU_STREAM << 32, write ? 0 : 1ull << 35, code == C_BAD_CD ? 0 : iova}};
}

/* Every fault that is charged is one that was, and that context's. */
static void judge_charge(uint32_t ctx, const struct pasid_wire_fault *f)
{
	for (unsigned int i = 0; i < smmu.n_faulted; i++) {
		const struct faulted *t = &smmu.faulted[i];

		if (t->ctx == ctx && t->page == f->addr / PAGE && t->write == (f->access == 2))
			return;
	}
	fail_msg("context %u is charged with an access to %#llx that it did not make", ctx,
		 (unsigned long long)f->addr);
}

static void add_records(uint32_t code, uint64_t iova, size_t len, bool write)
{
	const struct ctx *ctx = service->devices[0].runs[0].ctx;

	assert_true(smmu.n_faulted < MOST_FAULTED);
	smmu.faulted[smmu.n_faulted++] = (struct faulted){ctx->books->id, iova / PAGE, write};
	for (size_t i = 0; i < len; i += smmu.bytes_a_record)
		add_record(code, iova + i, write);
}

static int nested_events(struct transport *t, struct transport_smmu_event *v, uint32_t max, uint64_t *lost)
{
	uint32_t n = smmu.count < max ? (uint32_t)smmu.count : max;

	if (smmu.nonsense)
		return -EPROTO;
	if (smmu.late)
		return 0;
	memcpy(v, &smmu.records[smmu.first], n * sizeof(*v));
	smmu.count -= n;
	smmu.first = smmu.count ? smmu.first + n : 0;
	*lost += smmu.lost;
	smmu.lost = 0;
	return (int)n;
}

/* ---- the device ---- */

static bool is_doorbell(uint64_t bus)
{
	return smmu.says.msi.last && range_has(smmu.says.msi, bus);
}

static void nested_transfer(uint64_t iova, size_t inside, size_t len, bool out)
{
	unsigned int attribute;
	uint64_t bus;
	uint32_t r;

	for (size_t n; len > 0; iova += n, inside += n, len -= n) {
		n = PAGE - iova % PAGE < len ? PAGE - iova % PAGE : len;
		smmu.lately[smmu.n_lately++ % MOST_LATELY] = iova;
		r = translate(iova, out, &bus, &attribute);
		assert_int_not_equal(r, C_BAD_CD);
		assert_int_equal(cd_asid(smmu.cd), service->devices[0].runs[0].ctx->books->asid);
		if (r) {
			add_records(r, iova, n, out);
			continue;
		}
		assert_false(is_doorbell(bus)); /* clients would have it make interrupts */
		assert_int_equal(attribute, ATTR_NORMAL);
		stage2_access(bus, edu.inside + inside, n, out);
	}
}

/* It writes where the kernel told it to, and that goes the way of all its writes. */
static void send_msi(void)
{
	unsigned int attribute;
	uint64_t bus;
	uint32_t r = translate(smmu.doorbell, true, &bus, &attribute);

	if (r || bus != smmu.doorbell || attribute != ATTR_DEVICE) {
		smmu.lost_msis++;
		add_record(r, smmu.doorbell, true);
		return;
	}
	smmu.msis++;
	edu.irq = edu.open;
}

static void transfer_done(void)
{
	smmu.in_transfer = false;
	if (!smmu.attached) {
		assert_non_null(kernel.current);
		edu_carry_out(edu_transfer);
		edu.irq = true;
		return;
	}
	smmu.transfers++;
	judge_change();
	edu_carry_out(nested_transfer);
	if (smmu.says.msi.last)
		send_msi();
	else
		edu.irq = true;
}

static int nested_write(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t value)
{
	if (kernel.moment)
		kernel.moment();
	memcpy(edu.regs + off, &value, width);
	if (off != REG_DMA_CMD)
		return 0;
	assert_false(smmu.in_transfer);
	smmu.in_transfer = true;
	if (!smmu.slow)
		transfer_done();
	if (kernel.moment)
		kernel.moment();
	return 0;
}

/* ---- commands ---- */

#define CMD_CFGI_CD 0x05u
#define CMD_CFGI_CD_ALL 0x06u
#define CMD_TLBI_NH_ALL 0x10u
#define CMD_TLBI_NH_ASID 0x11u
#define CMD_TLBI_NH_VA 0x12u

static uint64_t opcode_of(const struct transport_smmu_command *c)
{
	return c->word[0] & 0xff;
}

static struct range range_of(const struct transport_smmu_command *c)
{
	uint64_t first = c->word[1] & ~0xfffull, pages = 1;

	if (BITS(c->word[1], 10, 2)) {
		assert_int_equal(BITS(c->word[1], 10, 2), 1); /* TG: 4 KiB */
		assert_true(smmu.says.idr[3] >> 10 & 1); /* RIL */
		pages = (BITS(c->word[0], 12, 5) + 1) << BITS(c->word[0], 20, 5);
		assert_true(pages > 1); /* else it is reserved */
	}
	assert_int_equal(BITS(c->word[1], 0, 1), 0); /* not leaves alone: tables go, too */
	return (struct range){first, first + pages * PAGE - 1};
}

static void forget_range(uint32_t asid, struct range r)
{
	for (size_t i = 0; i < MOST_REMEMBERED; i++)
		if (smmu.known[i].asid == asid && range_overlaps(smmu.known[i].iova, r))
			smmu.known[i] = (struct remembered){0};
}

static void carry_out(const struct transport_smmu_command *c)
{
	uint32_t asid = (uint32_t)BITS(c->word[0], 48, 16);

	switch (opcode_of(c)) {
	case CMD_CFGI_CD:
	case CMD_CFGI_CD_ALL:
		assert_int_equal(BITS(c->word[0], 12, 20), 0); /* there are no substreams */
		assert_int_equal(c->word[0] >> 32, TRANSPORT_SMMU_STREAM);
		smmu.has_cd = false;
		break;
	case CMD_TLBI_NH_ALL:
		memset(smmu.known, 0, sizeof(smmu.known));
		break;
	case CMD_TLBI_NH_ASID:
		assert_true(asid != 0);
		forget_range(asid, (struct range){0, UINT64_MAX});
		break;
	case CMD_TLBI_NH_VA:
		assert_true(asid != 0);
		forget_range(asid, range_of(c));
		break;
	default:
		fail_msg("a command %#llx", (unsigned long long)opcode_of(c));
	}
}

/* With the erratum what is said once is not heard. */
static bool is_heard(const struct transport_smmu_command *v, uint32_t n)
{
	bool again = n == smmu.n_last && !memcmp(v, smmu.last, n * sizeof(*v));

	memcpy(smmu.last, v, n * sizeof(*v));
	smmu.n_last = again ? 0 : n;
	return again || !(smmu.says.flags & TRANSPORT_SMMU_REPEAT);
}

static bool smmu_fails(const struct transport_smmu_command *v)
{
	if (!smmu.fail_times || (smmu.only && smmu.only != opcode_of(v)))
		return false;
	if (smmu.fail_after) {
		smmu.fail_after--;
		return false;
	}
	if (smmu.fail_times != FOR_EVER)
		smmu.fail_times--;
	return true;
}

static int nested_invalidate(struct transport *t, const struct transport_smmu_command *v, uint32_t n)
{
	bool fails = smmu_fails(v);

	if (kernel.moment)
		kernel.moment();
	assert_true(smmu.attached && n > 0 && n <= TRANSPORT_SMMU_COMMANDS);
	smmu.calls++;
	speculate();
	if (fails && !smmu.fail_late)
		return -EIO;
	if (is_heard(v, n))
		for (uint32_t i = 0; i < n; i++)
			carry_out(&v[i]);
	speculate();
	if (kernel.moment)
		kernel.moment();
	return fails ? -EIO : 0;
}

/* ---- its life ---- */

static void on_prepared(void *arg, int err)
{
	if (err == 0)
		*smmu.prepare_to = smmu.says;
	smmu.prepare_done(smmu.prepare_arg, err);
}

static int nested_prepare(struct transport *t, struct transport_smmu *ret, transport_done done, void *arg)
{
	assert_true(stage2.n == 0 || smmu.attached); /* a predecessor's */
	smmu.n_prepared++;
	if (smmu.refuses)
		return smmu.refuses;
	smmu.prepare_to = ret;
	smmu.prepare_done = done;
	smmu.prepare_arg = arg;
	return kernel_answers(on_prepared, NULL, kernel_fails(), smmu.prepare_error);
}

static const char *nested_why(const struct transport *t)
{
	return smmu.why;
}

/* What a kernel takes of the entry. */
static void judge_ste(const uint64_t entry[2])
{
	assert_int_equal(entry[0] & 0xf, 0xb); /* V, Config: stage 1 */
	assert_int_equal(BITS(entry[0], 4, 2), 0); /* S1Fmt: one line */
	assert_int_equal(entry[0] >> 59, 0); /* S1CDMax: one descriptor */
	assert_int_equal(entry[1], 0xd4); /* S1DSS, S1CIR, S1COR, S1CSH */
}

static int nested_attach(struct transport *t, const uint64_t entry[2], transport_done done, void *arg)
{
	bool failed = kernel_fails();

	judge_ste(entry);
	/* Once, and by each successor, with the same words. */
	assert_int_equal(smmu.asked, smmu.attached);
	if (smmu.attached) {
		assert_true(smmu.life < kernel.life);
		assert_memory_equal(entry, smmu.ste, sizeof(smmu.ste));
	}
	smmu.life = kernel.life;
	smmu.asked = !failed || !kernel.fail_in_call;
	smmu.n_attached++;
	memcpy(smmu.ste, entry, sizeof(smmu.ste));
	smmu.attached = !failed;
	return kernel_answers(done, arg, failed, 0);
}

static const struct transport_nested_ops nested = {
	.prepare = nested_prepare,
	.why = nested_why,
	.attach = nested_attach,
	.invalidate = nested_invalidate,
	.events = nested_events,
};

static int nested_map(struct transport *t, uint64_t bus, uint64_t len, int fd, uint64_t off, uint32_t prot,
		      transport_done done, void *arg)
{
	const struct range r = {bus, bus + len - 1};
	struct bus_map *m;
	bool failed;

	if (kernel_busy())
		return -EBUSY;
	failed = kernel_fails();
	LIST_FOREACH (m, &stage2.maps, link)
		assert_false(range_overlaps(m->bus, r));
	assert_true(r.last >> output_bits(smmu.says.idr[5] & 7) == 0);
	/* Nobody reaches clients' memory without a first stage. */
	assert_true(smmu.attached || r.first < BUFFERS_FIRST);
	if (!failed)
		stage2_add(r, fd, off, prot);
	return kernel_answers(done, arg, failed, 0);
}

/* Nothing that the SMMU remembers leads there. */
static void judge_forgotten(struct range bus)
{
	for (size_t i = 0; i < MOST_REMEMBERED; i++) {
		const struct remembered *k = &smmu.known[i];
		uint64_t first = k->entry & ENTRY_BUS;

		if (!k->asid || !is_leaf(k->level, k->entry))
			continue;
		assert_false(range_overlaps(bus, (struct range){first, first + range_len(k->iova) - 1}));
	}
}

static int nested_unmap(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg)
{
	struct bus_map *m = stage2_find(bus);

	if (kernel_busy())
		return -EBUSY;
	if (kernel.moment)
		kernel.moment();
	assert_true(m && m->bus.first == bus && range_len(m->bus) == len);
	speculate();
	judge_forgotten(m->bus);
	stage2_drop(m);
	return kernel_answers(done, arg, false, 0);
}

static struct range bus_usable = {0, (1ull << 39) - 1};

static int nested_usable(struct transport *t, struct range *v, size_t *n)
{
	v[0] = bus_usable;
	*n = 1;
	return 0;
}

/* Also what is not there, or is not known to be. */
static int nested_clear(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg)
{
	const struct range r = {bus, bus + len - 1};
	struct bus_map *m, *next;

	if (kernel_busy())
		return -EBUSY;
	(void)kernel_fails();
	speculate();
	for (m = LIST_FIRST(&stage2.maps); m; m = next) {
		next = LIST_NEXT(m, link);
		if (!range_overlaps(m->bus, r))
			continue;
		assert_true(range_contains(r, m->bus));
		judge_forgotten(m->bus);
		stage2_drop(m);
	}
	return kernel_answers(done, arg, false, 0);
}

static struct transport *nested_close(struct transport *t)
{
	struct bus_map *m;

	edu_close(t);
	smmu_forget_all();
	while ((m = LIST_FIRST(&stage2.maps)))
		stage2_drop(m);
	return NULL;
}

static const struct transport_ops nested_ops = {
	.scheme = "test",
	.open = edu_open,
	.close = nested_close,
	.forget = edu_forget,
	.ids = edu_ids,
	.usable = nested_usable,
	.dma_map = nested_map,
	.dma_unmap = nested_unmap,
	.dma_clear = nested_clear,
	.save = edu_save,
	.keep = edu_keep,
	.adopt = edu_adopt,
	.region_write = nested_write,
	.region_read = edu_read,
	.reset = edu_reset,
	.spaces = &kernel_spaces,
	.nested = &nested,
};

/* ---- the service ---- */

/* The file that records are read from can be read until they are. */
static void nested_poll(void)
{
	if (edu.slow && smmu.in_transfer)
		transfer_done();
	if ((smmu.count || smmu.lost || smmu.nonsense) && !smmu.late)
		edu.events->irq(edu.owner, TRANSPORT_IRQ_IOMMU);
}

/* A middling SMMU: 16 bits of ASIDs, ranges, 44 bits out. What a test that failed has left is nobody's any more. */
static inline void nested_reset(void)
{
	nested_close(NULL);
	memset(apps, 0, sizeof(apps));
	memset(&smmu, 0, sizeof(smmu));
	smmu.says = (struct transport_smmu){
		.idr = {2 << 2 | 1 << 12, 0, 0, 1 << 10, 0, 4 | 1 << 4},
		.msi = {MSI_FIRST, MSI_LAST},
	};
	smmu.doorbell = DOORBELL;
	smmu.bytes_a_record = 4;
	smmu.why = "the test would not";
	bus_usable.last = (1ull << 39) - 1;
	device_config.mode = PASID_MODE_NESTED;
	device_config.fallback = 0;
	device_config.answer_ms = 60000;
}

static void nested_open(void)
{
	device_ops = &nested_ops;
	service_open(UINT64_MAX);
	edu.poll = nested_poll;
	judge_fault = judge_charge;
	kernel.error = -EIO;
}

/* Of the daemon's own: tables, descriptors, the window. */
#define OWN_MAPS 3u

/* Every app ends; of none is anything mapped, remembered, or in tables. */
static inline void nested_end(void)
{
	smmu.fail_times = 0;
	smmu.slow = smmu.late = smmu.nonsense = false;
	if (smmu.in_transfer)
		transfer_done();
	apps_end();
	for (unsigned int i = 0; i < 1000 && is_ready() && service_lingering(service); i++) {
		event_base_loop(base, EVLOOP_ONCE);
		answers(UINT32_MAX);
	}
	if (is_ready() && smmu.attached) {
		assert_int_equal(stage2.n, OWN_MAPS);
		assert_int_equal(table_pool_used(service->devices[0].pool), 0);
		for (size_t i = 0; i < MOST_REMEMBERED; i++)
			assert_int_equal(smmu.known[i].asid, 0);
		fetch_cd();
		assert_false(cd_valid(smmu.cd));
	}
	service_end();
	assert_int_equal(stage2.n, 0);
}

#endif
