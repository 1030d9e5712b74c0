/* SPDX-License-Identifier: MIT */
/* Requests to a device's thread, for the two files that make them: vfio.c, which carries them out, and vfio_spaces.c. */
#ifndef TRANSPORT_VFIO_REQUEST_H
#define TRANSPORT_VFIO_REQUEST_H

#include "base/worker.h"
#include "transport/vfio_life.h"

#define VFIO_SPACE_SAVE_MAX 16u

enum what {
	REQUEST_OPEN,
	REQUEST_DMA_MAP,
	REQUEST_HOLD,
	REQUEST_RELEASE,
	REQUEST_MAP,
	REQUEST_UNMAP,
	REQUEST_SPACE_NEW,
	REQUEST_SPACE_ADOPT,
	REQUEST_SPACE_FREE,
	REQUEST_ATTACH,
	REQUEST_ATTACH_PASID,
	REQUEST_DETACH_PASID,
	REQUEST_NEST,
	REQUEST_NEST_ATTACH,
	REQUEST_ADOPTED,
	REQUEST_RESET,
};

struct request {
	struct work work;
	struct vfio *v;
	enum what what;
	struct transport_space *space; /* NULL: the device's own */
	struct transport_space **made; /* SPACE_NEW, SPACE_ADOPT: where the answer goes */
	uint8_t saved[VFIO_SPACE_SAVE_MAX]; /* SPACE_ADOPT */
	struct transport_memory *memory;
	struct transport_memory **held; /* HOLD: where the answer goes */
	struct transport_smmu smmu, *nested; /* NEST: where the answer goes */
	uint64_t entry[2]; /* NEST_ATTACH */
	uint64_t bus, len, off;
	uint32_t prot, pasid;
	bool clear; /* UNMAP: there may be nothing */
	int fd; /* DMA_MAP, HOLD: a duplicate */
	int result;
	transport_done done; /* NULL: OPEN, SPACE_FREE, RELEASE */
	void *arg;
};

/* Hands a copy of it to the thread, which answers with done. */
int vfio_request_ask(struct transport *t, const struct request *from);
/* The same with a duplicate of the fd. */
int vfio_request_ask_fd(struct transport *t, struct request *q, int fd);
/* In `space`; clear: where there may be nothing. */
int vfio_request_unmap(struct transport *t, struct transport_space *space, uint64_t bus, uint64_t len, bool clear,
		       transport_done done, void *arg);
bool vfio_map_is_possible(uint64_t iova, uint64_t len, uint64_t off, uint32_t prot);

extern const struct transport_space_ops vfio_spaces;
extern const struct transport_nested_ops vfio_nested;

#endif
