"""Training states as one safetensors file: nested dicts, lists, numbers and tensors, written whole or not at all.

Loading one runs no code, so a checkpoint that someone else made can be opened.
"""
from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file as _write
from torch import Tensor

_KEY = "hypertransport_checkpoint"


class CheckpointError(ValueError):
    """A file that is no whole checkpoint; the message is one sentence with the cure."""


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().contiguous().cpu()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": [[k, _flatten(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_flatten(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    return {"value": value}


def _restore(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    (kind, content), = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _restore(v, tensors) for k, v in content}
    return [_restore(v, tensors) for v in content] if kind == "list" else content


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write `state` (dicts, lists, tuples, JSON values and tensors, nested) to `path` atomically.

    Raises OSError when the disk is full or the folder cannot be written; whatever stood at `path` is then still whole.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, "", tensors)
    seen: dict[int, str] = {}
    for key, value in tensors.items():  # safetensors refuses tensors that share memory
        if value.numel() and seen.setdefault(value.data_ptr(), key) != key:
            tensors[key] = value.clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # One entry only: safetensors writes several in any order, and equal states shall be equal files.
        _write(tensors, str(partial), metadata={_KEY: json.dumps({"crc32": _checksum(tensors), "tree": tree})})
        with open(partial, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `save_checkpoint` was given (tuples come back as lists). Raises CheckpointError for any other or a damaged
    file.
    """
    try:
        with safe_open(str(path), "pt") as f:
            saved = json.loads((f.metadata() or {})[_KEY])
            tensors = {k: f.get_tensor(k) for k in f.keys()}
        if "crc32" not in saved:  # as files were written at first
            return _restore(saved, tensors)
        if saved["crc32"] != _checksum(tensors):
            raise ValueError("its checksum differs")
        return _restore(saved["tree"], tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint of this trainer ({type(error).__name__}): choose an older one of the "
            "run, or start again"
        ) from error


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """A checksum over the bytes of all tensors: the format itself does not notice a flipped bit."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def latest(folder: str | Path, pattern: str = "step-*.safetensors") -> Path | None:
    """The newest checkpoint by name, or None."""
    return max(Path(folder).glob(pattern), default=None)


def rotate(folder: str | Path, keep: int, pattern: str = "step-*.safetensors") -> None:
    """Delete all but the newest `keep` checkpoints."""
    for old in sorted(Path(folder).glob(pattern))[:-keep]:
        old.unlink(missing_ok=True)


