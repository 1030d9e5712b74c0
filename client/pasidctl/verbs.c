/* SPDX-License-Identifier: MIT */
/* The verbs, and what --help says of them. */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "options.h"

#define BUS_OPTIONS (OPTION_JSON | OPTION_BUS)
#define BUS_USAGE " [--json] [--bus BUS]"

static const struct verb verbs[] = {
	{"devices", "devices" BUS_USAGE,
	 "  devices  lists pasidd's devices: mode, state, driver, slots, contexts, and what happened there\n"
	 "           since it began\n",
	 BUS_OPTIONS, run_devices},
	{"contexts", "contexts" BUS_USAGE,
	 "  contexts lists the contexts that you may see: your own, and as root or as a member of pasidd's\n"
	 "           admin group all\n",
	 BUS_OPTIONS, run_contexts},
	{"stats", "stats" BUS_USAGE, "  stats    what there is in sum, and your limits\n", BUS_OPTIONS, run_stats},
	{"maps", "maps CTX" BUS_USAGE,
	 "  maps     what context CTX has mapped, a line each as in /proc/PID/maps: addresses, rights,\n"
	 "           offset in the buffer, buffer, and for root the bus address\n",
	 BUS_OPTIONS, run_maps},
	{"walk", "walk CTX IOVA" BUS_USAGE,
	 "  walk     walks the tables of context CTX at an address, level by level, and says where that\n"
	 "           leads. Where the kernel keeps the tables, what pasidd told it\n",
	 BUS_OPTIONS, run_walk},
	{"top", "top" BUS_USAGE,
	 "  top      shows, once a second, which context has the device: its bytes, maps and switches a\n"
	 "           second, share of the device's time, faults. q quits\n"
	 "    --json     a line each second, until it is interrupted\n",
	 BUS_OPTIONS, run_top},
	{"trace", "trace [-o FILE] [SECONDS]" BUS_USAGE,
	 "  trace    writes what the devices do as a timeline, for SECONDS or until it is interrupted:\n"
	 "           runs and jobs on slots, maps, unmaps, faults, resets, evictions. It is JSON for\n"
	 "           https://ui.perfetto.dev or chrome://tracing. For root and pasidd's admin group\n"
	 "    -o, --output\n"
	 "               the file, if not standard output\n"
	 "    --json     what is said about it in the end, for programs\n",
	 BUS_OPTIONS | OPTION_OUTPUT, run_trace},
	{"doctor", "doctor [BDF] [--json]",
	 "  doctor   says what keeps this machine, and the device, from being shared, and what to type.\n"
	 "           Each line begins with ok, warn (something is missing, sharing is possible) or bad\n"
	 "           (it is not). The last line says in which modes of pasidd the device can be shared;\n"
	 "           without BDF there is such a line for each device that is bound to vfio-pci or for\n"
	 "           which pasidd has a driver. It changes nothing, and sees most as root\n"
	 "    --json     the same for programs\n",
	 OPTION_JSON, run_doctor},
	{"bind", "bind BDF... [--dry-run] [--persist] [--json]",
	 "  bind     takes devices from their drivers and gives them to vfio-pci: all, or none. Devices\n"
	 "           that share an IOMMU group go together. Says first what it does\n"
	 "    --dry-run  says it, and does nothing\n"
	 "    --persist  also at each start of the machine, by a file in /etc/udev/rules.d\n"
	 "    --json     what it came to, for programs\n",
	 OPTION_DRY_RUN | OPTION_PERSIST | OPTION_JSON, run_bind},
	{"unbind", "unbind BDF... [--dry-run] [--json]",
	 "  unbind   gives devices back to the drivers that the kernel chooses, also at each start\n"
	 "    --dry-run  says it, and does nothing\n"
	 "    --json     what it came to, for programs\n",
	 OPTION_DRY_RUN | OPTION_JSON, run_unbind},
	{"driver", "driver new NAME [DIRECTORY]",
	 "  driver new\n"
	 "           makes DIRECTORY (NAME, if there is none) with the skeleton of a driver for pasidd:\n"
	 "           NAME.c, which compiles, is loaded by pasidd and drives nothing yet, and a meson.build\n",
	 0, run_driver},
	{"selftest", "selftest DEVICE [--socket PATH] [--seed N] [--driver FILE] [--json]",
	 "  selftest tries, through the pasidd that runs, whether the device and its driver do what they\n"
	 "           should and keep programs apart; a bank and a thief are part of it. Others may use\n"
	 "           the device meanwhile. It takes a minute at most, on most devices a few seconds. All\n"
	 "           that it prints belongs into a bug report\n"
	 "    --socket   where pasidd listens, if not at $PASIDD_SOCKET or /run/pasidd/socket\n"
	 "    --seed     of the bytes that are written, as an earlier run said it\n"
	 "    --driver   the device's driver, if it does not come with pasidd: it knows the commands\n"
	 "    --json     one object for programs, when it is over\n",
	 OPTION_SOCKET | OPTION_SEED | OPTION_DRIVER | OPTION_JSON, run_selftest},
};

static const char intro[] =
	"\n"
	"Shows what pasidd does (devices to trace), gets PCI devices ready for it, and tries them. CTX is\n"
	"a context's number, BDF a PCI device's address as lspci shows it, with or without the domain:\n"
	"0000:01:00.0 or 01:00.0. DEVICE is its name in pasidd.\n";

static const char bus_text[] = "    --json     the same for programs\n"
			       "    --bus      where pasidd is: system (if it is not said), session, or an address\n";

static const char common_text[] = "  -h, --help     this text; with a verb, what is said about that\n"
				  "      --version  the version\n";

static const char status_text[] =
	"Exit status: 0: done, or the machine (the device) can be shared; 1: it cannot, or it was\n"
	"refused, or it failed, and nothing is changed; 2: wrong usage, no such device, or it cannot\n"
	"be looked at. Of selftest: 0: all is well; 1: something failed, or leaked; 2: it could not be\n"
	"tried, or not all of it.\n";

const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

void help_all(void)
{
	bool told = false;

	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		printf("%s pasidctl %s\n", i ? "      " : "Usage:", verbs[i].usage);
	fputs(intro, stdout);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
		/* What is common to those that ask pasidd stands behind them all. */
		if (!(verbs[i].options & OPTION_BUS) && !told) {
			printf("\n  All of these:\n%s", bus_text);
			told = true;
		}
		printf("\n%s", verbs[i].text);
	}
	printf("\n%s\n%s", common_text, status_text);
}

void help_verb(const struct verb *v)
{
	printf("Usage: pasidctl %s\n\n%s", v->usage, v->text);
	if (v->options & OPTION_BUS)
		fputs(strstr(v->text, "--json") ? strchr(bus_text, '\n') + 1 : bus_text, stdout);
}
