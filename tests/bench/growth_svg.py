# SPDX-License-Identifier: MIT
"""The growth curve as a table and as a picture; the same numbers give the same bytes.

rows: contexts, mappings, chosen, fixed, unmap, free (ns for each mapping), memory, tables (bytes for each mapping).
"""

import math

SERIES = [(2, "map, IOVA not given", "#1f77b4"), (3, "map, IOVA given", "#2ca02c"),
          (4, "unmap", "#d62728"), (5, "free the contexts", "#9467bd")]
BEGIN, END = "<!-- growth table -->", "<!-- end of growth table -->"
WIDTH, HEIGHT, LEFT, TOP, PLOT_W, PLOT_H, GAP = 960, 400, 60, 50, 370, 240, 90


def table(rows):
    text = ("| contexts | mappings | map, chosen (ns) | map, given (ns) | unmap (ns) | free (ns) | own memory (bytes) "
            "| tables (bytes) |\n|--:|--:|--:|--:|--:|--:|--:|--:|\n")
    for row in rows:
        text += "| " + " | ".join(f"{int(v):,}" for v in row) + " |\n"
    return text


def write_table(path, rows):
    """Replaces what stands between the two marks in the file."""
    text = path.read_text(encoding="utf-8")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(f"{head}{BEGIN}\n{table(rows)}{END}{tail}", encoding="utf-8")


def plot(rows, x0, title, top):
    """One panel: ns for each mapping over the number of mappings (logarithmic)."""
    def x(n):
        return x0 + (math.log10(n) - 3) / 3 * PLOT_W

    def y(ns):
        return TOP + PLOT_H - min(ns, top) / top * PLOT_H

    out = [f'<text x="{x0}" y="{TOP - 14}" font-weight="bold">{title}</text>']
    for i in range(5):
        ns = top * i / 4
        out.append(f'<line x1="{x0}" y1="{y(ns):.1f}" x2="{x0 + PLOT_W}" y2="{y(ns):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{x0 - 6}" y="{y(ns) + 4:.1f}" text-anchor="end">{ns:.0f}</text>')
    for power in range(3, 7):
        at = x(10 ** power)
        out.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{TOP + PLOT_H}" stroke="#ddd"/>')
        out.append(f'<text x="{at:.1f}" y="{TOP + PLOT_H + 18}" text-anchor="middle">{10 ** power:,}</text>')
    for column, _, colour in SERIES:
        points = [(x(row[1]), y(row[column]), row[column] <= top) for row in rows]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour if inside else "white"}" '
                f'stroke="{colour}"/>' for px, py, inside in points]
    return out


def picture(rows):
    one = [r for r in rows if r[0] == 1]
    many = [r for r in rows if r[0] != 1]
    # What lies beyond the scale is drawn hollow at its upper edge: a message for each mapping, with few of them.
    largest = max(r[c] for r in one + many[1:] for c, _, _ in SERIES)
    top = math.ceil(largest / 200) * 200
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
           'font-size="12">', f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    out += plot(one, LEFT, "one context: ns for each mapping", top)
    out += plot(many, LEFT + PLOT_W + GAP, "1,000 contexts: ns for each mapping", top)
    for i, (_, name, colour) in enumerate(SERIES):
        at = LEFT + i * 220
        out.append(f'<rect x="{at}" y="{HEIGHT - 56}" width="14" height="4" fill="{colour}"/>')
        out.append(f'<text x="{at + 20}" y="{HEIGHT - 50}">{name}</text>')
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 20}">4 KiB mappings live at once (logarithmic). Hollow: beyond the '
               'scale.</text>')
    return "\n".join(out + ["</svg>"]) + "\n"
