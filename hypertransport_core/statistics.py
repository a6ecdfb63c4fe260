"""Target statistics: sorted block means of pooled activations per concept and sampling step, in a folder of small
files.

One safetensors file per concept, written whole or not at all as soon as its concept is done, so a killed collection
goes on where it stopped. Every file carries the key of the store (network, sites, pooling, noise levels, seeds, blocks)
and the hash of its prompts; nothing is read under another key. See `wasserstein` for why block means are all that the
loss needs.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .files import FileError, load_file, read_header, save_file, sites_from_header, sites_to_header
from .measuring import levels_of, pooled_samples, prompt_per_seed
from .sites import Site
from .wasserstein import block_means, coarsen

KIND = "statistics"
SOURCE = "generic"
DTYPES = {"float16": torch.float16, "float32": torch.float32}


class StatisticsError(ValueError):
    """A store that does not fit or cannot be read; the message is one sentence naming both sides and the cure."""


def store_key(backbone: Any, sites: Sequence[Site], steps: int, blocks: int, pooling: str, seeds: Sequence[int],
              dtype: str = "float16") -> dict[str, Any]:
    """What all files of a store must agree on, JSON-able."""
    key = {"family": backbone.family, "fingerprint": backbone.fingerprint(), "sites": sites_to_header(sites),
           "pooling": pooling, "levels": levels_of(backbone, steps), "seeds": [int(seed) for seed in seeds],
           "blocks": int(blocks), "dtype": dtype}
    return json.loads(json.dumps(key))  # as it comes back from a file, so both compare


def collect(backbone: Any, concepts: Mapping[str, Sequence[str]], seeds: Sequence[int], sites: Sequence[Site],
            steps: int, blocks: int, pooling: str, directory: str | Path,
            progress: Callable[[int, int, str], None] | None = None, *,
            source: str = SOURCE, batch: int = 8, dtype: str = "float16") -> TargetStatistics:
    """Run the untouched backbone on the prompts of every concept and store the statistics; what is there is skipped.

    concepts: name -> prompts, among them the generic class `source`. seeds: one per sample, the same for all concepts;
    prompts repeat in order up to that number. Content-matched prompts (the same scenes "in concept c") need nothing
    else.
    steps: sampling steps, all of which are measured; blocks: must divide the number of seeds; batch: samples per call.
    progress(done, total, name) after every concept, and once before the first; what it raises stops the collection, and
    whatever is finished stays. Killed or stopped, the same call goes on and ends with the same numbers.
    Raises StatisticsError when the folder holds another store or other prompts, FileError when it cannot be written.
    """
    if source not in concepts:
        raise StatisticsError(f"The concepts have no '{source}' among {len(concepts)} names, but its mean and spread "
                              "are the source "
                              f"of all maps; add generic prompts under the name '{source}'.")
    if dtype not in DTYPES:
        raise StatisticsError(f"The dtype is '{dtype}'; choose {' or '.join(DTYPES)}.")
    if blocks < 1 or len(seeds) % blocks:
        raise StatisticsError(f"{len(seeds)} samples cannot be averaged in {blocks} equal blocks; choose a number "
                              "that divides "
                              f"{len(seeds)}.")
    directory, key = Path(directory), store_key(backbone, sites, steps, blocks, pooling, seeds, dtype)
    texts = {name: prompt_per_seed(prompts, seeds, f"'{name}'") for name, prompts in concepts.items()}
    found = _scan(directory)
    for name, header in found.items():
        _check_key(directory, header["key"], key)
        if name in texts and header["prompts"] != _hash(texts[name]):
            raise StatisticsError(f"{directory} holds '{name}' for prompts {header['prompts'][:8]}, but this run has "
                                  "prompts "
                                  f"{_hash(texts[name])[:8]}: choose another folder or delete "
                                  f"{_file(directory, name).name}")
    missing = [name for name in sorted(texts, key=lambda name: name != source) if name not in found]
    done = len(texts) - len(missing)
    if progress:
        progress(done, len(texts), "")
    for name in missing:
        samples = pooled_samples(backbone, texts[name], seeds, sites, steps=steps, pooling=pooling, batch=batch,
                                 name=f"'{name}'")
        _write(directory, name, samples, key, texts[name], source)
        done += 1
        if progress:
            progress(done, len(texts), name)
    return TargetStatistics(directory)


class TargetStatistics:
    """A store of statistics, opened for reading. Opening reads headers only; tables are memory-mapped.

    Each file's checksum is compared when it is first used. Raises StatisticsError where the folder holds no store, a
    damaged file, or files of two stores.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._headers = _scan(self.directory)
        if not self._headers:
            raise StatisticsError(f"{self.directory} holds no statistics, expected *.safetensors files written by "
                                  "`collect`: choose "
                                  "the folder of a collection or collect first")
        self.key: dict[str, Any] = next(iter(self._headers.values()))["key"]
        for header in self._headers.values():
            _check_key(self.directory, header["key"], self.key)
        try:
            self.sites = sites_from_header(self.key, self.directory)
        except FileError as error:
            raise StatisticsError(str(error)) from error
        self.levels: list[float] = list(self.key["levels"])
        self.steps, self.n_blocks, self.samples = len(self.levels), int(self.key["blocks"]), len(self.key["seeds"])
        self.pooling: str = self.key["pooling"]
        self.source = next((header["source"] for header in self._headers.values()), SOURCE)
        self._verified: set[str] = set()

    def __repr__(self) -> str:
        return (f"TargetStatistics({len(self)} concepts, {len(self.sites)} sites, {self.steps} steps, {self.n_blocks} "
                "blocks of "
                f"{self.samples} samples)")

    def __len__(self) -> int:
        return len(self._headers)

    def __contains__(self, concept: object) -> bool:
        return concept in self._headers

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of all collected concepts in alphabetical order, the generic class included."""
        return tuple(sorted(self._headers))

    def blocks(self, concept: str, step: int = 0, blocks: int | None = None) -> Tensor:
        """The table of one concept and step, fp32 (blocks, D), ascending; fewer `blocks` than stored are exact
        means."""
        return coarsen(self._read(concept, "blocks", step), blocks or self.n_blocks)

    def batch(self, concepts: Sequence[str], steps: Sequence[int] | None = None, blocks: int | None = None) -> Tensor:
        """Tables of K concepts and S steps (all by default), fp32 (K, S, blocks, D): the targets of
        `transport_loss`."""
        steps = range(self.steps) if steps is None else steps
        return torch.stack([torch.stack([self.blocks(name, step, blocks) for step in steps]) for name in concepts])

    def mean(self, concept: str) -> Tensor:
        """Mean over samples, fp32 (S, D)."""
        return self._read(concept, "mean")

    def std(self, concept: str) -> Tensor:
        """Standard deviation over samples (population), fp32 (S, D)."""
        return self._read(concept, "std")

    @property
    def source_mean(self) -> Tensor:
        """Mean of the generic class, fp32 (S, D)."""
        return self.mean(self.source)

    @property
    def source_std(self) -> Tensor:
        """Standard deviation of the generic class, fp32 (S, D)."""
        return self.std(self.source)

    def check_fits(self, backbone: Any, sites: Sequence[Site] | None = None, pooling: str | None = None) -> None:
        """Raises StatisticsError, naming both sides, unless the store is of this network (and these sites and
        pooling)."""
        wanted = {"family": backbone.family, "fingerprint": json.loads(json.dumps(backbone.fingerprint()))}
        if sites is not None:
            wanted["sites"] = sites_to_header(sites)
        if pooling is not None:
            wanted["pooling"] = pooling
        _check_key(self.directory, self.key, {**self.key, **wanted})

    def _read(self, concept: str, tensor: str, step: int | None = None) -> Tensor:
        if concept not in self._headers:
            raise StatisticsError(f"{self.directory} has no statistics of '{concept}' among its {len(self)} concepts: "
                                  "collect them "
                                  "into this folder")
        if step is not None and not 0 <= step < self.steps:
            raise StatisticsError(f"{self.directory} has no step {step}: choose 0 to {self.steps - 1} or collect with "
                                  "more steps")
        path = _file(self.directory, concept)
        try:
            if concept not in self._verified:
                load_file(path, KIND)
                self._verified.add(concept)
            # Files are never changed in place, only replaced, so a mapping stays valid.
            with safe_open(str(path), framework="pt") as file:
                part = file.get_slice(tensor)
                return (part[step] if step is not None else part[:]).float()
        except (FileError, OSError, RuntimeError) as error:
            raise StatisticsError(f"{error}; or delete {path.name} and collect again") from error


def _write(directory: Path, name: str, samples: Tensor, key: Mapping[str, Any], texts: Sequence[str],
           source: str) -> None:
    """One concept's file from its samples (S, m, D)."""
    table = block_means(samples, key["blocks"])
    if key["dtype"] == "float16" and float(table.abs().max()) > 65504:
        raise StatisticsError(f"Activations of '{name}' reach {float(table.abs().max()):.3g}, but float16 ends at "
                              "65504; collect with "
                              "dtype 'float32'.")
    tensors = {"blocks": table.to(DTYPES[key["dtype"]]), "mean": samples.mean(1), "std": samples.std(1, correction=0)}
    header = {"concept": name, "prompts": _hash(texts), "source": source, "key": dict(key)}
    save_file(_file(directory, name), tensors, KIND, header)


def _scan(directory: Path) -> dict[str, dict[str, Any]]:
    """{concept: header} of every statistics file in a folder; a folder that is not there is empty."""
    found = {}
    for path in sorted(directory.glob("concept-*.safetensors")):
        try:
            full, _, table = read_header(path)
        except FileError as error:
            raise StatisticsError(f"{error}; or delete {path.name} and collect again") from error
        header = full.get("header")
        if full.get("kind") != KIND or not isinstance(header, dict) or not _is_sound(header, table, path):
            raise StatisticsError(f"{path} is no statistics file of this version, expected one written by `collect`: "
                                  "delete it and "
                                  "collect again")
        found[header["concept"]] = header
    return found


def _is_sound(header: Mapping[str, Any], table: Mapping[str, Any], path: Path) -> bool:
    """Whether a header has all its parts, names its own file, and agrees with the shapes and the size of the file."""
    try:
        key = header["key"]
        width = sum(int(site[2]) for site in key["sites"]) * (2 if key["pooling"] == "mean_std" else 1)
        steps = len(key["levels"])
        expected = {"blocks": [steps, int(key["blocks"]), width], "mean": [steps, width], "std": [steps, width]}
        # The tensors end where the furthest offset says, counted from the end of the safetensors table.
        with open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        end = start + max(int(entry["data_offsets"][1]) for name, entry in table.items() if name != "__metadata__")
        return (path == _file(path.parent, header["concept"]) and len(key["seeds"]) % int(key["blocks"]) == 0
                and all(isinstance(header[name], str) for name in ("prompts", "source"))
                and {"family", "fingerprint", "dtype"} <= key.keys() and path.stat().st_size == end
                and all(table[name]["shape"] == shape for name, shape in expected.items()))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError):
        return False


def _check_key(directory: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for field, wanted in ours.items():
        if theirs.get(field) != wanted:
            raise StatisticsError(f"{directory} was collected with {_named(field, theirs.get(field))}, but this run "
                                  "has "
                                  f"{_named(field, wanted)}: choose another folder or delete the one there")


def _named(field: str, value: Any) -> str:
    """A field of the key in a few words."""
    if isinstance(value, dict):
        return f"the {field} {_hash(value)[:12]}"
    if isinstance(value, list) and field != "levels":
        return f"{len(value)} {field} ({_hash(value)[:8]})"
    return f"the {field.replace('levels', 'noise levels')} {value}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:32]


def _file(directory: Path, name: str) -> Path:
    # The hash keeps names apart that differ only in what a file name cannot hold.
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return directory / f"concept-{readable}-{_hash(name)[:8]}.safetensors"
