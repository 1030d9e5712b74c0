/* SPDX-License-Identifier: MIT */
/*
 * A device behind the kernel's VFIO that outlives the processes which drive it (adopt_rig.h): what it has mapped, its
 * interrupts, and with iommufd other address spaces.
 *
 *   adopt_device SPEC
 */
#include <sys/ioctl.h>

#include "adopt_rig.h"
#include "transport/kernel_abi.h"

#define IN_SPACE UINT64_C(0x100000) /* the second half of the memory */

/* ---- spaces, where there are any ---- */

static bool has_spaces(void)
{
	return journal->space_size > 0;
}

static void use_space(struct transport_space *s)
{
	memset(memory + PAGES / 2 * PAGE, 0, 256);
	CHECK(AWAIT(ops->spaces->attach(t, s, on_done, &a)) == 0);
	edu_store(IN_SPACE);
	CHECK(is_all(memory + PAGES / 2 * PAGE, journal->pattern));
	CHECK(AWAIT(ops->spaces->attach(t, NULL, on_done, &a)) == 0);
}

static struct transport_memory *hold(void)
{
	static struct transport_memory *m;

	CHECK(AWAIT(ops->spaces->hold(t, &m, memfd, PAGES * PAGE, TRANSPORT_READ | TRANSPORT_WRITE, on_done, &a)) == 0);
	return m;
}

/* Two spaces, of which only the first is noted down. */
static void make_spaces(void)
{
	static struct transport_space *first, *second;

	CHECK(AWAIT(ops->spaces->make(t, &first, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->map(t, first, IN_SPACE, PAGE, hold(), PAGES / 2 * PAGE,
				     TRANSPORT_READ | TRANSPORT_WRITE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->make(t, &second, on_done, &a)) == 0);
	journal->space_size = ops->spaces->save(t, first, journal->space);
}

/* How many objects the iommufd has: the number that the next one gets, since they are dense. */
static uint32_t next_id(int iommufd)
{
	struct kabi_iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct kabi_iommu_destroy destroy = {.size = sizeof(destroy)};

	CHECK(ioctl(iommufd, KABI_IOMMU_IOAS_ALLOC, &alloc) == 0);
	destroy.id = alloc.out_ioas_id;
	CHECK(ioctl(iommufd, KABI_IOMMU_DESTROY, &destroy) == 0);
	return alloc.out_ioas_id;
}

static void adopt_spaces(void)
{
	static struct transport_space *s;
	int fds[TRANSPORT_KEEP_MAX];
	uint32_t before;

	CHECK(AWAIT(ops->spaces->adopt(t, &s, journal->space, journal->space_size - 1, on_done, &a)) == -EBADMSG);
	CHECK(AWAIT(ops->spaces->adopt(t, &s, journal->space, journal->space_size, on_done, &a)) == 0);
	use_space(s);
	CHECK(AWAIT(ops->spaces->map(t, s, LATER, PAGE, hold(), PAGE, TRANSPORT_WRITE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->unmap(t, s, LATER, PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->clear(t, s, LATER, PAGE, on_done, &a)) == 0);
	CHECK(ops->keep(t, fds) >= 2);
	before = next_id(fds[1]);
	CHECK(AWAIT(ops->spaces->adopted(t, on_done, &a)) == 0);
	CHECK(next_id(fds[1]) < before);
	use_space(s);
	/* The next one finds something else to destroy. */
	CHECK(AWAIT(ops->spaces->make(t, &(struct transport_space *){NULL}, on_done, &a)) == 0);
}

/* Where the kernel has one address space only, what another one maps is known to nobody but its process. So it is made anew,
 * and what the container has goes with the first move: also what was mapped meanwhile. */
static void make_space_again(void)
{
	static struct transport_space *s;

	CHECK(AWAIT(ops->spaces->make(t, &s, on_done, &a)) == 0);
	CHECK(ops->spaces->save(t, s, journal->space) == 0);
	CHECK(AWAIT(ops->spaces->map(t, s, IN_SPACE, PAGE, hold(), PAGES / 2 * PAGE, TRANSPORT_READ | TRANSPORT_WRITE,
				     on_done, &a)) == 0);
	use_space(s);
	CHECK(AWAIT(ops->dma_unmap(t, LATER, PAGE, on_done, &a)) < 0);
	use_space(s);
	CHECK(AWAIT(ops->spaces->unmap(t, s, IN_SPACE, PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->adopted(t, on_done, &a)) == 0);
}

/* ---- lives ---- */

static void __attribute__((noreturn)) first(int sock)
{
	int fds[TRANSPORT_KEEP_MAX];

	begin();
	CHECK(ops->open(&t, base, address, 1, DEADLINE_MS, &events, NULL) == 0);
	until_opened();
	CHECK(AWAIT(ops->dma_map(t, IN_OWN, PAGES / 2 * PAGE, memfd, 0, TRANSPORT_READ | TRANSPORT_WRITE, on_done,
				 &a)) == 0);
	if (ops == &transport_iommufd)
		make_spaces();
	send_fds(sock, fds, ops->keep(t, fds));
	die();
}

static void __attribute__((noreturn)) heir(const int *fds, size_t n)
{
	int file = memfd_create("later", MFD_CLOEXEC);
	uint8_t *later;

	begin();
	CHECK(ftruncate(file, (off_t)PAGE) == 0);
	later = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(later != MAP_FAILED);
	CHECK(ops->adopt(&t, base, address, 1, DEADLINE_MS, journal->saved, journal->size, fds, n, &events, NULL) == 0);
	until_opened();
	edu_idle();
	edu_write(EDU_IRQ_ACK, 4, edu_read(EDU_IRQ_STATUS, 4));
	/* What it wrote arrives by the mapping of one that is dead, and by one of this one. */
	edu_store(IN_OWN + PAGE);
	CHECK(is_all(memory + PAGE, journal->pattern));
	CHECK(AWAIT(ops->dma_clear(t, LATER, PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->dma_map(t, LATER, PAGE, file, 0, TRANSPORT_WRITE, on_done, &a)) == 0);
	edu_store(LATER);
	CHECK(is_all(later, journal->pattern));
	if (has_spaces())
		adopt_spaces();
	/* The dead one's mapping is unmapped, and not found again. */
	CHECK(AWAIT(ops->dma_unmap(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->dma_clear(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) == 0);
	if (ops == &transport_type1) {
		CHECK(AWAIT(ops->dma_unmap(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) < 0);
		make_space_again();
	}
	CHECK(AWAIT(ops->dma_map(t, IN_OWN, PAGES / 2 * PAGE, memfd, 0, TRANSPORT_READ | TRANSPORT_WRITE, on_done,
				 &a)) == 0);
	die();
}

int main(int argc, char **argv)
{
	return run(argc, argv);
}
