"""Ctrl-C as a request: the work at hand is finished and saved first. A second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from .distribution import Group


class Interrupted(Exception):
    """Work was asked to stop and has saved what it had; the message says how to go on."""


class Interruption:
    """Context manager; `requested` becomes True at the first SIGINT or SIGTERM. What one process of the group is asked
    goes for all.
    """

    def __init__(self, group: Group | None = None) -> None:
        self.requested, self.group = False, group or Group()
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

    def asked(self) -> bool:
        """Whether a stop was asked for in any process of the group; all have to ask at the same place."""
        return self.group.any(self.requested)

    def stop_if_requested(self, message: str) -> None:
        """Raise Interrupted with `message`, in all processes of the group, when a stop was asked for."""
        if self.asked():
            self.stop(message)

    def stop(self, message: str) -> None:
        """Raise Interrupted with `message`; all processes have to do so."""
        self.group.ends()
        raise Interrupted(message)
