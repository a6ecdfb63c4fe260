"""Checkpoints of a run: saved whole, rotated, found again; a full disk leaves the earlier ones intact."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..checkpoints import load_checkpoint, rotate, save_checkpoint
from .progress import log

PATTERN = "step-*.safetensors"


class TrainingError(ValueError):
    """A run that cannot start or go on; the message is one sentence with the cure."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that no space is left."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(error)


def save_whole(path: Path, state: Mapping[str, Any], what: str) -> None:
    """Write a state whole or not at all. Raises TrainingError, naming `what`, for a full disk too."""
    try:
        save_checkpoint(path, state)
    except (OSError, SafetensorError) as error:
        reason = (
            "the disk is full" if disk_is_full(error) else str(getattr(error, "strerror", None) or error).rstrip(".")
        )
        raise TrainingError(
            f"{what} was not written because {reason}, expected free space in {path.parent}: make room there and "
            "continue with --resume latest, what was saved before is intact."
        ) from error


class States:
    """The folder `checkpoints` of a run."""

    def __init__(self, run: Path, keep: int = 3) -> None:
        self.folder, self.keep = run / "checkpoints", keep

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        names = (path.stem.removeprefix("step-") for path in self.folder.glob(PATTERN))
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step-{step:08d}.safetensors"

    @property
    def best_path(self) -> Path:
        """The weights of the best validation so far."""
        return self.folder / "best.safetensors"

    def save(self, step: int, state: Mapping[str, Any], path: Path | None = None) -> Path:
        """Write a state whole or not at all and rotate. Raises TrainingError, for a full disk too."""
        path = path or self.path(step)
        save_whole(path, state, f"The checkpoint of step {step}")
        rotate(self.folder, self.keep, PATTERN)
        return path

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        for partial in self.folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)

    def load(self, which: str = "latest") -> dict[str, Any]:
        """The state of `latest`, of a step's number or of a file. The latest falls back on an older one when damaged.
        Raises TrainingError.
        """
        if which != "latest":
            path = self.path(int(which)) if which.isdigit() else Path(which)
            if not path.is_file():
                raise TrainingError(
                    f"There is no checkpoint '{which}', expected latest, a file or one of the steps "
                    f"{', '.join(map(str, self.steps())) or '(none yet)'}: choose one."
                )
            return _read(path)
        steps = self.steps()
        for step in reversed(steps):
            try:
                return _read(self.path(step))
            except TrainingError as error:
                log.warning("%s Trying the one before.", error)
        if not steps:
            raise TrainingError(f"{self.folder} holds 0 checkpoints, expected at least one: run the train stage first.")
        raise TrainingError(
            f"None of the {len(steps)} checkpoints in {self.folder} can be read, expected at least one whole file: "
            "train again."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return load_checkpoint(path)
    except ValueError as error:
        raise TrainingError(f"{error}.") from error
