"""The things that can stand on a postcard: each drawn once as vector shapes, rasterised to anti-aliased stamps.

Coordinates inside a drawing run from -1 (left, top) to 1 (right, bottom). A drawing is a list of layers painted in order, each
`(ink, mask)`: ink ``main`` takes the subject's colour, ``dark`` and ``light`` are fixed, ``clear`` cuts a hole.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

Layer = tuple[str, Tensor]
STAMP = 40  # pixels; side of the square every stamp is drawn in
SIZES = {"small": 20, "medium": 28, "large": 36}  # pixels; side of the drawing inside the stamp
_SUPERSAMPLE = 4


class Grid:
    """Sample points of one drawing and the shapes that can be filled on them; every shape is a bool mask (N, N)."""

    def __init__(self, pixels: int) -> None:
        n = pixels * _SUPERSAMPLE
        axis = (torch.arange(n, dtype=torch.float32) + 0.5) / n * 2 - 1
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")

    def ellipse(self, cx: float, cy: float, rx: float, ry: float | None = None) -> Tensor:
        """A filled ellipse; a circle without `ry`."""
        return ((self.x - cx) / rx) ** 2 + ((self.y - cy) / (ry or rx)) ** 2 <= 1

    def rect(self, left: float, top: float, right: float, bottom: float) -> Tensor:
        """A filled rectangle."""
        return (self.x >= left) & (self.x <= right) & (self.y >= top) & (self.y <= bottom)

    def polygon(self, points: Sequence[tuple[float, float]]) -> Tensor:
        """Even-odd fill of a closed polygon."""
        inside = torch.zeros_like(self.x, dtype=torch.bool)
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]]):
            if y0 == y1:
                continue
            crosses = (self.y < max(y0, y1)) & (self.y >= min(y0, y1))
            inside ^= crosses & (self.x < x0 + (self.y - y0) * (x1 - x0) / (y1 - y0))
        return inside

    def ring(self, cx: float, cy: float, outer: float, inner: float) -> Tensor:
        """What lies between two circles around one centre."""
        return self.ellipse(cx, cy, outer) & ~self.ellipse(cx, cy, inner)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float) -> Tensor:
        """A line with round ends."""
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        along = ((self.x - x0) * dx + (self.y - y0) * dy).clamp(0, length)
        return (self.x - x0 - along * dx) ** 2 + (self.y - y0 - along * dy) ** 2 <= (width / 2) ** 2


def _star_points(tips: int, outer: float, inner: float, cx: float = 0.0, cy: float = 0.0) -> list[tuple[float, float]]:
    return [(cx + r * math.sin(k * math.pi / tips), cy - r * math.cos(k * math.pi / tips))
            for k in range(2 * tips) for r in ((outer if k % 2 == 0 else inner),)]


def _house(g: Grid) -> list[Layer]:
    return [("main", g.rect(-.72, -.1, .72, .92)), ("dark", g.polygon([(-.98, -.08), (0, -.95), (.98, -.08)])),
            ("dark", g.rect(-.16, .36, .2, .92)), ("light", g.rect(-.56, .14, -.28, .46)), ("light", g.rect(.34, .14, .6, .46))]


def _boat(g: Grid) -> list[Layer]:
    return [("main", g.polygon([(-.95, .42), (.95, .42), (.6, .9), (-.6, .9)])), ("dark", g.rect(-.06, -.95, .06, .42)),
            ("light", g.polygon([(.12, -.85), (.8, .3), (.12, .3)])), ("main", g.polygon([(-.14, -.6), (-.14, .3), (-.7, .3)]))]


def _cat(g: Grid) -> list[Layer]:
    face = [("main", g.polygon([(-.8, -.95), (-.82, .1), (-.12, -.4)])), ("main", g.polygon([(.8, -.95), (.82, .1), (.12, -.4)])),
            ("main", g.ellipse(0, .2, .86, .72))]
    eyes = [("light", g.ellipse(s * .36, .08, .2, .2)) for s in (-1, 1)] + [("dark", g.ellipse(s * .36, .08, .1, .17)) for s in (-1, 1)]
    return [*face, *eyes, ("dark", g.polygon([(-.14, .36), (.14, .36), (0, .54)])),
            *(("dark", g.line(s * .3, .5, s * .95, .42 + .2 * k, .05)) for s in (-1, 1) for k in (0, 1))]


def _mushroom(g: Grid) -> list[Layer]:
    cap = g.ellipse(0, .02, .95, .9) & (g.y < .08)
    return [("light", g.rect(-.3, 0, .3, .92)), ("main", cap), ("light", g.ellipse(-.4, -.3, .2)), ("light", g.ellipse(.3, -.45, .19)),
            ("light", g.ellipse(.62, -.1, .13)), ("dark", g.rect(-.3, .08, .3, .16))]


def _rocket(g: Grid) -> list[Layer]:
    return [("dark", g.polygon([(-.3, .1), (-.8, .8), (-.3, .62)])), ("dark", g.polygon([(.3, .1), (.8, .8), (.3, .62)])),
            ("main", g.ellipse(0, -.1, .4, .86) & (g.y < .62)), ("light", g.ellipse(0, -.25, .18)),
            ("light", g.polygon([(-.22, .64), (.22, .64), (0, .98)]))]


def _tree(g: Grid) -> list[Layer]:
    return [("dark", g.rect(-.13, .4, .13, .95)), *(("main", g.polygon([(-w, b), (w, b), (0, t)])) for w, b, t in
            ((.85, .55, -.1), (.66, .1, -.5), (.46, -.32, -.95)))]


def _fish(g: Grid) -> list[Layer]:
    return [("main", g.polygon([(.35, 0), (.97, -.6), (.97, .6)])), ("main", g.ellipse(-.2, 0, .76, .52)), ("dark", g.polygon(
            [(-.2, -.48), (.25, -.85), (.3, -.4)])), ("light", g.ellipse(-.58, -.12, .14)), ("dark", g.ellipse(-.6, -.12, .07)),
            ("light", g.line(-.1, -.3, -.1, .3, .07)), ("light", g.line(.12, -.28, .12, .28, .07))]


def _star(g: Grid) -> list[Layer]:
    return [("main", g.polygon(_star_points(5, .98, .42, 0, .06)))]


def _heart(g: Grid) -> list[Layer]:
    x, y = g.x / .84, -(g.y - .06) / .84
    return [("main", (x * x + y * y - .62) ** 3 - 1.1 * x * x * y ** 3 <= 0), ("light", g.ellipse(-.4, -.36, .13))]


def _car(g: Grid) -> list[Layer]:
    return [("main", g.polygon([(-.5, -.5), (.38, -.5), (.66, 0), (-.72, 0)])), ("main", g.rect(-.96, -.02, .96, .46)),
            ("light", g.polygon([(-.42, -.38), (-.06, -.38), (-.06, -.04), (-.56, -.04)])),
            ("light", g.polygon([(.06, -.38), (.32, -.38), (.5, -.04), (.06, -.04)])),
            *(("dark", g.ellipse(s * .55, .46, .28)) for s in (-1, 1)), *(("light", g.ellipse(s * .55, .46, .11)) for s in (-1, 1))]


def _key(g: Grid) -> list[Layer]:
    return [("main", g.ring(-.5, 0, .46, .22)), ("main", g.rect(-.1, -.1, .95, .12)), ("main", g.rect(.5, 0, .62, .42)), ("main", g.rect(.78, 0, .92, .5))]


def _cup(g: Grid) -> list[Layer]:
    return [("main", g.ring(.5, .2, .42, .24)), ("main", g.polygon([(-.75, -.35), (.55, -.35), (.42, .8), (-.62, .8)])),
            ("dark", g.ellipse(-.1, -.35, .65, .13)),
            ("light", g.line(-.3, -.92, -.2, -.6, .09)), ("light", g.line(.08, -.92, .18, -.6, .09))]


def _umbrella(g: Grid) -> list[Layer]:
    dome = g.ellipse(0, .08, .96, .92) & (g.y < .08)
    for cx in (-.64, 0., .64):
        dome = dome & ~g.ellipse(cx, .1, .32, .17)
    return [("dark", g.rect(-.05, -.95, .05, .7)), ("main", dome), ("dark", g.ring(.17, .7, .22, .12) & (g.y > .68)),
            ("light", g.line(-.3, -.1, -.12, -.75, .05)), ("light", g.line(.3, -.1, .12, -.75, .05))]


def _bird(g: Grid) -> list[Layer]:
    return [("main", g.polygon([(-.4, .1), (-.98, -.3), (-.9, .25)])), ("main", g.ellipse(-.05, .2, .6, .46)), ("main", g.ellipse(.48, -.28, .32)),
            ("light", g.polygon([(.72, -.42), (.99, -.2), (.72, -.12)])), ("dark", g.ellipse(.54, -.36, .08)), ("dark", g.ellipse(-.2, .12, .36, .2)),
            ("dark", g.line(-.1, .6, -.1, .95, .07)), ("dark", g.line(.15, .6, .15, .95, .07))]


def _flower(g: Grid) -> list[Layer]:
    petals = [("main", g.ellipse(.4 * math.sin(a), -.32 - .4 * math.cos(a), .27)) for a in (k * math.pi / 3 for k in range(6))]
    return [("dark", g.rect(-.06, 0, .06, .96)), ("dark", g.ellipse(.3, .6, .27, .13)), ("dark", g.ellipse(-.3, .74, .27, .13)),
            *petals, ("light", g.ellipse(0, -.32, .22))]


def _moon(g: Grid) -> list[Layer]:
    return [("main", g.ellipse(-.05, 0, .92) & ~g.ellipse(.42, -.12, .76))]


def _crown(g: Grid) -> list[Layer]:
    return [("main", g.polygon([(-.85, .7), (-.95, -.55), (-.45, .05), (0, -.85), (.45, .05), (.95, -.55), (.85, .7)])), ("dark", g.rect(-.85, .45, .85, .72)),
            *(("light", g.ellipse(x, .58, .1)) for x in (-.5, 0, .5)), *(("light", g.ellipse(x, y, .12)) for x, y in ((-.93, -.6), (0, -.86), (.93, -.6)))]


def _balloon(g: Grid) -> list[Layer]:
    return [("main", g.ellipse(0, -.3, .68, .66)), ("light", g.ellipse(0, -.3, .22, .66)), ("dark", g.line(-.42, .22, -.17, .7, .05)),
            ("dark", g.line(.42, .22, .17, .7, .05)), ("dark", g.rect(-.22, .68, .22, .96))]


def _castle(g: Grid) -> list[Layer]:
    teeth = [("main", g.rect(x, -.3, x + .2, 0)) for x in (-.4, -.1, .2)]
    towers = [("main", g.rect(s * .72 - .22, -.6, s * .72 + .22, .9)) for s in (-1, 1)] + [
        ("dark", g.polygon([(s * .72 - .28, -.55), (s * .72 + .28, -.55), (s * .72, -.98)])) for s in (-1, 1)]
    return [("main", g.rect(-.6, -.1, .6, .9)), *teeth, *towers, ("dark", g.rect(-.2, .45, .2, .9)), ("dark", g.ellipse(0, .45, .2)),
            *(("light", g.rect(s * .72 - .08, -.2, s * .72 + .08, .1)) for s in (-1, 1))]


def _butterfly(g: Grid) -> list[Layer]:
    wings = [("main", g.ellipse(s * .5, -.35, .45, .5)) for s in (-1, 1)] + [("main", g.ellipse(s * .42, .45, .36, .42)) for s in (-1, 1)]
    return [*wings, *(("light", g.ellipse(s * .55, -.38, .18)) for s in (-1, 1)), *(("light", g.ellipse(s * .45, .48, .13)) for s in (-1, 1)),
            ("dark", g.ellipse(0, .05, .1, .72)), ("dark", g.line(0, -.6, -.25, -.97, .05)), ("dark", g.line(0, -.6, .25, -.97, .05))]


def _apple(g: Grid) -> list[Layer]:
    return [("main", g.ellipse(-.3, .2, .58, .7)), ("main", g.ellipse(.3, .2, .58, .7)), ("dark", g.line(0, -.35, .12, -.92, .12)),
            ("light", g.ellipse(.4, -.72, .28, .14)), ("light", g.ellipse(-.46, -.04, .12, .2))]


def _lamp(g: Grid) -> list[Layer]:
    return [("main", g.polygon([(-.42, -.9), (.42, -.9), (.85, .1), (-.85, .1)])), ("dark", g.rect(-.07, .1, .07, .8)), ("dark", g.ellipse(0, .86, .5, .11)),
            ("light", g.rect(-.72, -.02, .72, .1))]


def _anchor(g: Grid) -> list[Layer]:
    return [("main", g.ring(0, -.7, .25, .12)), ("main", g.rect(-.1, -.5, .1, .85)), ("main", g.rect(-.5, -.35, .5, -.17)),
            ("main", g.ring(0, .1, .84, .64) & (g.y > .3)), *(("main", g.polygon([(s * .95, .1), (s * .98, .58), (s * .5, .4)])) for s in (-1, 1))]


def _snowman(g: Grid) -> list[Layer]:
    return [("main", g.ellipse(0, .5, .56, .46)), ("main", g.ellipse(0, -.2, .42, .38)), ("dark", g.rect(-.46, -.62, .46, -.5)),
            ("dark", g.rect(-.28, -.98, .28, -.55)),
            *(("dark", g.ellipse(s * .15, -.26, .07)) for s in (-1, 1)), ("light", g.polygon([(0, -.14), (.42, -.06), (0, 0)])),
            *(("dark", g.ellipse(0, y, .07)) for y in (.32, .6))]


def _bell(g: Grid) -> list[Layer]:
    body = (g.ellipse(0, -.15, .6, .72) & (g.y < .1)) | g.polygon([(-.6, -.1), (.6, -.1), (.88, .6), (-.88, .6)])
    return [("dark", g.ellipse(0, .72, .2)), ("dark", g.ellipse(0, -.85, .13)), ("main", body), ("light", g.rect(-.82, .38, .82, .5))]


def _cactus(g: Grid) -> list[Layer]:
    arms = [g.rect(-.74, -.3, -.46, .18), g.rect(-.74, .0, 0, .24), g.rect(.46, -.5, .74, .02), g.rect(0, -.16, .74, .08),
            g.ellipse(-.6, -.3, .14), g.ellipse(.6, -.5, .14), g.ellipse(0, -.68, .25), g.rect(-.25, -.68, .25, .6)]
    return [*(("main", a) for a in arms), ("dark", g.polygon([(-.5, .55), (.5, .55), (.36, .96), (-.36, .96)])),
            *(("light", g.line(x, -.5, x, .45, .05)) for x in (-.08, .1))]


def _ghost(g: Grid) -> list[Layer]:
    body = g.ellipse(0, -.25, .7, .7) | g.rect(-.7, -.25, .7, .9)
    for cx in (-.47, 0., .47):
        body = body & ~g.polygon([(cx - .17, .95), (cx + .17, .95), (cx, .6)])
    return [("main", body), *(("dark", g.ellipse(s * .26, -.28, .13, .19)) for s in (-1, 1)), ("dark", g.ellipse(0, .18, .14, .17))]


def _robot(g: Grid) -> list[Layer]:
    return [("dark", g.rect(-.05, -.98, .05, -.7)), ("main", g.rect(-.5, -.75, .5, -.08)), ("main", g.rect(-.62, 0, .62, .72)),
            ("dark", g.rect(-.42, .72, -.12, .96)),
            ("dark", g.rect(.12, .72, .42, .96)), *(("light", g.ellipse(s * .23, -.45, .15)) for s in (-1, 1)), ("dark", g.rect(-.28, -.22, .28, -.14)),
            ("light", g.rect(-.35, .18, .35, .5)), *(("dark", g.rect(s * .8 - .12, .05, s * .8 + .12, .55)) for s in (-1, 1))]


def _hat(g: Grid) -> list[Layer]:
    return [("main", g.ellipse(0, .55, .97, .24)), ("main", g.polygon([(-.5, -.8), (.5, -.8), (.56, .5), (-.56, .5)])), ("dark", g.rect(-.55, .1, .55, .38))]


_DRAWINGS: dict[str, Callable[[Grid], list[Layer]]] = {
    name[1:]: draw for name, draw in list(globals().items())
    if name.startswith("_") and callable(draw) and getattr(draw, "__annotations__", {}).get("g") == "Grid"}

SUBJECTS: tuple[str, ...] = tuple(sorted(_DRAWINGS))


@lru_cache(maxsize=1)
def stamps() -> Tensor:
    """All drawings as anti-aliased coverages, float32 (subjects, sizes, 4, STAMP, STAMP) in [0, 1]; channels main, dark, light, outline.

    The four channels sum to the drawing's opacity. The outline is a rim about one pixel wide, so that a subject stays readable
    on a background of its own colour.
    """
    out = torch.zeros(len(SUBJECTS), len(SIZES), 4, STAMP, STAMP)
    for i, subject in enumerate(SUBJECTS):
        for j, side in enumerate(SIZES.values()):
            grid = Grid(side)
            ink = torch.zeros(3, *grid.x.shape)
            for name, mask in _DRAWINGS[subject](grid):
                ink[:, mask] = 0
                ink[("main", "dark", "light").index(name), mask] = 1
            shape = ink.sum(0, keepdim=True)
            reach = 2 * _SUPERSAMPLE + 1  # a rim of one pixel on the outside
            padded = torch.nn.functional.pad(shape[None], (_SUPERSAMPLE * 2,) * 4)
            rim = torch.nn.functional.max_pool2d(padded, reach, 1, reach // 2)[0] - torch.nn.functional.pad(shape, (_SUPERSAMPLE * 2,) * 4)
            full = torch.cat([torch.nn.functional.pad(ink, (_SUPERSAMPLE * 2,) * 4), rim])
            small = torch.nn.functional.avg_pool2d(full[None], _SUPERSAMPLE)[0]
            start = (STAMP - side) // 2 - 2
            out[i, j, :, start:start + side + 4, start:start + side + 4] = small
    return out
