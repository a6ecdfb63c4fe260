"""Who works on what of a shared folder: a locked file per piece of work, gone when the work is done.

The kernel holds the locks, so those of a killed process are free at once and no clock is asked. Where two processes hold
the same claim after all (a file system without locks), work is done twice, with the same result.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .progress import log

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked, so one launch at a time
    fcntl = None  # type: ignore[assignment]

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def _claim_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.claim")


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Claim the work on a file, without waiting, for as long as the block runs; False when another process has it.

    What is to be done must be looked at inside the block: the process that had the claim before may have done it.
    Raises OSError when the folder cannot be written.
    """
    if fcntl is None:
        yield True
        return
    claim = _claim_of(path)
    claim.parent.mkdir(parents=True, exist_ok=True)
    with open(claim, "ab") as file:
        if not (_locked(file.fileno(), claim.parent) and _still_there(file.fileno(), claim)):
            yield False
            return
        try:
            yield True
        finally:
            claim.unlink(missing_ok=True)


def clear_claims(folder: Path) -> None:
    """Remove the claims in a folder that a killed process left when its work was done."""
    for claim in folder.glob(_claim_of(Path("*")).name):
        with claimed(claim.with_name(claim.name.removeprefix(".").removesuffix(".claim"))):
            pass


def _still_there(number: int, claim: Path) -> bool:
    """Whether an open file is still the one of that name: who had it may have removed it before the lock was ours."""
    try:
        return os.path.samestat(os.fstat(number), claim.stat())
    except FileNotFoundError:
        return False


def _locked(number: int, folder: Path) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        _warn(folder, error.strerror)
    return True


@cache  # once
def _warn(folder: Path, reason: str) -> None:
    log.warning(
        "The file system of %s knows no locks (%s), so only the processes of one launch can share the work in it.",
        folder,
        reason,
    )
