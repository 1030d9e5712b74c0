/* SPDX-License-Identifier: MIT */
/*
 * "pasidctl doctor": what keeps this machine, and one device of it, from being shared, and what to type. Looks, and
 * changes nothing.
 */
#ifndef PASIDCTL_DOCTOR_H
#define PASIDCTL_DOCTOR_H

#include <stdbool.h>
#include <stdio.h>

#include "config_space.h"
#include "device.h"
#include "iort.h"
#include "platform.h"
#include "report.h"

#define EXIT_CAN 0
#define EXIT_CANNOT 1
#define EXIT_USAGE 2 /* or it cannot look */

enum can {
	CAN_NOT_MEANT, /* no SMMUv3 is in front of the device, or its driver is for other modes */
	CAN_NOT,
	CAN_MAYBE, /* what it takes is not seen here */
	CAN_LIKELY, /* nothing that is seen here is missing */
};

/* Mode `nested`, as far as sysfs tells of it. */
struct nested {
	enum can can;
	const char *why_not; /* CAN_NOT */
	enum iort iort; /* CAN_MAYBE, CAN_LIKELY */
};

/* What can be said of a device in one line. */
struct verdict {
	bool shared; /* as it is now */
	const char *how; /* "iommufd", "type1"; NULL: neither */
	char modes[64];
	const char *not_nested; /* why not; NULL: it can, or maybe, or it is not meant */
	char not_pasid[160]; /* why not; "": it can */
	const struct engine_ops *engine; /* NULL: there is no driver */
	const struct finding *worst; /* !shared: the first of what is bad */
};

/* bdf NULL: of the machine, and a line for each device that could be meant. Prints to out, what goes wrong to err. */
int doctor(const struct machine *m, const char *bdf, bool json, FILE *out, FILE *err);

/* The checks. */
void doctor_machine(const struct machine *m, const struct platform *p, struct report *r);
void doctor_device(const struct machine *m, const struct platform *p, const struct device *d,
		   const struct config_space *config, struct report *r);
void doctor_nested(const struct device *d, const struct nested *n, struct report *r);

/* How pasidd would reach the device: "iommufd", "type1"; NULL: neither. */
const char *doctor_way(const struct machine *m, const struct platform *p, const struct device *d);
/* Why modes `nested` and `pasid`, which take iommufd, a device file and Linux 6.15, are out of the question; NULL: they are
 * not. The first reason, from the kernel to the device. */
const char *doctor_without(const struct platform *p, const char *way);

void nested_look(const struct machine *m, const struct platform *p, const struct device *d, struct nested *ret);

/* r: all that was found of the machine and of the device. */
void verdict_make(const struct machine *m, const struct platform *p, const struct device *d,
		  const struct config_space *config, const struct nested *nested, const struct report *r,
		  struct verdict *ret);

/* In memory that the caller frees; NULL: there is none. */
char *verdict_text(const struct verdict *v);

#endif
