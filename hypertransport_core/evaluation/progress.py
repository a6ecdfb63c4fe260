"""How far an evaluation is."""

from __future__ import annotations

import sys
import time


class Progress:
    """Share done and time left on stderr: on one line of a terminal, else a line now and then."""

    def __init__(self, total: float, quiet: bool = False) -> None:
        self.total, self.done, self.quiet = max(total, 1.0), 0.0, quiet
        self.started = self.told = time.monotonic()

    def __call__(self, amount: float, text: str) -> None:
        from ..training.progress import duration

        self.done += amount
        now, live = time.monotonic(), sys.stderr.isatty()
        if self.quiet or now - self.told < (0.5 if live else 10.0):
            return
        self.told = now
        share = min(self.done / self.total, 0.999)
        left = duration((now - self.started) * (1 / share - 1)) if share > 0.001 else "some time"
        line = f"{share:4.0%}  {left} left  {text}"
        _tell(f"\r{line[:110]:<110}" if live else f"{line}\n")

    def more(self, amount: float) -> None:
        """There is so much more work than the total says."""
        self.total += amount

    def finish(self) -> None:
        """End the line of a terminal."""
        if not self.quiet and sys.stderr.isatty():
            _tell(f"\r{'':<110}\r")


def _tell(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
