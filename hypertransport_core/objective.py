"""The objective of LinEAS and of hypernetwork training, whoever made the maps: a sum over samples, so that it can be
computed in parts.

W2² ties samples together only through their ranks. Once every sample has the target of its rank (`align`), the loss is
the plain sum of `transport_of_rows` and `paired_of_rows`: parts of a batch add up to the whole, in value and gradient.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .measuring import Maps, Measurement, measure
from .sites import Site
from .transport import TransportMaps
from .wasserstein import LossError, channel_coefficients, coarsen, rank_targets

if TYPE_CHECKING:
    from .backbones.protocol import Backbone


def align(seen: Tensor, tables: Tensor) -> Tensor:
    """Every sample's own target, without gradient: pooled activations (K n, D) of K concepts, concept by concept, and
    sorted block means (K, N, D), N being n or a multiple of it -> (K n, D). Raises LossError.
    """
    samples = seen.detach().unflatten(0, (tables.shape[0], -1))
    return rank_targets(samples, coarsen(tables, samples.shape[1])).flatten(0, 1)


def transport_of_rows(seen: Tensor, aligned: Tensor, coefficients: Tensor) -> Tensor:
    """(R,) of pooled activations and their own targets (R, D): the mean over a concept's samples is its W2², weighed
    by `wasserstein.channel_coefficients` (D,)."""
    return (seen - aligned).square() @ coefficients.to(seen.device)


def paired_of_rows(clean: Tensor, wanted: Tensor) -> Tensor:
    """(R,) mean squared differences of predicted clean latents (R, *latent), in fp32."""
    return (clean.float() - wanted.to(clean.device).float()).square().flatten(1).mean(1)


def parts(rows: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `rows` rows in order."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def leaf(maps: TransportMaps) -> TransportMaps:
    """The same maps cut from their graph, gathering gradients in `scale.grad` and `shift.grad`."""
    return TransportMaps(maps.sites, maps.scale.detach().requires_grad_(), maps.shift.detach().requires_grad_())


def transport_loss(backbone: Backbone, maps: TransportMaps | Sequence[TransportMaps], conditioning: Tensor, noise: Tensor,
                   targets: Tensor, sites: Sequence[Site], levels: Sequence[float], *, pooling: str = "mean",
                   measured: Sequence[int] | None = None, weights: Sequence[float] | Tensor | None = None,
                   channel_weight: Tensor | None = None, paired_targets: Tensor | None = None,
                   paired_weight: float = 0.0, chunk: int | None = None) -> Tensor:
    """Scalar loss of K concepts: W2² between steered source samples and targets, per channel (arXiv 2503.10679, §3).

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
                        "the same n samples for every row of maps.")
    if (paired_targets is None) != (paired_weight == 0.0):
        raise LossError(f"Got a paired weight of {paired_weight:g} {'without' if paired_targets is None else 'with'} "
                        "paired targets; give both or neither.")
    term = _Terms(backbone, conditioning, noise, sites, levels, pooling, measured, weights, channel_weight,
                  paired_targets, float(paired_weight), torch.arange(concepts).repeat_interleave(rows // concepts))
    if chunk is None or chunk >= rows:
        found = term.run(maps, slice(None))
        return term.loss(found, _aligned(found.features, targets, concepts), slice(None))
    with torch.no_grad():
        passes = [term.run(maps, part, ranking=True).features for part in parts(rows, chunk)]
        aligned = _aligned([torch.cat(step) for step in zip(*passes)], targets, concepts)
    return _chunked(term, maps, per_step, aligned, rows, chunk)


class _Terms:
    """The parts of one loss evaluation, row-wise."""

    def __init__(self, backbone: Backbone, conditioning: Tensor, noise: Tensor, sites: Sequence[Site],
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

    def loss(self, found: Measurement, aligned: Sequence[Tensor], part: slice) -> Tensor:
        """The share of some rows in the loss; the shares of all rows add up to it."""
        rows, total = self.noise.shape[0], torch.zeros((), device=found.features[0].device)
        for step, seen in enumerate(found.features):
            weight = self.channel_weight
            weight = weight[step] if weight is not None and weight.ndim == 2 else weight
            coefficients = channel_coefficients(self.sites, seen.shape[1], self.weights, weight)
            shares = transport_of_rows(seen, aligned[step][part], coefficients)
            total = total + shares.sum() / (rows * len(found.features))
        if self.paired is not None and found.first_clean is not None:
            total = total + self.paired_weight * paired_of_rows(found.first_clean, self.paired[part]).sum() / rows
        return total


def _aligned(features: Sequence[Tensor], targets: Tensor, concepts: int) -> list[Tensor]:
    """Every sample's own target, (rows, D) per measured step."""
    steps, width = len(features), features[0].shape[1]
    if targets.ndim == 3:
        targets = targets[:, None]
    if targets.ndim != 4 or (targets.shape[0], targets.shape[1], targets.shape[3]) != (concepts, steps, width):
        raise LossError(f"The targets have shape {tuple(targets.shape)}, but must be ({concepts}, {steps}, "
                        f"blocks, {width}): concepts, measured steps, blocks, channels.")
    return [align(seen, targets[:, step]) for step, seen in enumerate(features)]


def _chunked(term: _Terms, maps: TransportMaps | Sequence[TransportMaps], per_step: list[TransportMaps],
             aligned: list[Tensor], rows: int, chunk: int) -> Tensor:
    """The loss as a scalar whose gradient with respect to the maps was accumulated chunk by chunk."""
    leaves = [leaf(m) for m in per_step]
    steered: TransportMaps | list[TransportMaps] = leaves[0] if isinstance(maps, TransportMaps) else leaves
    tensors = [tensor for each in leaves for tensor in (each.scale, each.shift)]
    value = torch.zeros((), device=tensors[0].device)
    for part in parts(rows, chunk):
        with torch.enable_grad():
            share = term.loss(term.run(steered, part), aligned, part)
        share.backward(inputs=tensors)
        value = value + share.detach().to(value.device)
    originals = [tensor for m in per_step for tensor in (m.scale, m.shift)]
    linear = torch.stack([(tensor * cut.grad).sum() for tensor, cut in zip(originals, tensors)
                          if cut.grad is not None]).sum()
    return value + linear - linear.detach()  # worth `value`, with the gradients of the sums
