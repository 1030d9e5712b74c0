/* SPDX-License-Identifier: MIT */
/*
 * A whole service in one process, without sockets: apps that make requests, and an edu device behind the IOMMU of
 * ktables_rig.h, in mode `exclusive`. The device's transfers go through the address space that it is in, page by page, and
 * are done when they are begun. Answers come, and the device is lost, when the test says so. nested_rig.h puts another IOMMU
 * in front of it.
 */
#ifndef TESTS_UNIT_SERVICE_RIG_H
#define TESTS_UNIT_SERVICE_RIG_H

#include "ktables_rig.h"

#include <event2/event.h>
#include <sys/mman.h>

#include <pasid/edu.h>

#include "service/private.h"

/* ---- the device ---- */

#define REG_DMA_SRC 0x80u
#define REG_DMA_DST 0x88u
#define REG_DMA_COUNT 0x90u
#define REG_DMA_CMD 0x98u
#define DEVICE_MEMORY 0x40000u

static struct edu_device {
	const struct transport_events *events;
	void *owner;
	bool opening, open, irq;
	bool ends; /* with its process: there is no successor */
	bool slow; /* a transfer is done in the next turn of the loop */
	int kept; /* the fd that outlives a process */
	unsigned int opened; /* how often */
	void (*poll)(void); /* what else has something to tell; NULL: nothing */
	_Alignas(8) uint8_t regs[PAGE];
	uint8_t inside[PAGE];
} edu;

static int edu_open(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		    uint32_t deadline_ms, const struct transport_events *events, void *owner)
{
	const uint32_t id = 0x010000ed;

	edu.events = events;
	edu.owner = owner;
	edu.opening = true;
	memset(edu.regs, 0, sizeof(edu.regs));
	memcpy(edu.regs, &id, sizeof(id));
	*ret = &kernel_transport;
	return 0;
}

static void edu_forget(struct transport *t)
{
	edu.opening = edu.open = edu.irq = false;
	kernel.n_answers = 0;
}

static struct transport *edu_close(struct transport *t)
{
	edu_forget(t);
	kernel_close();
	return NULL;
}

static void edu_ids(const struct transport *t, struct transport_ids *ret)
{
	*ret = (struct transport_ids){0x1234, 0x11e8, 0};
}

static int edu_usable(struct transport *t, struct range *v, size_t *n)
{
	v[0] = (struct range){0, (1ull << 39) - 1};
	*n = 1;
	return 0;
}

static uint64_t edu_reg(unsigned int at)
{
	uint64_t v;

	memcpy(&v, edu.regs + at, sizeof(v));
	return v;
}

/* What the IOMMU lets through. What it refuses is dropped, as it is there. */
static void edu_transfer(uint64_t iova, size_t inside, size_t len, bool out)
{
	for (size_t n; len > 0; iova += n, inside += n, len -= n) {
		const struct page *p = kernel_sees(iova / PAGE);
		off_t off = (off_t)(p->off + iova % PAGE);

		n = PAGE - iova % PAGE < len ? PAGE - iova % PAGE : len;
		if (!p->mapping || (out && !p->writable))
			continue;
		assert_int_equal(out ? pwrite(p->memory->fd, edu.inside + inside, n, off)
				     : pread(p->memory->fd, edu.inside + inside, n, off),
				 n);
	}
}

/* The transfer that the registers name. */
static void edu_carry_out(void (*transfer)(uint64_t iova, size_t inside, size_t len, bool out))
{
	bool out = edu_reg(REG_DMA_CMD) & 2;

	transfer(edu_reg(out ? REG_DMA_DST : REG_DMA_SRC), edu_reg(out ? REG_DMA_SRC : REG_DMA_DST) - DEVICE_MEMORY,
		 edu_reg(REG_DMA_COUNT), out);
	memset(edu.regs + REG_DMA_CMD, 0, 8);
}

static int edu_write(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t value)
{
	if (kernel.moment)
		kernel.moment();
	memcpy(edu.regs + off, &value, width);
	if (off != REG_DMA_CMD)
		return 0;
	assert_non_null(kernel.current);
	if (!edu.slow) {
		edu_carry_out(edu_transfer);
		edu.irq = true;
	}
	if (kernel.moment)
		kernel.moment();
	return 0;
}

static int edu_read(struct transport *t, uint32_t region, uint64_t off, uint32_t width, uint64_t *value)
{
	*value = 0;
	memcpy(value, edu.regs + off, width);
	return 0;
}

/* Where it ends with its process nobody can take it over. */
static size_t edu_save(const struct transport *t, void *buf)
{
	if (edu.ends)
		return 0;
	memcpy(buf, "edu", 4);
	return 4;
}

static size_t edu_keep(const struct transport *t, int *fds)
{
	fds[0] = edu.kept;
	return 1;
}

/* It goes on as it is. */
static int edu_adopt(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs,
		     uint32_t deadline_ms, const void *saved, size_t size, const int *fds, size_t n,
		     const struct transport_events *events, void *owner)
{
	assert_int_equal(size, 4);
	assert_int_equal(n, 1);
	close(fds[0]);
	edu.events = events;
	edu.owner = owner;
	edu.opening = true;
	*ret = &kernel_transport;
	return 0;
}

static int edu_reset(struct transport *t, transport_done done, void *arg)
{
	if (kernel.moment)
		kernel.moment();
	memset(edu.regs + REG_DMA_SRC, 0, REG_DMA_CMD + 8 - REG_DMA_SRC);
	return kernel_answers(done, arg, false, 0);
}

static const struct transport_ops edu_ops = {
	.scheme = "test",
	.open = edu_open,
	.close = edu_close,
	.forget = edu_forget,
	.ids = edu_ids,
	.usable = edu_usable,
	.region_write = edu_write,
	.region_read = edu_read,
	.reset = edu_reset,
	.save = edu_save,
	.keep = edu_keep,
	.adopt = edu_adopt,
	.spaces = &kernel_spaces,
};

static const struct transport_ops *device_ops = &edu_ops; /* of the device */

/* Instead of the list of transports. */
const struct transport_ops *transport_find(const char *spec, const char **address)
{
	*address = spec;
	return device_ops;
}

/* ---- apps ---- */

#define APPS 4u
#define MOST_HEARD 64u

/* What an app heard of without asking. */
struct heard {
	struct heard_fault {
		uint32_t ctx;
		struct pasid_wire_fault fault;
	} faults[MOST_HEARD]; /* the first ones */
	uint64_t n_faults; /* those that no event carried included */
	unsigned int n_lost;
	struct pasid_ev_lost lost; /* the last one */
};

struct app {
	struct service_client *client; /* NULL: none */
	uint64_t serial;
	_Alignas(8) uint8_t msg[PASID_MSG_MAX]; /* the request */
	int fd; /* that goes with it; -1: none */
	bool pending, later, again;
	struct pasid_reply reply;
	_Alignas(8) uint8_t body[512]; /* of the reply, as much as fits */
	struct heard heard;
	void (*replied)(struct app *a); /* looks what holds by then; may be NULL */
};

static struct app apps[APPS];
static struct service *service;
static struct store *store; /* NULL: nothing outlives the service */
static struct event_base *base;

static void app_reply(void *owner, const struct service_reply *reply)
{
	struct app *a = owner;
	size_t n = reply->size - sizeof(a->reply);

	a->pending = false;
	memcpy(&a->reply, reply->data, sizeof(a->reply));
	memcpy(a->body, (const uint8_t *)reply->data + sizeof(a->reply), n < sizeof(a->body) ? n : sizeof(a->body));
	if (a->replied)
		a->replied(a);
}

static void app_retry(void *owner)
{
	((struct app *)owner)->again = true;
}

static void (*judge_fault)(uint32_t ctx, const struct pasid_wire_fault *f); /* looks whether it is true; may be NULL */

static void hear_faults(struct heard *h, const struct pasid_ev_fault *ev)
{
	const struct pasid_wire_fault *v = (const void *)(ev + 1);

	for (uint32_t i = 0; i < ev->count; i++, h->n_faults++) {
		if (judge_fault)
			judge_fault(ev->ctx, &v[i]);
		if (h->n_faults < MOST_HEARD)
			h->faults[h->n_faults] = (struct heard_fault){ev->ctx, v[i]};
	}
	h->n_faults += ev->dropped;
}

static void app_events(void *owner)
{
	static _Alignas(8) uint8_t event[PASID_MSG_MAX];
	const struct pasid_msg *msg = (const void *)event;
	struct app *a = owner;

	while (service_next_event(a->client, event)) {
		if (msg->opcode == PASID_EV_FAULT)
			hear_faults(&a->heard, (const void *)event);
		if (msg->opcode == PASID_EV_LOST) {
			memcpy(&a->heard.lost, event, sizeof(a->heard.lost));
			a->heard.n_lost++;
		}
	}
}

static const struct service_client_ops app_ops = {.reply = app_reply, .retry = app_retry, .events = app_events};

static void app_try(struct app *a)
{
	const struct pasid_msg *msg = (const struct pasid_msg *)(void *)a->msg;
	int fd = a->fd;
	struct service_reply reply;

	a->again = false;
	switch (service_request(a->client, a->msg, msg->size, &fd, msg->fds, &reply)) {
	case SERVICE_REPLY:
		app_reply(a, &reply);
		break;
	case SERVICE_LATER:
		a->later = true;
		return;
	case SERVICE_PENDING:
		break;
	}
	a->later = false;
	if (a->fd >= 0 && fd >= 0)
		close(fd);
	a->fd = -1;
}

/* Makes a request: the reply, if there is one yet, is in a->reply; takes fd. */
static void app_ask(struct app *a, uint16_t opcode, const void *body, size_t size, int fd)
{
	struct pasid_msg msg = {(uint32_t)(sizeof(msg) + size), opcode, fd >= 0, ++a->serial};

	assert_true(!a->pending);
	a->pending = true;
	a->fd = fd;
	memcpy(a->msg, &msg, sizeof(msg));
	memcpy(a->msg + sizeof(msg), body, size);
	app_try(a);
}

/* Everything that happens by itself: the loop turns until nothing more does. Answers of the kernel do not come. */
static void pump(void)
{
	for (unsigned int i = 0; i < 8; i++) {
		if (edu.opening) {
			edu.opening = false;
			edu.open = true;
			edu.opened++;
			edu.events->opened(edu.owner);
		}
		if (edu.slow && !edu.poll && (edu_reg(REG_DMA_CMD) & 1)) {
			edu_carry_out(edu_transfer);
			edu.irq = true;
		}
		if (edu.irq && edu.open) {
			edu.irq = false;
			edu.events->irq(edu.owner, 0);
		}
		if (edu.poll && edu.open)
			edu.poll();
		event_base_loop(base, EVLOOP_NONBLOCK);
		for (size_t n = 0; n < APPS; n++)
			if (apps[n].client && apps[n].later && apps[n].again)
				app_try(&apps[n]);
	}
}

/* Other requests than those of the test, for which there was no room, are out of the way. */
static void room(void)
{
	if (edu.open)
		edu.events->room(edu.owner);
	pump();
}

/* n answers come, or as many as there are. */
static void answers(unsigned int n)
{
	for (room(); n > 0 && kernel.n_answers; n--) {
		deliver();
		room();
	}
}

/* The reply, once all answers have come that it takes: its reason. */
static uint32_t app_wait(struct app *a)
{
	for (unsigned int i = 0; a->pending; i++) {
		assert_true(i < 100000);
		answers(1);
	}
	return a->reply.reason;
}

static uint32_t app_call(struct app *a, uint16_t opcode, const void *body, size_t size, int fd)
{
	app_ask(a, opcode, body, size, fd);
	return app_wait(a);
}

static void app_begin(struct app *a)
{
	const struct pasid_hello hello = {PASID_PROTOCOL_MAGIC, PASID_PROTOCOL_VERSION, 0};
	struct refusal why;

	memset(a, 0, sizeof(*a));
	a->fd = -1;
	assert_int_equal(service_client_new(service, 1000 + (uid_t)(a - apps), 1, &app_ops, a, &a->client, &why), 0);
	if (store)
		assert_true(service_client_keep(a->client, "app"));
	assert_int_equal(app_call(a, PASID_OP_HELLO, &hello, sizeof(hello), -1), 0);
}

static void app_end(struct app *a)
{
	a->client = service_client_close(a->client);
	if (a->fd >= 0)
		close(a->fd);
	a->fd = -1;
}

/* A buffer of so many bytes; *fd is the app's own. */
static inline uint32_t app_import(struct app *a, uint64_t bytes, int *fd)
{
	const struct pasid_buf_import in = {0};

	*fd = memfd_create("app", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_true(*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0);
	assert_int_equal(fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_int_equal(app_call(a, PASID_OP_BUF_IMPORT, &in, sizeof(in), fcntl(*fd, F_DUPFD_CLOEXEC, 0)), 0);
	return ((struct pasid_buf_import_reply *)(void *)a->body)->buf;
}

static void app_ask_ctx(struct app *a)
{
	const struct pasid_ctx_new in = {0};

	app_ask(a, PASID_OP_CTX_NEW, &in, sizeof(in), -1);
}

static inline uint32_t app_ctx(struct app *a)
{
	app_ask_ctx(a);
	assert_int_equal(app_wait(a), 0);
	return ((struct pasid_ctx_new_reply *)(void *)a->body)->ctx;
}

static struct pasid_wire_bind_op wire_map(uint32_t buf, uint64_t off, uint64_t iova, uint64_t len)
{
	return (struct pasid_wire_bind_op){
		.kind = PASID_BIND_MAP,
		.flags = PASID_MAP_READ | PASID_MAP_WRITE | PASID_MAP_FIXED,
		.buf = buf,
		.off = off,
		.iova = iova,
		.len = len,
	};
}

static struct pasid_wire_bind_op wire_unmap(uint64_t iova, uint64_t len)
{
	return (struct pasid_wire_bind_op){.kind = PASID_BIND_UNMAP, .iova = iova, .len = len};
}

static void app_ask_bind(struct app *a, uint32_t ctx, const struct pasid_wire_bind_op *op, uint32_t n)
{
	struct {
		struct pasid_bind_head head;
		struct pasid_wire_bind_op op[16];
	} in = {.head = {ctx, n}};

	assert_true(n <= ARRAY_SIZE(in.op));
	memcpy(in.op, op, n * sizeof(*op));
	app_ask(a, PASID_OP_BIND, &in, sizeof(in.head) + n * sizeof(*op), -1);
}

static inline uint32_t app_bind(struct app *a, uint32_t ctx, struct pasid_wire_bind_op op)
{
	app_ask_bind(a, ctx, &op, 1);
	return app_wait(a);
}

static inline struct ctx *ctx_of(uint32_t id)
{
	struct context *c = books_any_context(service->books, id);

	return c ? c->tag : NULL;
}

/* ---- the service ---- */

static bool is_ready(void)
{
	return service->devices[0].state == DEVICE_READY;
}

static void await_ready(void)
{
	for (answers(UINT32_MAX); !is_ready(); answers(UINT32_MAX))
		event_base_loop(base, EVLOOP_ONCE);
}

static inline void lose_device(void)
{
	edu.events->lost(edu.owner, -EIO, "the test has it lost");
}

static struct drivers drivers; /* besides those that are built in */

static struct device_config device_config = {
	.name = "edu0",
	.spec = "test:",
	.mode = PASID_MODE_EXCLUSIVE,
	.format = "vmsa64",
	.burst = 4,
	.job_limit_ms = 60000,
	.answer_ms = 60000,
	.table_pages = 64,
};

static struct service_config config;
static char why_not[256]; /* the journal cannot be believed */

/* The device is on its way. */
static void service_open(uint64_t tables)
{
	config = (struct service_config){.devices = &device_config, .n_devices = 1, .drivers = drivers};
	for (size_t i = 0; i < PASID_RES_COUNT; i++)
		config.limits.connection.v[i] = config.limits.uid.v[i] = UINT64_MAX;
	config.limits.connection.v[PASID_RES_CONTEXTS] = 16;
	config.limits.connection.v[PASID_RES_TABLES] = tables;
	config.limits.total_bytes = UINT64_MAX;
	kernel_begin();
	kernel.many = true;
	kernel.room = MOST_ANSWERS;
	kernel_transport.ops = device_ops;
	memset(&edu, 0, sizeof(edu));
	edu.kept = STDERR_FILENO;
	log_set_level(LOG_ERROR - 1); /* the losses are meant */
	base = event_base_new();
	assert_non_null(base);
	assert_int_equal(service_new(&service, base, &config, store, why_not), 0);
}

static inline void service_begin(uint64_t tables)
{
	service_open(tables);
	await_ready();
}

static void apps_end(void)
{
	kernel.room = MOST_ANSWERS;
	kernel.busy = kernel.fail_at = 0;
	for (size_t i = 0; i < APPS; i++)
		if (apps[i].client)
			app_end(&apps[i]);
	answers(UINT32_MAX);
}

/* Every app ends, and nothing is left of any. */
static void service_end(void)
{
	apps_end();
	assert_int_equal(service_lingering(service), 0);
	if (is_ready())
		assert_int_equal(kernel.n_spaces + kernel.n_memories, 0);
	service = service_free(service);
	event_base_free(base);
	assert_int_equal(kernel.n_spaces + kernel.n_memories, 0);
}

#endif
