"""Linear-AcT: per channel the least-squares line through sorted pairs, at all sites at once or each with the maps of
earlier ones active (arXiv 2410.23054)."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..measuring import device_of, frozen, levels_of, pooled_samples, prompt_per_seed
from ..sites import Site, site_slices
from ..steering import Forward, shadowed
from ..transport import AffineMap, TransportMaps
from .moments import FitError, first_step_samples

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

Progress = Callable[[int, int], None]


def least_squares_map(source: Tensor, target: Tensor) -> AffineMap:
    """The affine map per channel that minimises W2² between the transported source and the target: samples (m, C) each.

    scale = cov(sorted source, sorted target) / var(source), never negative since both are sorted; 1 where the source
    does not vary; shift = mean(target) - scale · mean(source) (Linear-AcT, arXiv 2410.23054, §3.1). Raises FitError.
    """
    if source.shape != target.shape or source.ndim != 2:
        raise FitError(f"The source samples have shape {tuple(source.shape)} and the target samples "
                       f"{tuple(target.shape)}; give as many of both, (m, C).")
    x, y = (samples.double().sort(0).values for samples in (source, target))
    x_mean, y_mean = x.mean(0), y.mean(0)
    variance = (x - x_mean).square().mean(0)
    covariance = ((x - x_mean) * (y - y_mean)).mean(0).clamp(min=0)
    # Below this the spread is rounding noise, and the quotient would be as well.
    varies = variance > 1e-12 * (1e-12 + x_mean.square())
    scale = torch.where(varies, covariance / torch.where(varies, variance, 1.0), 1.0)
    return AffineMap(scale.float(), (y_mean - scale * x_mean).float())


def linear_act(backbone: Backbone, sites: Sequence[Site], source_prompts: Sequence[str], target_prompts: Sequence[str],
               seeds: Sequence[int], *, incremental: bool = True, steps: int = 1, batch: int = 8, groups: int = 0,
               progress: Progress | None = None) -> TransportMaps:
    """Linear-AcT maps of one concept, one row.

    incremental: each site is fitted on activations that the maps of the sites called before it have already moved
    (arXiv 2410.23054, §3.2). With groups = 0 that takes one pass of all samples in one call, each site being fitted as
    it is reached, whatever their order in the list. With groups > 0 samples come in calls of `batch` and sites in so
    many groups, in the order of the list: one pass per group, within which sites do not see each other's maps; that
    needs less memory.
    Otherwise all sites are fitted at once on untouched activations. Statistics are of the first of `steps` sampling
    steps. progress(done, total) after every pass; what it raises cancels the fit. Raises FitError, MeasureError.
    """
    if groups < 0:
        raise FitError(f"Got {groups} groups of sites; give 0 (every site by itself, in one pass) or a positive "
                       "number.")
    sites = tuple(sites)
    report = progress or (lambda done, total: None)
    if not incremental:
        fit = least_squares_map(*first_step_samples(backbone, sites, source_prompts, target_prompts, seeds, steps,
                                                    batch))
        report(1, 1)
        return _as_maps(sites, fit, "at once", len(seeds))
    level = levels_of(backbone, steps)[:1]
    target = pooled_samples(backbone, target_prompts, seeds, sites, levels=level, batch=batch, name="the target")[0]
    if groups:
        return _by_groups(backbone, sites, source_prompts, target, seeds, level, batch, min(groups, len(sites)), report)
    fitted = _in_one_pass(backbone, sites, prompt_per_seed(source_prompts, seeds, "the source"), target, seeds,
                          level[0])
    report(1, 1)
    return _as_maps(sites, fitted, "incremental", len(seeds))


def _in_one_pass(backbone: Backbone, sites: tuple[Site, ...], prompts: Sequence[str], target: Tensor, seeds: Sequence[int],
                 level: float) -> AffineMap:
    """Fit every site as the network reaches it: by then all earlier maps act, in the order of the calls."""
    fitted: dict[str, AffineMap] = {}
    slices, device = site_slices(sites), device_of(backbone)

    def maker(site: Site) -> Callable[[Forward], Forward]:
        def make(forward: Forward) -> Forward:
            def fitting_forward(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                z = output[0] if isinstance(output, tuple) else output
                if site.path not in fitted:
                    pooled = z.movedim(site.channel_dim, -1).flatten(1, -2).mean(1, dtype=torch.float32)
                    fitted[site.path] = least_squares_map(pooled.cpu(), target[:, slices[site.path]])
                moved = fitted[site.path].apply(z, site.channel_dim)
                return (moved, *output[1:]) if isinstance(output, tuple) else moved

            return fitting_forward

        return make

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(frozen(backbone.network))
        conditioning, noise = backbone.encode(prompts).to(device), backbone.noise(seeds).to(device)
        stack.enter_context(shadowed(backbone.network, {site.path: maker(site) for site in sites}))
        backbone.denoise(noise, level, conditioning)
    missing = [site.path for site in sites if site.path not in fitted]
    if missing:
        raise FitError(f"{len(missing)} of {len(sites)} sites were not called, first '{missing[0]}'; fit sites that "
                       "the network calls.")
    return AffineMap(torch.cat([fitted[site.path].scale for site in sites]),
                     torch.cat([fitted[s.path].shift for s in sites]))


def _by_groups(backbone: Backbone, sites: tuple[Site, ...], prompts: Sequence[str], target: Tensor, seeds: Sequence[int],
               level: Sequence[float], batch: int, groups: int, report: Progress) -> TransportMaps:
    maps = TransportMaps.identity(sites)
    bounds = [len(sites) * i // groups for i in range(groups + 1)]
    slices = list(site_slices(sites).values())
    for done, (first, last) in enumerate(zip(bounds, bounds[1:])):
        where = slice(slices[first].start, slices[last - 1].stop)
        group = sites[first:last]
        source = pooled_samples(backbone, prompts, seeds, group, levels=level, maps=maps, batch=batch,
                                name="the source")[0]
        fit = least_squares_map(source, target[:, where])
        scale, shift = maps.scale.clone(), maps.shift.clone()
        scale[0, where], shift[0, where] = fit.scale, fit.shift
        maps = TransportMaps(sites, scale, shift)
        report(done + 1, groups)
    return _as_maps(sites, AffineMap(maps.scale[0], maps.shift[0]), f"incremental, {groups} groups", len(seeds))


def _as_maps(sites: tuple[Site, ...], fit: AffineMap, how: str, samples: int) -> TransportMaps:
    return TransportMaps(sites, fit.scale[None], fit.shift[None],
                         {"operation": "linear_act", "how": how, "samples": samples})
