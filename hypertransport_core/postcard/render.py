"""From the truth about a postcard to its pixels: vectorised over a batch, no randomness of its own."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import scenes, structures
from .concepts import GENERIC, SUBJECT_COLOURS, concepts
from .subjects import SIZES, STAMP, SUBJECTS, stamps

COLOURS = tuple(SUBJECT_COLOURS)
SIZE_NAMES = tuple(SIZES)
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
CENTRES = tuple((x, y) for y in (20, 32, 44) for x in (20, 32, 44))  # pixels, one per place
SIDE = structures.SIDE
_DARK, _LIGHT = (.13, .12, .16), (1., .96, .85)


@dataclass
class Truth:
    """What is on each postcard of a batch; int64 tensors of shape (B,), indices into SUBJECTS, COLOURS, SIZE_NAMES, PLACES.

    `concept` indexes `concepts()`; -1 is the generic class. `warmth`: float32 (B,), about -2 (cool) to 2 (warm) light on the background.
    """

    subject: Tensor
    colour: Tensor
    size: Tensor
    place: Tensor
    concept: Tensor
    warmth: Tensor

    def __len__(self) -> int:
        return len(self.subject)

    def __getitem__(self, index: slice | Tensor) -> Truth:
        return Truth(*(getattr(self, f)[index] for f in ("subject", "colour", "size", "place", "concept", "warmth")))


def random_truth(count: int, generator: torch.Generator, *, generic: float = 0.1) -> Truth:
    """Uniform over everything; a share `generic` of the postcards carries no concept."""
    def pick(n: int) -> Tensor:
        return torch.randint(0, n, (count,), generator=generator)
    concept = pick(len(concepts()))
    concept[torch.rand(count, generator=generator) < generic] = -1
    subject, colour, size, place = (pick(len(names)) for names in (SUBJECTS, COLOURS, SIZE_NAMES, PLACES))
    return Truth(subject, colour, size, place, concept, torch.randn(count, generator=generator).clamp(-2, 2))


@lru_cache(maxsize=1)
def _palette() -> Tensor:
    return torch.tensor([SUBJECT_COLOURS[c] for c in COLOURS])


@lru_cache(maxsize=1)
def _backdrops() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Background (N+1, 3, 64, 64), veil coverage (N+1, 1, 64, 64), veil colour (N+1, 3, 1, 1), opacity (N+1, 1, 1, 1); the last row is generic."""
    rows = [*concepts(), GENERIC]
    shares = [scenes.scene_inks(c.structure) if c.scene else structures.inks(c.structure) for c in rows]
    ground = torch.stack([torch.einsum("khw,kc->chw", share, torch.tensor(c.inks)) for share, c in zip(shares, rows)])
    cover = torch.stack([structures.veil(c.veil)[None] for c in rows])
    colour, opacity = (torch.tensor([getattr(c, name) for c in rows]) for name in ("veil_colour", "opacity"))
    return ground.clamp(0, 1), cover, colour[:, :, None, None], opacity[:, None, None, None]


def subject_coverage(truth: Truth) -> Tensor:
    """Coverages of main, dark, light ink and outline on the card, float32 (B, 4, 64, 64)."""
    card = torch.zeros(len(truth), 4, SIDE, SIDE)
    stamp = stamps()[truth.subject, truth.size]
    for k, (x, y) in enumerate(CENTRES):
        here = (truth.place == k).nonzero()[:, 0]
        if len(here):
            card[here, :, y - STAMP // 2:y + STAMP // 2, x - STAMP // 2:x + STAMP // 2] = stamp[here]
    return card


def subject_mask(truth: Truth) -> Tensor:
    """Where the subject is, float32 (B, 1, 64, 64) in [0, 1]."""
    return subject_coverage(truth).sum(1, keepdim=True).clamp(0, 1)


def render(truth: Truth) -> Tensor:
    """Postcards, float32 (B, 3, 64, 64) in [0, 1]."""
    ground, cover, veil_colour, opacity = (t[truth.concept] for t in _backdrops())
    warm = truth.warmth[:, None, None, None] * torch.tensor([.035, .0, -.035])[None, :, None, None]
    ground = (ground + warm).clamp(0, 1)
    ink = subject_coverage(truth)
    main = _palette()[truth.colour][:, :, None, None]
    dark, light = (torch.tensor(c)[None, :, None, None] for c in (_DARK, _LIGHT))
    paint = ink[:, 0:1] * main + ink[:, 1:2] * dark + ink[:, 2:3] * light + ink[:, 3:4] * main * .3
    coverage = ink.sum(1, keepdim=True).clamp(0, 1)
    card = ground * (1 - coverage * opacity) + paint * opacity
    cover = cover * (1 - .55 * coverage)  # what lies over the card lets the subject through
    return (card * (1 - cover) + veil_colour * cover).clamp(0, 1)


def concept_index(names: Sequence[str]) -> Tensor:
    """Indices of concept names, int64 (B,); the empty name is the generic class (-1). Raises KeyError for an unknown name."""
    index = {c.name: i for i, c in enumerate(concepts())} | {"": -1}
    return torch.tensor([index[n] for n in names])
