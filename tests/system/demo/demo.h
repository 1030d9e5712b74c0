/* SPDX-License-Identifier: MIT */
/*
 * What the bank and the thief both know: the addresses that each of them uses, which are no secret. Isolation must not
 * depend on an address being hard to guess, so the thief is simply told.
 *
 * Every address is used by one of the two alone, so that the same programs run with the same addresses in one shared
 * address space (mode global) as well as in two private ones.
 */
#ifndef DEMO_DEMO_H
#define DEMO_DEMO_H

#include "picture.h"

#define DEMO_PAGE 4096u
#define DEMO_SURFACE_PAGES (PICTURE_BYTES / DEMO_PAGE)

#define BANK_SURFACE 0x200000000ull /* PICTURE_BYTES: the statement */
#define BANK_COMMANDS 0x240000000ull
#define BANK_INK 0x250000000ull /* while it draws */
#define BANK_UPLOAD 0x260000000ull /* while it draws */
#define BANK_PROOF 0x270000000ull /* a copy of the surface, made by the GPU at the end */
#define BANK_VAULT 0x280000000ull /* one DEMO_STRIDE for each context that fills scratch memory */

#define THIEF_COMMANDS 0x300000000ull
#define THIEF_LOOT 0x310000000ull /* PICTURE_BYTES: what it stole, page by page */
#define THIEF_SCAN 0x320000000ull /* what its other attempts found */
#define THIEF_OWN 0x330000000ull /* its own bytes: PICTURE_BYTES of DEMO_OWN */
#define THIEF_GONE 0x340000000ull /* mapped, used, unmapped, and used again */
#define THIEF_SCRATCH 0x350000000ull /* one DEMO_STRIDE for each context that reads scratch memory */

#define DEMO_STRIDE 0x100000ull
#define DEMO_VAULT_CONTEXTS 16u

/* The part of the statement that the bank leaves in scratch memory: REFGPU_SCRATCH_SIZE bytes from here. */
#define DEMO_SECRET_OFFSET (160u * PICTURE_PITCH)

/* Bytes that no statement contains, so that none of them can be taken for a stolen one. */
#define DEMO_POISON 0xeeu /* memory that the thief's attempts should leave as it is */
#define DEMO_OWN 0x5au /* the thief's own bytes */
#define DEMO_SCRIBBLE 0x00c0ffeeu

#endif
