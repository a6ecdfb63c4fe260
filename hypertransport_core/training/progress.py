"""What a run tells while it goes: rate and time left, learning curves as CSV, scalars for TensorBoard where it is
installed.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_atomically

log = logging.getLogger("hypertransport.training")

COLUMNS = (
    "step",
    "loss",
    "transport",
    "paired",
    "learning_rate",
    "gradient_norm",
    "validation",
    "validation_transport",
    "validation_paired",
    "validation_image",
    "identity",
    "mean_map",
    "scale_departure",
    "shift_departure",
    "steps_per_second",
)


def duration(seconds: float) -> str:
    """ "2 h 05 min", "7 min", "40 s"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


class Rate:
    """Work per second since the start of this process, and the time left."""

    def __init__(self) -> None:
        self.started, self.done = time.monotonic(), 0

    def count(self, amount: int = 1) -> None:
        """Note work as done."""
        self.done += amount

    def per_second(self) -> float:
        """Units of work per second."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def left(self, remaining: int) -> str:
        """Time for what remains, in words."""
        return duration(remaining / self.per_second()) if self.done else "unknown"


class Curves:
    """`curves.csv`, one line per logged step, complete at any time. Lines after the step that a run resumes from are
    dropped.
    """

    def __init__(self, folder: Path, resumed_at: int = 0, tensorboard: bool = True) -> None:
        self.path = folder / "curves.csv"
        kept = []
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                kept = [
                    row
                    for row in csv.DictReader(file)
                    if (row.get("step") or "").isdigit() and int(row["step"]) <= resumed_at
                ]
        write_atomically(self.path, lambda temporary: self._write(temporary, kept))
        self._board = _board(folder / "tensorboard", resumed_at) if tensorboard else None

    @staticmethod
    def _write(path: Path, rows: list[dict[str, Any]]) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One line; columns not given stay empty."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(
                {"step": step, **{name: f"{value:.6g}" for name, value in values.items()}}
            )
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Any) -> None:
        """A picture (3, H, W) in [0, 1] for TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step)

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def _board(folder: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception:  # not installed, or broken in one of many ways: curves.csv has all of it
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)
