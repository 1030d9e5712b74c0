/* SPDX-License-Identifier: MIT */
/*
 * Sentences, for the library and for the daemon's own D-Bus side. Somebody else's id and an id that never was have the same
 * reason, hence the same text.
 */
#include "sentence.h"

#include <inttypes.h>
#include <stdio.h>

struct sentence {
	uint32_t reason;
	const char *fmt;
};

/* Each format takes n1, or n1 and n2, or none of them: excess arguments of printf are ignored. */
static const struct sentence sentences[] = {
	{PASID_WHY_UNALIGNED, "%" PRIu64 " is not a multiple of %" PRIu64 "; align it"},
	{PASID_WHY_EMPTY, "a length or a count is zero; ask for at least one"},
	{PASID_WHY_WRAPS, "0x%" PRIx64 " plus %" PRIu64 " bytes goes beyond the largest address; check both"},
	{PASID_WHY_FLAGS,
	 "the flags 0x%" PRIx64 " are not allowed here, only 0x%" PRIx64 " are; a map needs at least PASID_READ"},
	{PASID_WHY_RESERVED, "a reserved field of the message is not zero; the program and pasidd differ"},
	{PASID_WHY_BODY_SIZE,
	 "the message has %" PRIu64 " bytes and should have %" PRIu64 "; the program and pasidd differ"},
	{PASID_WHY_OPCODE, "pasidd does not know operation %" PRIu64 "; it is older than the program"},
	{PASID_WHY_FD_COUNT,
	 "%" PRIu64 " fds came with the message and %" PRIu64 " belong to it; check that the fd is open"},
	{PASID_WHY_BIND_OP, "%" PRIu64 " is no kind of operation; use PASID_MAP or PASID_UNMAP"},
	{PASID_WHY_NO_HELLO, "a connection greets once, before everything else; connect anew"},
	{PASID_WHY_TOO_MANY,
	 "%" PRIu64 " operations are more than the %" PRIu64 " that one list may have; split the list"},
	{PASID_WHY_UNMAPS_MANY,
	 "%" PRIu64 " mappings or more would go, and one list takes away at most %" PRIu64 "; unmap them in parts"},
	{PASID_WHY_NO_CONTEXT, "there is no context %" PRIu64 " on this connection; use an id that"
			       " pasid_ctx_new() gave and that was not freed"},
	{PASID_WHY_NO_BUFFER, "there is no buffer %" PRIu64 " on this connection; use an id that pasid_buf_new() or"
			      " pasid_buf_import() gave and that was not freed"},
	{PASID_WHY_NO_DEVICE, "there is no such device; pasid_devices() lists those there are"},
	{PASID_WHY_NOT_MAPPED, "0x%" PRIx64 "-0x%" PRIx64 " is not mapped in this context; unmap only what"
			       " is mapped"},
	{PASID_WHY_OVERLAP, "the mapping 0x%" PRIx64 "-0x%" PRIx64 " is in the way; unmap it first, or leave"
			    " the address to pasidd"},
	{PASID_WHY_APERTURE, "the range is not inside of the usable addresses 0x%" PRIx64 "-0x%" PRIx64
			     "; choose one that is, or leave the address to pasidd"},
	{PASID_WHY_BUFFER_END,
	 "it would end at byte %" PRIu64 " of a buffer of %" PRIu64 " bytes; stay inside of the buffer"},
	{PASID_WHY_NO_ROOM, "no free range of addresses is %" PRIu64 " bytes long; unmap something"},
	{PASID_WHY_COMMANDS,
	 "%" PRIu64 " bytes of commands are more than the %" PRIu64 " of one submission; submit them in parts"},
	{PASID_WHY_READ_ONLY, "the buffer was imported read-only; map it without PASID_WRITE, or import a"
			      " writable fd of an unsealed file"},
	{PASID_WHY_UNSEALED, "the file has seals 0x%" PRIx64 " and needs 0x%" PRIx64 " (F_SEAL_SHRINK); make"
			     " it with MFD_ALLOW_SEALING and seal it, or pass a writable fd of it"},
	{PASID_WHY_NOT_MEMFD, "the file is not a memfd, and no other memory can be imported for this device"},
	{PASID_WHY_VERSION, "version %" PRIu64 " of the protocol is spoken here and pasidd speaks version %" PRIu64
			    "; install matching ones"},
	{PASID_WHY_OTHER_DEVICE, "the buffer was imported for another device than the context's; import it for"
				 " this one, too"},
	{PASID_WHY_NO_PASID,
	 "the device's driver in pasidd puts no PASID on its accesses, so that work would run in nobody's"
	 " address space; use another mode"},
	{PASID_WHY_CONTEXT_LOST, "context %" PRIu64 " is lost; free it and make a new one"},
	{PASID_WHY_DEVICE_GONE, "the device is gone at the moment; wait for PASID_EVENT_DEVICE_BACK"},
	{PASID_WHY_TIMEOUT,
	 "job %" PRIu64 " did not complete in time, the last one that did is %" PRIu64 "; wait longer"},
	{PASID_WHY_QUOTA_TOTAL, "pasidd holds %" PRIu64 " of the %" PRIu64
				" bytes that it may hold for everyone; try again when others have freed memory"},
	{PASID_WHY_QUOTA_IDS, "%" PRIu64 " of the device's %" PRIu64 " address-space ids are in use; free contexts"},
	{PASID_WHY_QUOTA_TABLES,
	 "%" PRIu64 " of the device's %" PRIu64 " page-table pages are in use; unmap something or use larger mappings"},
	{PASID_WHY_QUOTA_MEMORY, "pasidd has no memory left; free something and try again"},
	{PASID_WHY_QUOTA_KERNEL,
	 "the kernel or the device would not take it (errno %" PRIu64 "); unmap something, or use larger mappings"},
	{PASID_WHY_QUOTA_STORE,
	 "the service manager keeps %" PRIu64 " fds for pasidd, and has no connection beyond %" PRIu64
	 "; try again when others have left, or raise FileDescriptorStoreMax= of pasidd.service"},
	{LOCAL_HANGUP, "pasidd is gone or has dropped this connection, and its contexts with it; connect anew"},
	{LOCAL_GARBLED, "the other side sent a message (operation %" PRIu64 ", %" PRIu64
			" bytes) that is not of this protocol; the connection was ended"},
	{LOCAL_ARGUMENT, "an argument is NULL that must not be"},
	{LOCAL_STRUCT, "the struct's size field says %" PRIu64 "; set it to sizeof the struct"},
	{LOCAL_NAME, "a device name has at most 31 bytes; pasid_devices() lists those there are"},
	{LOCAL_NO_JOB, "there is no job %" PRIu64 ", the last one submitted is %" PRIu64
		       "; wait for a number that pasid_submit() gave"},
};

static const char *resource_name(uint32_t resource)
{
	static const char *const name[PASID_RES_COUNT] = {
		[PASID_RES_CONTEXTS] = "contexts; free some",
		[PASID_RES_BUFFERS] = "buffers; free some",
		[PASID_RES_MAPPINGS] = "mappings; unmap some",
		[PASID_RES_BYTES] = "bytes of imported buffers; free and unmap some",
		[PASID_RES_HUGE] = "bytes of buffers in huge pages; free and unmap some",
		[PASID_RES_TABLES] = "page-table pages; unmap something or use larger mappings",
		[PASID_RES_JOBS] = "jobs that have not completed; wait for some",
		[PASID_RES_RATE] = "messages a second; put more into each or slow down",
		[PASID_RES_CONNECTIONS] = "connections; close some",
	};

	return name[resource];
}

static bool quota_text(char *buf, size_t len, uint32_t reason, uint64_t n1, uint64_t n2)
{
	const char *whose = "user", *name;
	uint32_t resource = reason - PASID_WHY_QUOTA_UID;

	if (reason >= PASID_WHY_QUOTA_CONNECTION) {
		whose = "connection";
		resource = reason - PASID_WHY_QUOTA_CONNECTION;
	}
	if (reason < PASID_WHY_QUOTA_UID || resource >= PASID_RES_COUNT)
		return false;
	name = resource_name(resource);
	snprintf(buf, len, "this %s has %" PRIu64 " of at most %" PRIu64 " %s", whose, n1, n2, name);
	return true;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
bool sentence_put(char *buf, size_t len, uint32_t reason, uint64_t n1, uint64_t n2)
{
	for (size_t i = 0; i < sizeof(sentences) / sizeof(sentences[0]); i++) {
		if (sentences[i].reason != reason)
			continue;
		snprintf(buf, len, sentences[i].fmt, n1, n2);
		return true;
	}
	return quota_text(buf, len, reason, n1, n2);
}
#pragma GCC diagnostic pop
