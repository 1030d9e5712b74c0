/* SPDX-License-Identifier: MIT */
/* The daemon of a later version, which writes its journal in a newer one. */
#include "service/entries.h"

#undef ENTRIES_VERSION
#define ENTRIES_VERSION 2u

#include "../../daemon/main.c"
