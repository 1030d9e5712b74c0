/* SPDX-License-Identifier: MIT */
/*
 * The inside of the vfio-user transport, for its own files and its tests: a connection (framing, queues), the regions
 * of a device, the device with its outstanding requests, and the dialogue that opens it.
 */
#ifndef TRANSPORT_VFIO_USER_PRIV_H
#define TRANSPORT_VFIO_USER_PRIV_H

#include <pasid/range.h>

#include "transport/transport.h"
#include "transport/vfio_user_proto.h"

#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

/* ---- The connection. ------------------------------------------------------------------------------------------ */

/* The longest payload of a reply: a region's description with its capabilities. */
#define VFU_MAX_REPLY 4096u
/* What we tell the device to be the longest data of its own requests, which are refused. It is short, so that the whole
 * message fits into one buffer of the kernel's and into ours. */
#define VFU_MAX_XFER 4096u
/* The longest message that can come: a request with its data. */
#define VFU_MAX_RECEIVE (16u + 16u + VFU_MAX_XFER)
/* The longest message that we send. */
#define VFU_MAX_SEND (16u + 256u)
/* What may wait for the device to read it. Whether it reads is judged by time alone; this bounds what we keep. Requests
 * have a bound of their own, VFU_MAX_PENDING; the rest are register writes, of which the end of a context takes two, and
 * a device may have 65,535 contexts that end in one go. */
#define VFU_MAX_QUEUE (4u * 65536u)
#define VFU_MAX_QUEUE_BYTES (16u << 20)
#define VFU_MAX_REFUSALS 1024u /* messages that wait already when one more request of the device is answered */
/* Eventfds in one SET_IRQS: fewer if the device says so. */
#define VFU_MAX_SEND_FDS 16u

/* Whose fds a device's are, to the closer: nobody's who could connect. */
#define VFU_DEVICE_UID ((uid_t)-1)

struct vfu_msg;
STAILQ_HEAD(vfu_queue, vfu_msg);

struct vfu_conn;

struct vfu_conn_events {
	/* A whole message. A request's payload is not given (NULL, 0). *fd is the file descriptor that came with it or
	 * -1; whoever keeps it leaves -1, otherwise the connection fails and closes it. */
	void (*message)(struct vfu_conn *c, const struct vfio_user_header *h, const uint8_t *payload, uint32_t len,
			int *fd);
	/* Once, from the loop, after vfu_conn_fail(): see error and why. */
	void (*failed)(struct vfu_conn *c);
};

struct vfu_conn {
	const struct vfu_conn_events *events;
	int fd;
	uint32_t deadline_ms;
	int error; /* 0, or -errno: the connection is over, nothing is sent or read any more */
	char why[192];
	struct event ev_read, ev_write, ev_more, ev_drain, ev_failed;

	bool want_fd; /* the next reply may bring a file descriptor; otherwise the kernel drops them */
	int in_fd; /* that came with the message being read, or -1 */
	union {
		struct vfio_user_header in_header;
		_Alignas(8) uint8_t in[VFU_MAX_RECEIVE];
	};

	struct vfu_queue out;
	uint32_t out_messages, out_bytes;
	uint64_t drain_since_ns; /* when the device last took something from a waiting queue */
};

/* Takes the connected socket; cannot fail. The base must know edges (EV_FEATURE_ET). */
void vfu_conn_init(struct vfu_conn *c, struct event_base *base, int fd, uint32_t deadline_ms,
		   const struct vfu_conn_events *events);
void vfu_conn_fini(struct vfu_conn *c);
/* Ends the connection without a word: `failed` does not follow. */
void vfu_conn_silence(struct vfu_conn *c);
/* Starts listening. 0 or -errno. */
int vfu_conn_start(struct vfu_conn *c);

/* Sends or queues a message of at most VFU_MAX_SEND bytes; the fds are the caller's again when it returns. -ENODEV: the connection is over, perhaps
 * just now; another -errno: nothing was sent and nothing changed. */
int vfu_conn_send(struct vfu_conn *c, const void *data, size_t len, const int *fds, unsigned int n_fds);

/* Ends the connection: `failed` follows from the loop. The first reason stays. Returns -ENODEV. */
__attribute__((format(printf, 3, 4))) int vfu_conn_fail(struct vfu_conn *c, int error, const char *fmt, ...);

/* A deadline begins now. */
void vfu_deadline_start(struct vfu_conn *c, struct event *timer, uint64_t *since_ns);
/* Whether a deadline whose timer fired is over. The loop's time may lag behind the clock, so the timer may have been
 * early: then it is armed again for the rest. */
bool vfu_deadline_passed(struct vfu_conn *c, struct event *timer, uint64_t since_ns);

/* ---- Regions. -------------------------------------------------------------------------------------------------- */

#define VFU_MAX_AREAS 32u /* mmap-able parts of one region; a PCI device has one or two */

struct vfu_area {
	struct range at; /* in the region */
	void *map; /* NULL until asked for */
};

struct vfu_region {
	uint64_t size;
	uint64_t offset; /* of the region in the file */
	uint32_t flags; /* VFIO_REGION_INFO_FLAG_ */
	int fd; /* -1 if not mmap-able */
	uint32_t n_areas;
	struct vfu_area areas[VFU_MAX_AREAS];
};

void vfu_region_init(struct vfu_region *r);
void vfu_region_fini(struct vfu_region *r);
/* Judges a region description; on success takes *fd if there is one. Otherwise the connection has failed: -ENODEV. */
int vfu_region_parse(struct vfu_region *r, uint32_t index, const uint8_t *payload, uint32_t len, int *fd,
		     struct vfu_conn *c);
volatile void *vfu_region_map(struct vfu_region *r, uint64_t off, uint64_t len);

/* ---- The device. ----------------------------------------------------------------------------------------------- */

/* Requests without an answer yet. More are refused with -EBUSY; it bounds what a slow device makes us keep, and the file
 * descriptors of ours that wait with each DMA_MAP. A reset has a place of its own. */
#define VFU_MAX_PENDING 1024u

/* A message's id: whose it is, of the processes that have had the connection one after the other, and a number. A process
 * knows the answers to its own questions once it has had one: those of its predecessors come before. */
#define VFU_ID_SEQUENCE 0x0fffu
#define VFU_ID_PROCESS 0xf000u
#define VFU_ID_PROCESS_ONE 0x1000u

struct vfu_pending {
	uint16_t id;
	uint16_t command;
	transport_done done; /* NULL: a question of the opening dialogue */
	void *arg;
	uint64_t bus, len; /* DMA_UNMAP: what the reply must repeat */
	bool clear; /* DMA_UNMAP: there may be nothing */
};

struct vfu_irq {
	struct vfu *device;
	uint32_t vector;
	int fd;
	struct event ev;
};

enum vfu_stage {
	VFU_STAGE_VERSION,
	VFU_STAGE_INFO,
	VFU_STAGE_REGIONS,
	VFU_STAGE_IRQ_INFO,
	VFU_STAGE_SET_IRQS,
	VFU_STAGE_READ_CONFIG,
	VFU_STAGE_WRITE_COMMAND,
	VFU_STAGE_OPEN,
};

struct vfu {
	struct transport transport;
	struct vfu_conn conn;
	const struct transport_events *events;
	void *owner;
	bool forgotten; /* the owner wants to hear nothing more */

	enum vfu_stage stage;
	uint32_t regions_known, irqs_armed; /* how far the opening dialogue is inside its stage */
	uint32_t max_send_fds;
	uint32_t device_flags; /* VFIO_DEVICE_FLAGS_ */
	uint16_t pci_command;
	bool command_right; /* it was found like that */
	struct transport_ids ids;

	uint32_t n_regions;
	struct vfu_region regions[VFIO_PCI_NUM_REGIONS];
	uint32_t n_irqs;
	struct vfu_irq irqs[TRANSPORT_MAX_IRQS];

	uint16_t next_id;
	bool drains; /* answers to a predecessor's questions may still come */
	struct event ev_begin; /* the first question after an adoption */
	uint32_t pending_head, pending_count;
	bool crowded; /* somebody was refused */
	struct vfu_pending pending[VFU_MAX_PENDING + 1]; /* a ring, oldest first */
	uint64_t answer_since_ns; /* when the oldest became the oldest */
	struct event ev_answer;
};

/* Sends a request that has an answer. */
int vfu_request(struct vfu *v, const struct vfu_pending *p, const void *payload, size_t len, const int *fds,
		unsigned int n_fds);

/* Writes a region, without an answer (p NULL) or with one. width: up to 8 bytes. */
int vfu_send_region_write(struct vfu *v, const struct vfu_pending *p, uint32_t region, uint64_t off, uint32_t width,
			  uint64_t value);

/* The opening dialogue, one question at a time: asks the stage's question, or announces that all is answered. 0, or
 * the connection has failed. */
int vfu_open_ask(struct vfu *v);
/* Judges the answer to the last question, and goes on. */
void vfu_open_answer(struct vfu *v, const uint8_t *payload, uint32_t len, int *fd);

const char *vfu_command_name(uint16_t command);

/* A device over an already connected stream socket, which stays the caller's; it listens and has asked nothing yet. To be
 * closed by vfu_closep(), if it goes no further. */
int vfu_new(struct vfu **ret, struct event_base *base, int fd, uint32_t irqs, uint32_t deadline_ms,
	    const struct transport_events *events, void *owner);
void vfu_closep(struct vfu **v);

/* transport_ops.save, keep and adopt. */
size_t vfu_save(const struct transport *t, void *buf);
size_t vfu_keep(const struct transport *t, int *fds);
int vfu_adopt(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs, uint32_t deadline_ms,
	      const void *saved, size_t size, const int *fds, size_t n, const struct transport_events *events,
	      void *owner);

/* Opens a device over an already connected stream socket, which it takes on success. */
int vfio_user_open_fd(struct transport **ret, struct event_base *base, int fd, uint32_t irqs, uint32_t deadline_ms,
		      const struct transport_events *events, void *owner);

#endif
