/* SPDX-License-Identifier: MIT */
/*
 * Objects: which interfaces each has, calls to them, and the interfaces that every object has. What there is, is said once,
 * in tables; calls are checked against them, and introspection is made of them.
 */
#include "dbus/private.h"

#include <string.h>

#include "base/util.h"

#define ERROR_UNKNOWN_OBJECT "org.freedesktop.DBus.Error.UnknownObject"
#define ERROR_UNKNOWN_INTERFACE "org.freedesktop.DBus.Error.UnknownInterface"
#define ERROR_UNKNOWN_METHOD "org.freedesktop.DBus.Error.UnknownMethod"
#define ERROR_UNKNOWN_PROPERTY "org.freedesktop.DBus.Error.UnknownProperty"
#define ERROR_READ_ONLY "org.freedesktop.DBus.Error.PropertyReadOnly"
#define ERROR_INVALID_ARGS "org.freedesktop.DBus.Error.InvalidArgs"

static int get(struct call *c);
static int get_all(struct call *c);
static int set(struct call *c);

static const struct bus_interface introspectable = {
	.name = "org.freedesktop.DBus.Introspectable",
	.methods = (const struct bus_method[]){{"Introspect", "", "s", "data", listing_introspect, false}, {0}},
};

static const struct bus_interface properties = {
	.name = "org.freedesktop.DBus.Properties",
	.methods =
		(const struct bus_method[]){
			{"Get", "ss", "v", "interface property value", get, false},
			{"GetAll", "s", "a{sv}", "interface properties", get_all, false},
			{"Set", "ssv", "", "interface property value", set, false},
			{0},
		},
	.signals = (const struct bus_signal[]){{"PropertiesChanged", "sa{sv}as", "interface changed invalidated"}, {0}},
};

/* Answered by sd-bus itself. */
static const struct bus_interface peer = {
	.name = "org.freedesktop.DBus.Peer",
	.methods =
		(const struct bus_method[]){
			{"Ping", "", "", "", NULL, false},
			{"GetMachineId", "", "s", "id", NULL, false},
			{0},
		},
};

static const struct bus_interface object_manager = {
	.name = "org.freedesktop.DBus.ObjectManager",
	.methods =
		(const struct bus_method[]){
			{"GetManagedObjects", "", "a{oa{sa{sv}}}", "objects", listing_objects, false}, {0}},
	.signals =
		(const struct bus_signal[]){
			{"InterfacesAdded", "oa{sa{sv}}", "object interfaces"},
			{"InterfacesRemoved", "oas", "object interfaces"},
			{0},
		},
};

const struct bus_interface *const *object_interfaces(enum bus_node node)
{
	static const struct bus_interface *const manager[] = {&manager_interface, &object_manager, &properties,
							      &introspectable,    &peer,           NULL};
	static const struct bus_interface *const device[] = {&device_interface, &properties, &introspectable, &peer,
							     NULL};
	static const struct bus_interface *const context[] = {&context_interface, &properties, &introspectable, &peer,
							      NULL};
	static const struct bus_interface *const way[] = {&properties, &introspectable, &peer, NULL};

	switch (node) {
	case NODE_MANAGER:
		return manager;
	case NODE_DEVICE:
		return device;
	case NODE_CONTEXT:
		return context;
	default:
		return way;
	}
}

static const struct bus_interface *find_interface(enum bus_node node, const char *name)
{
	const struct bus_interface *const *i;

	for (i = object_interfaces(node); *i; i++)
		if (!strcmp((*i)->name, name))
			return *i;
	return NULL;
}

/* ---- properties ---- */

static int append_basic(sd_bus_message *m, char type, const void *p, bool zero)
{
	static const uint64_t none;
	int flag;

	if (zero)
		p = type == 's' ? "" : (const char *)&none;
	else if (type == 's')
		p = *(const char *const *)p;
	if (type == 'b') {
		flag = *(const uint32_t *)p != 0;
		p = &flag;
	}
	return sd_bus_message_append_basic(m, type, p);
}

static int append_value(const struct bus_property *p, const struct look *l, sd_bus_message *m)
{
	int r = sd_bus_message_open_container(m, 'v', p->type);

	if (r < 0)
		return r;
	r = p->get ? p->get(l, m)
		   : append_basic(m, p->type[0], (const char *)l + p->offset, p->secret && !l->by->who.admin);
	return r < 0 ? r : sd_bus_message_close_container(m);
}

int object_append_properties(const struct bus_interface *i, const struct look *l, sd_bus_message *m, uint32_t changes,
			     bool all)
{
	const struct bus_property *p;
	int r = sd_bus_message_open_container(m, 'a', "{sv}");

	for (p = i->properties; r >= 0 && p && p->name; p++) {
		if (!all && !(p->changes & changes))
			continue;
		r = sd_bus_message_open_container(m, 'e', "sv");
		if (r >= 0)
			r = sd_bus_message_append(m, "s", p->name);
		if (r >= 0)
			r = append_value(p, l, m);
		if (r >= 0)
			r = sd_bus_message_close_container(m);
	}
	return r < 0 ? r : sd_bus_message_close_container(m);
}

int object_append_all(const struct look *l, sd_bus_message *m)
{
	const struct bus_interface *const *i;
	int r = sd_bus_message_open_container(m, 'a', "{sa{sv}}");

	for (i = object_interfaces(l->at.node); r >= 0 && *i; i++) {
		r = sd_bus_message_open_container(m, 'e', "sa{sv}");
		if (r >= 0)
			r = sd_bus_message_append(m, "s", (*i)->name);
		if (r >= 0)
			r = object_append_properties(*i, l, m, 0, true);
		if (r >= 0)
			r = sd_bus_message_close_container(m);
	}
	return r < 0 ? r : sd_bus_message_close_container(m);
}

static const struct bus_property *find_property(struct call *c, const char *interface, const char *name)
{
	const struct bus_interface *const *i;
	const struct bus_property *p;

	for (i = object_interfaces(c->look.at.node); *i; i++) {
		if (interface[0] && strcmp((*i)->name, interface) != 0)
			continue;
		for (p = (*i)->properties; p && p->name; p++)
			if (!strcmp(p->name, name))
				return p;
	}
	return NULL;
}

static int unknown_property(struct call *c, const char *interface, const char *name)
{
	return sd_bus_reply_method_errorf(
		c->m, ERROR_UNKNOWN_PROPERTY,
		"there is no property %s of interface \"%s\" here; GetAll has those there are", name, interface);
}

static int get(struct call *c)
{
	sd_bus_message *reply = NULL;
	const struct bus_property *p;
	const char *interface, *name;
	int r = sd_bus_message_read(c->m, "ss", &interface, &name);

	if (r < 0)
		return r;
	p = find_property(c, interface, name);
	if (!p)
		return unknown_property(c, interface, name);
	r = sd_bus_message_new_method_return(c->m, &reply);
	if (r >= 0)
		r = append_value(p, &c->look, reply);
	if (r >= 0)
		r = sd_bus_send(c->b->bus, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

/* Without a name of an interface: those of our own, for the standard ones have none. */
static int get_all(struct call *c)
{
	sd_bus_message *reply = NULL;
	const struct bus_interface *i;
	const char *name;
	int r = sd_bus_message_read(c->m, "s", &name);

	if (r < 0)
		return r;
	i = name[0] ? find_interface(c->look.at.node, name) : *object_interfaces(c->look.at.node);
	if (!i)
		return sd_bus_reply_method_errorf(c->m, ERROR_UNKNOWN_INTERFACE, "there is no interface %s here", name);
	r = sd_bus_message_new_method_return(c->m, &reply);
	if (r >= 0)
		r = object_append_properties(i, &c->look, reply, 0, true);
	if (r >= 0)
		r = sd_bus_send(c->b->bus, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

static int set(struct call *c)
{
	const char *interface, *name;
	int r = sd_bus_message_read(c->m, "ss", &interface, &name);

	if (r < 0)
		return r;
	if (!find_property(c, interface, name))
		return unknown_property(c, interface, name);
	return sd_bus_reply_method_errorf(c->m, ERROR_READ_ONLY, "property %s cannot be set; none here can", name);
}

/* ---- calls ---- */

static const struct bus_method *find_method(enum bus_node node, const char *interface, const char *member, bool *known)
{
	const struct bus_interface *const *i;
	const struct bus_method *m;

	*known = !interface;
	for (i = object_interfaces(node); *i; i++) {
		if (interface && strcmp((*i)->name, interface) != 0)
			continue;
		*known = true;
		for (m = (*i)->methods; m && m->member; m++)
			if (m->run && !strcmp(m->member, member))
				return m;
	}
	return NULL;
}

static int no_method(struct call *c, const char *interface, const char *member, bool known)
{
	if (!known)
		return sd_bus_reply_method_errorf(c->m, ERROR_UNKNOWN_INTERFACE, "there is no interface %s here",
						  interface);
	return sd_bus_reply_method_errorf(c->m, ERROR_UNKNOWN_METHOD,
					  "there is no method %s here; Introspect lists those there are", member);
}

static int carry_out(struct call *c)
{
	const char *interface = sd_bus_message_get_interface(c->m), *member = sd_bus_message_get_member(c->m);
	const char *path = sd_bus_message_get_path(c->m), *signature = sd_bus_message_get_signature(c->m, 1);
	const struct bus_method *method;
	struct bus_path at;
	bool known;

	if (!path_parse(path, &at) || !look_at(c->b, c->from, &at, &c->look))
		return sd_bus_reply_method_errorf(c->m, ERROR_UNKNOWN_OBJECT, "there is no object %s", path);
	method = find_method(at.node, interface, member, &known);
	if (!method)
		return no_method(c, interface, member, known);
	if (strcmp(signature, method->in) != 0)
		return sd_bus_reply_method_errorf(c->m, ERROR_INVALID_ARGS, "%s takes \"%s\", and was given \"%s\"",
						  member, method->in, signature);
	if (method->admin && !c->from->who.admin)
		return refuse_call(c->m, "AccessDenied",
				   "%s is for root and the group admin_group of the configuration; uid %u is neither",
				   member, c->from->who.uid);
	return method->run(c);
}

void object_call(struct dbus *b, struct sender *from, sd_bus_message *m)
{
	struct call c = {.b = b, .from = from, .m = m};
	int r = carry_out(&c);

	if (r < 0) {
		log_limited(&b->limit, LOG_WARN, "D-Bus: a call of pid %d, uid %u cannot be answered: %s",
			    from->who.pid, from->who.uid, strerror(-r));
		refuse_call(m, "QuotaExceeded", "pasidd could not answer (%s); try again", strerror(-r));
	}
	link_soon(b);
}
