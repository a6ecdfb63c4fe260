"""Plain English for postcards: captions with paraphrases for training, and prompt sets per concept."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .concepts import PALETTE, SUBJECT_COLOURS, concepts
from .render import COLOURS, PLACES, SIZE_NAMES, Truth
from .subjects import SUBJECTS

_PLACE_WORDS = {"top left": ("at the top left", "in the upper left corner"), "top": ("at the top", "up high"),
                "top right": ("at the top right", "in the upper right corner"),
                "left": ("on the left", "to the left"), "middle": ("in the middle", "in the center"), "right": ("on the right", "to the right"),
                "bottom left": ("at the bottom left", "in the lower left corner"), "bottom": ("at the bottom", "down low"),
                "bottom right": ("at the bottom right", "in the lower right corner")}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("", "", "medium"), "large": ("large", "big", "huge")}
_OPENINGS = ("", "", "", "a postcard of ", "a picture of ", "an image of ")
_JOINTS = ("{s}, {c}", "{s}, {c}", "{c}, {s}", "{s} in {c}", "{c} with {s}", "{s}, {c} style")
_CONCEPT_ONLY = ("{c}", "{c}", "{c} style", "a postcard in {c}", "a picture of {c}", "{c}, postcard")
_SUBJECT_SYNONYMS = {"boat": ("sailboat",), "cup": ("mug",), "car": ("automobile",), "house": ("cottage",), "balloon": ("hot air balloon",), "cat": ("kitten",),
                     "tree": ("fir tree",), "hat": ("top hat",), "rocket": ("spaceship",), "mushroom": ("toadstool",),
                     "moon": ("crescent moon",), "lamp": ("table lamp",)}

TEMPLATES = ("{}", "{} style", "a postcard in {}", "a picture of {}")
"""How a bare concept is phrased when it is embedded; the mean over these is its embedding."""


@dataclass
class Captions:
    """Captions of a batch.

    `names_place`, `names_size`, `names_scene`: bool (B,), False where the caption leaves it open (size then is medium, the noise
    decides the place).
    """

    texts: list[str]
    names_place: Tensor
    names_size: Tensor
    names_scene: Tensor


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def scene_words(size: str, colour: str, subject: str, place: str) -> str:
    """"a small red house on the left"; empty size or place are left out."""
    return article(" ".join(w for w in (size, colour, subject, place) if w))


def captions(truth: Truth, generator: torch.Generator, *, concept_only: float = 0.0, plain: float = 0.0) -> Captions:
    """Random wordings of each postcard's truth.

    A share `concept_only` of those with a concept says nothing but the concept. A share `plain` uses canonical words and order, the
    form evaluation prompts take. Sizes are named two times of three unless medium, places two times of three.
    """
    count = len(truth)
    dice = torch.rand(count, 10, generator=generator).tolist()
    texts: list[str] = []
    named: list[tuple[bool, bool, bool]] = []  # place, size, scene
    for i, d in enumerate(dice):
        def choose(options: Sequence[str], k: int, d: list[float] = d) -> str:
            return options[0] if d[9] < plain else options[int(d[k] * len(options))]
        index = int(truth.concept[i])
        concept = choose((concepts()[index].name, concepts()[index].name, *concepts()[index].phrases), 1) if index >= 0 else ""
        if concept and d[0] < concept_only:
            texts.append(choose(_CONCEPT_ONLY, 2).format(c=concept))
            named.append((False, False, False))
            continue
        size_name, place_name = SIZE_NAMES[truth.size[i]], PLACES[truth.place[i]]
        size = choose(_SIZE_WORDS[size_name], 3)
        place = choose(_PLACE_WORDS[place_name], 4) if d[5] < .67 else ""
        subject = SUBJECTS[truth.subject[i]]
        subject = choose((subject, subject, *_SUBJECT_SYNONYMS.get(subject, ())), 6)
        words = choose(_OPENINGS, 7) + scene_words(size, COLOURS[truth.colour[i]], subject, place)
        texts.append(choose(_JOINTS, 8).format(s=words, c=concept) if concept else words)
        named.append((bool(place), True, True))
    return Captions(texts, *torch.tensor(named, dtype=torch.bool).reshape(-1, 3).unbind(1))


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word a caption can hold, sorted."""
    phrases: list[str] = [*SUBJECTS, *SUBJECT_COLOURS, *PALETTE, *_OPENINGS, "a an in with style and to postcard"]
    for group in (_PLACE_WORDS, _SIZE_WORDS, _SUBJECT_SYNONYMS):
        phrases += [w for words in group.values() for w in words]
    for c in concepts():
        phrases += [c.name, *c.phrases]
    return tuple(sorted({w for p in phrases for w in p.lower().split()}))


def scene_prompts(count: int = 32, seed: int = 0) -> list[str]:
    """`count` different generic scenes, canonical words, places and sizes named half the time; the same for every concept."""
    g = torch.Generator().manual_seed(seed)
    out: list[str] = []
    while len(out) < count:
        d = torch.rand(6, generator=g).tolist()
        size = ("", "", "small", "large")[int(d[0] * 4)]
        place = _PLACE_WORDS[PLACES[int(d[1] * 9)]][0] if d[2] < .5 else ""
        words = scene_words(size, COLOURS[int(d[3] * len(COLOURS))], SUBJECTS[int(d[4] * len(SUBJECTS))], place)
        if words not in out:
            out.append(words)
    return out


def in_concept(scenes: Sequence[str], concept: str) -> list[str]:
    """The same scenes with a concept named; the empty concept leaves them as they are."""
    return [f"{scene}, {concept}" for scene in scenes] if concept else list(scenes)


def prompts_hash(prompts: Sequence[str]) -> str:
    """16 hexadecimal digits that tell one list of prompts from another."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
