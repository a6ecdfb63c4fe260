"""What memory and disk hold and have left, as far as the system says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .presets import World

GB = 1e9


def disk_room(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(_there(folder)).free


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not be there yet, share a disk."""
    return _there(one).stat().st_dev == _there(other).stat().st_dev


def _there(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def resident_bytes(world: World, device: torch.device) -> tuple[int, int, int]:
    """(base model, encoders, the rest of the process where it shares the device's memory): what is there already."""
    weights = _bytes_of([world.backbone.network], device)
    encoders = _bytes_of([*_modules(world.backbone, 2), *_modules(world.encoder, 2)], device) - weights
    return weights, encoders, max(0, _resident() - weights - encoders) if device.type == "cpu" else 0


def _modules(thing: Any, depth: int) -> Iterator[nn.Module]:
    """Networks that an object holds: itself, its attributes, and theirs down to a depth."""
    if isinstance(thing, nn.Module):
        yield thing
    elif depth and hasattr(thing, "__dict__"):
        for value in vars(thing).values():
            yield from _modules(value, depth - 1)


def _bytes_of(modules: Sequence[nn.Module], device: torch.device) -> int:
    """Bytes of all their parameters and buffers on a device, each counted once."""
    sizes = {}
    for module in modules:
        for value in (*module.parameters(), *module.buffers()):
            if value.device == device:
                sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(sizes.values())


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where nobody says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    fields = _proc("/proc/meminfo")
    return int(fields[fields.index("MemAvailable:") + 1]) * 1024 if "MemAvailable:" in fields else _psutil_available()


def _psutil_available() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _resident() -> int:
    """Bytes of this process in memory, 0 where nobody says."""
    fields = _proc("/proc/self/status")
    return int(fields[fields.index("VmRSS:") + 1]) * 1024 if "VmRSS:" in fields else 0


def _proc(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []
