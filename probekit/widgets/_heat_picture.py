"""The heat map as a still picture: its colours, a PNG of the cells, and an SVG with the trees around it."""

from __future__ import annotations

import base64
import itertools
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probekit._clusters_trees import Array
from probekit._report_text import plain
from probekit.widgets._heat_bins import LEVELS, NONE

# blue for away from, orange to vermillion for toward (Okabe and Ito's), as light as each other step by step;
# zero is the ground
_STOPS = {
    "light": (("#003a5d", "#0072b2", "#56b4e9", "#f7f7f7"), ("#f7f7f7", "#e69f00", "#d55e00", "#6b2500")),
    "dark": (("#d8f0ff", "#56b4e9", "#0072b2", "#1b1b1b"), ("#1b1b1b", "#b34e00", "#e69f00", "#fff1cf")),
}
_AT = ((0.0, 0.3, 0.62, 1.0), (0.0, 0.38, 0.7, 1.0))
HABITS = ("#009e73", "#cc79a7", "#0072b2", "#e69f00", "#56b4e9", "#d55e00", "#f0e442")  # then again
LEFT, TOP, WIDE, HIGH = 96, 96, 720, 430  # pixels: the trees, and the cells
_STRIP = 9
COARSE = 9


def palette(scheme: str) -> list[list[int]]:
    """Red, green, blue (0 to 255) of the levels -127 to 127, in the "light" or the "dark" scheme.

    >>> palette("light")[127], len(palette("dark"))
    ([247, 247, 247], 255)
    """
    halves = []
    for stops, at in zip(_STOPS[scheme], _AT, strict=True):
        colours = np.array([[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in stops])
        where = np.linspace(0, 1, LEVELS + 1)
        halves.append(np.stack([np.interp(where, at, channel) for channel in colours.T], axis=1))
    return [[round(x) for x in row] for row in np.concatenate([halves[0], halves[1][1:]]).tolist()]


def png(cells: Array) -> bytes:
    """Levels, int8 (bins down, bins across), as a PNG in the light scheme, a pixel a bin.

    Every ninth level only: exported pages are small, and the eye tells no more of them apart.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    high, wide = cells.shape
    lines = np.zeros((high, wide + 1), np.uint8)  # each line begins with 0: no filter
    lines[:, 1:] = np.round(cells / COARSE) * COARSE + LEVELS
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", bytes(x for colour in palette("light") for x in colour)),
            chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            chunk(b"IEND", b""),
        ]
    )


def picture(cells: Array, sides: Sequence[Mapping[str, Any]], limit: float) -> str:
    """An SVG image of the cells with both trees, strips of clusters and habits, and the scale of colours.

    sides: `Side.view` of prompts and pairs.
    """
    width, height = LEFT + WIDE + 112, TOP + HIGH + 34
    image = f"data:image/png;base64,{base64.b64encode(png(cells)).decode()}"
    spans = [side["window"] for side in sides]
    sizes = [
        length * side["step"] * bins / (stop - start)
        for length, side, bins, (start, stop) in zip((HIGH, WIDE), sides, cells.shape, spans, strict=True)
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Arial, Liberation Sans, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<clipPath id="cells"><rect x="{LEFT}" y="{TOP}" width="{WIDE}" height="{HIGH}"/></clipPath>',
        f'<image clip-path="url(#cells)" x="{LEFT}" y="{TOP}" width="{sizes[1]:.2f}" height="{sizes[0]:.2f}" '
        f'preserveAspectRatio="none" style="image-rendering: pixelated" href="{image}"/>',
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDE}" height="{HIGH}" fill="none" stroke="#555"/>',
        *_tree(sides[0], HIGH, turned=True),
        *_tree(sides[1], WIDE, turned=False),
        *_scale(limit),
        f'<text x="{LEFT}" y="{TOP + HIGH + 18}">{_words(sides[1], "pairs")}</text>',
        f'<text transform="translate({LEFT + WIDE + 16} {TOP}) rotate(90)">',
        f"{_words(sides[0], 'prompts')}</text>",
    ]
    return "".join([*parts, "</svg>"])


def _words(side: Mapping[str, Any], name: str) -> str:
    start, stop = side["window"]
    cut = f", in {side['count']:,} clusters" if side["count"] else ""
    return plain(f"{name} {start:,} to {stop - 1:,} of {side['total']:,}, in tree order{cut}")


def _tree(side: Mapping[str, Any], length: int, *, turned: bool) -> list[str]:
    """The lines of a tree and the strips between it and the cells, along the top or (turned) the left."""
    (start, stop), unit = side["window"], length / (side["window"][1] - side["window"][0])
    room = TOP - 2 * (_STRIP + 2)

    def point(place: float, high: float) -> str:
        along, up = (min(max(place, start), stop) - start) * unit, room * (1 - high) + 1
        return f"{up:.0f} {TOP + along:.0f}" if turned else f"{LEFT + along:.0f} {up:.0f}"

    paths: dict[int, list[str]] = {0: [], 1: []}
    for left, right, low, other, high, joins in side["lines"]:
        corners = [point(left, low), point(left, high), point(right, high), point(right, other)]
        inside = [start <= left <= stop, True, start <= right <= stop]
        for here, there, seen in zip(corners, corners[1:], inside, strict=False):
            paths[joins].append(f"M{here}L{there}" if seen and here != there else "")
    found = [
        f'<path d="{"".join(paths[joins])}" fill="none" stroke="{colour}"/>'
        for joins, colour in ((0, "#aaa"), (1, "#333"))
    ]
    strips = (("clusters", ("#bbb", "#666")), ("habits", HABITS))
    for strip, (name, colours) in enumerate(strips):
        at, bin_ = room + 2 + strip * (_STRIP + 2), 0
        for label, run in itertools.groupby(side[name]):
            first, bin_ = bin_, bin_ + len(list(run))
            if label == NONE:
                continue
            begin, end = (min(place * side["step"] * unit, length) for place in (first, bin_))
            colour = colours[(label - (name == "habits")) % len(colours)]
            x, y, wide, high = at, TOP + begin, _STRIP, end - begin
            if not turned:
                x, y, wide, high = LEFT + begin, at, high, wide
            box = f'x="{x:.2f}" y="{y:.2f}" width="{wide:.2f}" height="{high:.2f}"'
            found.append(f'<rect {box} fill="{colour}"/>')
    return found


def _scale(limit: float) -> list[str]:
    """The colours beside the cells, with the similarities that they stand for."""
    x, y, wide, high = LEFT + WIDE + 44, TOP + 40, 12, 200
    colours = palette("light")[::-1]
    boxes = [
        f'<rect x="{x}" y="{y + high * n / len(colours):.2f}" width="{wide}" '
        f'height="{high / len(colours) + 0.5:.2f}" fill="rgb({r},{g},{b})"/>'
        for n, (r, g, b) in enumerate(colours)
    ]
    marks = [(f"≥ {limit:g}", 4), ("0", high / 2 + 4), (f"≤ −{limit:g}", high + 4)]
    words = [f'<text x="{x - 4}" y="{y - 14}">similarity</text>']
    return [
        *boxes,
        *words,
        *(f'<text x="{x + wide + 3}" y="{y + up:.0f}" font-size="11">{t}</text>' for t, up in marks),
    ]
