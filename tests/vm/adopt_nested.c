/* SPDX-License-Identifier: MIT */
/*
 * A device behind an SMMUv3 whose first stage is ours, that outlives the processes which drive it (adopt_rig.h): its tables
 * and its context descriptor lie in memory that they hand on, its interrupts and faults come to the next one.
 *
 *   adopt_nested SPEC
 */
#include "adopt_rig.h"
#include "base/shm.h"
#include "pgtable/pgtable.h"
#include "translator/smmu.h"

#define TABLE_PAGES 64u
/* In the second stage. */
#define DESCRIPTORS_BUS UINT64_C(0x2000000)
#define MEMORY_BUS UINT64_C(0x20000000)
#define TABLES_BUS UINT64_C(0x40000000)
#define NOWHERE UINT64_C(0x7000000)
#define ASID 1u

static struct transport_smmu smmu;
static struct smmu_traits traits;
static struct table_pool *pool;
static struct pgtable *pt;
static struct shm descriptors;
static struct translator *tr;

static void map(uint64_t iova, uint64_t len, uint64_t bus, uint32_t prot)
{
	struct range r = {iova, iova + len - 1};
	uint32_t budget = pgtable_map_need(r, bus);

	CHECK(table_pool_reserve(pool, budget) == 0);
	CHECK(pgtable_map(pt, r, bus, prot, &budget) == 0);
	table_pool_unreserve(pool, budget);
}

static void unmap(uint64_t iova, uint64_t len)
{
	struct range r = {iova, iova + len - 1};
	uint64_t ticket;
	uint32_t budget = 0;

	CHECK(pgtable_unmap(pt, r, &budget) == len);
	CHECK(translator_invalidate(tr, ASID, &r, 1, &ticket) == 0);
	pgtable_reclaim(pt);
}

static void prepare(void)
{
	CHECK(AWAIT(ops->nested->prepare(t, &smmu, on_done, &a)) == 0);
	CHECK(!smmu_judge(&smmu, &traits));
}

/* The same words, whoever asks. */
static void attach(void)
{
	const struct cdtable table = {
		.p = descriptors.p,
		.bus = DESCRIPTORS_BUS,
		.address_bits = traits.address_bits,
	};
	uint64_t entry[2];

	cdtable_entry(&table, entry);
	CHECK(AWAIT(ops->nested->attach(t, entry, on_done, &a)) == 0);
	CHECK(smmu_new(&tr, t, &traits, &table, NULL) == 0);
	journal->size = ops->save(t, journal->saved);
	CHECK(journal->size > 0);
}

static void __attribute__((noreturn)) first(int sock)
{
	struct translator_space space = {.asid = ASID};
	int fds[MAX_FDS];
	size_t n;

	begin();
	CHECK(ops->open(&t, base, address, 1, DEADLINE_MS, &events, NULL) == 0);
	until_opened();
	prepare();
	CHECK(table_pool_new(&pool, TABLES_BUS, TABLE_PAGES) == 0);
	table_pool_extend(pool, TABLE_PAGES);
	CHECK(shm_init(&descriptors, "descriptors", cdtable_bytes(0, traits.two_levels)) == 0);
	CHECK(AWAIT(ops->dma_map(t, TABLES_BUS, TABLE_PAGES * PAGE, table_pool_device_fd(pool), 0, TRANSPORT_READ,
				 on_done, &a)) == 0);
	CHECK(AWAIT(ops->dma_map(t, DESCRIPTORS_BUS, descriptors.bytes, descriptors.ro_fd, 0, TRANSPORT_READ, on_done,
				 &a)) == 0);
	CHECK(AWAIT(ops->dma_map(t, MEMORY_BUS, PAGES * PAGE, memfd, 0, TRANSPORT_READ | TRANSPORT_WRITE, on_done,
				 &a)) == 0);
	CHECK(pgtable_new(&pt, &pgtable_vmsa64, pool) == 0);
	map(IN_OWN, PAGES / 2 * PAGE, MEMORY_BUS, PGTABLE_WRITABLE);
	map(smmu.msi.first, range_len(smmu.msi), smmu.msi.first, PGTABLE_WRITABLE | PGTABLE_DEVICE);
	attach();
	space.root = pgtable_root(pt);
	journal->root = space.root;
	CHECK(tr->ops->install(tr, 0, &space) == 0);
	n = ops->keep(t, fds);
	CHECK(n == 3);
	fds[n++] = table_pool_fd(pool);
	fds[n++] = table_pool_device_fd(pool);
	fds[n++] = descriptors.fd;
	fds[n++] = descriptors.ro_fd;
	send_fds(sock, fds, n);
	die();
}

/* Of what is mapped one part is memory, and the other where interrupts are written. */
static int look_at_leaf(void *arg, const struct pgtable_leaf *l)
{
	uint64_t *bytes = arg;

	if (l->iova.first >= smmu.msi.first && l->iova.last <= smmu.msi.last)
		return l->bus == l->iova.first ? 0 : -EBADMSG;
	*bytes += range_len(l->iova);
	return l->bus - MEMORY_BUS == l->iova.first - IN_OWN ? 0 : -EBADMSG;
}

static bool is_right(void *arg, uint32_t substream, uint32_t asid, uint64_t ttbr0)
{
	return asid == ASID && ttbr0 == journal->root;
}

static void adopt_tables(const int *fds)
{
	uint64_t bytes = 0, ticket;

	CHECK(table_pool_adopt(&pool, TABLES_BUS, TABLE_PAGES, TABLE_PAGES, fds[0], fds[1]) == 0);
	CHECK(shm_adopt(&descriptors, cdtable_bytes(0, traits.two_levels), fds[2], fds[3]) == 0);
	CHECK(pgtable_adopt(&pt, &pgtable_vmsa64, pool, journal->root, look_at_leaf, &bytes) == 0);
	CHECK(bytes == PAGES / 2 * PAGE);
	attach();
	CHECK(smmu_adopted(tr, is_right, NULL) == 0);
	CHECK(tr->ops->invalidate(tr, ASID, NULL, 0, &ticket) == 0);
	pgtable_reclaim(pt);
	table_pool_adopted(pool);
}

/* An access to what is mapped no more is refused, and told to us. */
static void fault(void)
{
	struct translator_fault f;
	uint64_t lost = 0;
	int r;

	edu_begin(EDU_BUFFER, NOWHERE, EDU_FROM_DEVICE);
	edu_idle();
	do
		r = tr->ops->next_fault(tr, &f, &lost);
	while (r == 0);
	CHECK(r == 1);
	CHECK(f.addr == NOWHERE);
	while ((r = tr->ops->next_fault(tr, &f, &lost)) == 1)
		;
	CHECK(r == 0);
	CHECK(lost == 0);
}

static void __attribute__((noreturn)) heir(const int *fds, size_t n)
{
	uint8_t *page = memory + (PAGES - 1) * PAGE;

	begin();
	CHECK(n == 7);
	CHECK(ops->adopt(&t, base, address, 1, DEADLINE_MS, journal->saved, journal->size, fds, 3, &events, NULL) == 0);
	until_opened();
	prepare();
	adopt_tables(fds + 3);
	edu_idle();
	edu_write(EDU_IRQ_ACK, 4, edu_read(EDU_IRQ_STATUS, 4));
	edu_store(IN_OWN + PAGE);
	CHECK(is_all(memory + PAGE, journal->pattern));
	memset(page, 0, PAGE);
	map(NOWHERE, PAGE, MEMORY_BUS + (PAGES - 1) * PAGE, PGTABLE_WRITABLE);
	edu_store(NOWHERE);
	CHECK(is_all(page, journal->pattern));
	unmap(NOWHERE, PAGE);
	memset(page, 0, PAGE);
	fault();
	CHECK(is_all(page, 0));
	die();
}

int main(int argc, char **argv)
{
	return run(argc, argv);
}
