"""Reading, checking and splitting concept lists: JSON, TOML or CSV files of {name, category, prompts, phrases}."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .lines import csv_lines, json_lines, toml_lines

PARTS = ("train", "validation", "heldout")
FIELDS = ("name", "category", "prompts", "phrases", "part")
# Several texts in one cell of a CSV file.
CSV_SEPARATOR = "|"


class ConceptError(ValueError):
    """A concept list that cannot be used; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Concept:
    """One concept.

    name: the words that are embedded; category: for stratified splits and tables; prompts: pictures of the concept in
    words,
    empty = the generic scenes with the name appended; phrases: other words for it; part: "train", "validation",
    "heldout"
    or "" = by the split.
    """

    name: str
    category: str = "general"
    prompts: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    part: str = ""


@dataclass(frozen=True)
class ConceptSplit:
    """Concepts to train on, to choose settings with, and to keep from training and choosing altogether."""

    train: tuple[Concept, ...]
    validation: tuple[Concept, ...] = ()
    heldout: tuple[Concept, ...] = ()

    def __post_init__(self) -> None:
        validated([*self.train, *self.validation, *self.heldout], "the concept split")
        if not self.train:
            raise ConceptError(
                "The concept split has 0 training concepts, expected at least 1: hold out fewer or add concepts."
            )

    @property
    def everything(self) -> tuple[Concept, ...]:
        """All concepts, training ones first."""
        return (*self.train, *self.validation, *self.heldout)

    def with_training(self, count: int) -> ConceptSplit:
        """The same with `count` training concepts that take turns over the categories, 0 = all. Raises ConceptError."""
        if count > len(self.train):
            raise ConceptError(
                f"training_concepts is {count}, expected at most the {len(self.train)} concepts there are to train on: "
                "lower it, or 0 for all."
            )
        return replace(self, train=tuple(spread(self.train, count))) if count else self

    def fingerprint(self) -> str:
        """A hash of all names, parts and prompts."""
        facts = [[part, c.name, c.category, list(c.prompts)] for part in PARTS for c in getattr(self, part)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def spread(concepts: Sequence[Concept], count: int) -> list[Concept]:
    """`count` concepts (0 = all) that take turns over the categories."""
    groups: dict[str, list[Concept]] = {}
    for concept in concepts:
        groups.setdefault(concept.category, []).append(concept)
    turns = [
        group[i]
        for i in range(max(map(len, groups.values()), default=0))
        for group in groups.values()
        if i < len(group)
    ]
    return turns[:count] if count else turns


def validated(concepts: Iterable[Concept], where: str, lines: Sequence[int] = ()) -> tuple[Concept, ...]:
    """The concepts as a tuple. Raises ConceptError for an empty list, an empty or doubled name, an empty prompt, an
    unknown part. lines: the line of each in its file, for the messages.
    """
    concepts = tuple(concepts)

    def at(number: int) -> str:
        return f" (line {lines[number - 1]})" if number <= len(lines) else ""

    seen: dict[str, int] = {}
    if not concepts:
        raise ConceptError(f"{where} holds 0 concepts, expected at least 1: add entries with a name.")
    for number, concept in enumerate(concepts, 1):
        key = " ".join(concept.name.lower().split())
        if not key:
            raise ConceptError(
                f"Entry {number} of {where}{at(number)} has an empty name, expected words that describe a concept: name "
                "it or remove it."
            )
        if key in seen:
            both = f" (lines {lines[seen[key] - 1]} and {lines[number - 1]})" if number <= len(lines) else ""
            raise ConceptError(
                f"{where} lists the concept '{concept.name}' twice, entries {seen[key]} and {number}{both}, expected "
                "every concept once: remove one or merge their prompts."
            )
        seen[key] = number
        for kind in ("prompts", "phrases"):
            if any(not text.strip() for text in getattr(concept, kind)):
                raise ConceptError(
                    f"The concept '{concept.name}' of {where}{at(number)} has an empty text among its {kind}, expected "
                    "words: fill it in or remove it."
                )
        if concept.part not in ("", *PARTS):
            raise ConceptError(
                f"The concept '{concept.name}' of {where}{at(number)} has the part '{concept.part}', expected one of "
                f"{', '.join(PARTS)}: correct or remove it."
            )
    return concepts


def load_concepts(path: str | Path) -> tuple[Concept, ...]:
    """Read a concept list by its ending.

    .json: a list of names or objects, or {"concepts": [...]}; .toml: [[concepts]] tables; .csv: a header line with
    `name` and
    any of category, prompts, phrases, part, several texts in a cell separated by "|". Raises ConceptError.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise ConceptError(
            f"The concept list {path} cannot be read ({reason}), expected a .json, .toml or .csv file: check the path."
        ) from error
    readers = {".json": _from_json, ".toml": _from_toml, ".csv": _from_csv}
    finders = {".json": json_lines, ".toml": toml_lines, ".csv": csv_lines}
    if path.suffix.lower() not in readers:
        raise ConceptError(
            f"The concept list {path} ends with '{path.suffix}', expected .json, .toml or .csv: rename or convert it."
        )
    try:
        entries = readers[path.suffix.lower()](text)
    except (ValueError, csv.Error) as error:
        if isinstance(error, ConceptError):
            raise
        raise ConceptError(
            f"The concept list {path} is not proper {path.suffix[1:].upper()} ({str(error).rstrip('.')}), expected a "
            "list of concepts: correct it there."
        ) from error
    if not isinstance(entries, list):
        raise ConceptError(
            f"The concept list {path} holds a {type(entries).__name__} named or unnamed, expected a list of "
            "concepts: put them in a list called 'concepts'."
        )
    lines = finders[path.suffix.lower()](text)
    places = [f"{path} (line {lines[i]})" if len(lines) == len(entries) else str(path) for i in range(len(entries))]
    concepts = [_concept(entry, i, place) for i, (entry, place) in enumerate(zip(entries, places), 1)]
    return validated(concepts, str(path), lines if len(lines) == len(entries) else ())


def _from_json(text: str) -> Any:
    content = json.loads(text)
    return content.get("concepts") if isinstance(content, dict) else content


def _from_toml(text: str) -> Any:
    from ..toml_files import parse

    return parse(text).get("concepts")


def _from_csv(text: str) -> Any:
    rows = csv.DictReader(io.StringIO(text), strict=True)
    out = []
    for row in rows:
        if None in row or None in row.values():
            raise ConceptError(
                f"Line {rows.line_num} of the concept list has another number of cells than its header, expected "
                f"{len(rows.fieldnames or [])}: quote texts that hold commas."
            )
        entry: dict[str, Any] = {
            key.strip(): value.strip() for key, value in row.items() if value.strip() or key.strip() == "name"
        }
        for key in ("prompts", "phrases"):
            if key in entry:
                entry[key] = [part.strip() for part in entry[key].split(CSV_SEPARATOR)]
        out.append(entry)
    return out


def _concept(entry: Any, number: int, path: str) -> Concept:
    if isinstance(entry, str):
        return Concept(entry.strip())
    if not isinstance(entry, Mapping):
        raise ConceptError(
            f"Entry {number} of {path} is a {type(entry).__name__}, expected a name or a table with a name: correct it."
        )
    unknown = sorted(set(entry) - set(FIELDS))
    if unknown:
        raise ConceptError(
            f"Entry {number} of {path} has the unknown key '{unknown[0]}', expected only {', '.join(FIELDS)}: rename "
            "or remove it."
        )
    for key in ("name", "category", "part"):
        if not isinstance(entry.get(key, ""), str):
            raise ConceptError(
                f"Entry {number} of {path} has the {key} {entry[key]!r}, expected a text: put it in quotes."
            )
    for key in ("prompts", "phrases"):
        value = entry.get(key)
        if value is not None and (not isinstance(value, list) or not all(isinstance(text, str) for text in value)):
            raise ConceptError(
                f"Entry {number} of {path} has {key} that are no list of texts, expected a list: put them in brackets."
            )
        if key == "prompts" and value is not None and not value:
            raise ConceptError(
                f"The concept '{entry.get('name', '')}' of {path} has 0 prompts, expected at least 1: add prompts, "
                "or leave 'prompts' out to use the generic scenes."
            )
    return Concept(
        entry.get("name", "").strip(),
        entry.get("category", "").strip() or "general",
        tuple(entry.get("prompts") or ()),
        tuple(entry.get("phrases") or ()),
        entry.get("part", ""),
    )


def split_concepts(concepts: Iterable[Concept], fraction: float = 0.21, validation: float = 0.10) -> ConceptSplit:
    """Stratified split: `fraction` of every category, rounded up, is held out (HyperTransport, arXiv 2605.08254, App.
    A), then
    `validation` of the rest, rounded up, chooses settings; a category of one concept is trained on.

    The order inside a category is that of a hash of the name, so adding a concept moves no other. Concepts that name
    their
    part stay there. Raises ConceptError.
    """
    parts: dict[str, list[Concept]] = {part: [] for part in PARTS}
    groups: dict[str, list[Concept]] = {}
    for concept in validated(concepts, "the concept list"):
        if concept.part:
            parts[concept.part].append(concept)
        else:
            groups.setdefault(concept.category, []).append(concept)
    for _, group in sorted(groups.items()):
        group = sorted(group, key=lambda c: hashlib.sha256(c.name.encode()).hexdigest())
        held = min(math.ceil(fraction * len(group)), len(group) - 1)
        chosen = min(held + math.ceil(validation * (len(group) - held)), len(group) - 1)
        parts["heldout"] += group[:held]
        parts["validation"] += group[held:chosen]
        parts["train"] += group[chosen:]
    return ConceptSplit(*(tuple(parts[part]) for part in PARTS))
