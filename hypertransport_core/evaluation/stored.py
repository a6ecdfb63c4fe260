"""What a run of the results page has measured, kept in a folder: numbers as JSON, and the pictures that its sheets show.

Pages are drawn from such a folder only, so they can be drawn again, in other words or colours, without measuring again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import FileError, load_file, save_file
from .report import write_json

NUMBERS, PICTURES = "results.json", "pictures.safetensors"
KIND = "results_pictures"
Shown = Mapping[tuple[str, str], Tensor]
"""(method or study, concept or pair) -> pictures (k, 3, H, W) uint8."""


@dataclass(frozen=True)
class Stored:
    """Numbers under flat keys; pictures, or None where the folder has none."""

    flat: Mapping[str, Any]
    pictures: Shown | None


def as_bytes(pictures: Sequence[Tensor] | Tensor) -> Tensor:
    """Pictures (3, H, W), floats in [0, 1], as one tensor (k, 3, H, W) uint8."""
    every = torch.stack(list(pictures)).float().cpu()
    return (every.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)


def save(folder: Path, flat: Mapping[str, Any], pictures: Shown) -> None:
    """Write both files, each whole or not at all. Raises FileError."""
    for method, _ in pictures:
        if "|" in method:
            raise ValueError(f"The pictures of '{method}' cannot be stored, as the sign | separates; name it without.")
    save_file(folder / PICTURES, {f"{method}|{name}": shown for (method, name), shown in pictures.items()}, KIND, {})
    write_json(folder / NUMBERS, flat)


def load(folder: Path) -> Stored:
    """What `save` has written; a folder with numbers only gives no pictures. Raises FileError."""
    flat = read_numbers(folder / NUMBERS)
    if not (folder / PICTURES).is_file():
        return Stored(flat, None)
    tensors, _ = load_file(folder / PICTURES, KIND)
    pictures = {}
    for key, shown in tensors.items():
        method, _, name = key.partition("|")
        pictures[method, name] = shown
    return Stored(flat, pictures)


def read_numbers(path: Path, keys: Sequence[str] = ("command", "concepts", "seconds")) -> dict[str, Any]:
    """A report, in which `keys` are needed. Raises FileError."""
    cure = "name a folder that python -m hypertransport_core results has measured into, or a report of evaluate"
    try:
        flat = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read as results ({error}), expected a file that this command wrote: {cure}") from error
    missing = [key for key in keys if not isinstance(flat, dict) or flat.get(key) is None]
    if missing:
        raise FileError(f"{path} holds no results of this command, as it lacks '{missing[0]}': {cure}")
    return flat
