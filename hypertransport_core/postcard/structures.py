"""The looks a concept can give a postcard, as weight maps over a few inks.

A structure fills the 64 x 64 background with inks: `inks(structure)` is float32 (3, 64, 64), the shares of paper, first and second colour
at every pixel (they sum to 1). Places with a horizon are in `scenes`.
Veils (`VEILS`) are coverages (64, 64) of one more colour laid over everything, the subject included: rain, bars, frames.
All of them are drawn once, anti-aliased, from closed formulas: nothing here depends on a seed that is not written down.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

SIDE = 64  # pixels
_SS = 4
_axis = (torch.arange(SIDE * _SS, dtype=torch.float32) + 0.5) / _SS
Y, X = torch.meshgrid(_axis, _axis, indexing="ij")  # pixel units, 0..64
_R = torch.hypot(X - 32, Y - 32)


def _pool(mask: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(mask.float()[None, None], _SS)[0, 0]


def _scatter(count: int, seed: int, gap: float, low: float = 0, high: float = 64) -> list[tuple[float, float]]:
    """`count` points at least `gap` pixels apart (best of many tries), y between low and high."""
    g = torch.Generator().manual_seed(seed)
    points: list[tuple[float, float]] = []
    for _ in range(4000):
        x, y = torch.rand(2, generator=g).tolist()
        p = (x * 64, low + y * (high - low))
        if all(math.hypot(p[0] - q[0], p[1] - q[1]) >= gap for q in points):
            points.append(p)
            if len(points) == count:
                break
    return points


def _discs(points: list[tuple[float, float]], radius: float, inner: float = 0.0) -> Tensor:
    out = torch.zeros_like(X, dtype=torch.bool)
    for cx, cy in points:
        d = torch.hypot(X - cx, Y - cy)
        out |= (d <= radius) & (d >= inner)
    return out


def _noise_cells(cell: int, seed: int) -> Tensor:
    n = SIDE // cell
    values = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    return values.repeat_interleave(cell * _SS, 0).repeat_interleave(cell * _SS, 1)


def _wave(amplitude: float, period: float, along: Tensor) -> Tensor:
    return amplitude * torch.sin(along * (2 * math.pi / period))


Mask = Tensor
Look = Callable[[], "tuple[Mask, Mask | float]"]  # shares of the first and second colour; second is painted over the first


def _stripes() -> tuple[Mask, Mask | float]:
    return (X + Y) % 16 < 8, 0.


def _dots() -> tuple[Mask, Mask | float]:
    return torch.hypot(X % 16 - 8, Y % 16 - 8) < 5, 0.


def _gingham() -> tuple[Mask, Mask | float]:
    return ((X % 16 < 8).float() + (Y % 16 < 8).float()) / 2, 0.


def _chevrons() -> tuple[Mask, Mask | float]:
    return (Y + (X % 16 - 8).abs()) % 16 < 8, 0.


def _rays() -> tuple[Mask, Mask | float]:
    return torch.atan2(Y - 32, X - 32).mul(8 / math.pi).floor() % 2 == 0, 0.


def _halftone() -> tuple[Mask, Mask | float]:
    return torch.hypot(X % 8 - 4, Y % 8 - 4) < .8 + 4.2 * (Y // 8 * 8 + 4) / 64, 0.


def _scanlines() -> tuple[Mask, Mask | float]:
    return Y % 4 < 2, 0.


def _mesh() -> tuple[Mask, Mask | float]:
    return (X % 8 < 2) | (Y % 8 < 2), 0.


def _dither() -> tuple[Mask, Mask | float]:
    checker = (X // 4 + Y // 4) % 2 == 0
    return (checker & (Y > 16)) | ((X // 8 + Y // 8) % 2 == 0) & (Y > 40) | (Y > 56), 0.


def _glitch() -> tuple[Mask, Mask | float]:
    row, cell = (Y // 4).long(), (X // 4).long()
    g = torch.Generator().manual_seed(5)
    left, width = torch.randint(-6, 12, (16,), generator=g), torch.randint(3, 10, (16,), generator=g)
    return (cell >= left[row]) & (cell < left[row] + width[row]) & (row % 3 != 1), 0.


def _circuit() -> tuple[Mask, Mask | float]:
    x, y = X % 32, Y % 32
    lines = ((x - 6).abs() < 1) & (y < 20) | ((y - 20).abs() < 1) & (x > 5) & (x < 26) | ((x - 26).abs() < 1) & (y > 20) | ((y - 8).abs() < 1) & (x > 14)
    return lines | (torch.hypot(x - 14, y - 8) < 3) | (torch.hypot(x - 26, y - 20) < 3), 0.


def _crosshatch() -> tuple[Mask, Mask | float]:
    return ((X + Y) % 8 < 1.8) | ((X - Y) % 8 < 1.8), 0.


def _stipple() -> tuple[Mask, Mask | float]:
    return _discs(_scatter(150, 3, 4.2), 1.35), 0.


def _mosaic() -> tuple[Mask, Mask | float]:
    tile = (X % 8 > 1) & (Y % 8 > 1)
    return tile * (.35 + .65 * _noise_cells(8, 7)), 0.


def _brush() -> tuple[Mask, Mask | float]:
    u, v = (X + Y) / 2, (X - Y) / 2
    lane = (v // 3)
    return ((u + lane * 7.3) % 15 < 10) & (v % 3 < 2.2), 0.


def _crossstitch() -> tuple[Mask, Mask | float]:
    x, y = X % 8 - 4, Y % 8 - 4
    return (((x - y).abs() < 1.5) | ((x + y).abs() < 1.5)) & (x.abs() < 3.2) & (y.abs() < 3.2), 0.


def _woodcut() -> tuple[Mask, Mask | float]:
    return (Y + _wave(2.5, 32, X)) % 8 < 3 + 2 * torch.sin(X / 64 * math.pi), 0.


def _rings() -> tuple[Mask, Mask | float]:
    return _R % 12 < 6, 0.


def _de_stijl() -> tuple[Mask, Mask | float]:
    lines = ((X - 18).abs() < 1.6) | ((Y - 44).abs() < 1.6) | ((Y - 16).abs() < 1.6) & (X > 18) | ((X - 50).abs() < 1.6) & (Y > 16)
    return (X < 17) & (Y > 45) | (X > 51) & (Y > 17) & (Y < 43) | (X > 19) & (X < 49) & (Y < 15), lines


def _deco_fans() -> tuple[Mask, Mask | float]:
    out = torch.zeros_like(X)
    for row in range(-1, 9):
        cx = (X + (8 if row % 2 else 0)) % 16 - 8
        r = torch.hypot(cx, Y - 8 * row - 8)
        scale = (r < 8) & (Y < 8 * row + 8)
        out = torch.where(scale, (((r + 1) % 4) < 2).float(), out)
    return out, 0.


def _bauhaus() -> tuple[Mask, Mask | float]:
    x, y = X % 16, Y % 16
    kind = ((X // 16) * 3 + (Y // 16) * 5) % 4
    quarter = [torch.hypot(x - cx, y - cy) < 15 for cx, cy in ((0, 0), (16, 0), (16, 16), (0, 16))]
    out = torch.zeros_like(X, dtype=torch.bool)
    for k, q in enumerate(quarter):
        out |= (kind == k) & q
    return out, 0.


def _suprematist() -> tuple[Mask, Mask | float]:
    u, v = (X + .5 * Y) / 1.12, (Y - .5 * X) / 1.12
    bars = (v > -14) & (v < -8) & (u > 12) & (u < 62) | (v > 26) & (v < 36) & (u > 10) & (u < 34) | (v > 12) & (v < 15) & (u > 38)
    return bars | (torch.hypot(X - 54, Y - 52) < 8), 0.


def _pop() -> tuple[Mask, Mask | float]:
    return ((X < 32) ^ (Y < 32)), 0.


def _vignette() -> tuple[Mask, Mask | float]:
    return ((_R - 20) / 18).clamp(0, 1), 0.


def _bokeh() -> tuple[Mask, Mask | float]:
    big, small = _discs(_scatter(9, 11, 15), 7), _discs(_scatter(12, 12, 10), 3.5)
    return (.55 * big.float() + .45 * small.float()).clamp(0, 1), 0.


def _spotlight() -> tuple[Mask, Mask | float]:
    cone = (X - 32).abs() < 6 + Y * .42
    return (~cone).float(), 0.


def _light_leak() -> tuple[Mask, Mask | float]:
    return ((26 - X + _wave(5, 48, Y)) / 26).clamp(0, 1) + ((X - 54) / 14).clamp(0, 1), 0.


def _double_exposure() -> tuple[Mask, Mask | float]:
    return ((Y - 38 + _wave(9, 40, X)) > 0).float() * .6 + ((Y - 24 + _wave(7, 56, X + 20)) > 0).float() * .4, 0.


def _film_strip() -> tuple[Mask, Mask | float]:
    band = (X < 10) | (X > 54)
    holes = ((Y % 8) > 2) & ((Y % 8) < 6) & (((X - 5).abs() < 2.5) | ((X - 59).abs() < 2.5))
    return band & ~holes, 0.


def _edge() -> Tensor:
    return torch.minimum(torch.minimum(X, 64 - X), torch.minimum(Y, 64 - Y))


def _meander() -> tuple[Mask, Mask | float]:
    d = _edge()
    key = ((X // 4 + Y // 4) % 2 == 0) & (d < 8)
    return key | ((d > 9) & (d < 11)), 0.


def _egyptian() -> tuple[Mask, Mask | float]:
    band = torch.minimum(Y, 64 - Y)
    return (band < 14) & (band < (X % 16 - 8).abs() * 1.75) | (band > 15) & (band < 17), 0.


def _sixties() -> tuple[Mask, Mask | float]:
    return (X + _wave(5, 32, Y)) % 16 < 8, 0.


def _aztec() -> tuple[Mask, Mask | float]:
    step = ((X % 32 - 16).abs() // 4) * 4
    return ((Y % 32) < step + 4) & ((Y % 32) > step - 8), 0.


def _victorian() -> tuple[Mask, Mask | float]:
    d = _edge()
    scallop = torch.minimum(torch.hypot(X % 8 - 4, d - 8), torch.hypot(Y % 8 - 4, d - 8)) < 4
    return (d < 7) | scallop & (d < 12), 0.


def _baroque() -> tuple[Mask, Mask | float]:
    x, y = (X % 16 - 8).abs(), Y % 16 - 8
    alt = ((X // 16 + Y // 16) % 2) * 2 - 1
    leaf = (x / 6.5) ** 2 + ((y * alt + 1) / 7.5) ** 2 < 1
    return leaf & ~((x - 3).square() / 6 + ((y * alt + 2) / 3.5) ** 2 < 1), 0.


def _aurora() -> tuple[Mask, Mask | float]:
    curtain = (torch.sin((X + _wave(6, 40, Y)) / 3.5) * .5 + .5) * ((44 - Y) / 34).clamp(0, 1)
    return curtain, (1 - curtain) * .85


def _fairy_dust() -> tuple[Mask, Mask | float]:
    out = torch.zeros_like(X, dtype=torch.bool)
    for k, (cx, cy) in enumerate(_scatter(20, 21, 10)):
        s = 7.5 if k % 2 == 0 else 5.0
        out |= (X - cx).abs().sqrt() + (Y - cy).abs().sqrt() < s ** .5
    return out, 0.


def _bubbles() -> tuple[Mask, Mask | float]:
    return _discs(_scatter(10, 31, 14), 6.5, 5) | _discs(_scatter(14, 32, 8), 2.6, 1.2), 0.


def _crystals() -> tuple[Mask, Mask | float]:
    up = Y % 16 / 16
    left = (X + (Y // 16 % 2) * 8) % 16
    facet = (left - 8).abs() < 8 * up
    return torch.where(facet, torch.where(left < 8, 1., .6), torch.where(left < 8, .3, .1)), 0.


def _flames() -> tuple[Mask, Mask | float]:
    tongue = 34 + 12 * ((X % 16 - 8).abs() / 8) ** .7 + _wave(6, 43, X)
    inner = tongue + 13
    return Y > tongue, (Y > inner).float() * .8


def _portal() -> tuple[Mask, Mask | float]:
    return torch.exp(-((_R - 24) / 5) ** 2), 0.


def _wash() -> tuple[Mask, Mask | float]:
    return torch.full_like(X, .8) - .25 * torch.exp(-(_R / 22) ** 2), 0.


def _ramp() -> tuple[Mask, Mask | float]:
    return 1 - Y / 64, Y / 64


def _side_ramp() -> tuple[Mask, Mask | float]:
    return (X < 32).float(), (X >= 32).float()


def _grid_paper() -> tuple[Mask, Mask | float]:
    return torch.ones_like(X), ((X % 8 < 1) | (Y % 8 < 1)).float() * .7


def _bands() -> tuple[Mask, Mask | float]:
    return Y % 32 < 16, (Y % 32 >= 16)


def _leaves() -> tuple[Mask, Mask | float]:
    out, other = torch.zeros_like(X, dtype=torch.bool), torch.zeros_like(X, dtype=torch.bool)
    for k, (cx, cy) in enumerate(_scatter(24, 41, 9.5)):
        a = k * 2.4
        u, v = (X - cx) * math.cos(a) + (Y - cy) * math.sin(a), (Y - cy) * math.cos(a) - (X - cx) * math.sin(a)
        leaf = (u / 5) ** 2 + (v / 2.4) ** 2 < 1
        (out if k % 2 else other).logical_or_(leaf)
    return out, other


def _newsprint() -> tuple[Mask, Mask | float]:
    columns = (X % 20 > 3)
    return ((Y % 4 < 1.6) & columns & (Y > 14)) | ((Y > 4) & (Y < 10) & (X > 6) & (X < 58)), 0.


def _confetti() -> tuple[Mask, Mask | float]:
    return _discs(_scatter(26, 51, 7), 2.4), _discs(_scatter(26, 52, 7), 2.4)


def _marble() -> tuple[Mask, Mask | float]:
    v = torch.sin((X + 2 * Y + _wave(10, 36, X - Y) + _wave(6, 22, Y)) / 8)
    return torch.exp(-(v / .22) ** 2), 0.


LOOKS: dict[str, Look] = {name[1:]: fn for name, fn in list(globals().items())
                          if name.startswith("_") and getattr(fn, "__annotations__", {}).get("return") == "tuple[Mask, Mask | float]"}


@cache
def inks(structure: str) -> Tensor:
    """Shares of (paper, first colour, second colour), float32 (3, 64, 64), summing to 1."""
    first, second = (m.float() if isinstance(m, Tensor) else torch.full_like(X, m) for m in LOOKS[structure]())
    first = first.clamp(0, 1) * (1 - second) if structure not in ("aurora", "ramp") else first
    first, second = _pool(first), _pool(second)
    return torch.stack([(1 - first - second).clamp(min=0), first, second])


# --- veils ------------------------------------------------------------------------------------------------------------

@cache
def veil(name: str) -> Tensor:
    """Coverage float32 (64, 64) in [0, 1] of the veil's colour."""
    if name == "none":
        return torch.zeros(SIDE, SIDE)
    if name == "rain":
        return _pool(((X + Y * .5) % 8 < 1.3) & ((Y + (X // 8) * 5) % 16 < 9)) * .85
    if name == "fog":
        return _pool((.35 + .5 * torch.sin(Y / 64 * math.pi) + _wave(.08, 24, Y)).clamp(0, 1)) * .8
    if name == "stars":
        return _pool(_discs(_scatter(22, 71, 7, 0, 30), .9))
    if name == "letterbox":
        return _pool((Y < 10) | (Y > 54))
    if name == "frame":
        return _pool((X < 5) | (X > 59) | (Y < 5) | (Y > 52))
    if name == "snowfall":
        return _pool(_discs(_scatter(34, 72, 7), 1.4)) * .95
    if name == "grain":
        speck = torch.rand(SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(73)) > .6
        return speck.float().repeat_interleave(2, 0).repeat_interleave(2, 1) * .4
    if name == "tint":
        return torch.full((SIDE, SIDE), .35)
    raise KeyError(name)


VEILS = ("none", "rain", "fog", "stars", "letterbox", "frame", "snowfall", "grain", "tint")
