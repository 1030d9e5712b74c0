/* SPDX-License-Identifier: MIT */
/*
 * A transport reaches a PCI device: maps memory for its DMA, writes its registers, listens to its interrupts, resets
 * it. Nothing above this layer knows whether the device is a process at a vfio-user socket or sits behind /dev/vfio.
 *
 * Everything that someone else can stretch is answered through `done`, which is called from the event loop and never
 * from inside the call that asked; a transport whose kernel answers at once still reports through the loop. Requests
 * finish in the order in which they were made. Each has a deadline: a device that misses it is lost. A request that
 * is refused at once changes nothing: -EINVAL, -EOPNOTSUPP, -ENOTCONN before `opened`, -EBUSY while too many are out (a
 * thousand: ask again when some are done), or what this process lacks (-ENOMEM, -EMFILE, ...).
 *
 * When a device is lost (dead, stopped, asked back, or talking nonsense) the transport calls `lost` once, from the loop;
 * after that every call answers -ENODEV, no done is called any more, and the owner closes it. Requests that are out may
 * have been answered with -ENODEV before. The owner may open it again later. A device's words are hostile input: lengths,
 * offsets, numbers, fds.
 */
#ifndef TRANSPORT_TRANSPORT_H
#define TRANSPORT_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pasid/driver.h>

struct event_base;
struct transport;
struct transport_space;
struct transport_memory;

#define TRANSPORT_MAX_IRQS ENGINE_MAX_IRQS
#define TRANSPORT_IRQ_IOMMU TRANSPORT_MAX_IRQS
#define TRANSPORT_SAVE_MAX 256u
#define TRANSPORT_KEEP_MAX 8u

enum transport_prot { TRANSPORT_READ = 1, TRANSPORT_WRITE = 2 };

/* Called from the loop. All are required. */
struct transport_events {
	/* The device is reachable: ids are known, region_map and everything else may be used. */
	void (*opened)(void *owner);
	/* An interrupt of `vector` came, or several did (TRANSPORT_IRQ_IOMMU: the IOMMU has records of faults): a hint to
	 * look, never evidence. False: nobody could look, and
	 * acknowledge it, now; where its line stays asserted until then (INTx) it is told again. */
	bool (*irq)(void *owner, uint32_t vector);
	/* Something was refused with -EBUSY, and may be asked again. */
	void (*room)(void *owner);
	/* Once. `why` is our own sentence with the numbers, never the device's text, valid during the call. Also called
	 * when opening fails. */
	void (*lost)(void *owner, int error, const char *why);
};

/* err: 0, or -errno: what the device answered (-EINVAL, -EIO, ...), -ENODEV if it was lost. */
typedef void (*transport_done)(void *arg, int err);

/*
 * More address spaces for a device, of which it is in one at a time: those of an IOMMU whose tables the kernel keeps.
 * As with everything here, done is called from the loop, requests finish in order, but for a move, which goes first; and
 * -EBUSY is for later. map and unmap are told so while there still is room for everything else.
 */
struct transport_space_ops {
	/* *ret is set when done says 0; it must live until then. */
	int (*make)(struct transport *t, struct transport_space **ret, transport_done done, void *arg);
	/* The device is not in it. Its mappings go with it. */
	int (*free)(struct transport *t, struct transport_space *s);
	/* Memory that any of them may map: the first len bytes of fd, which is used during the call only. Nothing of it is
	 * pinned by that. *ret is set when done says 0; it must live until then. */
	int (*hold)(struct transport *t, struct transport_memory **ret, int fd, uint64_t len, uint32_t prot,
		    transport_done done, void *arg);
	/* No space maps of it any more, or has been asked to unmap the last of it. */
	int (*release)(struct transport *t, struct transport_memory *m);
	/* As dma_map and dma_unmap, in this space: len bytes of m from off, with no more than its prot. A page is pinned
	 * once, however many spaces map it, where the kernel can do that (iommufd). */
	int (*map)(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len,
		   struct transport_memory *m, uint64_t off, uint32_t prot, transport_done done, void *arg);
	int (*unmap)(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len, transport_done done,
		     void *arg);
	/* Moves the device there; NULL: into its own. When it cannot, done says why and the device is in its own, or
	 * nobody knows where (-EIO). */
	int (*attach)(struct transport *t, struct transport_space *s, transport_done done, void *arg);
	/* Bits of the PASIDs that an address space can have beside that; 0: none. */
	unsigned int (*pasid_bits)(const struct transport *t);
	/* What the device does under the PASID goes through s, until that is detached. -EBUSY from done: the device is being
	 * reset, ask again. */
	int (*attach_pasid)(struct transport *t, struct transport_space *s, uint32_t pasid, transport_done done,
			    void *arg);
	int (*detach_pasid)(struct transport *t, uint32_t pasid, transport_done done, void *arg);

	/*
	 * For a successor. `save` writes what it needs of a space that is made, at most
	 * TRANSPORT_SAVE_MAX bytes, and returns how many. `adopt` is as make, of such a space, with all that it maps; the
	 * device, and PASIDs, stay attached to it, and are attached once more: the device first of all, to the space in which it
	 * works, or to its own if it does nothing. `clear` is to unmap what dma_clear is to dma_unmap. Memory is
	 * held anew; what spaces map of it stays mapped. `adopted`, once, says that all that is to be adopted is, and that the
	 * device is attached to no other: what a predecessor has made besides goes.
	 * Where spaces `are_lists` only their process knew what they map: before the device is attached, all of it is mapped in
	 * them again, which does nothing else.
	 */
	bool (*are_lists)(const struct transport *t);
	size_t (*save)(const struct transport *t, const struct transport_space *s, void *buf);
	int (*adopt)(struct transport *t, struct transport_space **ret, const void *saved, size_t size,
		     transport_done done, void *arg);
	int (*clear)(struct transport *t, struct transport_space *s, uint64_t iova, uint64_t len, transport_done done,
		     void *arg);
	int (*adopted)(struct transport *t, transport_done done, void *arg);
};

/* What an SMMUv3 says of itself (SMMU_IDR0 to SMMU_IDR5), and where the kernel has mapped the interrupt controller for the
 * devices behind it: their message-signalled interrupts are writes there, which the first stage has to let through. */
struct transport_smmu {
	uint32_t flags; /* TRANSPORT_SMMU_* */
	uint32_t idr[6];
	struct range msi; /* last 0: nowhere */
};

#define TRANSPORT_SMMU_REPEAT 1u /* each invalidation has to be made twice (an erratum) */
#define TRANSPORT_SMMU_STREAM 1u /* the device's stream id, as commands and records have it */
#define TRANSPORT_SMMU_COMMANDS 64u /* of one invalidate */
#define TRANSPORT_SMMU_EVENTS 64u /* of one events */

struct transport_smmu_command {
	uint64_t word[2];
};

struct transport_smmu_event {
	uint64_t word[4];
};

/*
 * A first stage of our own, in front of the addresses that dma_map maps (Arm SMMUv3). The words are those of the SMMU's
 * architecture (Arm IHI 0070), little-endian.
 */
struct transport_nested_ops {
	/* Makes the device's own address space a second stage. Asked before anything is mapped. *ret is set when done says
	 * 0; it must live until then. -EOPNOTSUPP from done: `why` says what is missing, and all is as before. */
	int (*prepare)(struct transport *t, struct transport_smmu *ret, transport_done done, void *arg);
	const char *(*why)(const struct transport *t);
	/* From now on the device is translated by what the first two words of a stream table entry name. Once. A successor asks
	 * for both again, with the same words; what there is stays, and what there is not is made. */
	int (*attach)(struct transport *t, const uint64_t entry[2], transport_done done, void *arg);
	/* Has the SMMU carry out commands, and waits for it, which is a matter of microseconds: no device that is not asked
	 * (ATS) can stretch it. At most TRANSPORT_SMMU_COMMANDS. 0: all are complete; -errno: any of them may not be. */
	int (*invalidate)(struct transport *t, const struct transport_smmu_command *v, uint32_t n);
	/* The SMMU's records of what the device did, up to max of them, oldest first; how many, or -errno. *lost rises by
	 * those that there was no room for. */
	int (*events)(struct transport *t, struct transport_smmu_event *v, uint32_t max, uint64_t *lost);
};

struct transport_ops {
	const char *scheme; /* "vfio-user": specs read "vfio-user:/path/to.sock" */

	/* Could `address` be one? Looks at its spelling alone. */
	bool (*address_ok)(const char *address);

	/* Begins to open what `address` (the part of the spec behind the colon) names. 0, and later opened or lost; or
	 * -errno at once, and nothing is called. irqs: how many vectors to arm, at most TRANSPORT_MAX_IRQS; fewer if
	 * the device has fewer. deadline_ms: how long the device may take for one answer. */
	int (*open)(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		    uint32_t deadline_ms, const struct transport_events *events, void *owner);

	/*
	 * What a successor of this process needs to go on with the device, if this one dies: `save` writes plain data, a number
	 * of its form first, and returns how many bytes; `keep` names fds, in an order of its own, which stay the transport's,
	 * and returns how many. Whoever wants a successor holds on to both. They are right from `opened`, or a successful
	 * adopt, on, and change once more when nested.prepare and nested.attach are done; they are not to be asked for while
	 * one of these is out. NULL, all three, or 0 from save, where there can be no successor: then the device is opened
	 * afresh.
	 */
	size_t (*save)(const struct transport *t, void *buf); /* of TRANSPORT_SAVE_MAX bytes */
	size_t (*keep)(const struct transport *t, int *fds); /* room for TRANSPORT_KEEP_MAX */

	/*
	 * As open, over what a predecessor has left; takes the fds if it returns 0. Nothing of the device is reset, or stops;
	 * all that was mapped stays mapped. Interrupts are armed anew: what was raised meanwhile is not told, so look at
	 * everything at `opened`. Nothing is asked of the device before the loop runs: have `saved` replaced by what `save` says
	 * now until then, so that the next successor's requests are told from this one's. -EBADMSG: these are not what save and
	 * keep gave. What the predecessor asked may have been done, or not, or be done yet, but before anything that is asked
	 * now: dma_clear what was not known to be mapped or unmapped.
	 */
	int (*adopt)(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		     uint32_t deadline_ms, const void *saved, size_t size, const int *fds, size_t n,
		     const struct transport_events *events, void *owner);

	/* Takes NULL. Closes without waiting for the device; requests that are out are forgotten, their done is not
	 * called. Must not be called from inside a transport_done or an event of the same transport. */
	struct transport *(*close)(struct transport *t);

	/* The owner is done with it: no event comes and no done is called any more, from now on, and every call answers
	 * -ENODEV. May be called from anywhere, also from inside a done or an event. Close it soon. */
	void (*forget)(struct transport *t);

	void (*ids)(const struct transport *t, struct transport_ids *ret);

	/* The bus addresses that dma_map takes, ascending: *n is the room in v on entry and how many ranges there are on
	 * return; -ENOSPC if that is more. */
	int (*usable)(struct transport *t, struct range *v, size_t *n);

	/* Maps len bytes of fd from off at bus address `bus` for the device's DMA. prot: enum transport_prot. All of
	 * bus, len, off are multiples of 4096; the caller keeps mappings from overlapping. The fd is used during the
	 * call only (duplicated or sent before it returns). 0: done will be called. */
	int (*dma_map)(struct transport *t, uint64_t bus, uint64_t len, int fd, uint64_t off, uint32_t prot,
		       transport_done done, void *arg);

	/* Undoes exactly one dma_map. When done says 0 the device can no longer reach the range. */
	int (*dma_unmap)(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg);

	/* The same of a dma_map that a predecessor may not have made, or has undone: done says 0 then, too. NULL where nothing
	 * can be adopted. */
	int (*dma_clear)(struct transport *t, uint64_t bus, uint64_t len, transport_done done, void *arg);

	/* Posted register write of 4 or 8 bytes: no answer; if it cannot be made, the device is lost; ordered after earlier ones, and after the caller's earlier
	 * stores to memory that the device maps. */
	int (*region_write)(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t value);

	/* Reads a register of 4 or 8 bytes. 0, -EINVAL, -EIO; -EOPNOTSUPP where the device would have to be waited for. */
	int (*region_read)(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t *value);

	/* Maps a part of a region for plain loads, and stores if the region is writable; NULL if the device does not
	 * offer it in a way that is safe for us. Lives as long as the transport. What it reads back may change at any
	 * time. */
	volatile void *(*region_map)(struct transport *t, uint32_t region, uint64_t off, uint64_t len);

	const struct transport_space_ops *spaces; /* NULL: the device has one address space, its own */
	const struct transport_nested_ops *nested; /* NULL: nobody but the kernel could translate */

	/* Resets the device. DMA mappings and armed interrupts stay. When done says 0 nothing begun before still runs.
	 * A device that cannot be reset: -EOPNOTSUPP, or done says so, or it is lost with the reason. */
	int (*reset)(struct transport *t, transport_done done, void *arg);
};

/* The first member of every transport's own struct. */
struct transport {
	const struct transport_ops *ops;
};

/*
 * Takes a device file that whoever started the daemon has opened for it: of the device that a spec names, or one that is of
 * no device. The next opening that needs it uses it instead of the path. NULL, or why it is not taken.
 */
const char *transport_hand_over(const char *what, int fd);
/* Names a file that is of no device: "iommu" is /dev/iommu, "vfio" is /dev/vfio/vfio. */
bool transport_is_file(const char *what);

/* The ops for a device spec "scheme:address", and where the address begins; NULL for an unknown scheme. */
const struct transport_ops *transport_find(const char *spec, const char **address);

extern const struct transport_ops transport_vfio_user;
extern const struct transport_ops transport_vfio; /* the kernel's: iommufd if it is there, else type1 */
extern const struct transport_ops transport_iommufd;
extern const struct transport_ops transport_type1;

#endif
