/* SPDX-License-Identifier: MIT */
/*
 * The data plane of pasidd on the wire: one message per SOCK_SEQPACKET record, fixed-width little-endian fields, no
 * implicit padding. docs/protocol.md explains when what is sent and is enough to write a client from; this header is
 * the one place for numbers and layouts, used by the daemon and by libpasid.
 *
 * A request is a pasid_msg followed by the body of its opcode; its reply is a pasid_reply followed by the body of the
 * reply. Fields called reserved or pad are zero and are checked.
 */
#ifndef PASID_PROTOCOL_H
#define PASID_PROTOCOL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PASID_PROTOCOL_MAGIC 0x44534150u /* "PASD", in HELLO */
#define PASID_PROTOCOL_VERSION 1u

#define PASID_MSG_MAX 65536u /* bytes of a message, either way; a longer one disconnects */
#define PASID_BIND_MAX 1024u /* operations in one BIND */
#define PASID_IN_FLIGHT 16u /* requests that a client may have unanswered; as many replies are kept for repeats */
#define PASID_NAME_MAX 32u /* bytes of a device name with its NUL */
#define PASID_FAULTS_MAX 16u /* faults in one FAULT event */
#define PASID_FENCE_STRIDE 64u /* bytes from one context's fence line to the next */

enum pasid_opcode {
	PASID_OP_HELLO = 1,
	PASID_OP_DEVICES = 2,
	PASID_OP_DEVICE_INFO = 3,
	PASID_OP_CTX_NEW = 4,
	PASID_OP_CTX_FREE = 5,
	PASID_OP_CTX_INFO = 6,
	PASID_OP_BUF_IMPORT = 7, /* carries one fd */
	PASID_OP_BUF_FREE = 8,
	PASID_OP_BIND = 9,
	PASID_OP_SUBMIT = 10,
	/* Events: serial 0, from the daemon. */
	PASID_EV_FAULT = 0x8001,
	PASID_EV_LOST = 0x8002, /* a context is lost, or its device was reset under a job */
	PASID_EV_RESUMED = 0x8003, /* a new daemon serves this connection; nothing was lost, nothing to resend */
	PASID_EV_DEVICE_BACK = 0x8004,
};

struct pasid_msg {
	uint32_t size; /* bytes of the whole message, this header included; must equal the record's length */
	uint16_t opcode; /* enum pasid_opcode */
	uint16_t fds; /* fds that travel with it */
	uint64_t serial; /* requests: 1, 2, 3, ... */
};

struct pasid_reply {
	struct pasid_msg msg; /* opcode and serial of the request */
	int32_t code; /* 0 or -errno */
	uint32_t reason; /* enum pasid_reason */
	uint32_t index; /* BIND: the operation that failed */
	uint32_t reserved;
	uint64_t n1; /* two numbers; what they are depends on the reason */
	uint64_t n2;
};

/* Why a request failed; the code follows from it (docs/protocol.md, "Errors"). */
enum pasid_reason {
	PASID_WHY_NONE = 0,
	/* -EINVAL */
	PASID_WHY_UNALIGNED = 1, /* n1 the number, n2 what it must be a multiple of */
	PASID_WHY_EMPTY = 2, /* a length or count of zero */
	PASID_WHY_WRAPS = 3, /* n1 address or offset, n2 length */
	PASID_WHY_FLAGS = 4, /* n1 the flags, n2 those that are allowed */
	PASID_WHY_RESERVED = 5, /* a reserved field is not zero */
	PASID_WHY_BODY_SIZE = 6, /* n1 bytes of the message, n2 bytes expected */
	PASID_WHY_OPCODE = 7, /* n1 the opcode */
	PASID_WHY_FD_COUNT = 8, /* n1 fds that came, n2 fds expected */
	PASID_WHY_BIND_OP = 9, /* n1 the kind of operation */
	PASID_WHY_NO_HELLO = 10, /* a request before HELLO, or a second HELLO */
	PASID_WHY_TOO_MANY = 11, /* n1 operations, n2 allowed */
	PASID_WHY_UNMAPS_MANY = 12, /* n1 mappings, or more, would go; n2 may go by one list */
	/* -ENOENT */
	PASID_WHY_NO_CONTEXT = 20, /* n1 the id */
	PASID_WHY_NO_BUFFER = 21, /* n1 the id */
	PASID_WHY_NO_DEVICE = 22,
	PASID_WHY_NOT_MAPPED = 23, /* n1..n2 first bytes of the range that this context has not mapped */
	/* -EEXIST */
	PASID_WHY_OVERLAP = 30, /* n1..n2 the mapping that is in the way */
	/* -ERANGE */
	PASID_WHY_APERTURE = 40, /* n1..n2 the usable IOVA range */
	PASID_WHY_BUFFER_END = 41, /* n1 the end asked for, n2 the buffer's size */
	PASID_WHY_NO_ROOM = 42, /* n1 bytes: no free IOVA range is that long */
	PASID_WHY_COMMANDS = 43, /* n1 bytes of a submission, n2 the most allowed */
	/* -EACCES */
	PASID_WHY_READ_ONLY = 50, /* the buffer was imported read-only */
	/* -EPERM */
	PASID_WHY_UNSEALED = 60, /* n1 the seals it has, n2 the seals it needs */
	/* -EOPNOTSUPP */
	PASID_WHY_NOT_MEMFD = 70,
	PASID_WHY_VERSION = 71, /* n1 the version, n2 the one spoken here */
	PASID_WHY_OTHER_DEVICE = 72, /* the buffer belongs to another device */
	PASID_WHY_NO_PASID = 73, /* the device's driver puts no PASID on its accesses */
	/* -EIO */
	PASID_WHY_CONTEXT_LOST = 80, /* n1 the id */
	/* -ENODEV */
	PASID_WHY_DEVICE_GONE = 81,
	/* -ETIMEDOUT */
	PASID_WHY_TIMEOUT = 82, /* libpasid's own: n1 the job waited for, n2 the last job completed */
	/* -EDQUOT; n1 used, n2 the limit; 90 + resource of the uid, 110 + resource of the connection */
	PASID_WHY_QUOTA_UID = 90,
	PASID_WHY_QUOTA_CONNECTION = 110,
	PASID_WHY_QUOTA_TOTAL = 130, /* bytes: of the whole daemon */
	PASID_WHY_QUOTA_IDS = 131, /* the device's ASIDs or PASIDs */
	PASID_WHY_QUOTA_TABLES = 132, /* the device's pool of table pages */
	PASID_WHY_QUOTA_MEMORY = 133, /* the daemon has no memory */
	PASID_WHY_QUOTA_KERNEL = 134, /* n1 the errno with which the kernel, or the device, refused memory */
	PASID_WHY_QUOTA_STORE = 135, /* fds that the service manager keeps; connections get no more than n2 of them */
};

/* What is limited; see PASID_WHY_QUOTA_*. */
enum pasid_resource {
	PASID_RES_CONTEXTS = 0,
	PASID_RES_BUFFERS = 1,
	PASID_RES_MAPPINGS = 2,
	PASID_RES_BYTES = 3, /* of imported buffers, in full to each importer */
	PASID_RES_HUGE = 4, /* bytes of imported buffers in huge pages (they count as bytes, too) */
	PASID_RES_TABLES = 5, /* table pages of 4 KiB */
	PASID_RES_JOBS = 6, /* submitted and not completed */
	PASID_RES_RATE = 7, /* messages a second */
	PASID_RES_CONNECTIONS = 8,
	PASID_RES_COUNT = 9,
};

/* HELLO. Capabilities: both sides name theirs, each uses what both have, unknown bits are ignored. None yet. */
struct pasid_hello {
	uint32_t magic;
	uint32_t version;
	uint64_t capabilities;
};

/* Reply to HELLO; carries one fd: the connection's fence memory, read-only, fence_bytes long. */
struct pasid_hello_reply {
	uint32_t version;
	uint32_t msg_max;
	uint32_t bind_max;
	uint32_t in_flight;
	uint64_t capabilities;
	uint64_t fence_bytes;
};

/* DEVICES has no body; the reply is an array of these. */
struct pasid_wire_device {
	char name[PASID_NAME_MAX]; /* NUL-terminated */
	uint32_t mode; /* enum pasid_mode in pasid.h */
	uint32_t present; /* 0: gone at the moment */
};

struct pasid_device_query {
	char name[PASID_NAME_MAX]; /* NUL-terminated, NULs to the end; empty: the first device */
};

struct pasid_wire_device_info {
	char name[PASID_NAME_MAX];
	char engine[PASID_NAME_MAX]; /* the driver, which defines the format of commands: "refgpu" */
	uint32_t mode;
	uint32_t present;
	uint64_t page_sizes; /* bit per size, as in 1 << 12 */
	uint64_t iova_first;
	uint64_t iova_last;
	uint64_t features; /* PASID_FEATURE_* in pasid.h */
	uint32_t pasid_bits;
	uint32_t slots;
	uint32_t job_limit_ms;
	uint32_t submit_max; /* bytes of commands in one submission */
};

/* Flags of CTX_NEW. */
#define PASID_CTX_NEW_OPAQUE 1u /* other programs of the same user may not look at it (docs/dbus.md) */

struct pasid_ctx_new {
	char device[PASID_NAME_MAX]; /* as in pasid_device_query */
	uint32_t flags; /* PASID_CTX_NEW_* */
	uint32_t reserved;
};

struct pasid_ctx_new_reply {
	uint32_t ctx;
	uint32_t pasid;
	uint32_t fence_line; /* the context's line in the fence memory, in units of PASID_FENCE_STRIDE */
	uint32_t reserved;
};

struct pasid_ctx_query { /* CTX_FREE and CTX_INFO */
	uint32_t ctx;
	uint32_t reserved;
};

struct pasid_wire_ctx_info {
	uint32_t ctx;
	uint32_t pasid;
	uint32_t state; /* enum pasid_ctx_state */
	uint32_t reserved;
	uint64_t mappings;
	uint64_t mapped_bytes;
	uint64_t table_bytes;
	uint64_t submitted; /* number of the last job submitted */
	uint64_t completed;
	uint64_t faults;
	uint64_t switches; /* times it was switched onto a slot */
};

struct pasid_buf_import {
	char device[PASID_NAME_MAX];
	uint32_t flags; /* zero */
	uint32_t reserved;
};

struct pasid_buf_import_reply {
	uint64_t size; /* bytes, the file's size at import */
	uint32_t buf;
	uint32_t writable; /* 0: the fd is O_RDONLY, or the file is sealed against writing */
};

struct pasid_buf_query { /* BUF_FREE */
	uint32_t buf;
	uint32_t reserved;
};

enum pasid_bind_kind { PASID_BIND_MAP = 1, PASID_BIND_UNMAP = 2 };

/* Flags of a map. */
#define PASID_MAP_READ 1u /* always set */
#define PASID_MAP_WRITE 2u
#define PASID_MAP_FIXED 4u /* at iova; without it the daemon chooses */

struct pasid_wire_bind_op {
	uint32_t kind; /* enum pasid_bind_kind */
	uint32_t flags; /* PASID_MAP_*; zero for an unmap */
	uint32_t buf; /* zero for an unmap */
	uint32_t reserved;
	uint64_t off; /* into the buffer; zero for an unmap */
	uint64_t iova;
	uint64_t len; /* bytes */
};

struct pasid_bind_head { /* followed by count operations */
	uint32_t ctx;
	uint32_t count;
};

/* Reply to BIND: count times u64, the IOVA of each operation. */

struct pasid_wire_submit {
	uint32_t ctx;
	uint32_t reserved;
	uint64_t iova;
	uint64_t len; /* bytes */
};

struct pasid_submit_reply {
	uint64_t job;
};

/* A context's line in the fence memory. The device writes `done`, the daemon the rest. A state other than ok is
 * final until the context is freed, and whoever waits for a job of it must stop waiting. */
struct pasid_fence_line {
	uint64_t done; /* last completed job */
	uint32_t state; /* enum pasid_ctx_state */
	uint32_t
		disrupted; /* rises by one before `done` passes a job that faulted or that a reset ended; a FAULT or LOST
			      * event that names the job is in the socket by then. In mode `nested` a FAULT may come later */
	uint64_t reserved[6];
};

enum pasid_ctx_state {
	PASID_CTX_OK = 0,
	PASID_CTX_LOST = 1, /* its work was stopped; memory is unmapped from the device; free it */
};

struct pasid_wire_fault {
	uint64_t job;
	uint64_t addr;
	uint32_t access; /* 1 read, 2 write, 4 fetch of commands */
	uint32_t code; /* enum pasid_fault_code in pasid.h */
	/* The nearest mapping of the context, first..last; both 0 if it has none. */
	uint64_t near_first;
	uint64_t near_last;
	/* The latest mapping removed from around addr, and how long before the fault, in ns; 0, 0, 0 if none is known. */
	uint64_t gone_first;
	uint64_t gone_last;
	uint64_t gone_age_ns;
};

struct pasid_ev_fault { /* followed by count faults, oldest first */
	struct pasid_msg msg;
	uint32_t ctx;
	uint32_t count;
	uint64_t dropped; /* faults of this context that no event carried since the last one */
};

enum pasid_lost_why {
	PASID_LOST_HANG = 1, /* a job of it ran beyond the limit */
	PASID_LOST_DEVICE = 2, /* the device is gone */
	PASID_LOST_RESET =
		3, /* not lost: the device was reset under `job`, which ended unfinished; the context is usable */
	PASID_LOST_DAEMON = 4, /* the daemon could not keep the context's tables true */
	PASID_LOST_CLOSED = 5, /* an administrator closed it */
};

struct pasid_ev_lost {
	struct pasid_msg msg;
	uint32_t ctx;
	uint32_t why; /* enum pasid_lost_why */
	uint64_t job; /* HANG, RESET: the job */
};

struct pasid_ev_device { /* DEVICE_BACK; RESUMED is a bare pasid_msg */
	struct pasid_msg msg;
	char device[PASID_NAME_MAX];
};

#ifdef __cplusplus
}
#endif

#endif
