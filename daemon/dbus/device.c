/* SPDX-License-Identifier: MIT */
/* org.pasidd.Device1 */
#include "dbus/private.h"

static int get_slots(const struct look *l, sd_bus_message *m)
{
	struct inspect_slot slot;
	int r = sd_bus_message_open_container(m, 'a', "(uut)");

	for (uint32_t i = 0; r >= 0 && l->by->who.admin && inspect_slot(l->b->service, l->index, i, &slot); i++)
		r = sd_bus_message_append(m, "(uut)", slot.slot, slot.ctx, slot.job);
	return r < 0 ? r : sd_bus_message_close_container(m);
}

static int reset(struct call *c)
{
	const struct refusal gone = {.reason = PASID_WHY_DEVICE_GONE};

	if (service_reset_device(c->b->service, c->look.index) < 0)
		return refuse_why(c->m, &gone);
	log_info("device %s: reset over D-Bus by pid %d, uid %u", c->look.device.name, c->from->who.pid,
		 c->from->who.uid);
	return signals_wait(c, WAIT_DEVICE, c->look.index);
}

#define FIELD(field) offsetof(struct look, device.field), NULL

const struct bus_interface device_interface = {
	.name = "org.pasidd.Device1",
	.methods = (const struct bus_method[]){{"Reset", "", "", "", reset, true}, {0}},
	.properties =
		(const struct bus_property[]){
			{"Name", "s", FIELD(name), 0, false},
			{"Transport", "s", FIELD(transport), 0, false},
			{"Driver", "s", FIELD(driver), 1, false},
			{"Mode", "s", FIELD(mode), 1, false},
			{"ConfiguredMode", "s", FIELD(configured_mode), 0, false},
			{"State", "s", FIELD(state), 1, false},
			{"Reason", "s", FIELD(reason), 1, false},
			{"TableFormat", "s", FIELD(table_format), 1, false},
			{"SlotCount", "u", FIELD(slots), 1, false},
			{"Slots", "a(uut)", 0, get_slots, 1, true},
			{"Contexts", "u", FIELD(contexts), 1, true},
			{"PasidsInUse", "u", FIELD(pasids), 1, true},
			{"AsidsInUse", "u", FIELD(asids), 1, true},
			{"Switches", "t", FIELD(switches), 1, true},
			{"Faults", "t", FIELD(faults), 1, true},
			{"StrayFaults", "t", FIELD(strays), 1, true},
			{"Resets", "t", FIELD(resets), 1, true},
			{"TablePages", "t", FIELD(table_pages), 1, true},
			{"TablePagesLimit", "t", FIELD(table_pages_max), 1, false},
			{0},
		},
};
