/* SPDX-License-Identifier: MIT */
/*
 * The dialogue that opens a vfio-user device: version, device, regions, interrupts, config space, bus mastering. One
 * question is out at a time. A stage asks, then judges the answer; it repeats until it says that it is complete.
 * Whatever cannot be right ends the connection with the numbers. With a device that is adopted it begins behind the version.
 */
#include "transport/vfio_user_priv.h"

#include "base/util.h"

#include <errno.h>
#include <json-c/json.h>
#include <linux/pci_regs.h>
#include <stdio.h>
#include <string.h>

#define CONFIG VFIO_PCI_CONFIG_REGION_INDEX

/* What a stage's functions return beside 0 and -errno. */
enum { STAGE_AGAIN = 1, STAGE_SKIP = 2 };

static int ask(struct vfu *v, uint16_t command, const void *payload, size_t len, const int *fds, unsigned int n_fds)
{
	return vfu_request(v, &(struct vfu_pending){.command = command}, payload, len, fds, n_fds);
}

static int wrong_size(struct vfu *v, uint16_t command, uint32_t len, size_t want)
{
	return vfu_conn_fail(&v->conn, -EPROTO, "the device answered %s with %u bytes, %zu are right",
			     vfu_command_name(command), len, want);
}

/* ---- Version. */

static void json_putp(struct json_object **o)
{
	json_object_put(*o);
}

static void tokener_freep(struct json_tokener **t)
{
	if (*t)
		json_tokener_free(*t);
}

#define AUTO_JSON __attribute__((cleanup(json_putp)))

static int add_number(struct json_object *o, const char *name, uint32_t value)
{
	struct json_object *n = json_object_new_int64(value);

	if (!n)
		return -ENOMEM;
	if (json_object_object_add(o, name, n) < 0) {
		json_object_put(n);
		return -ENOMEM;
	}
	return 0;
}

static int make_capabilities(struct json_object **ret)
{
	AUTO_JSON struct json_object *o = json_object_new_object();
	struct json_object *caps = json_object_new_object();

	if (!o || !caps || json_object_object_add(o, "capabilities", caps) < 0) {
		json_object_put(caps);
		return -ENOMEM;
	}
	if (add_number(caps, "max_msg_fds", 1) < 0 || add_number(caps, "max_data_xfer_size", VFU_MAX_XFER) < 0 ||
	    add_number(caps, "pgsizes", VFIO_USER_DEFAULT_PGSIZES) < 0)
		return -ENOMEM;
	*ret = TAKE_PTR(o);
	return 0;
}

static int ask_version(struct vfu *v)
{
	AUTO_JSON struct json_object *o = NULL;
	struct {
		struct vfio_user_version version;
		char json[252];
	} m = {.version = {VFIO_USER_MAJOR, VFIO_USER_MINOR}};
	const char *text;
	int r;

	r = make_capabilities(&o);
	if (r < 0)
		return r;
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
	if (!text)
		return -ENOMEM;
	if (strlen(text) >= sizeof(m.json))
		return -EMSGSIZE;
	strcpy(m.json, text);
	return ask(v, VFIO_USER_VERSION, &m, sizeof(m.version) + strlen(text) + 1, NULL, 0);
}

/* *ret keeps its default if the device does not name the capability. 0, or the connection has failed. */
static int get_number(struct vfu *v, struct json_object *caps, const char *name, uint64_t *ret)
{
	struct json_object *n;
	int64_t value;

	if (!json_object_object_get_ex(caps, name, &n))
		return 0;
	value = json_object_get_int64(n);
	if (!json_object_is_type(n, json_type_int) || value < 0)
		return vfu_conn_fail(&v->conn, -EPROTO, "the device's %s is of JSON type %d and value %lld", name,
				     (int)json_object_get_type(n), (long long)value);
	*ret = (uint64_t)value;
	return 0;
}

static int judge_capabilities(struct vfu *v, struct json_object *o)
{
	uint64_t fds = VFIO_USER_DEFAULT_MAX_FDS, xfer = VFIO_USER_DEFAULT_MAX_XFER, pages = VFIO_USER_DEFAULT_PGSIZES;
	struct json_object *caps;

	if (o && json_object_object_get_ex(o, "capabilities", &caps)) {
		if (!json_object_is_type(caps, json_type_object))
			return vfu_conn_fail(&v->conn, -EPROTO, "the device's capabilities are of JSON type %d, not %d",
					     (int)json_object_get_type(caps), (int)json_type_object);
		if (get_number(v, caps, "max_msg_fds", &fds) < 0 ||
		    get_number(v, caps, "max_data_xfer_size", &xfer) < 0 || get_number(v, caps, "pgsizes", &pages) < 0)
			return -ENODEV;
	}
	if (fds < 1 || xfer < PCI_STD_HEADER_SIZEOF || !(pages & 4096u))
		return vfu_conn_fail(&v->conn, -EPROTO,
				     "the device takes %llu fds in a message, %llu bytes of data, page sizes 0x%llx;"
				     " 1, %u and 4096 are needed",
				     (unsigned long long)fds, (unsigned long long)xfer, (unsigned long long)pages,
				     PCI_STD_HEADER_SIZEOF);
	v->max_send_fds = fds < VFU_MAX_SEND_FDS ? (uint32_t)fds : VFU_MAX_SEND_FDS;
	return 0;
}

static int answer_version(struct vfu *v, const uint8_t *p, uint32_t len, int *fd)
{
	__attribute__((cleanup(tokener_freep))) struct json_tokener *tok = NULL;
	AUTO_JSON struct json_object *o = NULL;
	struct vfio_user_version version;

	if (len < sizeof(version))
		return wrong_size(v, VFIO_USER_VERSION, len, sizeof(version));
	memcpy(&version, p, sizeof(version));
	if (version.major != VFIO_USER_MAJOR || version.minor > VFIO_USER_MINOR)
		return vfu_conn_fail(&v->conn, -EPROTONOSUPPORT, "the device speaks version %u.%u, we speak %u.%u",
				     version.major, version.minor, VFIO_USER_MAJOR, VFIO_USER_MINOR);
	p += sizeof(version);
	len -= (uint32_t)sizeof(version);
	if (len == 0)
		return judge_capabilities(v, NULL);
	tok = json_tokener_new_ex(8); /* levels of nesting: two are ours to read */
	if (!tok)
		return -ENOMEM;
	if (p[len - 1] == '\0')
		o = json_tokener_parse_ex(tok, (const char *)p, (int)len);
	if (!o || !json_object_is_type(o, json_type_object))
		return vfu_conn_fail(&v->conn, -EPROTO,
				     "the device's version came with %u bytes that are no JSON object", len);
	return judge_capabilities(v, o);
}

/* ---- Device and regions. */

static int ask_info(struct vfu *v)
{
	struct vfio_user_device_info m = {.argsz = sizeof(m)};

	return ask(v, VFIO_USER_DEVICE_GET_INFO, &m, sizeof(m), NULL, 0);
}

static int answer_info(struct vfu *v, const uint8_t *p, uint32_t len, int *fd)
{
	struct vfio_user_device_info m;

	if (len != sizeof(m))
		return wrong_size(v, VFIO_USER_DEVICE_GET_INFO, len, sizeof(m));
	memcpy(&m, p, sizeof(m));
	if (!(m.flags & VFIO_DEVICE_FLAGS_PCI) || m.num_regions <= CONFIG ||
	    (v->n_irqs > 0 && m.num_irqs <= VFIO_PCI_MSIX_IRQ_INDEX))
		return vfu_conn_fail(
			&v->conn, -EPROTO,
			"no PCI device: flags 0x%x, %u regions, %u kinds of interrupt (at least 0x%x, %u, %u)", m.flags,
			m.num_regions, m.num_irqs, VFIO_DEVICE_FLAGS_PCI, CONFIG + 1,
			v->n_irqs > 0 ? VFIO_PCI_MSIX_IRQ_INDEX + 1 : 0);
	v->device_flags = m.flags;
	/* Regions beyond those of PCI are the device's own affair. */
	v->n_regions = m.num_regions < VFIO_PCI_NUM_REGIONS ? m.num_regions : VFIO_PCI_NUM_REGIONS;
	return 0;
}

static int ask_region(struct vfu *v)
{
	struct vfio_region_info m = {.argsz = VFU_MAX_REPLY, .index = v->regions_known};
	int r = ask(v, VFIO_USER_DEVICE_GET_REGION_INFO, &m, sizeof(m), NULL, 0);

	if (r == 0)
		v->conn.want_fd = true;
	return r;
}

static int answer_region(struct vfu *v, const uint8_t *p, uint32_t len, int *fd)
{
	const struct vfu_region *config = &v->regions[CONFIG];
	const uint32_t rw = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
	int r;

	v->conn.want_fd = false;
	r = vfu_region_parse(&v->regions[v->regions_known], v->regions_known, p, len, fd, &v->conn);
	if (r < 0)
		return r;
	if (++v->regions_known < v->n_regions)
		return STAGE_AGAIN;
	if (config->size < PCI_STD_HEADER_SIZEOF || (config->flags & rw) != rw)
		return vfu_conn_fail(&v->conn, -EPROTO, "the config space has %llu bytes and flags 0x%x",
				     (unsigned long long)config->size, config->flags);
	return 0;
}

/* ---- Interrupts. */

static int ask_irq_info(struct vfu *v)
{
	struct vfio_irq_info m = {.argsz = sizeof(m), .index = VFIO_PCI_MSIX_IRQ_INDEX};

	if (v->n_irqs == 0)
		return STAGE_SKIP;
	return ask(v, VFIO_USER_DEVICE_GET_IRQ_INFO, &m, sizeof(m), NULL, 0);
}

static int answer_irq_info(struct vfu *v, const uint8_t *p, uint32_t len, int *fd)
{
	struct vfio_irq_info m;

	if (len != sizeof(m))
		return wrong_size(v, VFIO_USER_DEVICE_GET_IRQ_INFO, len, sizeof(m));
	memcpy(&m, p, sizeof(m));
	if (m.index != VFIO_PCI_MSIX_IRQ_INDEX || !(m.flags & VFIO_IRQ_INFO_EVENTFD))
		return vfu_conn_fail(&v->conn, -EPROTO, "interrupt kind %u has flags 0x%x; kind %u and 0x%x are needed",
				     m.index, m.flags, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_IRQ_INFO_EVENTFD);
	while (v->n_irqs > m.count)
		close(v->irqs[--v->n_irqs].fd);
	return 0;
}

static uint32_t irqs_chunk(const struct vfu *v)
{
	uint32_t left = v->n_irqs - v->irqs_armed;

	return left < v->max_send_fds ? left : v->max_send_fds;
}

static int ask_set_irqs(struct vfu *v)
{
	uint32_t n = irqs_chunk(v);
	struct vfio_irq_set m = {
		.argsz = VFIO_USER_IRQ_SET_SIZE,
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_MSIX_IRQ_INDEX,
		.start = v->irqs_armed,
		.count = n,
	};
	int fds[VFU_MAX_SEND_FDS];

	if (v->n_irqs == 0)
		return STAGE_SKIP;
	for (uint32_t i = 0; i < n; i++)
		fds[i] = v->irqs[v->irqs_armed + i].fd;
	return ask(v, VFIO_USER_DEVICE_SET_IRQS, &m, VFIO_USER_IRQ_SET_SIZE, fds, n);
}

static int answer_set_irqs(struct vfu *v, const uint8_t *p, uint32_t len, int *fd)
{
	if (len != 0)
		return wrong_size(v, VFIO_USER_DEVICE_SET_IRQS, len, 0);
	v->irqs_armed += irqs_chunk(v);
	return v->irqs_armed < v->n_irqs ? STAGE_AGAIN : 0;
}

/* ---- Config space. */

/* Whether an answer is about the access that was asked for. 0, or the connection has failed. */
static int judge_access(struct vfu *v, const uint8_t *p, uint64_t off, uint32_t count)
{
	struct vfio_user_region_access m;

	memcpy(&m, p, sizeof(m));
	if (m.offset != off || m.region != CONFIG || m.count != count)
		return vfu_conn_fail(&v->conn, -EPROTO,
				     "asked for %u bytes at 0x%llx of region %u, the answer is %u at 0x%llx of %u",
				     count, (unsigned long long)off, CONFIG, m.count, (unsigned long long)m.offset,
				     m.region);
	return 0;
}

static int ask_read_config(struct vfu *v)
{
	struct vfio_user_region_access m = {.region = CONFIG, .count = PCI_STD_HEADER_SIZEOF};

	return ask(v, VFIO_USER_REGION_READ, &m, sizeof(m), NULL, 0);
}

static uint16_t le16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static int answer_read_config(struct vfu *v, const uint8_t *p, uint32_t len, int *fd)
{
	const size_t head = sizeof(struct vfio_user_region_access);

	if (len != head + PCI_STD_HEADER_SIZEOF)
		return wrong_size(v, VFIO_USER_REGION_READ, len, head + PCI_STD_HEADER_SIZEOF);
	if (judge_access(v, p, 0, PCI_STD_HEADER_SIZEOF) < 0)
		return -ENODEV;
	p += head;
	v->ids.vendor = le16(p + PCI_VENDOR_ID);
	v->ids.device = le16(p + PCI_DEVICE_ID);
	v->ids.class_code = (uint32_t)(p[PCI_CLASS_PROG] | p[PCI_CLASS_PROG + 1] << 8 | p[PCI_CLASS_PROG + 2] << 16);
	v->pci_command = (uint16_t)(le16(p + PCI_COMMAND) | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	v->command_right = v->pci_command == le16(p + PCI_COMMAND);
	return 0;
}

static int ask_write_command(struct vfu *v)
{
	if (v->command_right)
		return STAGE_SKIP;
	return vfu_send_region_write(v, &(struct vfu_pending){.command = VFIO_USER_REGION_WRITE}, CONFIG, PCI_COMMAND,
				     2, v->pci_command);
}

static int answer_write_command(struct vfu *v, const uint8_t *p, uint32_t len, int *fd)
{
	if (len != sizeof(struct vfio_user_region_access))
		return wrong_size(v, VFIO_USER_REGION_WRITE, len, sizeof(struct vfio_user_region_access));
	return judge_access(v, p, PCI_COMMAND, 2);
}

/* ---- The stages. */

static const struct {
	int (*ask)(struct vfu *v);
	int (*answer)(struct vfu *v, const uint8_t *payload, uint32_t len, int *fd);
} stages[VFU_STAGE_OPEN] = {
	[VFU_STAGE_VERSION] = {ask_version, answer_version},
	[VFU_STAGE_INFO] = {ask_info, answer_info},
	[VFU_STAGE_REGIONS] = {ask_region, answer_region},
	[VFU_STAGE_IRQ_INFO] = {ask_irq_info, answer_irq_info},
	[VFU_STAGE_SET_IRQS] = {ask_set_irqs, answer_set_irqs},
	[VFU_STAGE_READ_CONFIG] = {ask_read_config, answer_read_config},
	[VFU_STAGE_WRITE_COMMAND] = {ask_write_command, answer_write_command},
};

/* Errors of our own (memory, file descriptors) end the opening too. */
static int own_error(struct vfu *v, int r)
{
	return vfu_conn_fail(&v->conn, r, "opening step %u failed with error %d of our own", v->stage, -r);
}

/* From now on interrupts are listened to; one that came earlier shows now. */
static int listen_irqs(struct vfu *v)
{
	for (uint32_t i = 0; i < v->n_irqs; i++) {
		if (event_add(&v->irqs[i].ev, NULL) < 0)
			return -ENOMEM;
	}
	return 0;
}

int vfu_open_ask(struct vfu *v)
{
	int r = 0;

	while (v->stage < VFU_STAGE_OPEN) {
		r = stages[v->stage].ask(v);
		if (r != STAGE_SKIP)
			return r < 0 ? own_error(v, r) : 0;
		v->stage++;
	}
	r = listen_irqs(v);
	if (r < 0)
		return own_error(v, r);
	v->events->opened(v->owner);
	return 0;
}

void vfu_open_answer(struct vfu *v, const uint8_t *payload, uint32_t len, int *fd)
{
	int r = stages[v->stage].answer(v, payload, len, fd);

	if (r < 0) {
		own_error(v, r); /* says nothing if the connection has failed already */
		return;
	}
	/* What was not taken is reported by the connection; until then, no further question. */
	if (*fd >= 0)
		return;
	if (r != STAGE_AGAIN)
		v->stage++;
	vfu_open_ask(v);
}
