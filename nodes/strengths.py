"""Strengths that are more than one number: written as text, over the pictures of a batch and over the schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from ..hypertransport_core.steering import SteeringError

_HALVINGS = 16  # of the schedule when a noise level is looked up in it; 2 ** -16 of it is far less than a step


def numbers(text: str, what: str = "strengths") -> tuple[float, ...]:
    """Numbers between commas, semicolons or spaces. Raises SteeringError naming the first that is no finite number."""
    values = []
    for word in re.split(r"[,;\s]+", text.strip().strip(",;")):
        try:
            values.append(float(word))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise SteeringError(
                f"'{word}' in the {what} '{text}' is no number, expected numbers separated by commas, such as 0, 0.5, 1."
            )
    return tuple(values)


class Curve:
    """A factor over a part of the schedule: values spread evenly from `start` to `end`, straight lines in between.

    start, end: of the schedule, 0 = pure noise, 1 = finished. One value is the same everywhere.
    """

    def __init__(self, values: Sequence[float], start: float = 0.0, end: float = 1.0) -> None:
        self.values, self.start, self.end = tuple(values), start, end

    def __repr__(self) -> str:
        return f"Curve({', '.join(f'{value:g}' for value in self.values)})"

    @property
    def constant(self) -> float | None:
        """The factor where it is the same everywhere, else None."""
        return self.values[0] if len(set(self.values)) == 1 else None

    def at(self, percent: float) -> float:
        """The factor at a place of the schedule in [0, 1]; before the start and after the end that of the ends."""
        if self.constant is not None:
            return self.constant
        share = (percent - self.start) / (self.end - self.start) if self.end > self.start else 0.0
        place = min(max(share, 0.0), 1.0) * (len(self.values) - 1)
        before = min(int(place), len(self.values) - 2)
        low, high = self.values[before : before + 2]
        return low + (high - low) * (place - before)


def percent_of(sigma: float, model_sampling: Any) -> float:
    """Where in the schedule a noise level lies: 0 = pure noise, 1 = finished. The inverse of `percent_to_sigma`."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(model_sampling.percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    return low if low == 0.0 else high
