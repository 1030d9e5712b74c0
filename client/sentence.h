/* SPDX-License-Identifier: MIT */
/* Why something cannot be done, in one line of English with the numbers: what is wrong, and what to do about it. */
#ifndef CLIENT_SENTENCE_H
#define CLIENT_SENTENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pasid/protocol.h>

/* Reasons that only the library knows, beside enum pasid_reason. */
enum local_reason {
	LOCAL_HANGUP = 1000, /* the daemon is gone */
	LOCAL_GARBLED = 1001, /* n1 the opcode, n2 the bytes of a message that cannot be */
	LOCAL_SYSTEM = 1002, /* the return value says it all */
	LOCAL_ARGUMENT = 1003, /* a pointer is NULL where it may not be */
	LOCAL_STRUCT = 1004, /* n1 the size that a struct claims to have */
	LOCAL_NAME = 1005, /* a device name that is too long */
	LOCAL_NO_JOB = 1006, /* n1 the job, n2 the last one submitted */
};

/* Of an enum pasid_reason or local_reason, and its two numbers. False: it is none, and nothing is written. */
bool sentence_put(char *buf, size_t len, uint32_t reason, uint64_t n1, uint64_t n2);

#endif
