"""Fitting one concept from prompts, whichever method: settings, how much work they are, and sensible prompts."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ..sites import Site
from ..transport import TransportMaps
from .linear_act import linear_act
from .lineas import MIN_BATCH, lineas
from .moments import FitError, mean_act

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

METHODS = ("LinEAS", "Linear-AcT", "Mean-AcT")
GROUPS = 8  # passes of Linear-AcT when the samples do not fit one call

GENERIC_PROMPTS = (
    "a red house", "a small blue boat on the left", "a cat", "a green tree at the top right", "a white car",
    "a large mushroom", "a yellow lamp on the right", "a black hat", "an orange fish", "a small moon at the top",
    "a purple balloon", "a brown house at the bottom left", "a large red rocket", "a pink cup", "a blue star",
    "a green car at the bottom",
)
"""Plain scenes without a style, in words that large models and the Postcard world both know."""


@dataclass(frozen=True)
class Recipe:
    """How one concept is fitted.

    method: of `METHODS`. samples: of each prompt set, rounded up to a multiple of `batch`. batch: samples that LinEAS
    compares in an iteration; at_once: per network call, for memory. iterations, learning_rate: of LinEAS; rate 0 means
    10 / iterations, which carries a shift about five source standard deviations far. steps: sampling steps that the
    loss looks at; Linear-AcT and Mean-AcT look at the first one only. seed: of the noise and of all choices.
    """

    method: str = "LinEAS"
    samples: int = 16
    batch: int = 8
    at_once: int = 8
    iterations: int = 50
    learning_rate: float = 0.0
    steps: int = 4
    seed: int = 0

    def seeds(self, prompts: int) -> list[int]:
        """Of the samples, of which there are at least as many as prompts."""
        count = ceil(max(self.samples, prompts) / self.batch) * self.batch
        return [self.seed + i for i in range(count)]

    def network_calls(self, prompts: int) -> int:
        """How often the network will be called, for a progress bar."""
        batches = ceil(len(self.seeds(prompts)) / self._size)
        if self.method == "LinEAS":
            parts = ceil(self.batch / self._size)
            return (2 * batches + self.iterations * (1 if parts == 1 else 2 * parts)) * self.steps
        if self.method == "Mean-AcT":
            return 2 * batches
        return batches * (1 + GROUPS) if batches > 1 else 2

    @property
    def _size(self) -> int:
        """Samples in a network call."""
        return max(1, min(self.at_once, self.batch) if self.method == "LinEAS" else self.at_once)

    def fit(self, backbone: Backbone, sites: Sequence[Site], generic: Sequence[str], concept: Sequence[str],
            progress: Callable[[int, float], None] | None = None) -> TransportMaps:
        """Maps, one row, that turn what `generic` prompts do in the network into what `concept` prompts do.

        progress(iteration, loss): of LinEAS. Raises FitError, MeasureError.
        """
        if self.method not in METHODS:
            raise FitError(f"There is no method '{self.method}'; choose one of {', '.join(METHODS)}.")
        if not generic or not concept:
            raise FitError(f"Got {len(generic)} generic prompts and {len(concept)} prompts with the concept; write at "
                           "least one of each, or name the concept.")
        seeds = self.seeds(max(len(generic), len(concept)))
        if self.method == "Mean-AcT":
            return mean_act(backbone, sites, generic, concept, seeds, steps=self.steps, batch=self._size)
        if self.method == "Linear-AcT":
            groups = GROUPS if len(seeds) > self._size else 0
            return linear_act(backbone, sites, generic, concept, seeds, steps=self.steps, batch=self._size, groups=groups)
        if self.batch < MIN_BATCH:
            raise FitError(f"The batch is {self.batch}, but LinEAS compares distributions and needs at least {MIN_BATCH}; "
                           "lower the pictures at once instead if memory is short.")
        return lineas(backbone, sites, generic, concept, seeds, iterations=self.iterations, batch=self.batch,
                      learning_rate=self.learning_rate or 10.0 / self.iterations, steps=self.steps, seed=self.seed,
                      chunk=self._size if self._size < self.batch else None, progress=progress)


def prompt_lines(text: str) -> list[str]:
    """One prompt per line; empty lines and spaces around are dropped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def in_scenes(scenes: Sequence[str], concept: str) -> list[str]:
    """The same scenes with a concept named at the end, as prompts are written; none without a concept."""
    return [f"{scene}, {concept.strip()}" for scene in scenes] if concept.strip() else []
