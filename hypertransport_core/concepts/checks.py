"""Checks of a concept list: shape, duplicates, near-duplicates, leaks, length, grammar, artists, generic scenes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from .lists import Concept
from .tokens import CLIP_TOKENS, token_counter

KINDS = ("shape", "duplicate", "near-duplicate", "leak", "length", "grammar", "artist", "generic")
LAST_DEATH = 1953
"""Artists must have died by then: more than 70 years ago, so that copyright has expired nearly everywhere."""
SAME_PROMPT, SAME_SCENE, SAME_NAME = 0.8, 0.6, 0.8
"""Near-duplicates. Two prompts of one concept, or two generic scenes: shared words ÷ all their words, at least so much. Two
names: the same for runs of three letters."""

# Words that name a kind of picture: a test concept is found in training prompts without them, too.
_KIND_WORDS = frozenset("painting drawing print photography photograph illustration art style".split())
# What a generic scene does not say: how the picture is made, and colors.
STYLE_WORDS = frozenset(
    "painting drawing sketch photo photograph picture image print illustration style render poster cartoon portrait film "
    "monochrome red orange yellow green blue purple violet pink brown black white gray grey gold golden silver colorful "
    "pastel neon".split()
)
_A_NOT_AN = re.compile(r"(?:uni(?!n|m)|us[aeiu]|ut[io]|eu|one\b|once|ukiyo|ura|ewe|u-)", re.IGNORECASE)
_AN_NOT_A = re.compile(r"(?:hour|heir|honest|hono|8\b|8-|8x|8mm|11\b|18\b)", re.IGNORECASE)
_SPELLED = re.compile(r"[AEFHILMNORSX](?:-|[A-Z]{1,3}\b)")


@dataclass(frozen=True)
class Problem:
    """One fault. kind: of KINDS; concept: its name, "" = the generic scenes or the whole list; text: what is wrong."""

    kind: str
    concept: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.concept + ': ' if self.concept else ''}{self.text}"


@lru_cache(maxsize=1 << 16)
def stems(text: str) -> tuple[str, ...]:
    """The words of a text without accents, capitals, hyphens and the plural's -s, and with -ist for -ism."""
    text = text.lower()
    if not text.isascii():
        plain = unicodedata.normalize("NFKD", text.replace("’", "'"))
        text = "".join(sign for sign in plain if not unicodedata.combining(sign))
    return tuple(map(_stem, re.findall(r"[^\W_]+", re.sub(r"'s\b", "", text))))


def _stem(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return word[:-1] + "t" if len(word) > 5 and word.endswith("ism") else word


def key(name: str) -> tuple[str, ...]:
    """The words by which a concept is recognized in other prompts: its name's, without a last "painting", "print" or
    the like where two words or a long one remain.
    """
    words = stems(name)
    short = words[:-1] if words and words[-1] in _KIND_WORDS else words
    return short if len(short) > 1 or (short and len(short[0]) >= 6) else words


def check(
    concepts: Sequence[Concept],
    heldout: Iterable[str] = (),
    scenes: Sequence[str] = (),
    *,
    died: Mapping[str, int] | None = None,
    shape: Mapping[str, int] | None = None,
    prompts_per_class: int = 0,
    count_tokens: Callable[[str], int] | None = None,
) -> list[Problem]:
    """All faults of a list.

    heldout: names of the test concepts; scenes: the generic prompts; died: artists' years of death; shape: categories
    and how many concepts each must have; prompts_per_class: how many prompts each must have, 0 = any; count_tokens:
    default as `token_counter`.
    """
    count_tokens = count_tokens or token_counter()[0]
    texts = [("", scene) for scene in scenes] + [(c.name, prompt) for c in concepts for prompt in c.prompts]
    found: list[Problem] = []
    found += _shape(concepts, shape or {}, prompts_per_class)
    found += _duplicates(texts)
    found += _near_duplicates(concepts, scenes)
    found += _leaks(concepts, set(heldout), scenes)
    found += [
        Problem("length", name, f"{tokens} tokens, expected at most {CLIP_TOKENS}: '{text}'")
        for name, text in texts
        if (tokens := count_tokens(text)) > CLIP_TOKENS
    ]
    found += [Problem("grammar", name, f"{fault}: '{text}'") for name, text in texts if (fault := grammar_fault(text))]
    found += [
        Problem(
            "artist", name, f"died in {year}, expected {LAST_DEATH} or before" if year else "no year of death is given"
        )
        for name, year in (died or {}).items()
        if not 0 < year <= LAST_DEATH
    ]
    return [*found, *_generic(concepts, scenes)]


def grammar_fault(text: str) -> str:
    """What is wrong with a prompt's form: a wrong a/an, a doubled word, a stutter, stray spaces; "" = nothing."""
    for article, word in re.findall(r"\b(an?)\s+([\w'-]+)", text, re.IGNORECASE):
        expected = "an" if _sounds_like_vowel(word) else "a"
        if article.lower() != expected:
            return f"'{article} {word}' should be '{expected} {word}'"
    if doubled := re.search(r"\b(\w+)\s+\1\b", text, re.IGNORECASE):
        return f"the word '{doubled.group(1)}' is doubled"
    if stutter := re.search(r"\b(?:in|of|by|with|as),|\b(?:in|of|with|by) (?:in|of|with|by|as)\b", text):
        return f"'{stutter.group()}' stutters"
    if re.search(r"\s\s|\s[,.;:]|,,|,\S|[{}|]|^\W|\W$(?<![)\"'.!?])|^\s|\s$", text):
        return "stray spaces or signs"
    if re.search(r"\b(?:of|in|with|and|by|as|the|an?)$", text, re.IGNORECASE):
        return "it ends in the middle"
    return ""


def _sounds_like_vowel(word: str) -> bool:
    if _AN_NOT_A.match(word) or _SPELLED.match(word):
        return True
    return word[0].lower() in "aeiouàáâéèêíóöúü" and not _A_NOT_AN.match(word)


def _shape(concepts: Sequence[Concept], shape: Mapping[str, int], prompts: int) -> Iterator[Problem]:
    if shape:
        counts = Counter(c.category for c in concepts)
        for category in sorted({*shape, *counts}):
            if counts[category] != shape.get(category, 0):
                yield Problem(
                    "shape", "", f"{category} has {counts[category]} concepts, expected {shape.get(category, 0)}"
                )
    for concept in concepts:
        if prompts and len(concept.prompts) != prompts:
            yield Problem("shape", concept.name, f"{len(concept.prompts)} prompts, expected {prompts}")


def _duplicates(texts: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name, text in texts:
        plain = " ".join(re.findall(r"\w+", text.lower()))
        if plain in seen:
            yield Problem("duplicate", name, f"'{text}' is also a prompt of {seen[plain] or 'the generic class'}")
        seen.setdefault(plain, name)


def _near_duplicates(concepts: Sequence[Concept], scenes: Sequence[str]) -> Iterator[Problem]:
    groups = [("", scenes, SAME_SCENE), *((c.name, c.prompts, SAME_PROMPT) for c in concepts)]
    for name, texts, limit in groups:
        bags = [(text, frozenset(stems(text))) for text in dict.fromkeys(texts)]
        for (one, a), (two, b) in combinations(bags, 2):
            if _alike(a, b, limit):
                yield Problem("near-duplicate", name, f"'{one}' and '{two}'")
    names = [(c.name, frozenset(key(c.name)), _runs(c.name)) for c in concepts]
    for (one, a, runs), (two, b, others) in combinations(names, 2):
        if a == b or _alike(runs, others, SAME_NAME):
            yield Problem("near-duplicate", one, f"the name is close to '{two}'")
    owners: dict[tuple[str, ...], str] = {}
    for concept in concepts:
        for phrase in concept.phrases:
            owner = owners.setdefault(stems(phrase), concept.name)
            if owner != concept.name:
                yield Problem("near-duplicate", concept.name, f"the phrase '{phrase}' also stands for '{owner}'")


def _alike(a: frozenset[str], b: frozenset[str], limit: float) -> bool:
    shared = len(a & b)
    return shared >= limit * (len(a) + len(b) - shared)


def _runs(name: str) -> frozenset[str]:
    text = f" {' '.join(sorted(stems(name)))} "
    return frozenset(text[i : i + 3] for i in range(len(text) - 2))


def _leaks(concepts: Sequence[Concept], heldout: set[str], scenes: Sequence[str]) -> Iterator[Problem]:
    index = _index(c.name for c in concepts if c.name in heldout)
    for concept in concepts:
        if concept.name in heldout:
            continue
        told: set[str] = set()
        for text in (concept.name, *concept.phrases, *concept.prompts):
            for name in mentioned(text, index):
                if name not in told:
                    told.add(name)
                    yield Problem("leak", name, f"a test concept that training names: '{text}' ({concept.name})")
    for scene in scenes:
        for name in mentioned(scene, index):
            yield Problem("leak", name, f"a test concept that a generic scene names: '{scene}'")


def _generic(concepts: Sequence[Concept], scenes: Sequence[str]) -> Iterator[Problem]:
    index = _index(c.name for c in concepts)
    for scene in scenes:
        for name in mentioned(scene, index):
            yield Problem("generic", name, f"the generic scene '{scene}' names the concept")
        for word in sorted(set(stems(scene)) & STYLE_WORDS):
            yield Problem("generic", "", f"'{scene}' says '{word}', expected neither colors nor kinds of pictures")


def _index(names: Iterable[str]) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    index: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for name in names:
        if words := key(name):
            index[words[0]].append((words, name))
    return index


def mentioned(text: str, index: Mapping[str, Sequence[tuple[tuple[str, ...], str]]]) -> list[str]:
    """Names of concepts whose key words stand in a text, one after the other."""
    words = stems(text)
    return [
        name
        for i, word in enumerate(words)
        for wanted, name in index.get(word, ())
        if words[i : i + len(wanted)] == wanted
    ]
