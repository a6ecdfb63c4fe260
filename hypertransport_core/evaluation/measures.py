"""What is measured on pictures, per concept: by the judge (concept named, subject and colour kept) and against renders
of the same truth (place, size, likeness inside the subject, quality)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..postcard.captions import scene_prompts
from ..postcard.concepts import SUBJECT_COLOURS, concepts
from ..postcard.judge import Judge
from ..postcard.render import COLOURS
from ..postcard.subjects import SUBJECTS
from .truths import Nearness

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# For the tolerant share only, which is reported beside the strict one: a smaller fall may be noise of a few samples.
# Where probabilities are small as a whole it also passes curves that hardly move, so it is no bar.
FALL_ALLOWED = 0.01
TRAINING_SCENES, TRAINING_SEED = 128, 0  # more scenes than any training uses, so that none of them is asked here


@dataclass(frozen=True)
class Scenes:
    """Prompts of generic scenes with fresh seeds and the truth about each: indices of subject and colour, int64
    (n,)."""

    prompts: list[str]
    seeds: list[int]
    subject: Tensor
    colour: Tensor

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Judged:
    """The judge's verdict on n pictures of one prompt set: bool (n,) subject and colour right; (n, concepts + 1)
    probabilities; (n,) product of the probabilities of the true subject and the true colour."""

    subject: Tensor
    colour: Tensor
    concept: Tensor
    content: Tensor

    def named(self, concept: int) -> Tensor:
        """Whether the concept is the most probable of all, bool (n,)."""
        return self.concept.argmax(1) == concept

    def merit(self, concept: int) -> Tensor:
        """Probability of the concept, the subject and the colour together, (n,)."""
        return self.concept[:, concept] * self.content

    def probability(self, concept: int) -> float:
        """Mean probability of a concept."""
        return float(self.concept[:, concept].mean())


def fresh_scenes(count: int, seed: int = 90_000) -> Scenes:
    """`count` scenes none of which is among the training scenes, each with a noise seed of its own; the same for every
    concept."""
    known = set(scene_prompts(TRAINING_SCENES, TRAINING_SEED))
    prompts = [prompt for prompt in scene_prompts(count + len(known), seed) if prompt not in known][:count]
    return Scenes(prompts, [seed + index for index in range(count)], *truth_of(prompts))


def truth_of(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Indices of the subject and the colour that canonical scene prompts name, int64 (n,) each. Raises ValueError where
    one is missing."""
    subjects, colours = [], []
    for prompt in prompts:
        words = prompt.split(",")[0].split()
        subject = next((word for word in words if word in SUBJECTS), None)
        colour = next((word for word in words if word in SUBJECT_COLOURS), None)
        if subject is None or colour is None:
            raise ValueError(
                f"The scene '{prompt}' names no known {'subject' if subject is None else 'colour'}; use scenes of "
                "scene_prompts()."
            )
        subjects.append(SUBJECTS.index(subject))
        colours.append(COLOURS.index(colour))
    return torch.tensor(subjects), torch.tensor(colours)


def concept_number(name: str) -> int:
    """The judge's index of a concept."""
    return next(index for index, concept in enumerate(concepts()) if concept.name == name)


def judged(judge: Judge, pictures: Tensor, subject: Tensor, colour: Tensor) -> Judged:
    """Judge pictures (n, 3, 64, 64) against the truth about their prompts."""
    parts = [judge.verdict(part) for part in pictures.split(128)]
    subjects, colours = torch.cat([p.subject for p in parts]), torch.cat([p.colour for p in parts])
    rows = torch.arange(len(pictures))
    return Judged(
        subjects.argmax(1) == subject,
        colours.argmax(1) == colour,
        torch.cat([p.concept for p in parts]),
        subjects[rows, subject] * colours[rows, colour],
    )


def scores(
    found: Judged, plain: Judged, concept: int, near: Nearness, plain_near: Nearness, likeness: Tensor
) -> dict[str, float]:
    """All measures of one concept's pictures, `found`, beside the same scenes unsteered, `plain`.

    concept: share named; subject, colour, place, size: share still right of those right before; joint: share of the
    pictures right before that show the concept *and* the right subject and colour; probability: of the concept;
    similarity: to the unsteered picture inside the subject; error: distance to the render of the same truth.
    """
    named, before = found.named(concept), plain.subject & plain.colour
    return {
        "concept": float(named.float().mean()),
        "subject": kept(plain.subject, found.subject),
        "colour": kept(plain.colour, found.colour),
        "probability": found.probability(concept),
        "joint": kept(before, named & found.subject & found.colour),
        "place": kept(plain_near.place, near.place),
        "size": kept(plain_near.size, near.size),
        "similarity": float(likeness.mean()),
        "error": float(near.error.mean()),
    }


def kept(before: Tensor, after: Tensor) -> float:
    """Share of samples right before steering that are still right after it; NaN when none was right before."""
    return float((before & after).sum() / before.sum()) if bool(before.any()) else float("nan")


def rises(probabilities: Sequence[float], fall_allowed: float = 0.0) -> bool:
    """Whether probabilities over growing strength never fall by more than `fall_allowed`, and end above where they
    began."""
    steady = all(b >= a - fall_allowed for a, b in zip(probabilities, probabilities[1:]))
    return steady and probabilities[-1] > probabilities[0]


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: correlation of ranks, equal values sharing theirs; NaN for fewer than two or where all are equal."""
    if len(one) < 2:
        return float("nan")
    values = torch.tensor([one, other], dtype=torch.float64)
    below = values[:, :, None] > values[:, None, :]
    ranks = below.sum(2) - below.sum(1)  # how many it exceeds, less how many exceed it
    return float(torch.corrcoef(ranks.double())[0, 1])


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    clean = [value for value in values if value == value]
    return sum(clean) / len(clean) if clean else float("nan")
