/* SPDX-License-Identifier: MIT */
/*
 * The reference GPU as its drivers and its programs see it: commands, ring words, registers.
 *
 * This is the hardware manual in the form of a header; docs/refgpu.md is the prose around it. Three parties include
 * it: programs that write commands (section 1), the daemon's driver (sections 2 to 6), and pasid-refgpu, which
 * implements it. It declares layouts and numbers only. All fields are little-endian.
 *
 * Who may write what is the heart of it: commands come from unprivileged programs and are hostile; ring words,
 * registers and queues are written by the daemon alone and lie at bus addresses that no GPU virtual address reaches.
 */
#ifndef PASID_REFGPU_H
#define PASID_REFGPU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Commands: 64 bytes each, fetched through the context's own tables. ---------------------------------- */

enum refgpu_op {
	REFGPU_NOP = 0,
	REFGPU_FILL = 1, /* dst, len (multiple of 4): every 32-bit word of the range becomes `value` */
	REFGPU_COPY = 2, /* dst, src, len: bytes; ranges that overlap are undefined */
	REFGPU_ADD32 = 3, /* dst, src, len (all multiples of 4): dst[i] += src[i], 32-bit words */
	REFGPU_ATOMIC = 4, /* dst (8-aligned): 64-bit fetch and add of `value` */
	REFGPU_LOAD = 5, /* dst, src = offset in scratch, len: scratch memory to dst */
	REFGPU_STORE = 6, /* dst = offset in scratch, src, len: src to scratch memory */
	REFGPU_FENCE = 7, /* dst (8-aligned): store the 64-bit number `src`; completes no job */
	REFGPU_BLIT = 8, /* dst, src, width, height, pitches: rows of `width` bytes */
	REFGPU_HANG = 9, /* never ends by itself. value 0: obeys STOP and PAUSE. 1: obeys only a device reset */
	REFGPU_SET_TTBR = 10, /* privileged: from a command it always faults (REFGPU_FAULT_PRIVILEGED) */
};

struct refgpu_cmd {
	uint32_t op; /* enum refgpu_op; any other number faults (REFGPU_FAULT_COMMAND) */
	uint32_t value;
	uint64_t dst; /* GPU virtual address, or an offset in scratch */
	uint64_t src;
	uint64_t len; /* bytes */
	uint32_t width; /* BLIT: bytes of a row */
	uint32_t height; /* BLIT: rows */
	uint32_t dst_pitch; /* BLIT: bytes from row to row, at least width */
	uint32_t src_pitch;
	uint64_t reserved[2]; /* zero */
};

#define REFGPU_CMD_SIZE 64u
/* Scratch memory of a slot, bytes. It keeps its content over a context switch until a SCRUB word runs. */
#define REFGPU_SCRATCH_SIZE 16384u

/* ---- 2. PCI ------------------------------------------------------------------------------------------------- */

#define REFGPU_PCI_VENDOR 0x1234u /* the number that QEMU's own test devices use; not assigned to anyone */
#define REFGPU_PCI_DEVICE 0x9a51u
#define REFGPU_PCI_CLASS 0x038000u /* display controller, other */

#define REFGPU_BAR_REGS 0u /* registers and MSI-X, 64 KiB, not mmap-able */
#define REFGPU_BAR_STATUS 2u /* struct refgpu_status, 4 KiB, mmap-able, read-only */
#define REFGPU_BAR_REGS_SIZE 0x10000u
#define REFGPU_BAR_STATUS_SIZE 0x1000u
#define REFGPU_MSIX_TABLE 0xe000u /* in BAR 0 */
#define REFGPU_MSIX_PBA 0xf000u

#define REFGPU_VECTOR_PROGRESS 0u /* a slot's begun, done, ctrl_ack or state changed */
#define REFGPU_VECTOR_INVALIDATE 1u /* mailbox.invq_head moved */
#define REFGPU_VECTOR_FAULT 2u /* mailbox.faultq_tail moved */
#define REFGPU_VECTORS 3u

/* ---- 3. Registers in BAR 0. 8-byte registers take one 8-byte or two 4-byte accesses, low half first; the effect
 * of a register with an effect comes with its last byte. ------------------------------------------------------- */

#define REFGPU_MAGIC 0x55504750u /* "PGPU" */
#define REFGPU_VERSION 1u
#define REFGPU_MAX_SLOTS 64u

#define REFGPU_REG_MAGIC 0x00u /* ro u32 */
#define REFGPU_REG_VERSION 0x04u /* ro u32 */
#define REFGPU_REG_CAPS 0x08u /* ro u32: bits 7:0 slots, bit 8 VMSAv8-64, bit 9 x86-64 */
#define REFGPU_REG_FORMAT 0x10u /* u32 enum refgpu_format; takes effect at ENABLE */
#define REFGPU_REG_ENABLE 0x14u /* u32: 1 starts the device with the addresses below, 0 stops all slots */
#define REFGPU_REG_MAILBOX 0x20u /* u64 bus address of struct refgpu_mailbox, 4 KiB aligned, device writes */
#define REFGPU_REG_INVQ 0x28u /* u64 bus address of the invalidation queue, device reads */
#define REFGPU_REG_INVQ_SIZE 0x30u /* u32 entries, a power of two, at most 4096 */
#define REFGPU_REG_INVQ_TAIL 0x38u /* u64 doorbell: entries written since ENABLE, absolute */
#define REFGPU_REG_FAULTQ 0x40u /* u64 bus address of the fault queue, device writes */
#define REFGPU_REG_FAULTQ_SIZE 0x48u /* u32 entries, a power of two, at most 4096 */
#define REFGPU_REG_FAULTQ_HEAD 0x50u /* u64: entries consumed since ENABLE, absolute */

#define REFGPU_SLOT_REG(slot, reg) (0x1000u + (slot)*0x80u + (reg))
#define REFGPU_SLOT_RING 0x00u /* u64 bus address of the slot's ring, device reads */
#define REFGPU_SLOT_RING_SIZE 0x08u /* u32 words, a power of two, at most 4096 */
#define REFGPU_SLOT_RING_TAIL \
	0x10u /* u64 doorbell: words written since ENABLE, absolute, so ringing twice is harmless */
#define REFGPU_SLOT_CTRL 0x18u /* u64: enum refgpu_ctrl in bits 7:0, the driver's sequence number in 63:8 */
#define REFGPU_SLOT_FAULT_MODE 0x20u /* u32: 0 terminate, 1 stall */

enum refgpu_format {
	REFGPU_FORMAT_VMSA64 = 0, /* Arm VMSAv8-64 stage 1, 4 KiB granule, 48 bit, one TTBR */
	REFGPU_FORMAT_X86_64 = 1, /* x86-64 4-level; user accesses, so U/S must be set at every level */
};

enum refgpu_ctrl {
	REFGPU_CTRL_PAUSE = 1, /* finish the access in flight and hold the job (or stay idle) */
	REFGPU_CTRL_RESUME = 2, /* go on; a stalled access is tried again */
	REFGPU_CTRL_TERMINATE = 3, /* end the stalled or paused job as if complete (its fence is written), go on */
	REFGPU_CTRL_STOP = 4, /* drop the job and every word up to the tail: no fence is written, done = tail,
				    * begun says how far it got; TTBR and ASID become 0; the slot is idle */
};

/* ---- 4. Ring words: written by the daemon. ------------------------------------------------------------------- */

enum refgpu_ring_op {
	REFGPU_RING_RUN = 1, /* run the commands at addr..addr+len-1 (GPU virtual); then store `job` at bus address
				   * `fence` (unless fence is 0) and interrupt */
	REFGPU_RING_SET_TTBR = 2, /* addr = bus address of the root table (0: no tables, every access faults), asid.
				   * Flushes nothing. */
	REFGPU_RING_SCRUB = 3, /* zero the slot's scratch memory */
};

struct refgpu_ring_word {
	uint32_t op; /* enum refgpu_ring_op */
	uint32_t asid;
	uint64_t addr;
	uint64_t len; /* bytes, a multiple of REFGPU_CMD_SIZE */
	uint64_t job;
	uint64_t fence;
	uint64_t reserved[3];
};

/* ---- 5. What the device writes for its driver: the mailbox, in system memory, so that it outlives a reset. ---- */

enum refgpu_slot_state {
	REFGPU_SLOT_IDLE = 0, /* all words up to the tail are done */
	REFGPU_SLOT_RUNNING = 1,
	REFGPU_SLOT_PAUSED = 2,
	REFGPU_SLOT_STALLED = 3, /* on a fault; waits for RESUME, TERMINATE or STOP */
};

struct refgpu_slot_mark {
	uint64_t begun; /* ring words begun since ENABLE, absolute: a job counts before its first access */
	uint64_t done; /* ring words finished since ENABLE, absolute; stored after the fence */
	uint64_t ctrl_ack; /* the last CTRL value that took effect */
	uint32_t state; /* enum refgpu_slot_state */
	uint32_t reserved;
};

struct refgpu_mailbox {
	uint64_t
		invq_head; /* entries completed since ENABLE, absolute: every access begun under what they name is over */
	uint64_t faultq_tail; /* records written since ENABLE, absolute */
	uint64_t faultq_lost; /* records dropped for want of room since ENABLE */
	uint64_t reserved[5];
	struct refgpu_slot_mark slot[REFGPU_MAX_SLOTS];
};

enum refgpu_inv_op {
	REFGPU_INV_RANGE = 1, /* asid, first..last: translations and cached tables for these addresses */
	REFGPU_INV_ASID = 2, /* everything of asid */
	REFGPU_INV_ALL = 3,
};

struct refgpu_inv {
	uint32_t op;
	uint32_t asid;
	uint64_t first; /* GPU virtual, inclusive */
	uint64_t last;
	uint64_t reserved;
};

enum refgpu_access { REFGPU_READ = 1, REFGPU_WRITE = 2, REFGPU_FETCH = 4 };

enum refgpu_fault_code {
	REFGPU_FAULT_TRANSLATION = 1, /* no valid entry at `level` */
	REFGPU_FAULT_PERMISSION = 2,
	REFGPU_FAULT_ACCESS_FLAG = 3,
	REFGPU_FAULT_ADDRESS_SIZE = 4, /* the address, or an entry's output, beyond 48 bits or not canonical */
	REFGPU_FAULT_BUS = 5, /* translated, but nothing is mapped at the bus address (or not writable there) */
	REFGPU_FAULT_TLB_CONFLICT = 6, /* a new entry overlaps one of another size that was not invalidated; also a hit
					* where the tables now hold another size: a block was split under work */
	REFGPU_FAULT_PRIVILEGED = 7, /* a privileged command from a client's commands; addr = the command's address */
	REFGPU_FAULT_COMMAND = 8, /* malformed command: op, length, scratch offset; addr = the command's address */
};

struct refgpu_fault {
	uint32_t slot;
	uint32_t asid;
	uint64_t addr; /* GPU virtual */
	uint32_t access; /* enum refgpu_access */
	uint32_t level; /* VMSA: 0 to 3; x86-64: 4 (PML4) to 1 (PT); 0 where no walk was involved */
	uint32_t code; /* enum refgpu_fault_code */
	uint32_t stalled; /* 1: the slot waits in REFGPU_SLOT_STALLED */
	uint64_t job;
	uint64_t reserved[2];
};

/* ---- 6. The status page: identity, and counters for whoever watches from outside. Never evidence for policy. --- */

struct refgpu_status {
	uint32_t magic;
	uint32_t version;
	uint32_t slots;
	uint32_t formats; /* bit per enum refgpu_format */
	uint64_t resets;
	uint64_t tlb_hits;
	uint64_t tlb_misses;
	uint64_t walks;
	uint64_t stale_hits; /* hits that a fresh walk at that moment would not give */
	uint64_t tlb_entries;
	uint64_t conflicts;
	uint64_t faults;
	uint64_t switches; /* SET_TTBR ring words that changed TTBR or ASID */
	uint64_t jobs; /* RUN words finished */
	uint64_t invalidations;
	uint64_t scrubs;
	uint64_t dma_maps; /* DMA mappings in force now */
	uint64_t dma_bytes; /* bytes of bus address space in force now */
	uint64_t clients; /* vfio-user connections accepted since the start */
	uint64_t malformed; /* vfio-user messages answered with an error or dropped */
	uint64_t slot_switches[REFGPU_MAX_SLOTS];
};

#ifdef __cplusplus
}
#endif

#endif
