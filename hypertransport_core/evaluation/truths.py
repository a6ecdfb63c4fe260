"""What a picture ought to look like: the renderer's truth about every scene, and how near a picture comes to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..postcard.captions import scene_words
from ..postcard.coupling import place_of, warmth_of
from ..postcard.render import COLOURS, PLACES, SIZE_NAMES, Truth, render, subject_mask
from ..postcard.subjects import SUBJECTS

NO_CONCEPT = -1


@dataclass(frozen=True)
class Nearness:
    """Of n pictures against renders, (n,) each: place and size, bool, whether the nearest render has the right one;
    error, root mean square distance to the render of the same truth, in [0, 1]."""

    place: Tensor
    size: Tensor
    error: Tensor


def scene_truth(prompts: Sequence[str], subject: Tensor, colour: Tensor, noise: Tensor) -> Truth:
    """The whole truth about canonical scene prompts and their starting noise, without a concept: what the words leave
    open is decided as the world decides it, place and light by the noise, the size as medium.

    noise: (n, 48, 16, 16). Raises ValueError for a prompt that does not read back as it was written.
    """
    places, warmth = place_of(noise).cpu(), warmth_of(noise).cpu().float()
    sizes = torch.full_like(places, SIZE_NAMES.index("medium"))
    for index, prompt in enumerate(prompts):
        words = prompt.split()
        sizes[index] = SIZE_NAMES.index(next((name for name in SIZE_NAMES if name in words[:2]), "medium"))
        named = [name for name in PLACES if prompt.endswith(_WHERE[name])]
        if named:
            places[index] = PLACES.index(max(named, key=len))
        size = SIZE_NAMES[sizes[index]] if sizes[index] != SIZE_NAMES.index("medium") else ""
        known = scene_words(size, COLOURS[colour[index]], SUBJECTS[subject[index]], _WHERE[named[-1]] if named else "")
        if len(known.split()) != len(words):
            raise ValueError(f"The scene '{prompt}' reads as '{known}'; use scenes of scene_prompts().")
    return Truth(subject, colour, sizes, places, torch.full_like(places, NO_CONCEPT), warmth)


_WHERE = {
    name: {"left": "on the left", "right": "on the right", "middle": "in the middle"}.get(name, f"at the {name}")
    for name in PLACES
}


class Renders:
    """Renders of the truth about some scenes, without a concept and with one, and with every other place and size."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.mask = subject_mask(truth)
        self._concept: int | None = None
        self._places = self._sizes = self.ideal = torch.empty(0)

    def in_concept(self, concept: int) -> Tensor:
        """The scenes in a concept (index; -1 = none): (n, 3, 64, 64)."""
        return render(_with(self.truth, concept=concept))

    def near(self, pictures: Tensor, concept: int) -> Nearness:
        """Compare pictures (n, 3, 64, 64), one per scene, with renders in the concept and without it: at every place
        in the true size, and in every size at the true place."""
        self._prepare(concept)
        pictures = pictures.float()
        flat = pictures.flatten(1)[:, None]
        place, size = (
            (flat - candidates).square().mean(-1).reshape(len(flat), 2, -1).amin(1).argmin(1)
            for candidates in (self._places, self._sizes)
        )
        error = (pictures - self.ideal).square().mean((1, 2, 3)).sqrt()
        return Nearness(place == self.truth.place, size == self.truth.size, error)

    def similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """1 - mean absolute difference inside the subjects' masks, (n,): 1 where both show the same there."""
        difference = (one.float() - other.float()).abs().mean(1, keepdim=True) * self.mask
        return 1 - difference.sum((1, 2, 3)) / self.mask.sum((1, 2, 3)).clamp(min=1e-6)

    def _prepare(self, concept: int) -> None:
        """Candidates (n, 2 · kinds, pixels), kept for one concept at a time."""
        if concept == self._concept:
            return
        self._concept, self.ideal = concept, self.in_concept(concept)
        both = (concept, NO_CONCEPT)
        self._places = torch.stack(
            [render(_with(self.truth, concept=c, place=p)).flatten(1) for c in both for p in range(len(PLACES))], 1
        )
        self._sizes = torch.stack(
            [render(_with(self.truth, concept=c, size=s)).flatten(1) for c in both for s in range(len(SIZE_NAMES))], 1
        )


def _with(truth: Truth, **changes: int) -> Truth:
    return replace(truth, **{name: torch.full_like(truth.place, value) for name, value in changes.items()})
