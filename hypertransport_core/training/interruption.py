"""Ctrl-C as a request: the work at hand is finished and saved first. A second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """Work was asked to stop and has saved what it had; the message says how to go on."""


class Interruption:
    """Context manager; `requested` becomes True at the first SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def stop_if_requested(self, message: str) -> None:
        """Raise Interrupted with `message` when a stop was asked for."""
        if self.requested:
            raise Interrupted(message)
