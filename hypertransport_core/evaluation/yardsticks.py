"""Measurements of the other methods, kept between runs. Nothing in them depends on the hypernetwork, so a run with new
weights measures its own part only, and fits that take minutes each add up from run to run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import FileError, content_checksum, load_file, save_file, write_atomically

NUMBERS, PICTURES = "yardsticks.json", "yardsticks.safetensors"
KIND = "yardsticks_pictures"
FORMAT = 1  # of the files and of what the numbers mean: raise it when a measure or a fit changes
# Ours, and those that read embeddings or maps of the hypernetwork's file: measured anew in every run.
OWN = ("ours_text", "ours_image", "ours_images_4", "mean_map", "ridge")
# The only ones that the sheets show a picture of, at the strength chosen.
PICTURED = ("prompting", "image_adapter", "linear_act", "lineas_50", "lineas_1000")
SAVE_EVERY = 60.0  # seconds
# What facts that are digests stand for: the digests themselves would tell a reader nothing.
DIGESTS = {
    "base": "another base model",
    "sites": "another site set",
    "judge": "another judge",
    "judge_2": "another second judge",
    "clip_2": "another second CLIP",
    "scenes": "other scenes",
    "fits": "other settings of the fits",
}


@dataclass(frozen=True)
class Measured:
    """What is kept of a method's pictures of one concept. scores: by measure, NaN where there is none; merits: by judge,
    float32 (n,), one number per picture; picture: one of them, (3, H, W) in [0, 1]; images: how many were made."""

    scores: dict[str, float]
    merits: dict[str, Tensor] = field(default_factory=dict)
    picture: Tensor | None = None
    images: int = 0


class Yardsticks:
    """Measurements in a folder, or nowhere. taken, made: how many this run took over from there, and made itself, of the
    methods that are kept."""

    def __init__(self, folder: Path | None = None, facts: Mapping[str, Any] | None = None) -> None:
        """facts: JSON-able, all that the measurements depend on beside method, concept and strength. Raises FileError for
        a folder that was measured otherwise, and for files that cannot be read."""
        self.folder, self.facts = folder, json.loads(json.dumps({"format": FORMAT, **(facts or {})}))
        self.taken = self.made = 0
        self._kept: dict[str, Measured] = {}
        self._saved = time.monotonic()
        if folder is not None and folder.exists() and not folder.is_dir():
            raise FileError(f"--yardsticks is the file {folder}, expected a folder such as docs/results/yardsticks: name one")
        if folder is not None and (folder / NUMBERS).is_file():
            self._read(folder)

    def recall(
        self, method: str, name: str, what: str, make: Callable[[], Measured], *, pictured: bool = False
    ) -> tuple[Measured, bool]:
        """What is known of a method on a concept, and whether it was known before; else what `make` gives, which is
        kept. what: the part of the measurement, with all of its settings that are not among the facts; pictured: what
        is known without a picture will not do."""
        if method in OWN or self.folder is None:
            return make(), False
        key = "|".join((method, name, what))
        known = key in self._kept and not (pictured and self._kept[key].picture is None)
        if known:
            self.taken += 1
        else:
            made = make()
            self._kept.pop(key, None)  # what was made last is last
            self._kept[key] = made
            self.made += 1
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.save()
        return self._kept[key], known

    def knows(self, method: str, name: str) -> bool:
        """Whether anything is known of a method on a concept."""
        return any(key.startswith(f"{method}|{name}|") for key in self._kept)

    def save(self) -> None:
        """Write what is new, each file whole or not at all. Raises FileError."""
        self._saved = time.monotonic()
        if self.folder is None or not self.made:
            return
        pictures = {key: (one.picture * 255).round().to(torch.uint8) for key, one in self._shown().items()}
        save_file(self.folder / PICTURES, pictures, KIND, {})
        lines = (f"{json.dumps(key)}: {json.dumps(_plain(one), allow_nan=False)}" for key, one in sorted(self._kept.items()))
        facts, text = json.dumps(self.facts, sort_keys=True), ",\n".join(lines)
        whole = f'{{"facts": {facts},\n"measured": {{\n{text}\n}}}}\n'
        write_atomically(self.folder / NUMBERS, lambda temporary: temporary.write_text(whole, encoding="utf-8"))

    def _shown(self) -> dict[str, Any]:
        """The measurements with a picture that a sheet shows: of a method and concept the last one made, which is the one at
        the strength chosen."""
        last: dict[tuple[str, ...], str] = {}
        for key, one in self._kept.items():
            method, name, _ = key.split("|", 2)
            if one.picture is not None and method in PICTURED:
                last[method, name] = key
        return {key: self._kept[key] for key in last.values()}

    def _read(self, folder: Path) -> None:
        path = folder / NUMBERS
        cure = "name another folder by --yardsticks, or leave it out to measure everything"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            theirs, entries = dict(found["facts"]), dict(found["measured"])
            kept = {key: _measured(entry) for key, entry in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{path} cannot be read as measurements ({error}), expected a file that results wrote: {cure}") from error
        for key, value in self.facts.items():
            if theirs.get(key) != value:
                other = f"{key} = {theirs.get(key)}, expected {value} as in this run"
                if key in DIGESTS:
                    other = f"{DIGESTS[key]}, expected what this run has"
                raise FileError(f"{path} was measured with {other}: {cure}")
        tensors, _ = load_file(folder / PICTURES, KIND)
        for key, picture in tensors.items():
            if key in kept:
                one = kept[key]
                kept[key] = Measured(one.scores, one.merits, picture.float() / 255, one.images)
        self._kept = kept


def sign(module: nn.Module | None) -> str | None:
    """Sixteen letters that tell a network's weights; None for none."""
    return None if module is None else content_checksum(module.state_dict(), "", {})[:16]


def _plain(one: Measured) -> dict[str, Any]:
    """As JSON; nine digits give a float32 back bit for bit."""
    scores = {name: value if value == value else None for name, value in one.scores.items()}
    merits = {judge: [float(f"{value:.9g}") for value in values.tolist()] for judge, values in one.merits.items()}
    return {"scores": scores, "merits": merits, "images": one.images}


def _measured(entry: Mapping[str, Any]) -> Measured:
    scores = {name: float("nan") if value is None else float(value) for name, value in entry["scores"].items()}
    merits = {judge: torch.tensor(values, dtype=torch.float32) for judge, values in entry["merits"].items()}
    return Measured(scores, merits, None, int(entry["images"]))
