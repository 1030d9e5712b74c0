/* SPDX-License-Identifier: MIT */
/*
 * A device behind the kernel's VFIO that outlives the processes which drive it (adopt_rig.h): what it has mapped, its
 * interrupts, and other address spaces.
 *
 *   adopt_device SPEC
 */
#include <sys/ioctl.h>

#include "adopt_rig.h"
#include "transport/kernel_abi.h"

/* The second half of the memory: where the first half is in the device's own, unless all is in one. */
#define IN_SPACE (are_lists() ? UINT64_C(0x800000) : IN_OWN)

/* ---- spaces, where there are any ---- */

static bool are_lists(void)
{
	return ops == &transport_type1;
}

static void enter(struct transport_space *s)
{
	CHECK(AWAIT(ops->spaces->attach(t, s, on_done, &a)) == 0);
}

static void use_space(struct transport_space *s)
{
	memset(memory + PAGES / 2 * PAGE, 0, 256);
	enter(s);
	edu_store(IN_SPACE);
	CHECK(is_all(memory + PAGES / 2 * PAGE, journal->pattern));
	enter(NULL);
}

static struct transport_memory *hold(void)
{
	static struct transport_memory *m;

	CHECK(AWAIT(ops->spaces->hold(t, &m, memfd, PAGES * PAGE, TRANSPORT_READ | TRANSPORT_WRITE, on_done, &a)) == 0);
	return m;
}

static void map_in_space(struct transport_space *s)
{
	CHECK(AWAIT(ops->spaces->map(t, s, IN_SPACE, PAGE, hold(), PAGES / 2 * PAGE, TRANSPORT_READ | TRANSPORT_WRITE,
				     on_done, &a)) == 0);
}

/* Two spaces, of which only the first is noted down. Where they are lists the device is left in it. */
static void make_spaces(void)
{
	static struct transport_space *first, *second;

	CHECK(AWAIT(ops->spaces->make(t, &first, on_done, &a)) == 0);
	map_in_space(first);
	if (are_lists())
		enter(first);
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

static struct transport_space *adopt_space(void)
{
	static struct transport_space *s;

	CHECK(ops->spaces->are_lists(t) == are_lists());
	CHECK(AWAIT(ops->spaces->adopt(t, &s, journal->space, journal->space_size - 1, on_done, &a)) == -EBADMSG);
	CHECK(AWAIT(ops->spaces->adopt(t, &s, journal->space, journal->space_size, on_done, &a)) == 0);
	return s;
}

static void adopt_spaces(void)
{
	struct transport_space *s = adopt_space();
	int fds[TRANSPORT_KEEP_MAX];
	uint32_t before;

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

/* Where the kernel has one address space only, what another one maps is known to nobody but its process. It is said again; the
 * device, which was left there, goes on by what the dead one has mapped. What there is besides goes when it moves away. */
static struct transport_space *adopt_list(void)
{
	struct transport_space *s = adopt_space();

	map_in_space(s);
	memset(memory + PAGES / 2 * PAGE, 0, 256);
	edu_store(IN_SPACE);
	CHECK(is_all(memory + PAGES / 2 * PAGE, journal->pattern));
	enter(s);
	CHECK(AWAIT(ops->spaces->map(t, s, 2 * IN_SPACE, PAGE, hold(), PAGE, TRANSPORT_WRITE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->clear(t, s, IN_SPACE, IN_SPACE + PAGE, on_done, &a)) == 0);
	map_in_space(s); /* it is not there any more */
	CHECK(AWAIT(ops->spaces->map(t, s, 2 * IN_SPACE, PAGE, hold(), PAGE, TRANSPORT_WRITE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->unmap(t, s, 2 * IN_SPACE, PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->spaces->adopted(t, on_done, &a)) == 0);
	use_space(s);
	CHECK(AWAIT(ops->dma_unmap(t, LATER, PAGE, on_done, &a)) < 0);
	CHECK(AWAIT(ops->dma_unmap(t, IN_SPACE, PAGE, on_done, &a)) < 0);
	use_space(s);
	return s;
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
	make_spaces();
	send_fds(sock, fds, ops->keep(t, fds));
	die();
}

static void __attribute__((noreturn)) heir(const int *fds, size_t n)
{
	int file = memfd_create("later", MFD_CLOEXEC);
	struct transport_space *s = NULL;
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
	if (!are_lists())
		adopt_spaces();
	/* The dead one's mapping is unmapped, and not found again. */
	CHECK(AWAIT(ops->dma_unmap(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) == 0);
	CHECK(AWAIT(ops->dma_clear(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) == 0);
	if (are_lists()) {
		CHECK(AWAIT(ops->dma_unmap(t, IN_OWN, PAGES / 2 * PAGE, on_done, &a)) < 0);
		s = adopt_list();
	}
	CHECK(AWAIT(ops->dma_map(t, IN_OWN, PAGES / 2 * PAGE, memfd, 0, TRANSPORT_READ | TRANSPORT_WRITE, on_done,
				 &a)) == 0);
	if (s)
		enter(s);
	die();
}

int main(int argc, char **argv)
{
	return run(argc, argv);
}
