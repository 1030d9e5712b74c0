/* SPDX-License-Identifier: MIT */
/*
 * What the files of the service share: the running side of devices, contexts, buffers and clients, whose books are in
 * core. service.c: clients and their end. verb.c, verbs.c, bind.c: requests. context.c: contexts. buffer.c: memory that
 * devices map. device.c, setup.c: a device's life; nest.c: what of it is behind an SMMU that walks our tables. run.c: slots
 * and jobs; run_again.c: after the device or the daemon has forgotten them. faults.c: whose a fault is. events.c: what
 * clients hear, and who looks on. inspect.c: what there is to see. tracing.c: what whoever traces sees. persist.h, adopt.h:
 * what outlives the daemon.
 */
#ifndef SERVICE_PRIVATE_H
#define SERVICE_PRIVATE_H

#include <event2/event.h>

#include <pasid/pasid.h>

#include "base/log.h"
#include "base/shm.h"
#include "base/trace.h"
#include "core/books.h"
#include "core/sched.h"
#include "engine/engine.h"
#include "pgtable/pgtable.h"
#include "service/footprint.h"
#include "service/ktables.h"
#include "service/layout.h"
#include "service/service.h"
#include "store/store.h"
#include "transport/transport.h"
#include "translator/smmu.h"

/* What a device without an MMU needs in every address space, and behind that what clients may map. Below it nothing is
 * mapped, so that null pointers of GPU programs fault. */
#define WINDOW_IOVA 0x1000ull
#define IOVA_FIRST (WINDOW_IOVA + ENGINE_MAX_WINDOW)
#define TABLE_CHUNK 1024u /* table pages mapped for the device at a time */

/* Something that waits for a device: step() looks whether it can go on. Stepped after each word from the device. */
struct pending {
	void (*step)(struct pending *p);
	TAILQ_ENTRY(pending) link; /* in device.pending */
	struct device *dev; /* NULL: not waiting */
	uint64_t round; /* of device.round when it began to wait */
};

struct put_job { /* on a slot, not ended */
	uint64_t number;
	uint64_t mark;
};

#define RUN_JOBS 16u

struct run { /* one slot */
	struct ctx *ctx; /* whose jobs are on it; NULL: none */
	struct put_job jobs[RUN_JOBS];
	uint32_t head, count;
	uint64_t head_since; /* when the oldest job came to the front */
	uint64_t on_since; /* from when on its context's time is not counted yet */
	uint64_t asked_at; /* when the last control was asked; 0: it is settled */
	struct ctx *held_by; /* paused while this context's tables change; NULL: not */
	bool owes_terminate; /* it stalled on a fault meanwhile */
	bool stopping; /* until run_stopped() */
	bool installing; /* its context's address space is on the way: nothing may begin */
};

/* The i-th of them, the oldest being 0. */
static inline struct put_job *run_job(const struct run *run, uint32_t i)
{
	return (struct put_job *)(uintptr_t)&run->jobs[(run->head + i) % RUN_JOBS];
}

#define PAST_JOBS 16u
#define PAST_REFUSED 256u

/* The jobs that were put on a slot last, done or not, by their marks: put[mark % PAST_JOBS]. */
struct past {
	struct past_job {
		uint64_t mark; /* 0: none */
		uint64_t number;
		uint32_t ctx;
		/* What it accesses and tables may have refused while it was there. */
		struct range around; /* all of that */
		uint32_t n_refused;
		struct engine_access refused[PAST_REFUSED];
		bool vague; /* there may be more */
	} put[PAST_JOBS];
	uint64_t last; /* mark */
	uint64_t settled; /* up to this mark they were done, and no record was left, when another context came */
};

/* What a device has in mode `nested` beside what all have. */
struct nest {
	struct transport_smmu smmu;
	struct smmu_traits traits;
	struct cdtable table;
	struct shm descriptors; /* of table */
	struct shm window; /* at WINDOW_IOVA of the address space that runs */
	uint64_t window_bus;
	bool asked; /* ... to use the table */
	bool attached; /* the SMMU does */
};

enum device_state {
	DEVICE_GONE, /* not reachable; tried again from time to time */
	DEVICE_OPENING, /* the transport talks to it */
	DEVICE_SETUP, /* its memory is being mapped */
	DEVICE_READY,
	DEVICE_RESETTING, /* no work, no changes until it answers */
};

struct adoption;
struct entry_space;
struct buf;
/* Buffers that nobody wants any more, to be unmapped once the device has forgotten who could reach them. */
TAILQ_HEAD(unused, buf);

struct device {
	struct service *svc;
	const struct device_config *config;
	uint32_t mode; /* enum pasid_mode: the configured one, or what it falls back to */
	struct device_books *books;
	enum device_state state;
	const struct transport_ops *tops;
	const char *address;
	struct transport *t;
	const struct driver *driver;
	const struct engine_ops *eops; /* of driver */
	struct engine_device handle; /* by which the driver reaches it */
	struct engine *engine;
	struct translator *tr;
	uint8_t *commands; /* for an engine that `reads`: room for one submission */
	const struct pgtable_format *format;
	struct bus_layout layout; /* once it was reached; stays */
	struct table_pool *pool;
	bool extending; /* a chunk of the pool is on its way */
	int extend_error; /* why the last one could not be had; 0: it could */
	uint64_t extend_after; /* until when it is not asked for again */
	struct pgtable *shared_pt; /* `global` */
	bool shared_busy; /* `global`: a bind or a clearing is changing it */
	bool shared_held; /* `global`: nothing may run meanwhile */
	uint32_t opening; /* a number that no other opening has, of whichever device */
	bool recorded; /* the journal has it as ready */
	uint64_t memory_key; /* of its memory in the vault */
	uint32_t n_kept; /* fds of its transport in the store */
	char kept[TRANSPORT_KEEP_MAX][STORE_NAME_MAX]; /* ... and their names */
	struct adoption *adoption; /* it is being taken over from a process that is gone; NULL: not */
	struct shm rings, marks, keep; /* engine_memory: ro, rw, keep */
	struct nest nest;
	uint32_t setup_left; /* answers about the daemon's own memory that SETUP waits for */
	bool setup_failed;
	unsigned int n_slots;
	struct sched *sched;
	struct run runs[ENGINE_MAX_SLOTS];
	struct past *past; /* of each slot; NULL: nobody asks */
	struct event *tick; /* deadlines of jobs and controls, while there are any */
	struct event *reopen; /* while GONE */
	struct event *poke; /* steps whoever waits, from the loop */
	struct event *bury; /* closes the transport of a lost device, from the loop */
	uint32_t backoff_ms;
	char gone_why[256]; /* as last logged; "": it is not gone */
	struct unused unmap_later; /* the transport was busy */
	bool reap_later; /* ... for fence memory, too */
	uint32_t n_later; /* clients whose request is to be made again */
	TAILQ_HEAD(, pending) pending;
	uint64_t round; /* of stepping those who wait */
	uint64_t cleared; /* mappings of ending contexts given back since the last poke */
	uint64_t ticket_asked; /* translator's, the last one */
	uint64_t ticket_done; /* ... that is complete, as last looked at */
	uint64_t ticket_since; /* when ticket_done last moved, or stood still for something newly asked */
	uint64_t refused_since; /* since when the translator has not carried out what it was asked; 0: it does */
	uint32_t refused_asid; /* ... of this one, whatever it does of others */
	bool faults_left; /* more than were looked at in one go */
	uint64_t switches, faults, strays, resets; /* since the beginning */
	struct log_limit stray; /* faults that belong to nobody */
	struct log_limit hung; /* jobs that are stopped, and resets: clients cause them */
	struct log_limit came_and_went; /* lost and ready again: the device causes them */
};

enum ctx_life {
	CTX_ALIVE,
	CTX_STOPPING, /* its slot is told to stop */
	CTX_INVALIDATING, /* nothing runs; the device forgets its ASID */
	CTX_CLEARING, /* nothing can reach its memory; mappings go, by instalments */
	CTX_CLEARED, /* tables, mappings and jobs are gone; the id is left */
};

struct ctx {
	struct context *books;
	struct device *dev;
	struct service_client *client;
	struct pgtable *pt; /* own, or the device's shared one; NULL where the kernel keeps the tables */
	struct ktables *kt; /* that is, here */
	struct shm window; /* at WINDOW_IOVA of kt */
	uint64_t window_key; /* of it in the vault; 0: it is not there */
	struct footprint footprint; /* of kt */
	struct sched_entity *se;
	struct pasid_fence_line *line;
	uint64_t fence_bus;
	uint64_t put; /* number of the last job put on a slot */
	/* The last faults that were charged, for others like them. A copy may come back to two pages that it reads and two
	 * that it writes. */
	struct translator_fault told[4];
	uint32_t n_told;
	enum ctx_life life;
	bool recorded; /* the journal has it */
	bool clear_recorded; /* ... and that its tables are gone, or about to go */
	/* While it is taken over from another process. */
	uint64_t root; /* of its tables */
	struct entry_space *space; /* NULL: they are not the kernel's */
	bool rebuild; /* they were being changed */
	struct range *again; /* ... in these ranges, where they are the kernel's */
	size_t n_again;
	bool busy; /* a bind is changing its address space: clearing waits */
	bool free_asked; /* cleared means freed */
	int slot; /* being stopped; -1: none */
	uint64_t ticket; /* 0: not asked yet */
	struct unused unused;
	struct pending pending;
	uint64_t maps; /* mappings made so far */
	uint64_t switches;
	uint64_t device_ns; /* jobs were on a slot */
	struct pasid_wire_fault last_fault;
	/* events not yet told */
	uint32_t lost_why; /* enum pasid_lost_why, 0: none */
	uint64_t lost_job;
	uint64_t reset_job;
	bool told_lost;
	TAILQ_ENTRY(ctx) in_events; /* in client.events */
	bool has_events;
};

enum buf_state { BUF_UNMAPPED, BUF_MAPPING, BUF_MAPPED, BUF_UNMAPPING, BUF_REFUSED };

struct buf {
	struct buffer_entry *books;
	struct device *dev;
	int fd; /* kept: the device must be given it again if it comes back */
	uint64_t key; /* of it in the vault */
	bool recorded; /* the journal has it */
	struct transport_memory *memory; /* MAPPED, where the kernel keeps the tables */
	enum buf_state state;
	int error; /* REFUSED: why */
	TAILQ_ENTRY(buf) in_unused;
	struct unused *unused; /* the list it is on, or NULL */
};

/* A client's fence memory as mapped for one device. */
struct fence_map {
	struct itree_node bus_node; /* in device.books->bus */
	struct service_client *client;
	struct device *dev;
	enum buf_state state;
	int error; /* REFUSED: why */
	LIST_ENTRY(fence_map) link; /* in client.fence_maps */
};

struct verb { /* the request being carried out; one at a time for each client */
	struct pending pending;
	bool active;
	struct refusal why;
	struct pasid_msg msg;
	bool open; /* the journal has its intent, and no more */
	bool kept; /* ... and its reply, which is the one that will be given */
	_Alignas(struct record) uint8_t intent[sizeof(struct record)]; /* that; without operations */
	struct ctx *ctx;
	struct buf *buf;
	struct device *dev;
	struct record *rec; /* BIND while pending: our own copy */
	struct plan *plan;
	uint32_t budget; /* table pages promised and not taken */
	bool holding; /* what runs in the address space is kept still meanwhile */
	bool invalidate; /* the device may remember what is unmapped */
	size_t next; /* step of the plan at which the tables are */
	uint64_t at; /* IOVA within that step; 0: its first */
	size_t n_gone; /* ranges unmapped */
	bool sliced; /* others had their turn in between */
	bool committed;
	uint64_t begun_ns;
	uint64_t ticket;
	struct unused unused;
};

struct kept_reply {
	void *data;
	size_t size, room;
	bool with_fence;
};

struct service_client {
	struct service *svc;
	struct client *books;
	const struct service_client_ops *ops;
	void *owner; /* NULL: the session is gone */
	bool closing;
	bool hello;
	bool recorded; /* the journal has it */
	bool resumed; /* it was there before this process, and was not told */
	bool doomed; /* ... and what there was of it is not whole */
	char name[64]; /* by which a successor finds its connection */
	uint64_t fence_key; /* of its fence memory in the vault; the next one is that of the read-only fd */
	struct verb verb;
	uint64_t serial; /* of the last request that was carried out, or is pending */
	struct kept_reply kept[PASID_IN_FLIGHT]; /* by serial */
	struct device *later; /* whose word a refused-for-now request waits for */
	struct shm fence;
	LIST_HEAD(, fence_map) fence_maps;
	TAILQ_HEAD(, ctx) events;
	uint64_t back; /* devices that came back and were not told, by index */
};

struct service {
	struct event_base *base;
	const struct service_config *config;
	struct store *store; /* NULL: nothing outlives this process */
	struct event *snapshot;
	uint32_t last_opening; /* of any device */
	uint32_t adopting; /* devices that are being taken over */
	bool believed; /* what was there before has been taken over */
	struct books *books;
	struct device *devices;
	size_t n_devices;
	size_t lingering;
	struct unused unused; /* as the books told; whoever caused it takes them over at once */
	const struct service_observer *observer;
	void *observer_arg;
	struct event *reap; /* looks at closing clients: from the loop, never from inside a call of theirs */
	struct log_limit limit;
	struct trace trace;
	struct range ranges[PASID_BIND_MAX];
	union {
		struct pasid_reply head;
		uint8_t bytes[sizeof(struct pasid_reply) + PASID_BIND_MAX * 8];
	} reply;
	/* Scratch for the request being carried out; last, for its ops are a flexible array. */
	union {
		struct record rec;
		uint8_t bytes[sizeof(struct record) + PASID_BIND_MAX * sizeof(struct record_op)];
	} request;
};

static inline struct record *verb_intent(struct service_client *c)
{
	return (struct record *)(void *)c->verb.intent;
}

static inline bool device_exclusive(const struct device *d)
{
	return d->mode == PASID_MODE_EXCLUSIVE;
}

static inline bool device_nested(const struct device *d)
{
	return d->mode == PASID_MODE_NESTED;
}

/* Does the kernel keep the tables? */
static inline bool device_kernel_tables(const struct device *d)
{
	return d->mode == PASID_MODE_EXCLUSIVE || d->mode == PASID_MODE_PASID;
}

/* Does each context have page tables of its own that we build? */
static inline bool device_private_tables(const struct device *d)
{
	return d->mode == PASID_MODE_GPU_MMU || d->mode == PASID_MODE_NESTED;
}

/* For whoever looks; r.device is filled in. */
static inline void device_trace(const struct device *d, struct pasid_trace_record r)
{
	if (!trace_on(&d->svc->trace))
		return;
	r.device = (uint16_t)d->books->index;
	trace_write(&d->svc->trace, &r);
}

/* ---- service.c ---- */
void service_client_reap(struct service_client *c); /* goes on with a closing client */
void service_keep(struct service_client *c, const struct service_reply *reply); /* to the request of c->serial */
void kept_put(struct service_client *c, const struct service_reply *reply); /* the same, but nobody is told */

/* ---- verb.c ---- */
struct service_reply reply_ok(struct service *s, const struct pasid_msg *to, const void *body, size_t size);
enum service_outcome verb_refused(struct service_client *c, struct service_reply *reply); /* for verb.why */
enum service_outcome verb_later(struct service_client *c, struct device *d);
void verb_not_later(struct service_client *c);
/* A verb that is pending: step() is called until one of the last two says how it ended. */
void verb_wait(struct service_client *c, struct device *d, void (*step)(struct pending *p));
struct service_client *verb_client(struct pending *p);
void verb_finish(struct service_client *c, const void *body, size_t size);
void verb_refuse(struct service_client *c, uint32_t reason, uint64_t n1, uint64_t n2);

/* ---- bind.c ---- */
struct transport_memory *buffer_memory(const struct buffer *b); /* ktables_memory */
enum service_outcome bind_request(struct service_client *c, const void *body, size_t size, struct service_reply *reply);

/* ---- device.c ---- */
extern const struct transport_events device_events;

int device_init(struct device *d, struct service *s, const struct device_config *config);
void device_begin(struct device *d); /* is opened, or taken over */
uint32_t pool_next_chunk(const struct device *d); /* table pages that are mapped next, when there are too few */
void device_fini(struct device *d);
void device_fail(struct device *d, const char *why); /* cannot be trusted or reached any more */
void device_reset(struct device *d, const char *why);
/* False unless it can take a change now; *later: it will soon. */
bool device_usable(const struct device *d, struct refusal *why, bool *later);
void device_wait(struct device *d, struct pending *p);
void device_unwait(struct pending *p);
void device_poke(struct device *d); /* soon, from the loop */
/* Promises n table pages. 0; -EAGAIN: more are being mapped, wait; otherwise refused, and why. */
int device_reserve_tables(struct device *d, uint32_t n, struct refusal *why);

/* ---- setup.c ---- */
#define PASID_BITS_MAX 20u /* PCIe 6.20 */
#define BACKOFF_FIRST_MS 50u /* how long a device that is gone is left alone; longer from time to time */
void setup_opened(void *owner); /* transport_events.opened */
void setup_go_on(struct device *d); /* while SETUP: looks whether something is left to wait for */
void setup_drop_memory(struct device *d);
void setup_limit_pasids(struct device *d); /* to what the device and the IOMMU can tell apart */
void setup_drop_translator(struct device *d);
struct translator *setup_whole_translator(struct device *d);
void setup_add_hole(void *device, struct range hole);
void setup_take_traits(struct device *d); /* what the books have to know of the driver */
/* Starts the engine with one of the driver's two calls for that; slots: the most to use, 0: all. */
int setup_start_engine(struct device *d,
		       int (*start)(struct engine **ret, struct engine_device *d, const struct engine_memory *mem,
				    const struct engine_config *c),
		       unsigned int slots);
void setup_begin(struct device *d, const char *why); /* its mode is settled; why: it cannot be had in that */
/* Maps memory of our own for the device; SETUP waits for the answer. */
int setup_map(struct device *d, uint64_t bus, uint64_t len, int fd, uint64_t off, uint32_t prot);

/* ---- nest.c ---- */
void nest_prepare(struct device *d); /* then setup_begin() */
int nest_make_memory(struct device *d);
int nest_map_memory(struct device *d); /* setup_map() */
void nest_drop_memory(struct device *d);
uint64_t nest_descriptor_bytes(const struct device *d);
void nest_lay_table(struct device *d); /* its memory is there */
int nest_attach(struct device *d); /* then setup_go_on() */
int nest_translator(struct device *d);
bool nest_choose_iova(struct device *d);
uint32_t nest_tables(const struct device *d); /* pages of each context's tables that nest_fill() takes */
int nest_fill(struct device *d, struct pgtable *pt);
/* For a successor: is this what nest_fill() maps, and how much is that? */
bool nest_maps(const struct device *d, const struct pgtable_leaf *l);
uint64_t nest_bytes(const struct device *d);
int nest_adopted(struct device *d); /* there are no descriptors but of contexts. 0; -EAGAIN: ask again */

/* ---- run.c ---- */
void run_schedule(struct device *d);
struct translator_space run_space(const struct ctx *ctx);
void *run_window(const struct device *d, const struct ctx *ctx); /* of its jobs; NULL: there is none */
void run_progress(struct device *d); /* looks at all slots */
bool run_is_on(const struct device *d, unsigned int slot, uint32_t asid, uint64_t job);
void run_control(struct device *d, unsigned int slot, enum engine_control what);
void run_slot_progress(struct device *d, unsigned int slot, const struct engine_slot *look); /* what is done, ends */
void run_job_ended(struct ctx *ctx, uint64_t number); /* and all before it */
void run_count_time(struct run *run, uint64_t now);
void run_end_job(struct device *d, unsigned int slot); /* that stalled on a fault; soon, if it is held */
/* As translator_invalidate(); the device has answer_ms for the next step of what it owes. */
int run_invalidate(struct device *d, uint32_t asid, struct range *r, size_t n, uint64_t *ticket);
void run_invalidated(struct device *d); /* looks how far that is */
bool run_settled(struct device *d, unsigned int slot);
/* Pauses the slots that run `by`'s address space (all slots in `global` mode); they are still once run_held_still(). */
void run_hold(struct device *d, struct ctx *by, bool global);
bool run_held_still(struct device *d, const struct ctx *by);
void run_release(struct device *d, const struct ctx *by);
/* Takes a slot out of service and stops it; when it has settled, run_stopped() puts it back. */
void run_stop(struct device *d, unsigned int slot);
void run_stopped(struct device *d, unsigned int slot);
void run_tick(struct device *d);
void run_jobs_changed(struct ctx *ctx);
void run_installed(struct device *d); /* looks whether those that are installing are there */

/* The translator did not carry out what it was asked of an ASID. It is asked again from time to time, but not for ever. */
void run_refused(struct device *d, uint32_t asid);

/* The job at the front of the slot; 0: none. */
uint64_t run_front_job(const struct device *d, unsigned int slot);

/* ---- tracing.c ---- */
/* Of the context that is on the slot. */
void trace_slot(struct device *d, unsigned int slot, uint16_t event, uint64_t job);
void trace_run_end(struct device *d, unsigned int slot, enum pasid_trace_end why); /* if one is there */

/* ---- run_again.c ---- */
/* What the last process had put on slots, as the journal says: the scheduler is told, what the device was not told of is
 * taken back. Then they go on. */
int run_adopt(struct device *d);
void run_go_on(struct device *d);
void run_watch(struct device *d); /* run_tick() comes, whatever there is to do */
void run_after_reset(struct device *d);
void run_forget(struct device *d); /* the device is gone */

/* ---- faults.c ---- */
int faults_begin(struct device *d); /* its slots are known */
void faults_forget(struct device *d); /* marks begin anew */
struct past *faults_end(struct past *past); /* takes NULL, returns NULL */
void faults_look(struct device *d);
/* Another context comes to the slot, which is idle: what is left is looked at before. The device may be lost by that. */
void faults_settle(struct device *d, unsigned int slot);
/* A job was put on a slot; what a context has mapped is less than before, also under those of its jobs that are there. */
void faults_put(struct device *d, unsigned int slot, const struct ctx *ctx, const struct put_job *put);
void faults_unmapped(const struct ctx *ctx);
void faults_charge(struct ctx *ctx, const struct translator_fault *f);

/* ---- context.c ---- */
int ctx_start(struct service_client *c, struct device *d, struct context *books, struct fence_map *fence,
	      struct ctx **ret);
void ctx_lose(struct ctx *ctx, uint32_t why, uint64_t job); /* and tells its owner */
void ctx_free(struct ctx *ctx); /* as soon as it is cleared */
void ctx_device_gone(struct ctx *ctx);
void ctx_clear_now(struct ctx *ctx); /* all instalments at once: the daemon ends */
/* Keeps what runs in the context's address space from running (see run_held_still()), or lets it go on. */
void ctx_hold(struct ctx *ctx, bool hold);
void ctx_changed(void *dev); /* ktables' changed */

/* ---- buffer.c ---- */
int buf_start(struct buffer_entry *e, struct device *d, int fd, uint64_t key, struct buf **ret); /* takes fd if 0 */
void buf_unused(void *arg, struct buffer_entry *e); /* books_unused */
void buf_drop(struct buf *b); /* the device has forgotten it */
void buf_take_unused(struct service *s, struct unused *to);
void buf_unmap_unused(struct unused *list);
void buf_unmap_later(struct device *d); /* what the transport did not take then */
int buf_map_again(struct buf *b);
void buf_device_gone(struct buf *b);
struct fence_map *fence_map_find(struct service_client *c, struct device *d);
void fence_map_free(struct fence_map *m);
int fence_map_get(struct service_client *c, struct device *d, struct fence_map **ret);
int fence_map_again(struct fence_map *m);
void fence_map_drop(struct fence_map *m); /* unmaps and frees, in the background */

/* ---- events.c ---- */
void event_fault(struct ctx *ctx);
void event_lost(struct ctx *ctx);
void event_reset(struct ctx *ctx, uint64_t job);
void event_device_back(struct device *d);
void event_forget(struct ctx *ctx);
void fence_line_wake(struct pasid_fence_line *line); /* whoever sleeps there */
void fence_line_lose(struct pasid_fence_line *line); /* its context is lost; whoever waits there is woken */
/* For the observer, as in service.h. */
void tell_made(struct ctx *ctx);
void tell_changed(struct ctx *ctx, uint32_t what);
void tell_gone(struct ctx *ctx);
void tell_device(struct device *d);

#endif
