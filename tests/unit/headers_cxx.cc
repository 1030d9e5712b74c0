// SPDX-License-Identifier: MIT
// The public headers from C++: all together, layouts as in C, and the library linked and called.
#include <pasid/driver.h>
#include <pasid/edu.h>
#include <pasid/pasid.h>
#include <pasid/protocol.h>
#include <pasid/refgpu.h>
#include <pasid/trace.h>

#include <cerrno>

static_assert(sizeof(pasid_msg) == 16 && sizeof(pasid_reply) == 48, "frames");
static_assert(sizeof(pasid_hello) == 16 && sizeof(pasid_hello_reply) == 32, "hello");
static_assert(sizeof(pasid_wire_device) == 40 && sizeof(pasid_device_query) == 32, "devices");
static_assert(sizeof(pasid_wire_device_info) == 120, "device info");
static_assert(sizeof(struct pasid_ctx_new) == 40 && sizeof(pasid_ctx_new_reply) == 16, "context");
static_assert(sizeof(pasid_ctx_query) == 8 && sizeof(pasid_wire_ctx_info) == 72, "context info");
static_assert(sizeof(struct pasid_buf_import) == 40 && sizeof(pasid_buf_import_reply) == 16, "import");
static_assert(sizeof(pasid_buf_query) == 8, "buffer");
static_assert(sizeof(pasid_bind_head) == 8 && sizeof(pasid_wire_bind_op) == 40, "bind");
static_assert(sizeof(pasid_wire_submit) == 24 && sizeof(pasid_submit_reply) == 8, "submit");
static_assert(sizeof(pasid_fence_line) == PASID_FENCE_STRIDE, "fence");
static_assert(sizeof(pasid_wire_fault) == 64 && sizeof(pasid_ev_fault) == 32, "fault");
static_assert(sizeof(pasid_ev_lost) == 32 && sizeof(pasid_ev_device) == 48, "events");
static_assert(sizeof(refgpu_cmd) == REFGPU_CMD_SIZE && sizeof(refgpu_ring_word) == 64, "refgpu");
static_assert(sizeof(pasid_trace_record) == 64 && sizeof(pasid_trace_head) == 2096, "trace");
static_assert(int(PASID_MAP) == int(PASID_BIND_MAP) && int(PASID_UNMAP) == int(PASID_BIND_UNMAP), "one numbering");
static_assert(PASID_READ == PASID_MAP_READ && PASID_WRITE == PASID_MAP_WRITE && PASID_FIXED == PASID_MAP_FIXED, "flags");

int main()
{
	struct pasid *p = nullptr;

	if (::pasid_connect(&p, "/nonexistent/socket") != -ENOENT || p)
		return 1;
	return pasid_error(nullptr)[0] && !pasid_disconnect(nullptr) ? 0 : 1;
}
