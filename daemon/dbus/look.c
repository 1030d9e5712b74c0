/* SPDX-License-Identifier: MIT */
/* What somebody may see. What he may not see is not there. */
#include "dbus/private.h"

#include <string.h>

bool look_allowed(const struct sender *by, uid_t uid, bool opaque, const struct service_client *client)
{
	if (by->who.admin || (by->caller && by->caller->client == client))
		return true;
	return by->who.uid == uid && !opaque;
}

bool look_at_context(struct dbus *b, struct sender *by, uint32_t id, struct look *ret)
{
	struct inspect_context *v = &ret->context;

	*ret = (struct look){.b = b, .by = by, .at = {.node = NODE_CONTEXT, .id = id}};
	if (!inspect_context(b->service, id, v))
		return false;
	ret->mine = by->caller && by->caller->client == v->client;
	return look_allowed(by, v->uid, v->opaque, v->client);
}

bool look_at_device(struct dbus *b, struct sender *by, uint32_t index, struct look *ret)
{
	*ret = (struct look){.b = b, .by = by, .at.node = NODE_DEVICE, .index = index};
	if (!inspect_device(b->service, index, &ret->device))
		return false;
	strncpy(ret->at.device, ret->device.name, sizeof(ret->at.device) - 1);
	return true;
}

bool look_at(struct dbus *b, struct sender *by, const struct bus_path *at, struct look *ret)
{
	if (at->node == NODE_CONTEXT)
		return look_at_context(b, by, at->id, ret);
	if (at->node != NODE_DEVICE) {
		*ret = (struct look){.b = b, .by = by, .at = *at};
		return true;
	}
	for (uint32_t i = 0; look_at_device(b, by, i, ret); i++)
		if (!strcmp(ret->device.name, at->device))
			return true;
	return false;
}
