"""Other trainings of the hypernetwork beside the one of the page: seeds, numbers of concepts, site sets, ablations.

Every run is a report of `evaluate` or `results` on the same held-out concepts, named GROUP/NAME; a group becomes a table,
and a curve where its names are numbers, or of seeds a mean and a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import FileError
from .measures import mean
from .stored import read_numbers

Flat = Mapping[str, Any]
KEYS = ("also.", "interval.also.")
COMMAND = "python -m hypertransport_core results --output docs --from docs --also GROUP/NAME=REPORT"  # that puts them there
MEASURES = {
    "ours_text.concept": "concept, words",
    "ours_image.concept": "concept, picture",
    "ours_text.subject": "subject, words",
    "ours_text.colour": "colour, words",
    "ours_text.joint": "all three, words",
}


def added(runs: Sequence[str]) -> dict[str, Any]:
    """Keys `also.GROUP.NAME.MEASURE` with their intervals, and `also.GROUP.NAME.sites`, `.steps` and `.concepts`, from words
    GROUP/NAME=FILE. Raises FileError."""
    flat: dict[str, Any] = {}
    for words in runs:
        label, found, file = words.partition("=")
        group, slash, name = label.partition("/")
        if not (found and slash and group.strip() and name.strip() and file) or "." in label:
            raise FileError(f"'{words}' is no other run, expected GROUP/NAME=FILE without a full stop in GROUP or NAME, such "
                            "as seeds/2=runs/seed2.json: write it so")
        report = read_numbers(Path(file), ("counts.heldout",))
        prefix = f"also.{group.strip()}.{name.strip()}"
        for measure in MEASURES:
            key = f"heldout.{measure}"
            if report.get(key) is not None:
                flat[f"{prefix}.{measure}"] = report[key]
                flat[f"interval.{prefix}.{measure}"] = report.get(f"interval.{key}") or [None, None]
        if not any(key.startswith(prefix) for key in flat):
            raise FileError(f"{file} holds no figures of HyperTransport, expected a report with the method ours_text: "
                            "evaluate it again with that method")
        flat[f"{prefix}.concepts"] = report["counts.heldout"]
        flat[f"{prefix}.sites"] = report.get("hypernetwork.sites")
        flat[f"{prefix}.steps"] = (report.get("hypernetwork.training") or {}).get("step")
    return flat


def of(flat: Flat) -> dict[str, Any]:
    """The keys of other trainings on a page."""
    return {key: value for key, value in flat.items() if key.startswith(KEYS)}


def renewed(flat: Flat, runs: Flat) -> dict[str, Any]:
    """A page with other runs on it, in the place of all that it had of their groups; its other groups stay."""
    gone = tuple(f"{start}{group}." for group in groups(runs) for start in KEYS)
    return {key: value for key, value in flat.items() if not (gone and key.startswith(gone))} | dict(runs)


def groups(flat: Flat) -> dict[str, list[str]]:
    """{group: names of its runs}, groups by name, as a file of numbers has them; names that are numbers by size."""
    found: dict[str, dict[str, None]] = {}
    for key in flat:
        if key.startswith("also."):
            _, group, name = key.split(".")[:3]
            found.setdefault(group, {})[name] = None
    return {group: sorted(names, key=_order) for group, names in sorted(found.items())}


def spread_of(flat: Flat, group: str, measure: str) -> tuple[float, float, float] | None:
    """Mean, smallest and largest of a measure over the runs of a group; None for fewer than two."""
    keys = [f"also.{group}.{name}.{measure}" for name in groups(flat)[group]]
    values = [flat[key] for key in keys if flat.get(key) is not None]
    return (mean(values), min(values), max(values)) if len(values) > 1 else None


def of_seeds(group: str) -> bool:
    """Whether a group's runs differ in the seed alone: it is called seeds, whatever stands behind a comma."""
    return group.partition(",")[0] == "seeds"


def makes_curve(group: str, names: Sequence[str]) -> bool:
    """Whether a group's names are amounts."""
    return not of_seeds(group) and len(names) > 1 and all(name.isdigit() for name in names)


def _order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (10**9, name)
