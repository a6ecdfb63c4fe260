"""Collecting by several processes: those of one launch, each its share, and any others that work on the same folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..concepts import Concept
from .claims import claimed, clear_claims
from .distribution import Group

if TYPE_CHECKING:
    from .data import DataFolder

PAUSE = 0.5  # seconds between looks at what another launch is working on


def collect_together(
    data: DataFolder, concepts: Sequence[Concept], report: Callable[[int, int, str], None], group: Group
) -> None:
    """See `DataFolder.collect`. Processes of a launch go from concept to concept in step, so all stop together."""
    while group.any(not data.source_path.is_file()):
        with group.together():
            if group.main:
                _source(data)
        with group.together():
            if data.source_path.is_file():
                data.adopt()
    missing = _missing(data, concepts, group)
    done, of, mine = 0, len(missing), missing[group.share(len(missing))]
    report(0, of, "")
    while done < of:
        found: list[Concept] = []
        with group.together():
            found = _next(data, mine)
        done += round(group.total([len(found)])[0])
        report(done, of, found[-1].name if found else "another")
    with group.together():
        if group.main:
            clear_claims(data.folder)
            clear_claims(data.folder / "concepts")


def _missing(data: DataFolder, concepts: Sequence[Concept], group: Group) -> list[Concept]:
    """The concepts not collected yet, the same in all processes: each looks at a part of the files."""
    lacks = [0.0] * len(concepts)
    part = group.share(len(concepts))
    with group.together():
        lacks[part] = [float(not data.has(concept)) for concept in concepts[part]]
    return [concept for concept, lack in zip(concepts, group.total(lacks)) if lack]


def _source(data: DataFolder) -> None:
    """Collect the generic class, or wait a moment for whoever does."""
    with claimed(data.source_path) as free:
        if free and not data.source_path.is_file():
            data.collect_source()
    if not free:
        time.sleep(PAUSE)


def _next(data: DataFolder, pending: list[Concept]) -> list[Concept]:
    """Collect one of the pending concepts; those that are there then, also through others, leave the list."""
    there: list[Concept] = []
    for concept in list(pending):
        with claimed(data.path_of(concept)) as free:
            if not free:
                continue
            worked = not data.has(concept)
            if worked:
                data._collect_concept(concept)
            there.append(concept)
            pending.remove(concept)
        if worked:
            return there
    if pending and not there:
        time.sleep(PAUSE)
    return there
