"""The loss: exact squared Wasserstein-2 distance between one-dimensional laws, per channel, from sorted block means.

For n source samples and m = k n target samples, W2² between the empirical laws is, up to the mean within-block variance
of the targets (a constant without gradient), (1/n) Σ (x_(i) - ȳ_i)², with ȳ_i the mean of the i-th block of k
consecutive sorted targets. So n block means per channel stand for all m targets, and tables nest: neighbours averaged
in a table of 16 give the table of 8. (LinEAS, arXiv 2503.10679, §3, with the block means of our own.)

A small n has noisier order statistics than the law behind it, which draws fitted scales below 1: about 0.81 at n = 8
and 0.92 at n = 32 for Gaussian channels even where source and target agree. Prefer n >= 8, or `rank_targets` with
n = 32.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .sites import Site, total_channels


class LossError(ValueError):
    """Samples, targets or sites that do not fit together; the message is one sentence with the cure."""


def block_means(samples: Tensor, blocks: int) -> Tensor:
    """Sorted block means of samples (..., m, C), per channel: (..., blocks, C), ascending. `blocks` must divide m.

    fp32 at least; no gradient is cut. Raises LossError.
    """
    return coarsen(_floating(samples).sort(dim=-2).values, blocks)


def coarsen(table: Tensor, blocks: int) -> Tensor:
    """A table of sorted block means (..., n, C) with fewer blocks: means of neighbours, (..., blocks, C).

    `blocks` must divide n. Raises LossError.
    """
    count = table.shape[-2]
    if blocks < 1 or count % blocks:
        raise LossError(f"{count} sorted values cannot be averaged in {blocks} equal blocks; choose a number of blocks "
                        f"that divides {count}.")
    return table if blocks == count else _floating(table).unflatten(-2, (blocks, count // blocks)).mean(-2)


def wasserstein2(source: Tensor, target_blocks: Tensor) -> Tensor:
    """Exact W2² per channel, up to a constant: source (..., n, C) in any order, targets (..., n, C) sorted -> (..., C).

    In squared units of the activation. It is 0 for equal laws and δ² for a shift by δ. Raises LossError.
    """
    _same_samples(source, target_blocks)
    return (_floating(source).sort(dim=-2).values - target_blocks.to(source.device)).square().mean(-2)


def rank_targets(source: Tensor, target_blocks: Tensor) -> Tensor:
    """Each source sample's own target: the block mean of its rank, per channel. (..., N, C) twice -> (..., N, C).

    Given these, W2² is a plain sum over samples, so the gradient of micro-batches of Σ (x_i - aligned_i)² / N adds up
    to that of the full batch: exact at the price of one gradient-free pass over all N with the same noise.
    Raises LossError.
    """
    _same_samples(source, target_blocks)
    order = source.detach().argsort(dim=-2, stable=True)
    targets = _floating(target_blocks).to(source.device).expand_as(order)
    return torch.empty_like(targets).scatter_(-2, order, targets)


def channel_coefficients(sites: Sequence[Site], width: int, weights: Sequence[float] | Tensor | None = None,
                         channel_weight: Tensor | None = None) -> Tensor:
    """What every channel counts in the loss, (width,) fp32: mean over a site's channels, then mean over sites.

    width: ΣC, or a multiple of it for several moments per channel (means, then standard deviations), which share a
    site's weight. weights: relative weight per site; channel_weight: factor per channel, (width,), for instance 1 /
    σ_source² so that a few channels of large spread do not dominate. Raises LossError.
    """
    channels = total_channels(sites)
    if not channels or width % channels:
        raise LossError(f"The samples have {width} channels, but the {len(sites)} sites have {channels}; give samples "
                        "of these sites.")
    site_weights = torch.ones(len(sites)) if weights is None else torch.as_tensor(weights, dtype=torch.float32).cpu()
    if site_weights.shape != (len(sites),) or bool((site_weights < 0).any()) or not float(site_weights.sum()) > 0:
        raise LossError(f"Got {site_weights.numel()} site weights for {len(sites)} sites; give one non-negative number "
                        "per site, not all zero.")
    moments = width // channels
    shares = site_weights / site_weights.sum() / torch.tensor([float(site.channels) for site in sites]) / moments
    coefficients = shares.repeat_interleave(torch.tensor([site.channels for site in sites])).repeat(moments)
    if channel_weight is None:
        return coefficients
    if channel_weight.shape != (width,):
        raise LossError(f"The channel weight has shape {tuple(channel_weight.shape)}, but must be ({width},): one "
                        "factor per channel of the samples.")
    return coefficients.to(channel_weight.device) * channel_weight.detach().float()


def inverse_variance(std: Tensor, floor: float = 1e-2) -> Tensor:
    """The channel weight 1 / σ² of source standard deviations (C,), with σ no smaller than `floor` times their median.

    The floor keeps nearly constant channels from taking over the loss in turn.
    """
    std = std.detach().float()
    return 1.0 / std.clamp(min=max(float(std.median()) * floor, 1e-8)).square()


def site_loss(source: Tensor, targets: Tensor, sites: Sequence[Site], weights: Sequence[float] | Tensor | None = None,
              channel_weight: Tensor | None = None) -> Tensor:
    """The scalar loss of K concepts: W2² averaged over a site's channels, then over sites, then over concepts.

    source, targets: (K, n, D) pooled activations and sorted block means, D = ΣC or a multiple. Every *site* weighs the
    same unless `weights` says otherwise, as in LinEAS's code. Raises LossError.
    """
    coefficients = channel_coefficients(sites, source.shape[-1], weights, channel_weight)
    return (wasserstein2(source, targets) @ coefficients.to(source.device)).mean()


def _same_samples(source: Tensor, targets: Tensor) -> None:
    if source.shape[-2:] != targets.shape[-2:]:
        raise LossError(f"The source has {source.shape[-2]} samples of {source.shape[-1]} channels and the targets "
                        f"{targets.shape[-2]} of {targets.shape[-1]}; coarsen the targets to the samples of the batch.")


def _floating(values: Tensor) -> Tensor:
    # Half-precision tables are storage; sorting and averaging in them would merge neighbours.
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
