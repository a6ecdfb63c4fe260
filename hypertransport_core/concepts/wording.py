"""Prompts of a concept: scenes put into its words, the same ones every time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

# {s} the scene, {n} the concept's name, {p} a noun phrase for a picture of its kind, {t} a phrase that follows a scene,
# {d} and {e} two things one sees in such a picture.
STYLE_PATTERNS = (
    "{p} of {s}",
    "{s}, {t}",
    "{p} of {s}, {d}",
    "{s}, {t}, {d}",
    "{s}, {n}, {d}",
    "{n}, {s}",
    "{p} of {s}, {d} and {e}",
    "{s}, {p} with {d}",
    "{s}, {d}, {t}",
    "{s}, {t}, {d} and {e}",
    "{s}, {d}, {e}, {n}",
    "{n}, {s}, {d}",
    "{p} with {d}, showing {s}",
    "{s}. {p} with {d}.",
)
PLACE_PATTERNS = (
    "{s} {t}",
    "{t}, {s}",
    "{s} {t}, {d}",
    "{s}, {t}",
    "{t}, {s}, {d}",
    "{s} {t}, {d} and {e}",
    "{n}, {s}",
    "{s}, {n}, {d}",
    "{s}, {t}, {d}, {e}",
    "{n}, {s}, {d} and {e}",
    "{t}, {s}, {d} and {e}",
    "{s} {t}. {d} and {e}.",
    "{s}, {d}, {t}",
)
ARTIST_PATTERNS = (
    "{p} of {s} by {n}",
    "{s}, {t}",
    "{s} in the style of {n}",
    "{s}, {p} by {n}",
    "{s}, {t}, {d}",
    "{p} of {s} in the style of {n}",
    "{s} in the style of {n}, {d}",
    "{n}, {s}, {d}",
    "{s}, {d}, by {n}",
    "{s}, {n} style",
    "{p} of {s} by {n}, {d} and {e}",
    "{s}, {p} in the manner of {n}, {d}",
    "{s}. {p} by {n}, {d}.",
    "{p} by {n} showing {s}, {d}",
)
# "a picture in jewel tones of a cat" is hard to read: after such a noun phrase stands "showing".
_LONG_PICTURE = re.compile(
    r" (?:of|in|on|with|from|by|for|as|at|glowing|graded|tinted|entirely|nearly|dithered|split|streaked|shaded|worked) "
)
_PLACED_SCENE = re.compile(r" (?:in|on|at|by|under|above|below|beside|behind|into|onto|over|through|to|of|at) ")
_SMALL_WORDS = frozenset(
    "with from that over into onto under after before their your this each only like as than them".split()
)
_TRIES = 4
_Choice = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class ConceptWords:
    """One concept's own words.

    name: as it stands in the middle of a sentence; pictures: noun phrases P of "P of a cat"; phrases: T of "a cat, T";
    details: noun phrases, two at least; scenes: scenes that belong to it; died: year of an artist's death, 0 = no artist.
    """

    name: str
    category: str
    pictures: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    scenes: tuple[str, ...] = ()
    died: int = 0

    @property
    def patterns(self) -> tuple[str, ...]:
        """The sentence patterns that fit: artists, kinds of pictures, places."""
        return ARTIST_PATTERNS if self.died else STYLE_PATTERNS if self.pictures else PLACE_PATTERNS

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other words for the concept; an artist's kinds of pictures are none."""
        return self.phrases if self.died else (*self.phrases, *self.pictures)


def number_of(*parts: object) -> int:
    """A number that depends on the parts only: the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:6], "big")


def in_words(scenes: Sequence[str], words: ConceptWords) -> tuple[str, ...]:
    """One prompt per scene, in its order: the scene in the concept's words, no prompt twice.

    Patterns take turns, so that neighbors differ; of the first few wordings the one that repeats fewest words is taken.
    """
    patterns = sorted(words.patterns, key=lambda pattern: number_of(words.name, pattern))
    choices = list(product(words.pictures or ("",), words.phrases, permutations(words.details, 2)))
    out: dict[str, None] = {}
    for i, scene in enumerate(scenes):
        number = number_of(words.name, scene)
        best, least = "", 0
        for turn in range(len(patterns) * len(choices)):
            pattern, choice = (
                patterns[(i + turn // _TRIES) % len(patterns)],
                choices[(number + 5 * turn) % len(choices)],
            )
            text = _wording(pattern, scene, words.name, choice, capital=number % 3 == 0)
            clumsy = clumsiness(text)
            if text not in out and (not best or clumsy < least):
                best, least = text, clumsy
            if best and (least == 0 or turn >= 2 * _TRIES):
                break
        if not best:
            raise ValueError(
                f"The scene '{scene}' comes too often to be worded anew in '{words.name}': give more scenes."
            )
        out[best] = None
    return tuple(out)


def _wording(pattern: str, scene: str, name: str, choice: _Choice, capital: bool) -> str:
    picture, phrase, (detail, other) = choice
    if "{p} of" in pattern and _LONG_PICTURE.search(f" {picture} "):
        pattern = pattern.replace("{p} of", "{p} showing")
    if pattern.startswith("{s} {t}") and _PLACED_SCENE.search(scene):
        pattern = pattern.replace("{s} {t}", "{s}, {t}")
    if " and " in detail + other:
        pattern = pattern.replace("{d} and {e}", "{d}, {e}")
    text = pattern.format(s=scene, n=name, p=picture, t=phrase, d=detail, e=other)
    if pattern.endswith("."):
        return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
    return text[:1].upper() + text[1:] if capital else text


def clumsiness(text: str) -> int:
    """How many content words, and how many "with"s, come again in a text."""
    said = [word.rstrip("s") for word in re.findall(r"[^\W\d_]+", text.lower())]
    said = [word for word in said if (len(word) > 3 and word not in _SMALL_WORDS) or word == "with"]
    return len(said) - len(set(said))
