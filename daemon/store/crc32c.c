/* SPDX-License-Identifier: MIT */
/*
 * See crc32c.h. Which way is looked up at the first use and kept; a program for every amd64 or arm64 must not be compiled
 * for processors that have the instruction. Eight tables, of which each serves one byte of eight.
 */
#include "store/crc32c.h"

#include <stdbool.h>
#include <string.h>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#define POLYNOMIAL UINT32_C(0x82f63b78) /* reflected */

static struct {
	bool ready, instruction;
	uint32_t byte[8][256];
} tables;

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const uint8_t *p, size_t size)
{
	uint64_t word, state = crc;

	for (; size >= 8; p += 8, size -= 8) {
		memcpy(&word, p, 8);
		state = __builtin_ia32_crc32di(state, word);
	}
	for (; size; p++, size--)
		state = __builtin_ia32_crc32qi((uint32_t)state, *p);
	return (uint32_t)state;
}

static bool has_instruction(void)
{
	return __builtin_cpu_supports("sse4.2");
}
#else
static uint32_t by_instruction(uint32_t crc, const uint8_t *p, size_t size)
{
	uint64_t word;

	for (; size >= 8; p += 8, size -= 8) {
		memcpy(&word, p, 8);
		__asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
	}
	for (; size; p++, size--)
		__asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)*p));
	return crc;
}

static bool has_instruction(void)
{
	return getauxval(AT_HWCAP) & HWCAP_CRC32;
}
#endif

static void make_tables(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
		tables.byte[0][i] = crc;
	}
	for (uint32_t t = 1; t < 8; t++)
		for (uint32_t i = 0; i < 256; i++)
			tables.byte[t][i] = (tables.byte[t - 1][i] >> 8) ^ tables.byte[0][tables.byte[t - 1][i] & 255];
	tables.instruction = has_instruction();
	tables.ready = true;
}

static uint32_t by_tables(uint32_t crc, const uint8_t *p, size_t size)
{
	uint64_t word;

	for (; size >= 8; p += 8, size -= 8) {
		memcpy(&word, p, 8);
		word ^= crc;
		crc = 0;
		for (unsigned int t = 0; t < 8; t++)
			crc ^= tables.byte[7 - t][word >> 8 * t & 255];
	}
	for (; size; p++, size--)
		crc = (crc >> 8) ^ tables.byte[0][(crc ^ *p) & 255];
	return crc;
}

uint32_t crc32c(uint32_t crc, const void *p, size_t size)
{
	if (!tables.ready)
		make_tables();
	return ~(tables.instruction ? by_instruction(~crc, p, size) : by_tables(~crc, p, size));
}

uint32_t crc32c_tables(uint32_t crc, const void *p, size_t size)
{
	if (!tables.ready)
		make_tables();
	return ~by_tables(~crc, p, size);
}
