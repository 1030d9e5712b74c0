/* SPDX-License-Identifier: MIT */
/*
 * The naive model that the translator of an SMMUv3 is tested against: written from the architecture (Arm IHI 0070, chapters
 * 4 and 5), nothing of it shared with the daemon. It is the worst SMMU that may be: it reads descriptors whenever it is let,
 * keeps whatever it read, also what was not valid, until a command names it, and its TLB forgets nothing by itself. What
 * hardware may take for an error, or do anything about, it takes for a mistake of whoever stored it.
 */
#ifndef SMMU_MODEL_H
#define SMMU_MODEL_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SMMU_MODEL_STREAM 1u
#define SMMU_MODEL_LEAVES 1024u
#define SMMU_MODEL_BUCKETS 64u
#define SMMU_MODEL_NAMED 128u

/* Bits first..last of a word. */
static inline uint64_t smmu_bits(uint64_t word, unsigned int last, unsigned int first)
{
	return word << (63 - last) >> (63 - last + first);
}

enum smmu_model_answer {
	SMMU_MODEL_TRANSLATES,
	SMMU_MODEL_STREAM_DISABLED, /* F_STREAM_DISABLED */
	SMMU_MODEL_BAD_SUBSTREAM, /* C_BAD_SUBSTREAMID */
	SMMU_MODEL_BAD_CD, /* C_BAD_CD */
};

/* Where an access is translated. */
struct smmu_model_found {
	enum smmu_model_answer answer;
	uint32_t asid;
	uint64_t root;
};

struct smmu_model_cd {
	bool cached;
	uint64_t word[8];
};

struct smmu_model_leaf {
	bool cached;
	uint64_t word;
};

struct smmu_model_entry {
	uint32_t asid;
	uint64_t page, to;
};

struct smmu_model_bucket {
	struct smmu_model_entry *v;
	size_t n, room;
};

/* What a command for the TLB named. */
struct smmu_model_named {
	uint32_t asid;
	bool whole, leaf; /* all of the ASID; not the entries of tables */
	uint64_t page, pages;
};

struct smmu_model {
	/* What it is. */
	unsigned int out_bits, substream_bits;
	bool asid16, two_levels, ranges;
	bool twice; /* a command does something when it comes the second time (the erratum) */
	/* The second stage: all that is there. */
	const void *memory;
	uint64_t bus;
	size_t bytes;

	uint64_t entry[2];
	struct smmu_model_cd *cd; /* by substream */
	struct smmu_model_leaf leaf[SMMU_MODEL_LEAVES];
	struct smmu_model_bucket tlb[SMMU_MODEL_BUCKETS]; /* by ASID */
	uint64_t before[128]; /* commands that came once */
	uint32_t n_before;
	struct smmu_model_named named[SMMU_MODEL_NAMED];
	size_t n_named;
	const char *wrong; /* the first mistake that it saw */
};

static inline void smmu_model_says(struct smmu_model *m, const char *what)
{
	if (!m->wrong)
		m->wrong = what;
}

static inline void smmu_model_init(struct smmu_model *m)
{
	m->cd = calloc((size_t)1 << m->substream_bits, sizeof(*m->cd));
	if (!m->cd)
		abort();
}

static inline void smmu_model_fini(struct smmu_model *m)
{
	for (size_t i = 0; i < SMMU_MODEL_BUCKETS; i++)
		free(m->tlb[i].v);
	free(m->cd);
}

static inline void smmu_model_read(struct smmu_model *m, uint64_t bus, size_t n, uint64_t *ret)
{
	memset(ret, 0, n * sizeof(*ret));
	if (bus % 8 || bus < m->bus || bus - m->bus + n * sizeof(*ret) > m->bytes)
		smmu_model_says(m, "it is made to read where nothing is mapped");
	else
		memcpy(ret, (const uint8_t *)m->memory + (bus - m->bus), n * sizeof(*ret));
}

/* ---- what it is told and what it reads ---- */

static inline unsigned int smmu_model_cdmax(const struct smmu_model *m)
{
	return (unsigned int)smmu_bits(m->entry[0], 63, 59);
}

static inline bool smmu_model_has_leaves(const struct smmu_model *m)
{
	return smmu_model_cdmax(m) && smmu_bits(m->entry[0], 5, 4) == 1;
}

static inline uint64_t smmu_model_pointer(const struct smmu_model *m)
{
	return smmu_bits(m->entry[0], 51, 6) << 6;
}

/* The kernel takes these fields and no others: V, Config, S1Fmt, S1ContextPtr, S1CDMax; S1DSS, S1CIR, S1COR, S1CSH,
 * S1STALLD, EATS. NULL, or what is wrong with the entry. */
static inline const char *smmu_model_take_entry(struct smmu_model *m, const uint64_t entry[2])
{
	unsigned int max = (unsigned int)smmu_bits(entry[0], 63, 59), format = (unsigned int)smmu_bits(entry[0], 5, 4);
	uint64_t table = smmu_bits(entry[0], 51, 6) << 6;
	/* A line of descriptors is aligned to its size, and so is a table above leaves. */
	uint64_t aligned = format == 1 ? (max > 9 ? UINT64_C(8) << (max - 6) : 64) : UINT64_C(64) << max;

	m->entry[0] = entry[0];
	m->entry[1] = entry[1];
	if (smmu_bits(entry[0], 58, 52) || entry[1] & ~UINT64_C(0x380000ff))
		return "a field that the kernel keeps for itself";
	if (!(entry[0] & 1))
		return "STE.V";
	if (smmu_bits(entry[0], 3, 1) != 5)
		return "STE.Config: not the first stage";
	if (max > m->substream_bits)
		return "STE.S1CDMax: more than SMMU_IDR1.SSIDSIZE";
	if (format > 1 || (format == 1 && max && !m->two_levels))
		return "STE.S1Fmt";
	if (table % aligned)
		return "STE.S1ContextPtr: not aligned to the table's size";
	if (table >> m->out_bits)
		return "STE.S1ContextPtr: out of range";
	if (smmu_bits(entry[1], 1, 0))
		return "STE.S1DSS: accesses without a substream pass";
	if (!(smmu_bits(entry[1], 3, 2) & 1) || !(smmu_bits(entry[1], 5, 4) & 1) || smmu_bits(entry[1], 7, 6) != 3)
		return "STE.S1CIR, S1COR, S1CSH: not as the processor's caches";
	if (smmu_bits(entry[1], 27, 27) || smmu_bits(entry[1], 29, 28))
		return "STE.S1STALLD, EATS";
	return NULL;
}

static inline uint64_t smmu_model_root(const uint64_t cd[8])
{
	return smmu_bits(cd[1], 51, 4) << 4;
}

/* What is wrong with a valid descriptor; NULL: nothing. What is ignored has to be 0, too. */
static inline const char *smmu_model_judge_cd(const struct smmu_model *m, const uint64_t cd[8])
{
	static const unsigned int sizes[8] = {32, 36, 40, 42, 44, 48, 52, 56};
	unsigned int out = m->out_bits > 48 ? 48 : m->out_bits; /* a 4 KiB granule has no more */
	uint64_t w = cd[0];

	if (smmu_bits(w, 5, 0) != 16)
		return "CD.T0SZ";
	if (smmu_bits(w, 7, 6) != 0)
		return "CD.TG0: not 4 KiB";
	if (!(smmu_bits(w, 9, 8) & 1) || !(smmu_bits(w, 11, 10) & 1) || smmu_bits(w, 13, 12) != 3)
		return "CD.IR0, OR0, SH0: not as the processor's caches";
	if (smmu_bits(w, 14, 14) || !smmu_bits(w, 30, 30))
		return "CD.EPD0, EPD1: not TTB0 alone";
	if (smmu_bits(w, 15, 15))
		return "CD.ENDI";
	if (smmu_bits(w, 29, 16))
		return "fields of TTB1, which is not used";
	if (sizes[smmu_bits(w, 34, 32)] != out)
		return "CD.IPS: not what the SMMU puts out";
	if (smmu_bits(w, 40, 35) || smmu_bits(w, 43, 42))
		return "CD.AFFD, WXN, UWXN, TBI, PAN, HA, HD";
	if (!smmu_bits(w, 41, 41))
		return "CD.AA64";
	if (smmu_bits(w, 44, 44) || !smmu_bits(w, 45, 45) || !smmu_bits(w, 46, 46))
		return "CD.S, R, A: a fault is not recorded, or not ended";
	if (!smmu_bits(w, 47, 47))
		return "CD.ASET: shared with a process's";
	if (!smmu_bits(w, 63, 48) || (!m->asid16 && smmu_bits(w, 63, 56)))
		return "CD.ASID";
	if (smmu_bits(cd[1], 3, 0) || smmu_bits(cd[1], 63, 52))
		return "what is beside CD.TTB0";
	if (smmu_model_root(cd) % 4096 || smmu_model_root(cd) >> out)
		return "CD.TTB0";
	if (cd[2] || cd[4] || cd[5] || cd[6] || cd[7])
		return "reserved words of a CD";
	if (cd[3] != (UINT64_C(0xff) | UINT64_C(0x04) << 8))
		return "CD.MAIR";
	return NULL;
}

/* Where the descriptor is, by the way that the SMMU goes, which reads and keeps; 0: nowhere. */
static inline uint64_t smmu_model_cd_at(struct smmu_model *m, uint32_t substream)
{
	struct smmu_model_leaf *leaf = &m->leaf[substream >> 6];

	if (!smmu_model_has_leaves(m))
		return smmu_model_pointer(m) + UINT64_C(64) * substream;
	if (!leaf->cached)
		smmu_model_read(m, smmu_model_pointer(m) + UINT64_C(8) * (substream >> 6), 1, &leaf->word);
	leaf->cached = true;
	if (!(leaf->word & 1))
		return 0;
	if (smmu_bits(leaf->word, 11, 1) || leaf->word >> m->out_bits)
		smmu_model_says(m, "reserved bits of a level 1 CD");
	return (smmu_bits(leaf->word, 51, 12) << 12) + UINT64_C(64) * (substream & 63);
}

/* What an access finds; with: it carries a substream. What is read is kept. */
static inline struct smmu_model_found smmu_model_look(struct smmu_model *m, bool with, uint32_t substream)
{
	unsigned int max = smmu_model_cdmax(m);
	struct smmu_model_cd *cd;
	const char *why;
	uint64_t at;

	if (!with && max)
		return (struct smmu_model_found){.answer = SMMU_MODEL_STREAM_DISABLED};
	if (with && (!max || substream >> max))
		return (struct smmu_model_found){.answer = SMMU_MODEL_BAD_SUBSTREAM};
	cd = &m->cd[with ? substream : 0];
	if (!cd->cached) {
		at = smmu_model_cd_at(m, with ? substream : 0);
		if (!at)
			return (struct smmu_model_found){.answer = SMMU_MODEL_BAD_SUBSTREAM};
		smmu_model_read(m, at, 8, cd->word);
		cd->cached = true;
	}
	if (!smmu_bits(cd->word[0], 31, 31))
		return (struct smmu_model_found){.answer = SMMU_MODEL_BAD_CD};
	why = smmu_model_judge_cd(m, cd->word);
	if (why)
		smmu_model_says(m, why);
	return (struct smmu_model_found){
		.asid = (uint32_t)smmu_bits(cd->word[0], 63, 48),
		.root = smmu_model_root(cd->word),
	};
}

/*
 * Break before make: as long as it has a valid copy, memory may say "not valid", and nothing else that is new. And what it may
 * have read in part when the descriptor was not valid yet is what belongs to it when it is.
 */
static inline void smmu_model_watch(struct smmu_model *m, bool with, uint32_t substream)
{
	const struct smmu_model_cd *cd = &m->cd[substream];
	uint64_t now[8];

	smmu_model_look(m, with, substream);
	if (!cd->cached)
		return;
	smmu_model_read(m, smmu_model_cd_at(m, substream), 8, now);
	if (!smmu_bits(cd->word[0], 31, 31)) {
		if (smmu_bits(now[0], 31, 31) && memcmp(&now[1], &cd->word[1], sizeof(now) - sizeof(now[0])) != 0)
			smmu_model_says(m, "a descriptor became valid that can be read as half of what it was");
		return;
	}
	if (memcmp(&now[1], &cd->word[1], sizeof(now) - sizeof(now[0])) != 0)
		smmu_model_says(m, "a descriptor changed that the SMMU has a valid copy of");
	if (smmu_bits(now[0], 31, 31) && now[0] != cd->word[0])
		smmu_model_says(m, "a descriptor changed while it was valid");
}

/* ---- the TLB ---- */

static inline struct smmu_model_bucket *smmu_model_bucket(struct smmu_model *m, uint32_t asid)
{
	return &m->tlb[asid % SMMU_MODEL_BUCKETS];
}

static inline const struct smmu_model_entry *smmu_model_tlb_find(struct smmu_model *m, uint32_t asid, uint64_t page)
{
	const struct smmu_model_bucket *b = smmu_model_bucket(m, asid);

	for (size_t i = 0; i < b->n; i++)
		if (b->v[i].asid == asid && b->v[i].page == page)
			return &b->v[i];
	return NULL;
}

static inline void smmu_model_tlb_add(struct smmu_model *m, uint32_t asid, uint64_t page, uint64_t to)
{
	struct smmu_model_bucket *b = smmu_model_bucket(m, asid);

	if (b->n == b->room) {
		b->room = b->room ? 2 * b->room : 16;
		b->v = realloc(b->v, b->room * sizeof(*b->v));
		if (!b->v)
			abort();
	}
	b->v[b->n++] = (struct smmu_model_entry){asid, page, to};
}

static inline void smmu_model_tlb_forget(struct smmu_model *m, const struct smmu_model_named *what)
{
	struct smmu_model_bucket *b = smmu_model_bucket(m, what->asid);
	size_t out = 0;

	for (size_t i = 0; i < b->n; i++) {
		const struct smmu_model_entry *e = &b->v[i];
		bool named = e->asid == what->asid && (what->whole || e->page - what->page < what->pages);

		if (!named)
			b->v[out++] = *e;
	}
	b->n = out;
}

/* ---- commands ---- */

static inline int smmu_model_forget_cd(struct smmu_model *m, uint32_t substream, bool leaf_only, bool really)
{
	/* Where there are no substreams the field is reserved. */
	if (substream >> smmu_model_cdmax(m))
		return -EIO;
	if (!really)
		return 0;
	m->cd[substream].cached = false;
	if (!leaf_only)
		m->leaf[substream >> 6].cached = false;
	return 0;
}

static inline int smmu_model_cfgi(struct smmu_model *m, const uint64_t w[2], bool really)
{
	bool all = smmu_bits(w[0], 7, 0) == 0x06;

	if (smmu_bits(w[0], 11, 8) || smmu_bits(w[0], 63, 32) != SMMU_MODEL_STREAM)
		return -EIO;
	if (!all)
		return w[1] & ~UINT64_C(1)
			       ? -EIO
			       : smmu_model_forget_cd(m, (uint32_t)smmu_bits(w[0], 31, 12), w[1] & 1, really);
	if (smmu_bits(w[0], 31, 12) || w[1])
		return -EIO;
	for (uint32_t i = 0; i >> smmu_model_cdmax(m) == 0; i++)
		(void)smmu_model_forget_cd(m, i, false, really);
	return 0;
}

static inline int smmu_model_tlbi_va(const struct smmu_model *m, const uint64_t w[2], struct smmu_model_named *ret)
{
	uint64_t num = smmu_bits(w[0], 16, 12), scale = smmu_bits(w[0], 24, 20);
	uint64_t ttl = smmu_bits(w[1], 9, 8), tg = smmu_bits(w[1], 11, 10);

	/* Bit 25 is SCALE's only where there are addresses of 52 bits. */
	if (smmu_bits(w[0], 11, 8) || smmu_bits(w[0], 19, 17) || smmu_bits(w[0], 31, 25) || smmu_bits(w[1], 7, 1) ||
	    smmu_bits(w[1], 63, 48))
		return -EIO;
	if (!tg && (num || scale || ttl))
		return -EIO;
	if (tg && (!m->ranges || (!num && !scale && !ttl)))
		return -EIO;
	ret->leaf = w[1] & 1;
	ret->page = smmu_bits(w[1], 63, 12);
	ret->pages = tg ? (num + 1) << scale : 1;
	/* Entries of another granule, or perhaps of another level, are not named. */
	if (tg > 1 || ttl)
		ret->pages = 0;
	return 0;
}

static inline int smmu_model_tlbi(struct smmu_model *m, const uint64_t w[2], bool really)
{
	struct smmu_model_named what = {.asid = (uint32_t)smmu_bits(w[0], 63, 48)};
	int r = 0;

	/* The VMID is the kernel's. */
	if (smmu_bits(w[0], 47, 32) || (!m->asid16 && what.asid >> 8))
		return -EIO;
	what.whole = smmu_bits(w[0], 7, 0) == 0x11;
	if (what.whole)
		r = smmu_bits(w[0], 31, 8) || w[1] ? -EIO : 0;
	else
		r = smmu_model_tlbi_va(m, w, &what);
	if (r < 0 || !really)
		return r;
	smmu_model_tlb_forget(m, &what);
	if (m->n_named == SMMU_MODEL_NAMED)
		smmu_model_says(m, "so many commands");
	else
		m->named[m->n_named++] = what;
	return 0;
}

/* 0, or -EIO: the kernel or the SMMU takes it for an error. */
static inline int smmu_model_command(struct smmu_model *m, const uint64_t w[2], bool really)
{
	switch (smmu_bits(w[0], 7, 0)) {
	case 0x05:
	case 0x06:
		return smmu_model_cfgi(m, w, really);
	case 0x11:
	case 0x12:
		return smmu_model_tlbi(m, w, really);
	default:
		return -EIO;
	}
}

/* Whether commands of one call are to have an effect: with the erratum, when the same ones came before. */
static inline bool smmu_model_counts(struct smmu_model *m, const void *v, uint32_t n)
{
	size_t bytes = n * 2 * sizeof(uint64_t);

	if (!m->twice)
		return true;
	if (m->n_before == n && memcmp(m->before, v, bytes) == 0) {
		m->n_before = 0;
		return true;
	}
	memcpy(m->before, v, bytes);
	m->n_before = n;
	return false;
}

#endif
