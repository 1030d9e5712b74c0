#!/bin/sh
# SPDX-License-Identifier: MIT
# The configuration that the daemon begins with, which has no devices. One that is there is somebody's, and stays.
set -eu
to=${DESTDIR:-}$2
[ -e "$to" ] || install -D -m 0644 "$1" "$to"
