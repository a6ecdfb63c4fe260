"""The objective of LinEAS and of hypernetwork training: one function, whoever made the maps."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .measuring import Maps, Measurement, measure
from .sites import Site
from .transport import TransportMaps
from .wasserstein import LossError, channel_coefficients, coarsen, rank_targets


def transport_loss(backbone: Any, maps: TransportMaps | Sequence[TransportMaps], conditioning: Tensor, noise: Tensor,
                   targets: Tensor, sites: Sequence[Site], levels: Sequence[float], *, pooling: str = "mean",
                   measured: Sequence[int] | None = None, weights: Sequence[float] | Tensor | None = None,
                   channel_weight: Tensor | None = None, paired_targets: Tensor | None = None,
                   paired_weight: float = 0.0, chunk: int | None = None) -> Tensor:
    """Scalar loss of K concepts: W2² between steered source samples and targets, per channel (LinEAS, arXiv 2503.10679,
    §3).

    maps: K rows (or a list, one per level), gradients reach their scale and shift. conditioning (K n, T, D) and
    noise (K n, *latent): the source samples, n per concept, concept by concept. targets: sorted block means (K, S, N,
    D) of the S measured steps, or (K, N, D) for one; N is n or a multiple of it. levels, measured, pooling: see
    `measuring.measure`. Mean over a site's channels, sites (`weights`), concepts and steps; `channel_weight` (D,) or
    (S, D) multiplies channels.

    paired_targets (K n, *latent): clean latents that the untouched network predicts at levels[0] under the concept's
    own prompt and the same noise; adds paired_weight times the mean squared difference to the steered prediction.

    chunk: samples per network call. The gradient is exactly that of the whole batch, at the price of one pass more:
    samples are ranked first, without gradients; then every chunk runs backward at once, so memory is that of one chunk.
    Raises LossError, MeasureError.
    """
    per_step = [maps] if isinstance(maps, TransportMaps) else list(maps)
    concepts, rows = per_step[0].rows, noise.shape[0]
    if rows % concepts or conditioning.shape[0] != rows:
        raise LossError(f"Got {concepts} rows of maps, {conditioning.shape[0]} conditionings and {rows} noises; give "
                        "the same n "
                        "samples for every row of maps.")
    if (paired_targets is None) != (paired_weight == 0.0):
        raise LossError(f"Got a paired weight of {paired_weight:g} {'without' if paired_targets is None else 'with'} "
                        "paired targets; "
                        "give both or neither.")
    term = _Terms(backbone, conditioning, noise, sites, levels, pooling, measured, weights, channel_weight,
                  paired_targets,
                  float(paired_weight), torch.arange(concepts).repeat_interleave(rows // concepts))
    if chunk is None or chunk >= rows:
        found = term.run(maps, slice(None))
        return term.loss(found, term.align(found.features, targets, concepts), slice(None))
    with torch.no_grad():
        passes = [term.run(maps, part, ranking=True).features for part in _parts(rows, chunk)]
        aligned = term.align([torch.cat(step) for step in zip(*passes)], targets, concepts)
    return _chunked(term, maps, per_step, aligned, rows, chunk)


class _Terms:
    """The parts of one loss evaluation, row-wise: given each sample's own target, the loss is a sum over samples."""

    def __init__(self, backbone: Any, conditioning: Tensor, noise: Tensor, sites: Sequence[Site],
                 levels: Sequence[float],
                 pooling: str, measured: Sequence[int] | None, weights: Sequence[float] | Tensor | None,
                 channel_weight: Tensor | None, paired: Tensor | None, paired_weight: float, map_rows: Tensor) -> None:
        self.backbone, self.conditioning, self.noise = backbone, conditioning, noise
        self.sites, self.levels, self.pooling, self.measured = sites, levels, pooling, measured
        self.weights, self.channel_weight = weights, channel_weight
        self.paired, self.paired_weight, self.map_rows = paired, paired_weight, map_rows

    def run(self, maps: Maps, part: slice, ranking: bool = False) -> Measurement:
        return measure(self.backbone, self.conditioning[part], self.noise[part], self.sites, self.levels, maps=maps,
                       rows=self.map_rows[part], pooling=self.pooling, measured=self.measured,
                       need_clean=self.paired is not None and not ranking)

    def align(self, features: Sequence[Tensor], targets: Tensor, concepts: int) -> list[Tensor]:
        """Every sample's own target, (rows, D) per measured step."""
        steps, width = len(features), features[0].shape[1]
        if targets.ndim == 3:
            targets = targets[:, None]
        if targets.ndim != 4 or (targets.shape[0], targets.shape[1], targets.shape[3]) != (concepts, steps, width):
            raise LossError(f"The targets have shape {tuple(targets.shape)}, but must be ({concepts}, {steps}, "
                            f"blocks, {width}): "
                            "concepts, measured steps, blocks, channels.")
        aligned = []
        for step, seen in enumerate(features):
            samples = seen.detach().unflatten(0, (concepts, -1))
            aligned.append(rank_targets(samples, coarsen(targets[:, step], samples.shape[1])).flatten(0, 1))
        return aligned

    def loss(self, found: Measurement, aligned: Sequence[Tensor], part: slice) -> Tensor:
        """The share of some rows in the loss; the shares of all rows add up to it."""
        rows, total = self.noise.shape[0], torch.zeros((), device=found.features[0].device)
        for step, seen in enumerate(found.features):
            weight = self.channel_weight
            weight = weight[step] if weight is not None and weight.ndim == 2 else weight
            coefficients = channel_coefficients(self.sites, seen.shape[1], self.weights, weight).to(seen.device)
            total = total + ((seen - aligned[step][part]).square() @ coefficients).sum() / (rows * len(found.features))
        if self.paired is not None and found.first_clean is not None:
            gap = found.first_clean.float() - self.paired[part].to(found.first_clean.device).float()
            total = total + self.paired_weight * gap.square().flatten(1).mean(1).sum() / rows
        return total


def _chunked(term: _Terms, maps: TransportMaps | Sequence[TransportMaps], per_step: list[TransportMaps],
             aligned: list[Tensor],
             rows: int, chunk: int) -> Tensor:
    """The loss as a scalar whose gradient with respect to the maps was accumulated chunk by chunk."""
    leaves = [TransportMaps(m.sites, m.scale.detach().requires_grad_(),
                            m.shift.detach().requires_grad_()) for m in per_step]
    steered: TransportMaps | list[TransportMaps] = leaves[0] if isinstance(maps, TransportMaps) else leaves
    tensors = [tensor for leaf in leaves for tensor in (leaf.scale, leaf.shift)]
    sums, value = [torch.zeros_like(tensor) for tensor in tensors], torch.zeros((), device=tensors[0].device)
    for part in _parts(rows, chunk):
        with torch.enable_grad():
            share = term.loss(term.run(steered, part), aligned, part)
        value = value + share.detach().to(value.device)
        for total, gradient in zip(sums, torch.autograd.grad(share, tensors, allow_unused=True)):
            if gradient is not None:
                total += gradient
    originals = [tensor for m in per_step for tensor in (m.scale, m.shift)]
    linear = torch.stack([(tensor * gradient).sum() for tensor, gradient in zip(originals, sums)]).sum()
    return value + linear - linear.detach()  # worth `value`, with the gradients of the sums


def _parts(rows: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
