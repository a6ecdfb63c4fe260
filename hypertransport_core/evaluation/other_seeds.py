"""Runs of the results command with another seed, so on other scenes and noise: do the conclusions of the page hold there?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import FileError
from .results import COMPARED
from .stored import read_numbers

Flat = Mapping[str, Any]
MEASURES = ("concept", "subject", "colour", "joint", "place", "error")
WEIGHTS = "hypernetwork.checksum"
SAME = (WEIGHTS, "hypernetwork.training", "hypernetwork.sites", "counts.heldout")


def read(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The numbers of runs of the results command. Raises FileError."""
    return [read_numbers(file, ("command", "concepts", "seconds", "counts.seed")) for file in files]


def added(flat: Flat, runs: Sequence[Flat], kept: Sequence[str]) -> dict[str, Any]:
    """Of each run, under `again.SEED.KEY`: its command, concept named by each method and the strength chosen for it,
    verdicts with their differences, and what `kept` names, with intervals. Of all: `again.compared` verdicts that the page
    and a run both have, `again.same` of them, `again.reversed` from a win to a loss or back, `again.differ`,
    {"METHOD.MEASURE": verdicts, the page's first} of those that are not the same. {} without runs.

    Raises FileError for a seed that is there already and for another hypernetwork.
    """
    found: dict[str, Any] = {}
    seen, same, compared, turned = [flat.get("counts.seed")], 0, 0, 0
    differ: dict[str, list[str]] = {}
    for run in runs:
        seed = run["counts.seed"]
        if seed in seen:
            raise FileError(f"Two of these runs have the seed {seed}, expected another in each: measure one again with another "
                            "--seed")
        seen.append(seed)
        for key in SAME:
            unknown = key == WEIGHTS and None in (run.get(key), flat.get(key))  # measured before there was one
            if run.get(key) != flat.get(key) and not unknown:
                raise FileError(f"The run with seed {seed} has {key} = {run.get(key)}, expected the page's {flat.get(key)}: "
                                "only the seed may differ, so measure it again with the same weights and concepts")
        methods = ("ours_text", "ours_image", *COMPARED)
        keys = ["command", *kept, *(f"heldout.{m}.concept" for m in methods), *(f"best.{m}.strength" for m in methods)]
        for method in COMPARED:
            for measure in MEASURES:
                key = f"versus.{method}.{measure}"
                keys += [key, f"{key}.verdict"]
                mine, other = flat.get(f"{key}.verdict"), run.get(f"{key}.verdict")
                if mine and other:
                    compared += 1
                    same += mine == other
                    turned += {mine, other} == {"wins", "loses"}
                    if mine != other:
                        differ.setdefault(f"{method}.{measure}", [mine]).append(other)
            keys.append(f"versus.{method}.concepts")
        for key in keys:
            if run.get(key) is not None:
                found[f"again.{seed}.{key}"] = run[key]
                if f"interval.{key}" in run:
                    found[f"interval.again.{seed}.{key}"] = run[f"interval.{key}"]
    counts = {"again.compared": compared, "again.same": same, "again.reversed": turned, "again.differ": differ}
    return {**found, **counts} if runs else {}


def of(flat: Flat) -> list[dict[str, Any]]:
    """The runs with other seeds on a page, as far as it has them: what `added` took from each."""
    runs = []
    for seed in seeds(flat):
        run = {"counts.seed": seed, **{key: flat.get(key) for key in SAME}}
        for sign in ("", "interval."):
            start = f"{sign}again.{seed}."
            run |= {sign + key.removeprefix(start): value for key, value in flat.items() if key.startswith(start)}
        runs.append(run)
    return runs


def seeds(flat: Flat) -> list[int]:
    """The other seeds on a page, smallest first."""
    parts = {key.split(".")[1] for key in flat if key.startswith("again.")}
    return sorted(int(part) for part in parts if part.isdigit())


def without(flat: Flat) -> dict[str, Any]:
    """All else of a page."""
    return {key: value for key, value in flat.items() if not key.startswith(("again.", "interval.again."))}
