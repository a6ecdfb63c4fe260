"""What maps do, in numbers: how strongly each site is scaled and shifted, and how alike two concepts are."""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .sites import SITE_KINDS, Site
from .transport import TransportError, TransportMaps

KIND_NAMES = {"self_attention": "self-attention", "cross_attention": "cross-attention", "mlp": "MLP", "norm": "norm",
              "convolution": "convolution"}
_BLOCK = re.compile(r"(\w+?)(?:_blocks?)?(?:\.(\d+))?(?:\.|$)")


@dataclass(frozen=True)
class SiteSize:
    """scale: root mean square of scale - 1, no unit (0.1 = activations change by about a tenth); shift: root mean square
    of the shift, in units of the site's activations. Over channels, rows and stretches of noise level."""

    site: Site
    scale: float
    shift: float


@dataclass(frozen=True)
class Likeness:
    """Cosines in [-1, 1] between two concepts at a site: of their scale - 1 and of their shifts. 1 = the same direction,
    0 = unrelated, -1 = opposite; 0 where one of them does nothing."""

    site: Site
    scale: float
    shift: float


def site_sizes(steps: Sequence[TransportMaps]) -> list[SiteSize]:
    """The size of every site's map, in the order of the sites."""
    departures = [torch.cat([m.scale.detach() - 1 for m in steps]), torch.cat([m.shift.detach() for m in steps])]
    slices = steps[0].slices
    return [SiteSize(site, *(float(d[:, slices[site.path]].square().mean().sqrt()) for d in departures))
            for site in steps[0].sites]


def likeness(one: Sequence[TransportMaps], other: Sequence[TransportMaps]) -> list[Likeness]:
    """Cosines per site that both have, in the order of the first. Several rows or stretches of noise level count as their
    mean. Raises TransportError when they share no site."""
    first, second = (_mean(steps) for steps in (one, other))
    shared = [site for site in first.sites if site.path in second]
    if not shared:
        raise TransportError("The two sets of maps have no site in common, so they cannot be compared; compare maps of the "
                             "same base model and site set.")
    found = []
    for site in shared:
        a, b = first[site.path], second[site.path]
        if a.scale.shape != b.scale.shape:
            raise TransportError(f"Site '{site.path}' has {a.scale.numel()} channels in one set of maps and "
                                 f"{b.scale.numel()} in the other; compare maps of the same base model only.")
        found.append(Likeness(site, cosine(a.scale - 1, b.scale - 1), cosine(a.shift, b.shift)))
    return found


def overall(one: Sequence[TransportMaps], other: Sequence[TransportMaps]) -> tuple[float, float]:
    """Cosines over all shared sites together: (of scale - 1, of shifts); sites with large numbers count more."""
    first, second = (_mean(steps) for steps in (one, other))
    shared = [site for site in first.sites if site.path in second]
    first, second = first.onto(shared), second.onto(shared)
    return cosine(first.scale - 1, second.scale - 1), cosine(first.shift, second.shift)


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine between two tensors taken as vectors; 0 when one is 0."""
    a, b = a.detach().flatten().double(), b.detach().flatten().double()
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 else 0.0


def block_of(path: str) -> tuple[str, str]:
    """(stage, number) of the block a site lies in: "input_blocks.3.1.norm" is in ("input", "3"), "middle_block.1" in
    ("middle", ""); a stage of one block has its parts numbered, not itself."""
    found = _BLOCK.match(path)
    if found is None:
        return path.split(".")[0], ""
    number = "" if path.startswith(("middle_block.", "out.")) else found.group(2) or ""
    return found.group(1), number


def summary(steps: Sequence[TransportMaps], name: str = "", family: str = "", other: Sequence[TransportMaps] | None = None,
            other_name: str = "") -> str:
    """What the plot shows, in words, for people and for logs."""
    sizes, maps = site_sizes(steps), steps[0]
    parts = [f"{len(maps)} sites, {maps.channels} channels"]
    parts += [f"{maps.rows} concepts (sizes over all)"] if maps.rows > 1 else []
    parts += [f"{len(steps)} stretches of noise level (sizes over all)"] if len(steps) > 1 else []
    parts += [f"made for {family}"] if family else []
    lines = [f"{name or 'maps'}: " + ", ".join(parts) + "."]
    for kind in kinds_in(maps.sites):
        own = [size for size in sizes if size.site.kind == kind]
        lines.append(f"{KIND_NAMES[kind]} ({len(own)}): scale changes by {_rms(s.scale for s in own):.3g}, shift "
                     f"{_rms(s.shift for s in own):.3g}.")
    for what in ("scale", "shift"):
        top = max(sizes, key=lambda size: getattr(size, what))
        lines.append(f"Largest {what}: {getattr(top, what):.3g} at {top.site.path}.")
    if all(m.is_identity() for m in steps):
        lines.append("These maps change nothing.")
    if other is not None:
        scale, shift = overall(steps, other)
        per_site = likeness(steps, other)
        near, far = (pick(per_site, key=lambda one: one.shift) for pick in (max, min))
        lines.append(f"Compared with {other_name or 'the second maps'} (cosine, 1 = the same direction, 0 = unrelated, -1 = "
                     f"opposite): shifts {shift:.2f}, scales {scale:.2f}; shifts most alike at {near.site.path} "
                     f"({near.shift:.2f}), least at {far.site.path} ({far.shift:.2f}).")
    return "\n".join(lines)


def kinds_in(sites: Sequence[Site]) -> list[str]:
    """The kinds of sites there are, in the usual order."""
    return [kind for kind in SITE_KINDS if any(site.kind == kind for site in sites)]


def _mean(steps: Sequence[TransportMaps]) -> TransportMaps:
    scale, shift = (torch.cat([getattr(m, key) for m in steps]).mean(0, keepdim=True) for key in ("scale", "shift"))
    return TransportMaps(steps[0].sites, scale, shift)


def _rms(values: Iterable[float]) -> float:
    numbers = torch.tensor(list(values), dtype=torch.float64)
    return float(numbers.square().mean().sqrt()) if numbers.numel() else 0.0
