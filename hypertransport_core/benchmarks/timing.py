"""Timing several things in turns, so that a change of the machine's speed hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch

SHORTEST = 0.02  # seconds that one measurement lasts at least, by doing a quick thing several times
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Clock:
    """Seconds as they pass once the device is done, or processor time of this process, to which other programs' work
    adds little; that of several threads adds up.
    """

    device: torch.device = torch.device("cpu")
    processor: bool = False

    def now(self) -> float:
        """Seconds since some moment."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.processor else time.perf_counter()

    def seconds(self, case: Callable[[], object], count: int = 1) -> float:
        """How long a case takes, from `count` times in a row."""
        started = self.now()
        for _ in range(count):
            case()
        return (self.now() - started) / count


def interleaved(
    cases: Mapping[str, Callable[[], object]], repeats: int, clock: Clock, shortest: float = SHORTEST
) -> Seconds:
    """Seconds of every case, one entry per round; a round runs all cases once, every second one in the reverse order.

    A call before the first round warms up and says how often a case is run in a measurement to last `shortest` seconds;
    0 leaves both out, for what takes long anyway.
    """
    counts = {name: 1 for name in cases}
    if shortest:
        for name, case in cases.items():
            counts[name] = max(1, ceil(shortest / max(clock.seconds(case, 2), 1e-6)))
    found: Seconds = {name: [] for name in cases}
    for number in range(repeats):
        names = list(cases)
        for name in names if number % 2 == 0 else names[::-1]:
            found[name].append(clock.seconds(cases[name], counts[name]))
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotients round by round."""
    return [a / b for a, b in zip(above, below)]


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """{name.median, name.min, name.max}; nothing for no values."""
    if not values:
        return {}
    return {f"{name}.median": statistics.median(values), f"{name}.min": min(values), f"{name}.max": max(values)}
