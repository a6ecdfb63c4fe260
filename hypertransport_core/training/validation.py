"""Measuring maps on concepts that were not trained on, with the same noise every time, against two simple rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..concepts import Concept
from ..hypernetworks import Hypernetwork
from ..transport import TransportMaps
from .batches import Inputs, Objective
from .config import TrainingConfig
from .data import DataFolder, seeds_for
from .embeddings import EmbeddingBank
from .presets import World

MapsOf = Callable[[Sequence[int], int], "TransportMaps | None"]


def used_levels(levels: int, count: int) -> list[int]:
    """`count` of `levels` indices, evenly spaced from the first (pure noise)."""
    count = min(count, levels)
    return [round(i * levels / count) for i in range(count)]


class Probe:
    """Fixed concepts, scenes and noise on which maps are measured."""

    def __init__(
        self,
        world: World,
        data: DataFolder,
        config: TrainingConfig,
        concepts: Sequence[Concept],
        means: dict[str, Tensor],
        levels: Sequence[int],
        label: str,
    ) -> None:
        self.objective, self.config, self.concepts, self.levels = (
            Objective(world, data, config),
            config,
            list(concepts),
            list(levels),
        )
        self.bank = data.embeddings(self.concepts, means)
        n = self.objective.samples
        self.seeds = seeds_for(n * len(self.concepts), config.seed, label)
        self.scenes = [(i * 7 + k) % len(world.scenes) for i in range(len(self.concepts)) for k in range(n)]
        self._inputs: dict[tuple[int, int], Inputs] = {}

    def _chunks(self) -> Iterator[list[int]]:
        size = max(1, self.config.batch // self.objective.samples)
        for start in range(0, len(self.concepts), size):
            yield list(range(start, min(start + size, len(self.concepts))))

    def _prepared(self, chunk: list[int], level: int) -> Inputs:
        key = (chunk[0], level)
        if key not in self._inputs:
            rows = slice(chunk[0] * self.objective.samples, (chunk[-1] + 1) * self.objective.samples)
            self._inputs[key] = self.objective.prepare(
                [self.concepts[i] for i in chunk], self.scenes[rows], self.seeds[rows], level
            )
        return self._inputs[key]

    @torch.no_grad()
    def measure(self, maps_of: MapsOf) -> dict[str, Tensor]:
        """{"loss", "transport", "paired"}: (concepts,) each, means over the levels. maps_of(concept indices, level
        index) -> rows.
        """
        sums = {name: torch.zeros(len(self.concepts), dtype=torch.float64) for name in ("loss", "transport", "paired")}
        for chunk in self._chunks():
            for level in self.levels:
                transport, paired = self.objective.losses(maps_of(chunk, level), self._prepared(chunk, level))
                for name, value in (
                    ("transport", transport),
                    ("paired", paired),
                    ("loss", self.objective.total(transport, paired)),
                ):
                    sums[name][chunk] += value.double().cpu() / len(self.levels)
        return sums

    def identity(self) -> dict[str, Tensor]:
        """What the untouched network scores."""
        return self.measure(lambda chunk, level: None)

    def from_text(self, network: Hypernetwork) -> dict[str, Tensor]:
        """What the maps read from the concepts' names score."""
        return self.measure(
            lambda chunk, level: predicted(network, torch.stack([self.bank.of_text(i) for i in chunk]), level)
        )

    def from_images(self, network: Hypernetwork) -> dict[str, Tensor] | None:
        """What the maps read from the concepts' pictures score; None without pictures."""
        if not all(len(pictures) for pictures in self.bank.images):
            return None
        return self.measure(
            lambda chunk, level: predicted(network, torch.stack([self.bank.of_images(i) for i in chunk]), level)
        )

    def mean_map(self, network: Hypernetwork, train: EmbeddingBank) -> dict[str, Tensor]:
        """What one map for all concepts scores: the mean of those of the training concepts."""
        means: dict[int, TransportMaps] = {}
        for level in self.levels:
            maps = predicted(network, train.all_text(), level)
            means[level] = TransportMaps(maps.sites, maps.scale.mean(0, keepdim=True), maps.shift.mean(0, keepdim=True))
        return self.measure(lambda chunk, level: means[level])


@torch.no_grad()
def predicted(network: Hypernetwork, embeddings: Tensor, level: int) -> TransportMaps:
    """The maps (one row each) that a hypernetwork predicts for centred embeddings (B, E) at a level."""
    return network(embeddings.to(network.source_mean.device), level if network.steps > 1 else None)


def departure(network: Hypernetwork, embeddings: Tensor) -> tuple[float, float]:
    """Root mean square of (scale - 1) and of shift / source deviation over concepts and channels: how far from the
    identity.
    """
    maps = predicted(network, embeddings, 0)
    deviation = network.source_std[0].clamp(min=1e-8)
    return float((maps.scale - 1).square().mean().sqrt()), float((maps.shift / deviation).square().mean().sqrt())
