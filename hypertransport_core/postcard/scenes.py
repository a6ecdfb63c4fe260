"""Places with a horizon, as weight maps over six inks: sky high, sky low, far, near, detail, light.

Drawn once, anti-aliased, from closed formulas, like the looks in `structures`.
"""
from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .structures import X, Y, _discs, _pool, _scatter, _wave


def _ridge(base: float, amplitude: float, period: float, shift: float = 0.) -> Tensor:
    return Y > base + _wave(amplitude, period, X + shift)


def _peaks(base: float, height: float, period: float, shift: float = 0.) -> Tensor:
    return Y > base + ((X + shift) % period - period / 2).abs() * (2 * height / period) - height / 2


def _scene_parts(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Far, near, detail, light masks of a place, painted in this order over the sky."""
    none = torch.zeros_like(X, dtype=torch.bool)
    if name == "snowy field":
        return _ridge(38, 3, 64), _ridge(46, 2, 40, 9), _discs(_scatter(14, 61, 9, 48, 64), 1.2), _discs(_scatter(26, 62, 8, 0, 60), 1.3)
    if name == "desert":
        return _ridge(40, 5, 44), _ridge(48, 4, 56, 20), (Y + _wave(1.5, 16, X)) % 6 < 1.4, torch.hypot(X - 52, Y - 11) < 6
    if name == "seaside":
        return Y > 34, Y > 52, (Y > 34) & (Y < 52) & ((Y + _wave(1.2, 10, X)) % 6 < 1.5), none
    if name == "forest":
        trunks = (X % 12 - 6).abs() < 1.2
        return _peaks(20, 16, 12, 3), Y > 52, trunks & (Y > 24) & (Y < 54), none
    if name == "meadow":
        return _ridge(36, 4, 60), _ridge(42, 2, 30), _discs(_scatter(22, 63, 6, 44, 64), 1.5), none
    if name == "mountains":
        return _peaks(32, 34, 42, 10), Y > 54, _peaks(44, 18, 21), _peaks(32, 34, 42, 10) & (Y < 24 + _wave(2, 8, X))
    if name == "city":
        h = torch.tensor([30., 18., 36., 24., 14., 32., 22., 38.])
        tower = Y > h[(X // 8).long()]
        return tower & (X % 8 < 7.2), Y > 56, none, tower & (X % 8 > 1.5) & (X % 8 < 5.5) & (X % 4 < 2.2) & (Y % 6 < 3) & (Y < 55)
    if name == "underwater":
        return _ridge(54, 3, 40), Y > 59, ((X + _wave(2, 14, Y)) % 16 < 2) & (Y > 40), _discs(_scatter(16, 64, 9, 0, 50), 2.2, 1.2)
    raise KeyError(name)


@cache
def scene_inks(name: str) -> Tensor:
    """Shares of (sky high, sky low, far, near, detail, light), float32 (6, 64, 64), summing to 1."""
    far, near, detail, light = _scene_parts(name)
    horizon = 36
    low = (Y / horizon).clamp(0, 1)
    layers = [1 - low, low, *(torch.zeros_like(X) for _ in range(4))]
    order = ((5, light), (2, far), (3, near), (4, detail)) if name == "desert" else ((2, far), (3, near), (4, detail), (5, light))
    for slot, mask in order:
        if name == "desert" and slot == 4:
            mask = mask & (far | near)
        keep = 1 - mask.float()
        layers = [layer * keep for layer in layers]
        layers[slot] = layers[slot] + mask.float()
    return torch.stack([_pool(layer) for layer in layers])
