/* SPDX-License-Identifier: MIT */
/*
 * A vfio-user device outlives us: what a successor needs beside the socket, and how it goes on. The device is a process
 * that notices nothing as long as somebody holds our end. Its version was negotiated once for the connection; the rest is
 * asked again, which changes nothing. Messages are never cut (vfio_user_conn.c), so what comes first are whole answers to
 * the predecessor's questions; ids tell them from answers to ours.
 */
#include "transport/vfio_user_priv.h"

#include "base/util.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define FORM 1u

struct vfu_saved {
	uint32_t form;
	uint32_t max_send_fds;
	uint32_t process; /* bits of VFU_ID_PROCESS */
};

_Static_assert(sizeof(struct vfu_saved) <= TRANSPORT_SAVE_MAX, "saved");

size_t vfu_save(const struct transport *t, void *buf)
{
	const struct vfu *v = container_of(t, const struct vfu, transport);
	struct vfu_saved s = {
		.form = FORM,
		.max_send_fds = v->max_send_fds,
		.process = v->next_id & VFU_ID_PROCESS,
	};

	memcpy(buf, &s, sizeof(s));
	return sizeof(s);
}

size_t vfu_keep(const struct transport *t, int *fds)
{
	fds[0] = container_of(t, const struct vfu, transport)->conn.fd;
	return 1;
}

static bool is_stream(int fd)
{
	int domain, type;
	socklen_t domain_len = sizeof(domain), type_len = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &domain_len) == 0 && domain == AF_UNIX &&
	       getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_len) == 0 && type == SOCK_STREAM;
}

static int judge_saved(struct vfu_saved *s, const void *saved, size_t size, const int *fds, size_t n)
{
	if (size != sizeof(*s) || n != 1)
		return -EBADMSG;
	memcpy(s, saved, sizeof(*s));
	if (s->form != FORM || s->max_send_fds < 1 || s->max_send_fds > VFU_MAX_SEND_FDS ||
	    (s->process & ~VFU_ID_PROCESS) || !is_stream(fds[0]))
		return -EBADMSG;
	return 0;
}

int vfu_adopt(struct transport **ret, struct event_base *base, const char *address, uint32_t irqs, uint32_t deadline_ms,
	      const void *saved, size_t size, const int *fds, size_t n, const struct transport_events *events,
	      void *owner)
{
	static const struct timeval now;
	__attribute__((cleanup(vfu_closep))) struct vfu *v = NULL;
	struct vfu_saved s;
	int r = judge_saved(&s, saved, size, fds, n);

	if (r < 0)
		return r;
	r = vfu_new(&v, base, fds[0], irqs, deadline_ms, events, owner);
	if (r < 0)
		return r;
	v->max_send_fds = s.max_send_fds;
	v->next_id = (uint16_t)((s.process + VFU_ID_PROCESS_ONE) & VFU_ID_PROCESS);
	v->stage = VFU_STAGE_INFO;
	/* Such an answer may bring a file descriptor. */
	v->drains = v->conn.want_fd = true;
	if (event_add(&v->ev_begin, &now) < 0)
		return -ENOMEM;
	*ret = &TAKE_PTR(v)->transport;
	return 0;
}
