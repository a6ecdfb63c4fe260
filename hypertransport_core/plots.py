"""Pictures of maps: where in a network a concept acts, how strongly, and how like another it is. Drawn with Pillow, which
every host has."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy
import torch
from torch import Tensor

from .inspection import KIND_NAMES, Likeness, SiteSize, block_of, kinds_in, likeness, overall, site_sizes
from .sheets import EDGE, FAINT, INK, PAPER, printable, shortened
from .sites import Site
from .transport import TransportMaps

FINE = 2  # drawn at twice the size at which it is meant to be read, 900 pixels wide
WIDTH, MARGIN, GUTTER, LABELS = 900, 24, 48, 146
PANEL, LIKENESS, BETWEEN = 92, 150, 14  # heights of panels and the space between them
TITLE, TEXT, SMALL = 22, 14, 12
CROWDED = 100  # sites from which hollow and full dots could not be told apart
# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
COLOURS = {"self_attention": (0, 114, 178), "cross_attention": (230, 159, 0), "mlp": (0, 158, 115), "norm": (204, 121, 167),
           "convolution": (86, 180, 233)}
GRID = (231, 228, 220)


@dataclass(frozen=True)
class _Columns:
    """Where every site lies from left (early) to right (late), in [0, 1]: blocks side by side, a kind's sites in a block
    side by side within it."""

    spans: dict[str, tuple[float, float]]
    blocks: list[tuple[str, str]]


def maps_plot(steps: Sequence[TransportMaps], name: str = "", other: Sequence[TransportMaps] | None = None,
              other_name: str = "") -> Tensor:
    """A picture (3, H, W) float32 in [0, 1], 1800 pixels wide and meant to be read at 900: a row of panels per kind of
    site, scale on the left and shift on the right, from the network's first block to its last. Bars are `steps`, maps per
    stretch of noise level; black marks are `other`, whose cosines then fill a panel of their own. Raises TransportError
    when the two share no sites.
    """
    sizes, second = site_sizes(steps), None if other is None else {s.site.path: s for s in site_sizes(other)}
    alike = None if other is None else likeness(steps, other)
    kinds, columns = kinds_in(steps[0].sites), _columns(steps[0].sites)
    head = MARGIN + TITLE + 12 + (TEXT + 6) * (2 if other is not None else 1) + 34
    bottom = head + len(kinds) * (PANEL + BETWEEN) + 44
    height = bottom + (LIKENESS + 92 if alike else 0)
    pen = _Pen(height)
    _heading(pen, steps, name, other, other_name)
    width = (WIDTH - 2 * MARGIN - LABELS - GUTTER) / 2
    for number, what in enumerate(("scale", "shift")):
        left = MARGIN + LABELS + number * (width + GUTTER)
        heading, unit = ("scale - 1", "rms, no unit") if what == "scale" else ("shift", "rms, in the site's own units")
        pen.text(left, head - 26, heading, TEXT, INK)
        pen.text(left + pen.width(heading, TEXT) + 8, head - 25, unit, SMALL, FAINT)
        top = _ceiling([getattr(s, what) for s in (*sizes, *(second or {}).values())])
        for row, kind in enumerate(kinds):
            y = head + row * (PANEL + BETWEEN)
            own = [size for size in sizes if size.site.kind == kind]
            _bars(pen, (left, y, width, PANEL), own, what, top, columns, second)
            if number == 0:
                pen.text(MARGIN, y + PANEL / 2 - 16, KIND_NAMES[kind], TEXT, INK)
                pen.text(MARGIN, y + PANEL / 2 + 2, f"{len(own)} site" + "s" * (len(own) != 1), SMALL, FAINT)
        _blocks(pen, left, head + len(kinds) * (PANEL + BETWEEN) - BETWEEN + 5, width, columns)
    if alike:
        _likeness(pen, bottom + 34, alike, kinds)
    return pen.tensor()


class _Pen:
    """Draws in the units in which the picture is read."""

    def __init__(self, height: float) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self.image = Image.new("RGB", (WIDTH * FINE, round(height) * FINE), PAPER)
        self._draw, self._fonts = ImageDraw.Draw(self.image), ImageFont

    def font(self, size: int) -> Any:
        return self._fonts.load_default(size * FINE)

    def width(self, text: str, size: int) -> float:
        return self.font(size).getlength(printable(text)) / FINE

    def text(self, x: float, y: float, text: str, size: int, colour: tuple[int, int, int], most: float = WIDTH) -> None:
        font = self.font(size)
        self._draw.text((x * FINE, y * FINE), shortened(printable(text), font, most * FINE), colour, font)

    def box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
        left, right = round(left * FINE), max(round(right * FINE), round(left * FINE) + 1)
        top, bottom = round(top * FINE), max(round(bottom * FINE), round(top * FINE) + 1)
        self._draw.rectangle((left, top, right - 1, bottom - 1), colour)

    def dot(self, x: float, y: float, radius: float, colour: tuple[int, int, int], hollow: bool) -> None:
        area = tuple(FINE * value for value in (x - radius, y - radius, x + radius, y + radius))
        self._draw.ellipse(area, PAPER if hollow else colour, colour, 2 * FINE if hollow else 1)

    def tensor(self) -> Tensor:
        return torch.from_numpy(numpy.array(self.image)).permute(2, 0, 1).float() / 255.0


def _heading(pen: _Pen, steps: Sequence[TransportMaps], name: str, other: Sequence[TransportMaps] | None,
             other_name: str) -> None:
    room, maps = WIDTH - 2 * MARGIN, steps[0]
    pen.text(MARGIN, MARGIN - 4, name or "maps", TITLE, INK, room)
    about = [f"{len(maps)} sites, {maps.channels} channels", "left to right: first to last block"]
    about += [f"over {maps.rows} concepts"] if maps.rows > 1 else []
    about += [f"over {len(steps)} stretches of noise level"] if len(steps) > 1 else []
    y = MARGIN + TITLE + 8
    pen.text(MARGIN, y, " · ".join(about), TEXT, FAINT, room)
    if other is not None:
        scale, shift = overall(steps, other)
        pen.box(MARGIN, y + TEXT + 14, MARGIN + 14, y + TEXT + 16.5, INK)
        pen.text(MARGIN + 20, y + TEXT + 6, f"{other_name or 'second maps'}    cosine of all shifts {shift:.2f}, of all "
                 f"scales {scale:.2f}", TEXT, INK, room - 20)


def _bars(pen: _Pen, area: tuple[float, float, float, float], sizes: Sequence[SiteSize], what: str, top: float,
          columns: _Columns, second: dict[str, SiteSize] | None) -> None:
    """One panel: a bar per site, a black mark where the second maps are."""
    left, y, width, height = area
    for share in (0.0, 0.5, 1.0):
        level = y + height * (1 - share)
        pen.box(left, level - 0.5, left + width, level, EDGE if share == 0 else GRID)
        label = f"{top * share:.3g}"
        pen.text(left - 5 - pen.width(label, SMALL), level - SMALL / 2 - 2, label, SMALL, FAINT)
    for size in sizes:
        start, end = (left + width * part for part in columns.spans[size.site.path])
        gap = min(1.0, (end - start) * 0.12)
        value = min(getattr(size, what) / top, 1.0)
        if value > 0:
            pen.box(start + gap, y + height * (1 - value), end - gap, y + height, COLOURS[size.site.kind])
        if second is not None and size.site.path in second:
            level = y + height * (1 - min(getattr(second[size.site.path], what) / top, 1.0))
            pen.box(start, level - 1.25, end, level + 1.25, INK)


def _blocks(pen: _Pen, left: float, y: float, width: float, columns: _Columns) -> None:
    """Numbers of the blocks below a column of panels, as far as there is room, and the names of the stages."""
    step = width / len(columns.blocks)
    stages: list[tuple[str, int, int]] = []
    for index, (stage, _) in enumerate(columns.blocks):
        if stages and stages[-1][0] == stage:
            stages[-1] = (stage, stages[-1][1], index + 1)
        else:
            stages.append((stage, index, index + 1))
    last_end, widest = 0.0, max(pen.width(number, SMALL) for _, number in columns.blocks)
    every = next((n for n in (1, 2, 5, 10, 20, 50) if n * step >= widest + 6), 100)
    for index, (_, number) in enumerate(columns.blocks):
        if number and int(number) % every == 0:
            pen.text(left + (index + 0.5) * step - pen.width(number, SMALL) / 2, y, number, SMALL, FAINT)
    for stage, first, last in stages:
        start, end = left + first * step, left + last * step
        pen.box(start + 1, y + 17, end - 1, y + 18, FAINT)
        length = pen.width(stage, SMALL)
        x = min(max((start + end - length) / 2, left - 10), left + width - length + 10)
        if x > last_end + 5:  # a name that would run into the one before is left out
            pen.text(x, y + 20, stage, SMALL, INK)
            last_end = x + length


def _likeness(pen: _Pen, y: float, alike: Sequence[Likeness], kinds: Sequence[str]) -> None:
    """The panel of cosines: full dots for shifts, hollow ones for scales."""
    left, width = MARGIN + LABELS, WIDTH - 2 * MARGIN - LABELS
    pen.text(left, y - 28, "direction, compared", TEXT, INK)
    x = left + pen.width("direction, compared", TEXT) + 16
    places = _columns([one.site for one in alike], by_kind=False)
    crowded = len(alike) > CROWDED  # then shifts only, which say more
    for hollow, words in ((False, "shift"), (True, "scale - 1"))[:1 if crowded else 2]:
        pen.dot(x + 4, y - 19, 4, FAINT, hollow)
        pen.text(x + 13, y - 27, words, SMALL, FAINT)
        x += 26 + pen.width(words, SMALL)
    for kind in kinds:
        pen.box(x + 6, y - 24, x + 16, y - 14, COLOURS[kind])
        pen.text(x + 21, y - 27, KIND_NAMES[kind], SMALL, FAINT)
        x += 36 + pen.width(KIND_NAMES[kind], SMALL)
    for value, words in ((1.0, "1, the same"), (0.0, "0, unrelated"), (-1.0, "-1, opposite")):
        level = y + LIKENESS * (1 - value) / 2
        pen.box(left, level - 0.5, left + width, level, EDGE if value == 0 else GRID)
        pen.text(left - 8 - pen.width(words, SMALL), level - SMALL / 2 - 2, words, SMALL, FAINT)
    radius = max(2.0, min(4.0, 0.4 * width / len(alike)))
    for hollow in (False,) if crowded else (True, False):
        for one in alike:
            start, end = places.spans[one.site.path]
            value = one.scale if hollow else one.shift
            pen.dot(left + width * (start + end) / 2, y + LIKENESS * (1 - value) / 2, radius, COLOURS[one.site.kind], hollow)
    _blocks(pen, left, y + LIKENESS + 8, width, places)


def _columns(sites: Sequence[Site], by_kind: bool = True) -> _Columns:
    """by_kind: for panels of one kind each; otherwise all sites of a block lie side by side."""
    places: dict[tuple[str, str], dict[str, list[str]]] = {}
    for site in sites:
        places.setdefault(block_of(site.path), {}).setdefault(site.kind if by_kind else "", []).append(site.path)
    spans, step = {}, 1 / len(places)
    for index, kinds in enumerate(places.values()):
        for paths in kinds.values():
            for number, path in enumerate(paths):
                inner = 0.84 * step / len(paths)
                start = (index + 0.08) * step + number * inner
                spans[path] = (start, start + inner)
    return _Columns(spans, list(places))


def _ceiling(values: Sequence[float]) -> float:
    """The round number that the largest value fits under; 1 when all are 0."""
    most = max(values, default=0.0)
    if not most > 0:
        return 1.0
    unit = 10.0 ** floor(log10(most))
    return next(factor * unit for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if factor * unit >= most * (1 - 1e-9))
