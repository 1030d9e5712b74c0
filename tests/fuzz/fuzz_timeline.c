/* SPDX-License-Identifier: MIT */
/*
 * Bytes as the memory of a trace: a head that is mostly as it should be, then records. Whatever they are, reading ends, and what is
 * written of them is JSON in which each thing that begins ends.
 */
#include <fcntl.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "timeline.h"
#include "trace_ring.h"

#define CAPACITY 64u
#define RECORD sizeof(struct pasid_trace_record)
#define MEMORY (PASID_TRACE_HEAD + CAPACITY * RECORD)
#define ODD 0xffu /* first byte: the head is the input's, too */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fill(uint8_t *memory, const uint8_t *data, size_t size)
{
	struct pasid_trace_head head = {
		.magic = PASID_TRACE_MAGIC,
		.version = PASID_TRACE_VERSION,
		.head_bytes = PASID_TRACE_HEAD,
		.record_bytes = RECORD,
		.capacity = CAPACITY,
		.written = size / RECORD,
		.n_devices = 2,
	};
	bool odd = size && data[0] == ODD;

	if (odd)
		memcpy(&head, data, size < sizeof(head) ? size : sizeof(head));
	memcpy(memory, &head, sizeof(head));
	for (size_t i = 0; i < size / RECORD && i < CAPACITY; i++) {
		struct pasid_trace_record r;

		memcpy(&r, data + i * RECORD, RECORD);
		if (!odd)
			r.seq = i + 1;
		memcpy(memory + PASID_TRACE_HEAD + i * RECORD, &r, RECORD);
	}
}

static void judge(const char *text)
{
	struct json_object *o = json_tokener_parse(text), *events;
	int64_t open = 0;

	if (!o || !json_object_object_get_ex(o, "traceEvents", &events))
		abort();
	for (size_t i = 0; i < json_object_array_length(events); i++) {
		const char *ph =
			json_object_get_string(json_object_object_get(json_object_array_get_idx(events, i), "ph"));

		open += (*ph == 'B') - (*ph == 'E');
		if (open < 0)
			abort();
	}
	if (open)
		abort();
	json_object_put(o);
}

static void write_down(struct trace_ring *ring)
{
	struct pasid_trace_record r;
	AUTO_FREE char *text = NULL;
	struct timeline *t;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	if (!f || timeline_new(&t, f, (const char(*)[32])ring->devices, ring->n_devices) < 0)
		abort();
	for (unsigned int i = 0; i < 2 * CAPACITY && trace_ring_next(ring, &r); i++)
		if (timeline_add(t, &r) < 0)
			abort();
	if (ring->lost)
		timeline_lost(t, ring->lost);
	timeline_end(t);
	fclose(f);
	judge(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	static uint8_t memory[MEMORY];
	struct trace_ring ring;
	const char *why;

	memset(memory, 0, sizeof(memory));
	fill(memory, data, size);
	if (fd < 0 || write(fd, memory, sizeof(memory)) != sizeof(memory) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0)
		abort();
	if (trace_ring_open(&ring, fd, &why) < 0)
		return 0;
	write_down(&ring);
	trace_ring_close(&ring);
	return 0;
}
