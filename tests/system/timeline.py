#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Judges timelines of "pasidctl trace": JSON in Chrome's trace event format, whose processes are devices, and whose threads are
slots and contexts.

    timeline.py FILE...     says what is wrong with each, or counts what is in it

A timeline is whole if every track has a name and a process that has one, what begins on a track ends there, the last first, time
never goes back on a track, jobs lie in runs of their context, and runs on slots.
"""

import collections
import json
import re
import sys

Span = collections.namedtuple("Span", "category name device track begin end args within")
Instant = collections.namedtuple("Instant", "category name device track at args within")
KINDS = ("device", "slot", "context")
PLACES = {"run": ("slot",), "job": ("slot",), "switch": ("slot",), "eviction": ("slot",), "bind": ("context",),
          "map": ("context",), "unmap": ("context",), "context": ("context",), "fault": KINDS, "reset": ("device",),
          "device": ("device",), "lost": ("device",)}


class Wrong(Exception):
    """What is wrong with a timeline."""


def must(holds, what, event):
    if not holds:
        raise Wrong(f"{what}: {json.dumps(event)}")


class Timeline:
    """spans and instants, in the order in which they ended or were."""

    def __init__(self, text):
        try:
            top = json.loads(text)
        except ValueError as error:
            raise Wrong(f"no JSON: {error}") from None
        must(isinstance(top, dict) and isinstance(top.get("traceEvents"), list), "no list of events", str(top)[:100])
        self.devices, self.tracks = {}, {}
        self.spans, self.instants = [], []
        self._open, self._last = collections.defaultdict(list), {}
        for event in top["traceEvents"]:
            self._take(event)
        for track, spans in self._open.items():
            must(not spans, "never ended", [track, spans])

    def _take(self, event):
        must(isinstance(event, dict) and {"ph", "pid", "tid"} <= event.keys(), "no event", event)
        track = (event["pid"], event["tid"])
        must(all(isinstance(n, int) for n in track), "no numbers of tracks", event)
        if event["ph"] == "M":
            self._name(event, track)
            return
        must(track in self.tracks and event["pid"] in self.devices, "a track without a name", event)
        ts = event.get("ts")
        must(isinstance(ts, (int, float)) and ts >= self._last.get(track, 0), "time goes back", event)
        self._last[track] = ts
        if event["ph"] == "E":
            self._end(event, track)
            return
        must(event["ph"] in "Bi", "an unknown phase", event)
        must(isinstance(event.get("name"), str) and self.tracks[track][0] in PLACES.get(event.get("cat"), ()),
             "not where it belongs", event)
        if event["ph"] == "B":
            self._begin(event, track)
        else:
            must(event.get("s") == "t", "an instant of more than its track", event)
            self.instants.append(Instant(event["cat"], event["name"], self.devices[event["pid"]], self.tracks[track], ts,
                                         event.get("args", {}), tuple(e["name"] for e in self._open[track])))

    def _name(self, event, track):
        name = event["args"].get("name")
        if event["name"] == "process_name":
            self.devices[event["pid"]] = name
        elif event["name"] == "thread_name":
            match = re.fullmatch(r"(device)|(slot|context) (\d+)", name)
            must(match, "no name of a track", event)
            kind = (match.group(1) or match.group(2), int(match.group(3) or 0))
            must(self.tracks.setdefault(track, kind) == kind, "another name", event)

    def _begin(self, event, track):
        stack = self._open[track]
        outer = stack[-1] if stack else None
        if event["cat"] == "job":
            must(outer and outer["cat"] == "run" and outer["args"]["context"] == event["args"]["context"],
                 "a job outside of its context's run", event)
        else:
            must(outer is None, "within something else", event)
        stack.append(event)

    def _end(self, event, track):
        stack = self._open[track]
        must(stack, "ends without having begun", event)
        begun = stack.pop()
        self.spans.append(Span(begun["cat"], begun["name"], self.devices[event["pid"]], self.tracks[track], begun["ts"],
                               event["ts"], {**begun.get("args", {}), **event.get("args", {})},
                               tuple(e["name"] for e in stack)))

    def find(self, category, **args):
        """Spans and instants of a category with these args."""
        return [e for e in self.spans + self.instants
                if e.category == category and all(e.args.get(k) == v for k, v in args.items())]

    def on_track(self, category, kind, number):
        return [e for e in self.find(category) if e.track == (kind, number)]


def main():
    status = 0
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as f:
            try:
                timeline = Timeline(f.read())
            except Wrong as wrong:
                print(f"{path}: {wrong}")
                status = 1
                continue
        counts = collections.Counter(e.category for e in timeline.spans + timeline.instants)
        print(f"{path}: " + ", ".join(f"{n} {category}" for category, n in sorted(counts.items())))
    return status


if __name__ == "__main__":
    sys.exit(main())
