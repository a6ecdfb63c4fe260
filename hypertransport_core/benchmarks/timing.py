"""Timing several things in turns, so that a change of the machine's speed hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil

import torch

SHORTEST = 0.02  # seconds that one measurement lasts at least, by doing a quick thing several times
Seconds = dict[str, list[float]]


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device | str = "cpu",
    shortest: float = SHORTEST,
) -> Seconds:
    """Seconds of every case, one entry per round; a round runs all cases once, every second one in the reverse order.

    A call before the first round warms up and says how often a case is run in a measurement to last `shortest` seconds;
    0 leaves both out, for what takes long anyway.
    """
    counts = {name: 1 for name in cases}
    if shortest:
        for name, case in cases.items():
            counts[name] = max(1, ceil(shortest / max(_seconds(case, 2, device), 1e-6)))
    found: Seconds = {name: [] for name in cases}
    for number in range(repeats):
        names = list(cases)
        for name in names if number % 2 == 0 else names[::-1]:
            found[name].append(_seconds(cases[name], counts[name], device))
    return found


def _seconds(case: Callable[[], object], count: int, device: torch.device | str) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(count):
        case()
    _wait(device)
    return (time.perf_counter() - started) / count


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotients round by round."""
    return [a / b for a, b in zip(above, below)]


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """{name.median, name.min, name.max}; nothing for no values."""
    if not values:
        return {}
    return {f"{name}.median": statistics.median(values), f"{name}.min": min(values), f"{name}.max": max(values)}
