"""What things cost: prediction, fitting, steering, collecting and training, as ratios within one run."""

from __future__ import annotations

from .runner import BenchSettings, bench

__all__ = ["BenchSettings", "bench"]
