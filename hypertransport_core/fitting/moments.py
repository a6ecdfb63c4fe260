"""Maps that only shift, from one untouched pass per prompt: Mean-AcT and ITI-c."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..measuring import levels_of, pooled_samples
from ..sites import Site, site_slices
from ..transport import TransportMaps

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

DIRECTIONS = ("mean", "classifier")


class FitError(ValueError):
    """Prompts or settings that cannot be fitted; the message is one sentence with the cure."""


def mean_act(backbone: Backbone, sites: Sequence[Site], source_prompts: Sequence[str], target_prompts: Sequence[str],
             seeds: Sequence[int], *, steps: int = 1, batch: int = 8) -> TransportMaps:
    """Mean-AcT: scale 1, shift = difference of the mean activations (Linear-AcT, arXiv 2410.23054, §3). One row.

    Sample i is seeds[i] with source and target prompt i, prompts repeating in order; statistics are of the first of
    `steps` sampling steps, as in the predecessors' code, and the map serves all of them. Raises MeasureError.
    """
    source, target = first_step_samples(backbone, sites, source_prompts, target_prompts, seeds, steps, batch)
    shift = (target.mean(0) - source.mean(0))[None]
    return TransportMaps(tuple(sites), torch.ones_like(shift), shift, {"operation": "mean_act", "samples": len(seeds)})


def iti_c(backbone: Backbone, sites: Sequence[Site], source_prompts: Sequence[str], target_prompts: Sequence[str],
          seeds: Sequence[int], *, strength: float = 1.0, direction: str = "classifier", ridge: float = 1.0,
          steps: int = 1, batch: int = 8) -> TransportMaps:
    """ITI-c: scale 1, shift = strength · s · θ per site. θ is the unit direction that tells source from target, s the
    standard deviation of all samples along it (Inference-Time Intervention, arXiv 2306.03341, §3; as a baseline in
    LinEAS).

    direction: "classifier", the normal of a ridge least-squares classifier, or "mean", the difference of means. ridge:
    its penalty in units of the mean variance per channel, positive. Otherwise as `mean_act`. Raises FitError,
    MeasureError.
    """
    if direction not in DIRECTIONS or not ridge > 0:
        raise FitError(f"ITI-c got the direction '{direction}' and a ridge of {ridge:g}; choose "
                       f"{' or '.join(DIRECTIONS)} and a positive ridge.")
    source, target = first_step_samples(backbone, sites, source_prompts, target_prompts, seeds, steps, batch)
    shift = torch.zeros(1, source.shape[1])
    for where in site_slices(sites).values():
        shift[0, where] = strength * _iti_shift(source[:, where], target[:, where], direction, ridge)
    info = {"operation": "iti_c", "samples": len(seeds), "direction": direction, "strength": float(strength)}
    return TransportMaps(tuple(sites), torch.ones_like(shift), shift, info)


def first_step_samples(backbone: Backbone, sites: Sequence[Site], source_prompts: Sequence[str],
                       target_prompts: Sequence[str], seeds: Sequence[int], steps: int,
                       batch: int) -> tuple[Tensor, Tensor]:
    """Untouched pooled activations of source and target prompts at the first of `steps` sampling steps: (m, ΣC) fp32
    each, m = len(seeds), `batch` samples per network call. Raises MeasureError."""
    level = levels_of(backbone, steps)[:1]
    source, target = (pooled_samples(backbone, prompts, seeds, sites, levels=level, batch=batch, name=name)[0]
                      for prompts, name in ((source_prompts, "the source"), (target_prompts, "the target")))
    return source, target


def _iti_shift(source: Tensor, target: Tensor, direction: str, ridge: float) -> Tensor:
    """s · θ of one site from samples (m, C); zero where source and target cannot be told apart."""
    theta = difference = (target.mean(0) - source.mean(0)).double()
    samples = torch.cat([source, target]).double()
    centred = samples - samples.mean(0)
    # A site before any conditioning sees no concept. Its direction would be rounding noise, scaled up to a full step.
    if not difference.norm() > 1e-4 * centred.square().mean(0).sum().sqrt():
        return torch.zeros_like(source[0])
    if direction == "classifier":
        labels = torch.cat([-torch.ones(len(source)), torch.ones(len(target))]).double()
        # Solved among the samples, of which there are fewer than channels.
        gram = centred @ centred.T
        penalty = ridge * gram.diagonal().mean().clamp(min=1e-30)
        theta = centred.T @ torch.linalg.solve(gram + penalty * torch.eye(len(samples)).double(),
                                               labels - labels.mean())
    theta = theta / theta.norm()
    return (theta * (centred @ theta).square().mean().sqrt()).float()
