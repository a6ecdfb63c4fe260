"""The archive the Comfy Registry would be sent: what git tracks without what .comfyignore names, by git's rules."""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def why_no_archive() -> str:
    """Why it cannot be made here; "" when it can."""
    if not shutil.which("git"):
        return "git is not installed"
    return "" if (ROOT / ".git").exists() else "this is no clone, so nothing says which files are tracked"


def _git(*arguments: str, given: bytes | None = None) -> bytes:
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments], input=given, capture_output=True
    )
    if done.returncode not in (0, 1):  # 1: check-ignore found nothing
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return done.stdout


@lru_cache(maxsize=1)
def tracked_files() -> tuple[str, ...]:
    """Paths that git tracks and that are there."""
    names = _git("ls-files", "-z").decode().split("\0")
    return tuple(name for name in names if name and (ROOT / name).is_file())


@lru_cache(maxsize=1)
def archived_files() -> tuple[str, ...]:
    """Those that are packed."""
    asked = "\0".join(tracked_files()).encode() + b"\0"
    rules = ["-c", f"core.excludesFile={ROOT / '.comfyignore'}"]
    # source, line, pattern and path of each match, `--verbose`, so that only rules of .comfyignore count
    fields = _git(*rules, "check-ignore", "--no-index", "--verbose", "-z", "--stdin", given=asked).decode().split("\0")
    matches = [fields[i : i + 4] for i in range(0, len(fields) - 3, 4)]
    left_out = {
        path for source, _, rule, path in matches if source.endswith(".comfyignore") and not rule.startswith("!")
    }
    return tuple(name for name in tracked_files() if name not in left_out)


def unpack(place: Path) -> Path:
    """Lay the archive's files out under `place`, as the Manager does."""
    for name in archived_files():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place / name)
    return place
