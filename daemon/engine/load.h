/* SPDX-License-Identifier: MIT */
/*
 * Drivers from shared objects. What is in such a file runs with the daemon's rights, so a file is taken only if nobody but
 * root and the daemon's own uid could have put it there: neither it nor a directory on its path belongs to, or can be
 * written by, anyone else. A directory that all may write but where nobody can take away what is another's (sticky, as
 * /tmp) will do, since the owner of what lies in it is looked at next.
 */
#ifndef ENGINE_LOAD_H
#define ENGINE_LOAD_H

#include "engine/engine.h"

#define DRIVER_PATH_MAX 255u
#define DRIVER_ERROR_MAX (ENGINE_ERROR_MAX + 2 * DRIVER_PATH_MAX)

/* `path` is absolute, of at most DRIVER_PATH_MAX bytes, and stays the caller's until driver_unload(). 0; or -errno and a
 * sentence that begins with the path. */
int driver_load(struct driver *ret, const char *path, char error[DRIVER_ERROR_MAX]);
void driver_unload(struct driver *d); /* no device uses it any more */

#endif
