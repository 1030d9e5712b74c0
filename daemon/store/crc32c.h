/* SPDX-License-Identifier: MIT */
/* CRC-32C (Castagnoli), by the processor's instruction where it has one, else by tables. */
#ifndef STORE_CRC32C_H
#define STORE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* crc: 0 to begin, or that of the bytes before. */
uint32_t crc32c(uint32_t crc, const void *p, size_t size);

/* The same by tables alone, for tests. */
uint32_t crc32c_tables(uint32_t crc, const void *p, size_t size);

#endif
