"""One training step's material and loss. What is drawn depends on the seed and the step's number alone, so a resumed
run
goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..capture import PooledCapture
from ..concepts import Concept
from ..measuring import next_latents
from ..sites import Site
from ..steering import Steering
from ..transport import TransportMaps
from ..wasserstein import inverse_variance, site_loss
from .config import TrainingConfig
from .data import DataFolder, arithmetic, derived_seed, network_device, renoised
from .embeddings import EmbeddingBank
from .presets import World


@dataclass(frozen=True)
class Draw:
    """What a step works on: concepts (K,), their embeddings (K, E), scenes and noise seeds (K * n, concept by concept),
    levels, and the strength at which each concept's maps are applied (K,), 1 for all but the config's share.
    """

    concepts: list[int]
    embeddings: Tensor
    scenes: list[int]
    seeds: list[int]
    levels: list[int]
    strengths: Tensor


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, "order", epoch))).tolist()


def draw(step: int, bank: EmbeddingBank, scenes: int, levels: int, config: TrainingConfig) -> Draw:
    """The draw of a step: concepts come in shuffled rounds, scenes without repetition as far as there are enough."""
    generator = torch.Generator().manual_seed(derived_seed(config.seed, "step", step))
    count, n = len(bank.text), config.samples_per_concept
    places = range(step * config.concepts_per_step, (step + 1) * config.concepts_per_step)
    concepts = [_shuffled(count, config.seed, place // count)[place % count] for place in places]
    embeddings = torch.stack([bank.draw(concept, config, generator) for concept in concepts])
    chosen: list[int] = []
    for _ in concepts:
        chosen += [i for _ in range(-(-n // scenes)) for i in torch.randperm(scenes, generator=generator).tolist()][:n]
    seeds = torch.randint(2**31 - 1, (len(concepts) * n,), generator=generator).tolist()
    used = sorted(torch.randperm(levels, generator=generator)[: config.levels_per_step].tolist())
    dice, strengths = torch.rand(2, len(concepts), generator=generator)
    strengths = torch.where(dice < config.partial_share, strengths, torch.ones(()))
    return Draw(concepts, embeddings, chosen, seeds, used, strengths)


@dataclass
class Inputs:
    """Some concepts' rows at one noise level: x (R, *latent), conditioning (R, T, D), clean latents to match or None,
    tables (K, n, D), strengths (K,) of the maps or None for 1.
    """

    level: int
    x: Tensor
    conditioning: Tensor
    paired: Tensor | None
    targets: Tensor | None
    concepts: int
    strengths: Tensor | None = None


class Objective:
    """The loss of maps on some concepts: transport (W2² of pooled activations) and paired (prediction under the
    concept's prompt).
    """

    def __init__(self, world: World, data: DataFolder, config: TrainingConfig, samples: int | None = None) -> None:
        """samples: of each concept, the config's n unless given."""
        self.world, self.data, self.config = world, data, config
        self.sites: tuple[Site, ...] = data.sites
        self.samples = samples or config.samples_per_concept
        self.device = network_device(world)
        std = data.source()[1]
        self.channel_weight = (
            [inverse_variance(row) for row in std]
            if config.channel_weighting == "inverse_variance"
            else [None] * len(std)
        )

    @torch.no_grad()
    def prepare(
        self,
        concepts: Sequence[Concept],
        scenes: Sequence[int],
        seeds: Sequence[int],
        level: int,
        steered: Sequence[TransportMaps] | None = None,
    ) -> Inputs:
        """The inputs of some concepts at a level; `steered`: maps per level to sample with up to there, for `inputs =
        "own"`.
        """
        backbone, config, levels = self.world.backbone, self.config, self.data.levels
        words = [self.world.scenes[i] for i in scenes]
        named = [
            text
            for k, concept in enumerate(concepts)
            for text in self.world.in_concept(words[k * self.samples : (k + 1) * self.samples], concept.name)
        ]
        noise = backbone.noise(seeds).to(self.device)
        plain = backbone.encode(words).to(self.device)
        own = config.inputs == "own" and steered is not None
        needs_target = config.paired_weight > 0 or (level > 0 and not own)
        wanted = backbone.encode(named).to(self.device) if needs_target else plain
        with arithmetic(config, self.device):
            x = self._latents(noise, wanted, plain, level, len(concepts), steered if own else None)
            paired = backbone.denoise(x, levels[level], wanted).float() if config.paired_weight > 0 else None
        return Inputs(level, x, plain, paired, self._targets(concepts, level), len(concepts))

    @torch.no_grad()
    def recall(
        self, concepts: Sequence[Concept], scenes: Sequence[int], level: int, strengths: Tensor | None = None
    ) -> Inputs:
        """What `prepare` computes, from the predictions that were stored with the data: the noise of each is its own.

        strengths (K,): where one is below 1, the clean latents to match lie that far on the way from the prediction
        under the plain prompt to the one under the concept's, so that half a strength comes to look like half a concept.
        """
        parts = [list(scenes[k * self.samples : (k + 1) * self.samples]) for k in range(len(concepts))]
        noise, stored = [], []
        for concept, part in zip(concepts, parts):
            seeds = self.data.seeds(concept)
            noise += [seeds[sample] for sample in part]
            stored.append(self.data.predictions(concept, sorted({0, level}), part))
        predictions = torch.cat(stored, 1).to(self.device)
        x = self.world.backbone.noise(noise).to(self.device)
        plain = self.world.backbone.encode([self.world.scenes[i] for i in scenes]).to(self.device)
        first, paired = predictions[0], predictions[-1]
        partial = None if strengths is None else strengths.repeat_interleave(self.samples).to(self.device)
        if partial is not None:
            first = self._toward(first, x, 0, plain, partial)
        if level == 0:
            paired = first
        else:
            x = renoised(self.world, first, x, self.data.levels, level)
            if partial is not None:
                paired = self._toward(paired, x, level, plain, partial)
        return Inputs(level, x, plain, paired, self._targets(concepts, level), len(concepts), strengths)

    def _toward(self, wanted: Tensor, x: Tensor, level: int, plain: Tensor, strengths: Tensor) -> Tensor:
        """Rows of `wanted` (R, *latent) moved back toward the prediction under the plain prompt where a strength (R,)
        is below 1."""
        rows = (strengths < 1).nonzero().flatten()
        if not len(rows):
            return wanted
        with arithmetic(self.config, self.device):
            untouched = self.world.backbone.denoise(x[rows], self.data.levels[level], plain[rows]).float()
        share = strengths[rows].reshape(-1, *[1] * (wanted.ndim - 1))
        return wanted.index_copy(0, rows, torch.lerp(untouched, wanted[rows], share))

    def _targets(self, concepts: Sequence[Concept], level: int) -> Tensor | None:
        if self.config.transport_weight == 0:
            return None
        return torch.stack([self.data.targets(c, level, self.samples) for c in concepts]).to(self.device)

    def _latents(
        self,
        noise: Tensor,
        wanted: Tensor,
        plain: Tensor,
        level: int,
        concepts: int,
        steered: Sequence[TransportMaps] | None,
    ) -> Tensor:
        backbone, levels = self.world.backbone, self.data.levels
        if level == 0:
            return noise
        if steered is None:
            return renoised(self.world, backbone.denoise(noise, levels[0], wanted).float(), noise, levels, level)
        x = noise
        for number in range(level):
            with Steering(steered[number]).installed(backbone.network, rows=self._rows(concepts)):
                clean = backbone.denoise(x, levels[number], plain).float()
            x = getattr(backbone, "advance", next_latents)(x, clean, levels[number], levels[number + 1])
        return x

    def _rows(self, concepts: int) -> Tensor:
        return torch.arange(concepts).repeat_interleave(self.samples)

    def losses(self, maps: TransportMaps | None, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """(transport, paired) of maps with a row per concept, (1,) or none; each a vector (concepts,), gradients reach
        the maps.

        Per concept: transport is the mean over channels, then sites (`wasserstein.site_loss`); paired the mean over
        latents.
        """
        zero = torch.zeros(inputs.concepts, device=self.device)
        seen, prediction = self._run(maps, inputs)
        transport = paired = zero
        if inputs.targets is not None and seen is not None:
            weight = self.channel_weight[inputs.level]
            source = seen.unflatten(0, (inputs.concepts, self.samples))
            transport = torch.stack(
                [
                    site_loss(source[k : k + 1], inputs.targets[k : k + 1], self.sites, channel_weight=weight)
                    for k in range(inputs.concepts)
                ]
            )
        if inputs.paired is not None and prediction is not None:
            gap = (prediction.float() - inputs.paired).square().flatten(1).mean(1)
            paired = gap.unflatten(0, (inputs.concepts, self.samples)).mean(1)
        return transport, paired

    def _run(self, maps: TransportMaps | None, inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
        """Pooled activations (R, D) and clean prediction (R, *latent), as far as the loss needs them."""
        backbone, level = self.world.backbone, self.data.levels[inputs.level]
        if maps is not None and inputs.strengths is not None:
            maps = maps.interpolate(inputs.strengths)
        rows = None
        if maps is not None:
            rows = self._rows(inputs.concepts) if maps.rows > 1 else torch.zeros(inputs.x.shape[0], dtype=torch.long)
        steering = Steering(maps) if maps is not None else None
        prediction = None
        with arithmetic(self.config, self.device):
            with _installed(steering, backbone.network, rows):
                if inputs.targets is None:
                    return None, backbone.denoise(inputs.x, level, inputs.conditioning)
                capture = PooledCapture(
                    backbone.network, self.sites, self.config.pooling, stop_after_last_site=inputs.paired is None
                )
                with capture:
                    prediction = backbone.denoise(inputs.x, level, inputs.conditioning)
        return capture.features(), prediction

    def total(self, transport: Tensor, paired: Tensor) -> Tensor:
        """The weighted sum of both."""
        return self.config.transport_weight * transport + self.config.paired_weight * paired


def _installed(
    steering: Steering | None, network: torch.nn.Module, rows: Tensor | None
) -> AbstractContextManager[None]:
    return nullcontext() if steering is None else steering.installed(network, rows=rows)
