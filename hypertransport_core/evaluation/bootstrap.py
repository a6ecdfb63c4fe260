"""Confidence intervals by resampling concepts: how far a result would move with other concepts of the same kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch

RESAMPLES = 2000


def interval(
    values: Sequence[float], confidence: float = 0.95, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-concept values: (low, high). Values that are NaN are left out.

    Percentile method (Efron 1979); the same seed gives the same interval. Without values (nan, nan).
    """
    clean = _clean(values)
    if not len(clean):
        return float("nan"), float("nan")
    index = torch.randint(0, len(clean), (resamples, len(clean)), generator=torch.Generator().manual_seed(seed))
    return _between(clean[index].mean(1), confidence)


def paired_interval(
    ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95, *, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean difference ours - theirs over the same concepts; it excludes 0 when one is better beyond
    chance."""
    if len(ours) != len(theirs):
        raise ValueError(f"Got {len(ours)} and {len(theirs)} values to compare; give one of each per concept.")
    return interval([a - b for a, b in zip(ours, theirs)], confidence, seed=seed)


def ratio_interval(
    above: Sequence[float], below: Sequence[float], *, paired: bool, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of mean(above) / mean(below). paired: the same concepts in the same order, resampled together;
    otherwise two groups of concepts, resampled each by itself. (nan, nan) where a group is empty or below is all 0."""
    if paired:
        both = [(a, b) for a, b in zip(above, below) if a == a and b == b]
        above, below = [a for a, _ in both], [b for _, b in both]
    one, other = _clean(above), _clean(below)
    if not len(one) or not len(other) or not bool(other.any()):
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, len(one), (RESAMPLES, len(one)), generator=generator)
    second = first if paired else torch.randint(0, len(other), (RESAMPLES, len(other)), generator=generator)
    below_means = other[second].mean(1)
    return _between(one[first].mean(1)[below_means > 0] / below_means[below_means > 0], confidence)


def _clean(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor([value for value in values if value == value], dtype=torch.float64)


def _between(statistics: torch.Tensor, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = torch.quantile(statistics, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
