"""One training step's material and loss. What is drawn depends on the seed and the step's number alone, so a resumed
run goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..concepts import Concept
from ..encoders.base import unit
from ..measuring import one_call
from ..objective import align, paired_of_rows, transport_of_rows
from ..sites import Site
from ..steering import Steering
from ..transport import TransportMaps
from ..wasserstein import channel_coefficients, inverse_variance
from .config import TrainingConfig
from .data import DataFolder, arithmetic, derived_seed, network_device, renoised, stepped
from .embeddings import EmbeddingBank
from .presets import World
from .recomputation import checkpointed

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone


@dataclass(frozen=True)
class Draw:
    """What a step works on: concepts (K,), their embeddings (K, E), scenes and noise seeds (K * n, concept by concept),
    levels, and the strength at which each concept's maps are applied (K,), 1 for all but the config's shares; -1 takes
    the concept out of prompts that name it.
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
    scenes = min(scenes, config.training_samples or scenes)
    for _ in concepts:
        chosen += [i for _ in range(-(-n // scenes)) for i in torch.randperm(scenes, generator=generator).tolist()][:n]
    seeds = torch.randint(2**31 - 1, (len(concepts) * n,), generator=generator).tolist()
    used = sorted(torch.randperm(levels, generator=generator)[: config.levels_per_step].tolist())
    dice, strengths = torch.rand(2, len(concepts), generator=generator)
    begun = step >= config.partial_from * config.steps
    partial, removal = (config.partial_share, config.removal_share) if begun else (0.0, 0.0)
    strengths = torch.where(dice < partial, strengths, torch.ones(()))
    strengths = torch.where(dice >= 1 - removal, -torch.ones(()), strengths)
    if config.embedding_mix:
        embeddings = mixed(embeddings, config.embedding_mix, generator)
    return Draw(concepts, embeddings, chosen, seeds, used, strengths)


def mixed(embeddings: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Unit vectors (K, E) of which a share is blended with another of them, by any parts."""
    weights, dice = torch.rand(2, len(embeddings), 1, generator=generator)
    blends = unit(torch.lerp(embeddings, embeddings[torch.randperm(len(embeddings), generator=generator)], weights))
    return torch.where(dice < share, blends, embeddings)


@dataclass
class Inputs:
    """Rows of some concepts at one noise level: x (R, *latent), conditioning (R, T, D), clean latents to match or None;
    owner (R,): which of the concepts each row is of; tables (C, n, D) or None, as also where rows are only a part of
    their concepts'; strengths (C,) of the maps or None for 1.
    """

    level: int
    x: Tensor
    conditioning: Tensor
    owner: Tensor
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
        weighted = config.channel_weighting == "inverse_variance"
        self.coefficients = [
            channel_coefficients(
                self.sites, len(std), channel_weight=inverse_variance(std) if weighted else None
            ).to(self.device)
            for std in data.source()[1]
        ]

    def owners(self, concepts: int) -> Tensor:
        """(R,): which concept each row is of, where all rows of some concepts are there."""
        return torch.arange(concepts).repeat_interleave(self.samples)

    @torch.no_grad()
    def prepare(
        self,
        concepts: Sequence[Concept],
        scenes: Sequence[int],
        seeds: Sequence[int],
        level: int,
        steered: Sequence[TransportMaps] | None = None,
        owner: Tensor | None = None,
    ) -> Inputs:
        """The inputs of some concepts at a level; `steered`: maps per level to sample with up to there, for `inputs =
        "own"`; `owner` (R,): which concept each scene and seed is for, where they are not n for each.
        """
        backbone, config, levels = self.world.backbone, self.config, self.data.levels
        rows = self.owners(len(concepts)) if owner is None else owner
        words = [self.world.scenes[i] for i in scenes]
        named = [self.world.in_concept([text], concepts[k].name)[0] for text, k in zip(words, rows.tolist())]
        noise = backbone.noise(seeds).to(self.device)
        plain = backbone.encode(words).to(self.device)
        own = config.inputs == "own" and steered is not None
        needs_target = config.paired_weight > 0 or (level > 0 and not own)
        wanted = backbone.encode(named).to(self.device) if needs_target else plain
        with arithmetic(config, self.device):
            x = self._latents(noise, wanted, plain, level, rows, steered if own else None)
            paired = backbone.denoise(x, levels[level], wanted).float() if config.paired_weight > 0 else None
        tables = self.tables(concepts, level) if owner is None else None
        return Inputs(level, x, plain, rows, paired, tables, len(concepts))

    @torch.no_grad()
    def recall(
        self,
        concepts: Sequence[Concept],
        scenes: Sequence[int],
        level: int,
        strengths: Tensor | None = None,
        owner: Tensor | None = None,
    ) -> Inputs:
        """What `prepare` computes, from the predictions that were stored with the data: the noise of each is its own.

        strengths (C,): where one is below 1, the clean latents to match lie that far on the way from the prediction
        under the plain prompt to the one under the concept's, so that half a strength looks like half a concept. Where
        one is below 0, the prompts to steer name the concept and the latents to match are those without it.
        """
        rows = self.owners(len(concepts)) if owner is None else owner
        noise, stored = [], []
        for k, concept in enumerate(concepts):
            seeds, part = self.data.seeds(concept), [scenes[i] for i in (rows == k).nonzero().flatten().tolist()]
            noise += [seeds[sample] for sample in part]
            stored.append(self.data.predictions(concept, sorted({0, level}), part))
        predictions = torch.cat(stored, 1).to(self.device)
        x = self.world.backbone.noise(noise).to(self.device)
        words = [self.world.scenes[i] for i in scenes]
        plain = steered = self.world.backbone.encode(words).to(self.device)
        if strengths is not None and bool((strengths < 0).any()):
            removed = [bool(strengths[k] < 0) for k in rows.tolist()]
            named = [
                self.world.in_concept([text], concepts[k].name)[0] if away else text
                for text, k, away in zip(words, rows.tolist(), removed)
            ]
            steered = self.world.backbone.encode(named).to(self.device)
        first, paired = predictions[0], predictions[-1]
        partial = None if strengths is None else strengths[rows].to(self.device)
        if partial is not None:
            first = self._toward(first, x, 0, plain, partial)
        if level == 0:
            paired = first
        else:
            x = renoised(self.world, first, x, self.data.levels, level)
            if partial is not None:
                paired = self._toward(paired, x, level, plain, partial)
        tables = self.tables(concepts, level) if owner is None else None
        return Inputs(level, x, steered, rows, paired, tables, len(concepts), strengths)

    def _toward(self, wanted: Tensor, x: Tensor, level: int, plain: Tensor, strengths: Tensor) -> Tensor:
        """Rows of `wanted` (R, *latent) moved back toward the prediction under the plain prompt where a strength (R,)
        is below 1, all the way where it is below 0."""
        rows = (strengths < 1).nonzero().flatten()
        if not len(rows):
            return wanted
        with arithmetic(self.config, self.device):
            untouched = self.world.backbone.denoise(x[rows], self.data.levels[level], plain[rows]).float()
        share = strengths[rows].clamp(min=0).reshape(-1, *[1] * (wanted.ndim - 1))
        return wanted.index_copy(0, rows, torch.lerp(untouched, wanted[rows], share))

    def tables(self, concepts: Sequence[Concept], level: int) -> Tensor | None:
        """Sorted block means (C, n, D) of some concepts at a level; None where the transport loss has no weight."""
        if self.config.transport_weight == 0:
            return None
        return torch.stack([self.data.targets(c, level, self.samples) for c in concepts]).to(self.device)

    def _latents(
        self,
        noise: Tensor,
        wanted: Tensor,
        plain: Tensor,
        level: int,
        rows: Tensor,
        steered: Sequence[TransportMaps] | None,
    ) -> Tensor:
        backbone, levels = self.world.backbone, self.data.levels
        if level == 0:
            return noise
        if steered is None and self.config.inputs != "sampled":
            return renoised(self.world, backbone.denoise(noise, levels[0], wanted).float(), noise, levels, level)
        x = noise
        for number in range(level):
            if steered is None:
                clean = backbone.denoise(x, levels[number], wanted).float()
            else:
                with Steering(steered[number]).installed(backbone.network, rows=rows):
                    clean = backbone.denoise(x, levels[number], plain).float()
            x = stepped(self.world, x, clean, noise, levels[number], levels[number + 1])
        return x

    def losses(self, maps: TransportMaps | None, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """(transport, paired) of maps with a row per concept, (1,) or none; each a vector (concepts,), gradients reach
        the maps.

        Per concept: transport is the mean over channels, then sites (`objective.transport_of_rows`); paired the mean
        over latents.
        """
        transport, paired = self.row_losses(maps, inputs)
        return transport.unflatten(0, (inputs.concepts, -1)).mean(1), paired.unflatten(0, (inputs.concepts, -1)).mean(1)

    def row_losses(
        self, maps: TransportMaps | None, inputs: Inputs, aligned: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same per row (R,), whose means over a concept's rows are its losses. aligned (R, D): each row's own
        target, see `objective.align`, needed where rows are only a part of their concepts'.
        """
        zero = torch.zeros(len(inputs.owner), device=self.device)
        ranked = aligned is not None or inputs.targets is not None
        seen, clean = self._run(maps, inputs, ranked, inputs.paired is not None)
        transport = paired = zero
        if ranked and seen is not None:
            aligned = align(seen, inputs.targets) if aligned is None and inputs.targets is not None else aligned
            assert aligned is not None
            transport = transport_of_rows(seen, aligned, self.coefficients[inputs.level])
        if inputs.paired is not None and clean is not None:
            paired = paired_of_rows(clean, inputs.paired)
        return transport, paired

    @torch.no_grad()
    def pooled(self, maps: TransportMaps, inputs: Inputs) -> Tensor:
        """Pooled activations (R, D) under maps, to rank rows by before they are run in parts."""
        seen, _ = self._run(maps, inputs, True, False)
        assert seen is not None
        return seen

    def _run(
        self, maps: TransportMaps | None, inputs: Inputs, read: bool, keep_clean: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pooled activations (R, D) and clean prediction (R, *latent), as far as they are wanted."""
        if maps is not None and inputs.strengths is not None:
            maps = maps.interpolate(inputs.strengths)
        return network_call(
            self.world.backbone,
            self.config,
            inputs.x,
            self.data.levels[inputs.level],
            inputs.conditioning,
            self.sites if read else (),
            maps,
            inputs.owner,
            keep_clean,
        )

    def total(self, transport: Tensor, paired: Tensor) -> Tensor:
        """The weighted sum of both."""
        return self.config.transport_weight * transport + self.config.paired_weight * paired


def network_call(
    backbone: Backbone,
    config: TrainingConfig,
    x: Tensor,
    level: float,
    conditioning: Tensor,
    sites: Sequence[Site],
    maps: TransportMaps | None,
    owner: Tensor,
    keep_clean: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """`measuring.one_call` in the config's arithmetic; owner (R,): the map row of each row, where there are several."""
    rows = owner if maps is not None and maps.rows > 1 else torch.zeros_like(owner)
    saving = config.gradient_checkpointing and torch.is_grad_enabled()
    with arithmetic(config, x.device), checkpointed(backbone.network) if saving else nullcontext():
        # An exception that ends a call early would leave a checkpointed block half recorded.
        return one_call(backbone, x, level, conditioning, sites, maps, rows, config.pooling, keep_clean or saving)
