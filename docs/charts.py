"""Small charts for the help pages: lines, bars and a matrix, drawn with Pillow at twice their size."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK, FAINT, GRID = (250, 248, 243), (38, 38, 44), (126, 124, 120), (231, 228, 220)
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233))  # Okabe and Ito
SIZE, FINE = (640, 360), 2
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 52


class Chart:
    """Axes from 0 to (x, y) with round marks; everything in pixels of the small picture."""

    def __init__(self, x: float, y: float, across: str, up: str, size: tuple[int, int] = SIZE) -> None:
        self.size, self.x, self.y = size, x, y
        self.image = Image.new("RGB", (size[0] * FINE, size[1] * FINE), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.text(LEFT, 14, up, 15)
        if across:
            self.text(size[0] - RIGHT, size[1] - 20, across, 14, FAINT, "ra")

    def at(self, x: float, y: float) -> tuple[float, float]:
        width, height = self.size[0] - LEFT - RIGHT, self.size[1] - TOP - BOTTOM
        return (LEFT + width * x / self.x) * FINE, (TOP + height * (1 - y / self.y)) * FINE

    def text(self, x: float, y: float, words: str, size: int, colour: Any = INK, anchor: str = "la") -> None:
        self.draw.text((x * FINE, y * FINE), words, colour, ImageFont.load_default(size * FINE), anchor=anchor)

    def grid(self, step_x: float | None, step_y: float) -> None:
        for number in range(int(self.y / step_y + 1e-6) + 1):
            left, y = self.at(0, number * step_y)
            self.draw.line([(left, y), (self.at(self.x, 0)[0], y)], GRID, FINE)
            self.text(LEFT - 8, y / FINE, f"{number * step_y:g}", 14, FAINT, "rm")
        for number in range(int(self.x / step_x + 1e-6) + 1) if step_x else ():
            x, bottom = self.at(number * step_x, 0)
            self.text(x / FINE, bottom / FINE + 8, f"{number * step_x:g}", 14, FAINT, "ma")

    def tensor(self) -> Tensor:
        small = self.image.resize((self.size[0] * 3 // 2, self.size[1] * 3 // 2), Image.Resampling.LANCZOS)
        return torch.from_numpy(numpy.array(small)).permute(2, 0, 1).float() / 255


def lines(series: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, marks: Sequence[tuple[float, str]] = (),
          names_right: bool = False) -> Tensor:
    """Curves over 0 to 1000; marks are x values at which the last curve gets a dot with words. The names of the curves stand at
    the top left, or at the bottom right."""
    most = max(y for line in series.values() for _, y in line)
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10) if most / step <= 6)
    chart = Chart(1000, ceil(most / step) * step, across, up)
    chart.grid(250, step)
    for number, (name, line) in enumerate(series.items()):
        chart.draw.line([chart.at(*point) for point in line], COLOURS[number], 3 * FINE, joint="curve")
        place = (SIZE[0] - RIGHT - 180, SIZE[1] - BOTTOM - 70) if names_right else (LEFT + 16, TOP + 14)
        chart.text(place[0], place[1] + 22 * number, name, 15, COLOURS[number])
    last = [*series.values()][-1]
    for x, words in marks:
        y = min(last, key=lambda point: abs(point[0] - x))[1]
        px, py = chart.at(x, y)
        chart.draw.ellipse([px - 5 * FINE, py - 5 * FINE, px + 5 * FINE, py + 5 * FINE], INK)
        chart.text(px / FINE - 8, py / FINE - 8, words, 15, INK, "rd")
    return chart.tensor()


def bars(sizes: Sequence[tuple[str, str, float]], title: str) -> Tensor:
    """One bar per (path, kind, size), coloured by kind."""
    kinds = list(dict.fromkeys(kind for _, kind, _ in sizes))
    most = max(size for _, _, size in sizes) or 1.0
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2) if most / step <= 5)
    chart = Chart(len(sizes), ceil(most / step) * step, "early to late", title)
    chart.grid(None, step)
    for number, (_, kind, size) in enumerate(sizes):
        left, top = chart.at(number + 0.1, size)
        right, bottom = chart.at(number + 0.9, 0)
        chart.draw.rectangle([left, top, right, bottom], COLOURS[kinds.index(kind)])
    x = LEFT
    for number, kind in enumerate(kinds):
        chart.text(x, SIZE[1] - 34, kind.replace("_", " "), 14, COLOURS[number])
        x += 20 + chart.draw.textlength(kind, ImageFont.load_default(14 * FINE)) / FINE
    return chart.tensor()


def matrix(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str) -> Tensor:
    """Numbers from -1 to 1 in cells, the darker the larger."""
    cell, left, top = 92, 150, 96
    chart = Chart(1, 1, "", title, (left + cell * len(columns) + 20, top + 44 * len(rows) + 20))
    for j, name in enumerate(columns):
        for line, word in enumerate(name.split()[:3]):
            chart.text(left + cell * (j + 0.5), 42 + 17 * line, word, 14, FAINT, "ma")
    for i, name in enumerate(rows):
        chart.text(left - 12, top + 44 * (i + 0.5), name, 15, INK, "rm")
        for j, value in enumerate(values[i]):
            x, y = left + cell * j, top + 44 * i
            share = max(0.0, min(1.0, value))
            colour = tuple(round(p + (c - p) * share) for p, c in zip(GRID, COLOURS[0]))
            chart.draw.rectangle([(x + 2) * FINE, (y + 2) * FINE, (x + cell - 2) * FINE, (y + 42) * FINE], colour)
            chart.text(x + cell / 2, y + 22, f"{value:.2f}", 15, PAPER if share > 0.5 else INK, "mm")
    return chart.tensor()
