"""The concept sets that come with the package: 776 style-like concepts in ten categories, and the generic scenes."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

from .lists import Concept, ConceptError
from .wording import ConceptWords, in_words, number_of

CATEGORIES: dict[str, int] = {
    "Environmental Settings": 124,
    "Art Techniques": 100,
    "Historical Periods": 99,
    "Color Treatments": 80,
    "Photography & Cinema": 80,
    "Fantasy Genres": 77,
    "Illustration Styles": 64,
    "Individual Artists": 61,
    "Artistic Movements": 47,
    "Digital Methods": 44,
}
"""Categories and their numbers of concepts: the shape of HyperTransport's Table 4 (arXiv 2605.08254)."""

PROMPTS_PER_CLASS = 32
BUILTIN: dict[str, str] = {"styles-777": "matched", "styles-777-free": "free"}
"""Names that stand for a shipped list where a file of concepts is expected, and their style of prompts: matched, the generic
scenes in the concept, or free, scenes of the concept's own."""

FOLDER = Path(__file__).resolve().parent / "styles777"
SEPARATOR = "|"
_COLORS = frozenset("red yellow white gray blue green black orange pink purple golden colorful".split())
_POOLS = {
    "Environmental Settings": ("free_anywhere", "free_timeless"),
    "Historical Periods": ("free_timeless",),
    "Fantasy Genres": ("free_timeless",),
}


@lru_cache(maxsize=1)
def concept_words() -> tuple[ConceptWords, ...]:
    """All 776 concepts of the shipped set, by category."""
    return tuple(words for category in CATEGORIES for words in _category(category))


def generic_scenes(count: int | None = None) -> tuple[str, ...]:
    """The generic class: plain scenes without any concept, the first `count`. Raises ConceptError if there are fewer."""
    return _first(_lines("generic_scenes"), count, "generic scenes")


def builtin_concepts(name: str = "styles-777", count: int = PROMPTS_PER_CLASS) -> tuple[Concept, ...]:
    """The shipped concepts with `count` prompts each.

    In "styles-777" prompt i is generic scene i in the concept; in "styles-777-free" every concept has scenes of its
    own.
    Raises ConceptError.
    """
    if name not in BUILTIN:
        raise ConceptError(
            f"The concept set is '{name}', expected one of {', '.join(BUILTIN)}: choose one or give a file."
        )
    return tuple(
        Concept(words.name, words.category, prompts(words, BUILTIN[name], count), words.aliases)
        for words in concept_words()
    )


def prompts(words: ConceptWords, style: str = "matched", count: int = PROMPTS_PER_CLASS) -> tuple[str, ...]:
    """`count` different prompts of one concept. Raises ConceptError when there are too few scenes."""
    scenes = (
        generic_scenes(count) if style == "matched" else _first(_own_scenes(words), count, f"scenes of '{words.name}'")
    )
    return in_words(scenes, words)


def _own_scenes(words: ConceptWords) -> tuple[str, ...]:
    pool = [scene for name in _POOLS.get(words.category, ("free_scenes",)) for scene in _lines(name)]
    if words.category == "Color Treatments":  # "a red coat, all-blue monochrome" asks for two things at once
        pool = [scene for scene in pool if not _COLORS & set(scene.split())]
    return (*words.scenes, *sorted(pool, key=lambda scene: number_of(words.name, scene)))


def _first(scenes: tuple[str, ...], count: int | None, what: str) -> tuple[str, ...]:
    if count is not None and count > len(scenes):
        raise ConceptError(
            f"There are {len(scenes)} {what}, expected {count}: ask for {len(scenes)} at most or give a list."
        )
    return scenes[:count]


@lru_cache(maxsize=8)
def _lines(name: str) -> tuple[str, ...]:
    return tuple((FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def _category(category: str) -> list[ConceptWords]:
    path = FOLDER / f"{category.lower().replace('&', 'and').replace(' ', '_')}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    out = []
    for row in rows:
        pictures, phrases, details, scenes = (
            tuple(filter(None, row.get(column, "").split(SEPARATOR)))
            for column in ("picture", "phrase", "detail", "scene")
        )
        out.append(ConceptWords(row["name"], category, pictures, phrases, details, scenes, int(row.get("died", 0))))
    return out
