"""One rollout of a backbone, steered or not, reading pooled activations at its sites: what loss and statistics share.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .capture import PooledCapture
from .sites import Site
from .steering import Steering
from .transport import TransportMaps

if TYPE_CHECKING:
    from .backbones.protocol import Backbone

Maps = TransportMaps | Sequence[TransportMaps] | None


class MeasureError(ValueError):
    """Prompts, seeds or steps that do not fit; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Measurement:
    """features: pooled activations (B, D) fp32, one tensor per measured step, in the order of the steps;
    first_clean: predicted clean latents (B, *latent) of the first step, where asked for."""

    features: tuple[Tensor, ...]
    first_clean: Tensor | None


def next_latents(x: Tensor, clean: Tensor, level: float, next_level: float) -> Tensor:
    """One Euler step of flow matching, x_t = (1 - t) x₀ + t noise, from noise level t = `level` to `next_level`."""
    return clean + (x - clean) * (next_level / level)


def measure(backbone: Backbone, conditioning: Tensor, noise: Tensor, sites: Sequence[Site], levels: Sequence[float], *,
            maps: Maps = None, rows: Tensor | None = None, pooling: str = "mean", measured: Sequence[int] | None = None,
            need_clean: bool = False) -> Measurement:
    """Roll a backbone out over noise levels and read its sites.

    conditioning (B, T, D); noise (B, *latent), the input at levels[0]; levels: noise levels, descending, no final 0.
    maps: None = untouched; one for all levels, or one per level. rows: long (B,), the map row of each batch row.
    measured: indices of the levels to read, all by default; the rollout ends at the last. Each later level starts from
    the clean prediction of the one before, steered alike but cut from the gradient graph, so gradients of a step reach
    the maps through that step only. A backbone with a method `advance(x, clean, level, next_level)` goes from level to
    level by that instead of `next_latents`. Raises MeasureError.
    """
    wanted = sorted(set(range(len(levels)) if measured is None else measured))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(levels):
        raise MeasureError(f"Steps {wanted} are to be measured of {len(levels)} noise levels; choose from 0 to the "
                           "last.")
    advance = getattr(backbone, "advance", next_latents)
    x, features, first = noise, [], None
    for step in range(wanted[-1] + 1):
        step_maps = maps if maps is None or isinstance(maps, TransportMaps) else maps[step]
        last = step == wanted[-1]
        keep_clean = not last or (need_clean and step == 0)
        with ExitStack() as stack:
            if step not in wanted:
                stack.enter_context(torch.no_grad())
            seen, clean = one_call(backbone, x, levels[step], conditioning, sites if step in wanted else (), step_maps,
                                   rows, pooling, keep_clean)
        if seen is not None:
            features.append(seen)
        if need_clean and step == 0:
            first = clean
        if clean is not None and not last:
            x = advance(x, clean.detach(), levels[step], levels[step + 1]).detach()
    return Measurement(tuple(features), first)


def one_call(backbone: Backbone, x: Tensor, level: float, conditioning: Tensor, sites: Sequence[Site],
             maps: TransportMaps | None = None, rows: Tensor | None = None, pooling: str = "mean",
             keep_clean: bool = True) -> tuple[Tensor | None, Tensor | None]:
    """(pooled activations (B, D) of the sites or None without sites, predicted clean latents (B, *latent)) of x (B,
    *latent) at a noise level. Unless the latents are to be kept, the call ends after the last site and they are None.
    """
    clean, capture = None, None
    with ExitStack() as stack:
        if maps is not None:
            stack.enter_context(Steering(maps).installed(backbone.network, rows=rows, batch=x.shape[0]))
        if sites:
            capture = PooledCapture(backbone.network, sites, pooling, stop_after_last_site=not keep_clean)
            stack.enter_context(capture)
        clean = backbone.denoise(x, level, conditioning)
    return (capture.features() if capture else None), clean


def device_of(backbone: Backbone) -> torch.device:
    """Where the network's parameters are."""
    return next(backbone.network.parameters()).device


def levels_of(backbone: Backbone, steps: int) -> list[float]:
    """The noise levels at which the network is called when sampling in `steps` steps: descending, no final 0."""
    return [float(level) for level in backbone.noise_levels(steps)[:-1]]


def prompt_per_seed(prompts: Sequence[str], seeds: Sequence[int], name: str = "a concept") -> list[str]:
    """The prompt of every sample: prompts repeat in order until there is one per seed. Raises MeasureError."""
    if isinstance(prompts, str) or not prompts or len(prompts) > len(seeds):
        given = "a single text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise MeasureError(f"Got {given} for {name} and {len(seeds)} seeds; give a list of 1 to {len(seeds)} prompts, "
                           "one seed per sample.")
    return [prompts[i % len(prompts)] for i in range(len(seeds))]


@torch.no_grad()
def pooled_samples(backbone: Backbone, prompts: Sequence[str], seeds: Sequence[int], sites: Sequence[Site], *,
                   steps: int = 1, levels: Sequence[float] | None = None, pooling: str = "mean", maps: Maps = None,
                   batch: int = 8, name: str = "a concept") -> Tensor:
    """Pooled activations of m = len(seeds) samples at every level: (S, m, D) fp32 on the CPU, without gradients.

    Sample i is seeds[i] with prompt i (prompts repeat in order). maps: None = untouched, else one row. levels: instead
    of those of `steps`. batch: samples per network call; another value may change the last digits. Raises MeasureError.
    """
    texts = prompt_per_seed(prompts, seeds, name)
    levels = levels_of(backbone, steps) if levels is None else levels
    device, parts = device_of(backbone), []
    with frozen(backbone.network):
        for start in range(0, len(texts), batch):
            conditioning = backbone.encode(texts[start:start + batch]).to(device)
            noise = backbone.noise(seeds[start:start + batch]).to(device)
            found = measure(backbone, conditioning, noise, sites, levels, maps=maps, pooling=pooling)
            parts.append(torch.stack(found.features).cpu())
    return torch.cat(parts, dim=1)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside the block the network is in eval mode and no parameter wants gradients; then all is as it was."""
    modes = [(module, module.training) for module in network.modules()]
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        network.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in wanted:
            parameter.requires_grad_(True)
