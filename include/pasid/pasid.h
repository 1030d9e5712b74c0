/* SPDX-License-Identifier: MIT */
/*
 * libpasid: a private address space on a shared GPU or accelerator, from pasidd.
 *
 * A program connects, makes a context on a device, imports memory as buffers, maps buffers at I/O virtual addresses
 * (IOVA) of the context, and submits commands that lie in mapped memory. The device reaches nothing but what the
 * context has mapped.
 *
 *   Results   0 or -errno, unless a call says otherwise; pasid_error() has a sentence about the last failure. Every call
 *             gives -ECONNRESET once the daemon is gone or the connection was ended, and from then on; -EINVAL for a
 *             NULL where a result goes and for a struct whose size cannot be.
 *   Waiting   A call that asks the daemon waits for its answer without a time limit, as long as the daemon is there.
 *   Threads   One thread at a time per connection. pasid_fence() and pasid_wait() only read shared memory when the job
 *             is complete, yet count as uses of the connection. Different connections are independent.
 *   fork      A connection must not be used in a child; the child may only close its fds by exec or exit.
 *   Signals   The library starts no thread, changes no signal handler, never exits and never prints.
 *   Lengths   Bytes. Addresses, offsets and lengths of mappings are multiples of 4096.
 *   Structs   Begin with their size, set by the caller; a library that is newer or older uses what both know: what it
 *             does not know is ignored on the way in and zero on the way out.
 */
#ifndef PASID_PASID_H
#define PASID_PASID_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pasid;

/* How a device keeps contexts apart. */
enum pasid_mode {
	PASID_MODE_GPU_MMU = 1, /* the GPU's own MMU walks a private io-pgtable per context */
	PASID_MODE_GLOBAL =
		2, /* one address space for all contexts of the device: checked and accounted, NOT isolated */
	PASID_MODE_EXCLUSIVE = 3, /* the IOMMU keeps the device in one context's address space at a time */
	PASID_MODE_PASID = 4, /* the IOMMU tells contexts apart by the PASID of each access */
	PASID_MODE_NESTED = 5, /* the IOMMU walks a private io-pgtable per context */
};

/* Features of a device, bits of pasid_device_info.features. */
#define PASID_FEATURE_PARTIAL_UNMAP 1u /* a part of a mapping may be unmapped */
#define PASID_FEATURE_ATOMIC_REPLACE 2u /* running work never sees the gap between an unmap and a map of one list */
#define PASID_FEATURE_DMABUF 4u
#define PASID_FEATURE_STALL 8u

struct pasid_device {
	size_t size; /* sizeof(struct pasid_device); the stride of the array */
	char name[32];
	uint32_t mode;
	uint32_t present; /* 0: gone at the moment; wait for PASID_EVENT_DEVICE_BACK */
};

struct pasid_device_info {
	size_t size; /* sizeof(struct pasid_device_info) */
	char name[32];
	char engine[32]; /* the driver, which defines the format of commands */
	uint32_t mode; /* enum pasid_mode */
	uint32_t present;
	uint64_t page_sizes; /* bit n: blocks of 1 << n bytes */
	uint64_t iova_first; /* usable IOVA range, inclusive */
	uint64_t iova_last;
	uint64_t features;
	uint32_t pasid_bits;
	uint32_t slots; /* contexts that can run at one moment; more than that take turns */
	uint32_t job_limit_ms; /* a job beyond it is stopped and its context lost */
	uint32_t submit_max; /* bytes of commands in one submission */
};

/* Flags of a context. */
#define PASID_CTX_OPAQUE 1u /* other programs of the same user may not look at it over D-Bus */

struct pasid_ctx_args {
	size_t size;
	const char *device; /* NULL: the first device */
	uint32_t flags; /* PASID_CTX_OPAQUE */
	uint32_t reserved; /* 0 */
};

struct pasid_ctx_info {
	size_t size;
	uint32_t pasid;
	uint32_t lost; /* 1: free it */
	uint64_t mappings;
	uint64_t mapped_bytes;
	uint64_t table_bytes;
	uint64_t submitted; /* the last job submitted */
	uint64_t completed;
	uint64_t faults;
	uint64_t switches; /* times it was switched onto a slot of the GPU */
};

/* Flags of a mapping. */
#define PASID_READ 1u
#define PASID_WRITE 2u /* together with PASID_READ */
#define PASID_FIXED 4u /* at the IOVA given; otherwise the daemon chooses one */

enum pasid_bind_type { PASID_MAP = 1, PASID_UNMAP = 2 };

struct pasid_bind_op {
	size_t size; /* sizeof(struct pasid_bind_op); the stride of the array */
	uint32_t type; /* enum pasid_bind_type */
	uint32_t flags; /* map: PASID_READ, PASID_WRITE, PASID_FIXED; unmap: 0 */
	uint32_t buf; /* map only, as off */
	uint64_t off;
	uint64_t iova; /* in; out for a map without PASID_FIXED */
	uint64_t len;
};

enum pasid_event_type {
	/* A job touched what it may not; that job ended, the context goes on. In mode nested the access failed and the job
	 * goes on; the event comes if it is certain whose job it was, maybe after its end. In modes exclusive and pasid
	 * nobody hears of an access that the IOMMU refused; the job goes on. */
	PASID_EVENT_FAULT = 1,
	PASID_EVENT_LOST = 2, /* the context is lost: see .why; free it */
	PASID_EVENT_RESET = 3, /* the device was reset under .job, which ended unfinished; the context is usable */
	PASID_EVENT_RESUMED = 4, /* a new daemon took over; nothing was lost */
	PASID_EVENT_DEVICE_BACK = 5, /* .device is present again */
};

enum pasid_fault_code {
	PASID_FAULT_UNMAPPED = 1,
	PASID_FAULT_PERMISSION = 2,
	PASID_FAULT_ADDRESS = 3, /* not an address of the aperture */
	PASID_FAULT_BUS = 4, /* mapped, but the memory behind it did not answer */
	PASID_FAULT_PRIVILEGED = 5, /* a privileged command; addr is the command's */
	PASID_FAULT_COMMAND = 6, /* a malformed command; addr is the command's */
	PASID_FAULT_OTHER = 7,
};

enum pasid_lost {
	PASID_LOST_TO_HANG = 1,
	PASID_LOST_TO_DEVICE = 2,
	PASID_LOST_TO_DAEMON = 4,
	PASID_LOST_TO_CLOSE = 5, /* an administrator closed it */
};

struct pasid_event {
	size_t size;
	uint32_t type; /* enum pasid_event_type */
	uint32_t ctx;
	uint64_t job; /* FAULT, RESET, LOST: the job, 0 if none */
	uint64_t addr; /* FAULT: the IOVA */
	uint32_t access; /* FAULT: 1 read, 2 write, 4 fetch of commands */
	uint32_t code; /* FAULT: enum pasid_fault_code */
	uint32_t why; /* LOST: enum pasid_lost */
	uint32_t reserved;
	uint64_t near_first; /* FAULT: the context's mapping nearest to addr, inclusive; 0, 0: it has none */
	uint64_t near_last;
	uint64_t gone_first; /* FAULT: what was unmapped there last; 0, 0: nothing known */
	uint64_t gone_last;
	uint64_t gone_age_ns; /* ... and how long before the fault */
	uint64_t dropped; /* FAULT: faults that were not reported before this one */
	char device[32]; /* DEVICE_BACK */
	char text[256]; /* one English sentence about it, as a diagnosis */
};

/*
 * Connects to the daemon at `path`; NULL means $PASIDD_SOCKET, and /run/pasidd/socket without it. Takes a few ms at
 * most while the daemon is alive. -ENOENT, -ECONNREFUSED, -EACCES from connect(2); -EOPNOTSUPP if the daemon speaks
 * another version; -EDQUOT if this uid, or all together, have too many connections. -ECONNRESET if the connection ended before it was
 * greeted, five times in a row: a daemon that dies takes such connections along, so it is tried again. The caller owns *ret.
 */
int pasid_connect(struct pasid **ret, const char *path);

/* The same on a connected SOCK_SEQPACKET socket, which the connection owns from now on, also when this fails. */
int pasid_connect_fd(struct pasid **ret, int fd);

/* Ends the connection: contexts and buffers go, work that runs is stopped. Takes NULL, returns NULL. Memory that
 * pasid_buf_new() mapped for the program is unmapped from it. */
struct pasid *pasid_disconnect(struct pasid *p);

/* One sentence about the last failed call on p: what happened, to what, with the numbers, what to do. Valid until the
 * next call on p. p NULL: about the calling thread's last connect that failed. Never NULL. */
const char *pasid_error(const struct pasid *p);

/* Readable when an event may have come; for poll(2) only. Other calls may have received events meanwhile, so before each
 * poll call pasid_next_event() until it returns 0. */
int pasid_fd(const struct pasid *p);

/* 1 and an event, or 0 if there is none, or -errno. Never waits. ev->size is set by the caller. */
int pasid_next_event(struct pasid *p, struct pasid_event *ev);

/* Lists devices: *n is the room in v on entry and the number of devices on return, which may be larger (then the
 * first ones are in v). v[0].size is set by the caller if there is room for one, the others' by the call. */
int pasid_devices(struct pasid *p, struct pasid_device *v, size_t *n);

/* device NULL: the first one, here and in all calls. -ENOENT; -ENAMETOOLONG beyond 31 bytes. */
int pasid_device_info(struct pasid *p, const char *device, struct pasid_device_info *info);

/* A new context: a private address space on one device, empty. *ctx is unique in the life of the daemon. a may be
 * NULL. -ENOENT no such device, -ENODEV device gone, -EDQUOT. */
int pasid_ctx_new(struct pasid *p, const struct pasid_ctx_args *a, uint32_t *ctx);

/* Frees a context: its work is stopped at once, its mappings go, buffers stay. When it returns 0 no access of it can
 * still happen. -ENOENT. */
int pasid_ctx_free(struct pasid *p, uint32_t ctx);

int pasid_ctx_info(struct pasid *p, uint32_t ctx, struct pasid_ctx_info *info);

/* New zeroed memory of `size` bytes (rounded up to 4096), imported for the device and mapped into the program at *map
 * (if map is not NULL) until pasid_buf_free(). -EDQUOT, -ENODEV, -ENOMEM. */
int pasid_buf_new(struct pasid *p, const char *device, uint64_t size, uint32_t *buf, void **map);

/* Imports a memfd, whole. Its size must be a multiple of 4096; the library adds F_SEAL_SHRINK. An fd that is O_RDONLY
 * or a file sealed against writing makes a read-only buffer. The fd stays the caller's and may be closed. -EPERM the
 * file cannot be sealed, -EOPNOTSUPP not a memfd, -EDQUOT, -ENODEV. */
int pasid_buf_import(struct pasid *p, const char *device, int fd, uint32_t *buf);

/* Frees the id and the program's own mapping of it. Where the buffer is still mapped in contexts it stays reachable
 * there, and charged, until the last of these mappings is gone. -ENOENT. */
int pasid_buf_free(struct pasid *p, uint32_t buf);

/* Maps len bytes of buf from off. With PASID_FIXED at *iova, otherwise *iova is set. -EEXIST overlap, -ERANGE outside
 * of the aperture or the buffer, -EACCES writing to a read-only buffer, -ENOENT, -EDQUOT, -EIO context lost. */
int pasid_map(struct pasid *p, uint32_t ctx, uint32_t buf, uint64_t off, uint64_t len, uint32_t flags, uint64_t *iova);

/* Unmaps exactly this range, all of which the context must have mapped (-ENOENT). It may cover several mappings (at most
 * 16,384, else -EINVAL) or a part of one. When it returns 0, no access through the old mapping can still happen; a later one faults. */
int pasid_unmap(struct pasid *p, uint32_t ctx, uint64_t iova, uint64_t len);

/* Many maps and unmaps in one message, in order, all or none. On failure *failed (may be NULL) is the index of the
 * operation that could not be done. At most 1024. All operations have the same size. */
int pasid_bind(struct pasid *p, uint32_t ctx, const struct pasid_bind_op *ops, size_t n, size_t *failed);

/* As pasid_bind(), and writes the addresses that the daemon chose back to ops. */
int pasid_bind_any(struct pasid *p, uint32_t ctx, struct pasid_bind_op *ops, size_t n, size_t *failed);

/* Runs the commands at iova..iova+len-1 of the context, in the engine's format, after the jobs submitted before. *job
 * is its number: 1, 2, 3, ... of this context. The commands must stay unchanged until it completes. -EDQUOT too many
 * jobs out, -EINVAL, -EIO context lost, -ENODEV. */
int pasid_submit(struct pasid *p, uint32_t ctx, uint64_t iova, uint64_t len, uint64_t *job);

/* Result of pasid_wait(): the job ended, but not as it should have. */
#define PASID_JOB_FAULTED 1
#define PASID_JOB_RESET 2

/*
 * Waits for a job: 0 it completed, PASID_JOB_FAULTED it touched what it may not and was ended there (in mode `nested` it
 * went on, and this may show later, or in the event alone), PASID_JOB_RESET the device was reset under it (both for the
 * latest 64 such jobs of the connection). -ETIMEDOUT, -EIO the context is lost, -ECONNRESET the daemon is gone, -ENOENT no
 * such context, or the job was not submitted yet. timeout_ns: negative waits for ever, 0 looks once.
 */
int pasid_wait(struct pasid *p, uint32_t ctx, uint64_t job, int64_t timeout_ns);

/* The last completed job of the context, read from shared memory without a system call. -ENOENT; -EIO the context is
 * lost, and *job is set all the same. */
int pasid_fence(struct pasid *p, uint32_t ctx, uint64_t *job);

#ifdef __cplusplus
}
#endif

#endif
