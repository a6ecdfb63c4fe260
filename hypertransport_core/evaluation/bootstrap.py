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
    clean = torch.tensor([value for value in values if value == value], dtype=torch.float64)
    if not len(clean):
        return float("nan"), float("nan")
    index = torch.randint(0, len(clean), (resamples, len(clean)), generator=torch.Generator().manual_seed(seed))
    means = clean[index].mean(1)
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def paired_interval(
    ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95, *, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean difference ours - theirs over the same concepts; it excludes 0 when one is better beyond
    chance."""
    if len(ours) != len(theirs):
        raise ValueError(f"Got {len(ours)} and {len(theirs)} values to compare; give one of each per concept.")
    return interval([a - b for a, b in zip(ours, theirs)], confidence, seed=seed)
