"""LinEAS: the maps of one concept, optimised end to end through the frozen network (arXiv 2503.10679)."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..hypernetworks.base import FreeMaps
from ..measuring import device_of, frozen, levels_of, pooled_samples, prompt_per_seed
from ..objective import transport_loss
from ..sites import Site
from ..transport import TransportMaps
from ..wasserstein import block_means, inverse_variance
from .moments import FitError

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

MIN_BATCH = 4
FP16_LOSS_SCALE = 2.0**24


def lineas(backbone: Backbone, sites: Sequence[Site], source_prompts: Sequence[str], target_prompts: Sequence[str],
           seeds: Sequence[int], *, iterations: int = 200, batch: int = 8, learning_rate: float = 5e-2, steps: int = 1,
           pooling: str = "mean", seed: int = 0, fresh_noise: bool = True, normalise: bool = False,
           paired_weight: float = 0.0, chunk: int | None = None, loss_scale: float | None = None,
           progress: Callable[[int, float], None] | None = None) -> TransportMaps:
    """Maps of one concept, one row, by Adam on `transport_loss`: steered source prompts against untouched target
    prompts.

    Sample i is seeds[i] with source and target prompt i, prompts repeating in order. The maps are free parameters in
    the hypernetworks' form (source units, scale bounded to [0.1, 5]), from the identity on; Adam with betas (0.9, 0.9)
    and a cosine from `learning_rate` to a thousandth of it, in source standard deviations per iteration: a shift gets
    about learning_rate · iterations / 2 of them far, which must exceed the way to the target.
    batch: n source samples per iteration, at least 4, a divisor of the number of seeds; if smaller than that, a random
    choice each time, with `fresh_noise` also new noise, against the block means of all targets. batch = len(seeds) uses
    the whole set. steps: sampling steps with one shared map, the loss averaged over them, later ones from the steered
    rollout. normalise: weigh channels by 1 / σ² of the source. paired_weight: weight of the distance between the
    steered prediction and that under target prompt i with the same noise; it needs prompts of matching content.
    chunk: samples per network call, for memory (same gradient). seed: of all random choices; same seed, same maps.
    loss_scale: factor on the loss while gradients run through the network, undone afterwards, as half precision needs:
    the gradient at one token is far below what fp16 can hold. None: as the network's dtype asks for; halved on overflow.
    progress(iteration, loss) after every iteration; what it raises cancels the fit. Raises FitError, MeasureError.
    """
    _check(len(seeds), batch, iterations, learning_rate)
    sites, device, levels = tuple(sites), device_of(backbone), levels_of(backbone, steps)
    texts = {name: prompt_per_seed(prompts, seeds, f"the {name}")
             for name, prompts in (("source", source_prompts), ("target", target_prompts))}
    at_once = min(batch, chunk or batch)
    read = {name: pooled_samples(backbone, prompts, seeds, sites, levels=levels, pooling=pooling, batch=at_once)
            for name, prompts in texts.items()}
    mean, std = read["source"].mean(1), read["source"].std(1, correction=0)
    free = FreeMaps(sites).to(device)
    free.set_source(mean, std)
    targets = block_means(read["target"], batch)[None].to(device)
    channel_weight = torch.stack([inverse_variance(s) for s in std]).to(device) if normalise else None
    draw = _Draw(backbone, texts, seeds, batch, seed, fresh_noise, device, paired_weight > 0, levels[0])
    optimiser = torch.optim.Adam(free.parameters(), lr=learning_rate, betas=(0.9, 0.9))
    nothing = torch.zeros(1, 1, device=device)
    amplifier = _Amplifier(backbone, loss_scale)
    with frozen(backbone.network), torch.enable_grad():
        for iteration in range(iterations):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * iteration / iterations)) / 2)
            conditioning, noise, paired = draw()
            loss = transport_loss(backbone, free(nothing), conditioning, noise, targets, sites, levels, pooling=pooling,
                                  channel_weight=amplifier.weight(channel_weight, targets),
                                  paired_targets=paired, paired_weight=paired_weight * amplifier.factor, chunk=chunk)
            value = float(loss.detach()) / amplifier.factor
            if not math.isfinite(value):
                raise FitError(f"The loss became {value} at iteration {iteration + 1} with a learning rate of "
                               f"{learning_rate:g}; lower it or run the network in fp32.")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if amplifier.undo(free.values):
                optimiser.step()
            if progress:
                progress(iteration + 1, value)
    with torch.no_grad():
        maps = free(nothing).to("cpu")
    info = {"operation": "lineas", "samples": len(seeds), "iterations": iterations, "batch": batch, "steps": steps,
            "learning_rate": learning_rate, "seed": seed}
    return TransportMaps(sites, maps.scale, maps.shift, info)


class _Draw:
    """The source samples of an iteration: (conditioning, noise, paired targets or None)."""

    def __init__(self, backbone: Backbone, texts: dict[str, list[str]], seeds: Sequence[int], batch: int, seed: int,
                 fresh_noise: bool, device: torch.device, paired: bool, level: float) -> None:
        self.backbone, self.batch, self.device, self.level = backbone, batch, device, level
        self.seeds, self.fresh, self.paired = list(seeds), fresh_noise and batch < len(seeds), paired
        self.generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.source = backbone.encode(texts["source"])
            self.target = backbone.encode(texts["target"]) if paired else None

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, Tensor, Tensor | None]:
        chosen = torch.arange(len(self.seeds))
        if self.batch < len(self.seeds):
            chosen = torch.randperm(len(self.seeds), generator=self.generator)[:self.batch]
        seeds = [self.seeds[i] for i in chosen.tolist()]
        if self.fresh:
            seeds = torch.randint(2**31, (self.batch,), generator=self.generator).tolist()
        noise = self.backbone.noise(seeds).to(self.device)
        where = chosen.to(self.source.device)
        paired = None
        if self.target is not None:
            paired = self.backbone.denoise(noise, self.level, self.target[where].to(self.device))
        return self.source[where].to(self.device), noise, paired


class _Amplifier:
    """The factor on the loss that keeps gradients representable inside a network that computes in fp16."""

    def __init__(self, backbone: Backbone, factor: float | None) -> None:
        dtype = getattr(backbone, "compute_dtype", next(backbone.network.parameters()).dtype)
        self.factor = (FP16_LOSS_SCALE if dtype == torch.float16 else 1.0) if factor is None else float(factor)

    def weight(self, channel_weight: Tensor | None, targets: Tensor) -> Tensor | None:
        """The channel weights times the factor; gradients of parts of a batch are then amplified too."""
        if self.factor == 1.0:
            return channel_weight
        return (torch.ones_like(targets[0, 0, 0]) if channel_weight is None else channel_weight) * self.factor

    def undo(self, parameter: Tensor) -> bool:
        """Divide the gradient by the factor. False, and a smaller factor from now on, when it had overflowed."""
        assert parameter.grad is not None
        if not bool(torch.isfinite(parameter.grad).all()):
            if self.factor <= 1.0:
                raise FitError("The gradient is not a finite number; lower the learning rate or run the network in fp32.")
            self.factor /= 4.0
            return False
        parameter.grad /= self.factor
        return True


def _check(samples: int, batch: int, iterations: int, learning_rate: float) -> None:
    if batch < MIN_BATCH or samples % batch:
        raise FitError(f"The batch is {batch} of {samples} samples, but must be at least {MIN_BATCH} and divide their "
                       "number; fewer cannot tell a law.")
    if iterations < 1 or not learning_rate > 0:
        raise FitError(f"Got {iterations} iterations at a learning rate of {learning_rate:g}; both must be positive.")
