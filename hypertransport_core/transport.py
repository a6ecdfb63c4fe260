"""The algebra of affine transport maps, over one site or all of them: interpolation, inverse, sequence, sum, mixture.

A map acts per channel, T(z) = scale * z + shift. With scale > 0 it is the optimal-transport map between one-dimensional
laws, and the strength λ walks along the displacement interpolation T_λ(z) = (1 + λ (scale - 1)) z + λ shift
(Linear-AcT, arXiv 2410.23054; LinEAS, arXiv 2503.10679). λ = 0 is off, 1 the full map; other values extrapolate.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .sites import Site, site_slices, total_channels

# Below this an inverse would amplify activations ten-thousandfold: fp16 overflows and fp32 keeps no meaningful digits.
MIN_INVERTIBLE_SCALE = 1e-4


class TransportError(ValueError):
    """Maps that do not fit together or cannot be inverted; the message is one sentence with the cure."""


class FoldError(TransportError):
    """A map that cannot be folded into weights; the message is one sentence with the cure."""


def blend(scale: Tensor, shift: Tensor, strength: float | Tensor) -> tuple[Tensor, Tensor]:
    """(1 + λ (scale - 1), λ shift), in fp32; a tensor λ broadcasts against (rows, C). Exact at λ = 0 and λ = 1."""
    if not isinstance(strength, Tensor):
        return torch.lerp(torch.ones_like(scale), scale, float(strength)), shift * float(strength)
    strength = strength.to(scale.device, torch.float32)
    return torch.lerp(torch.ones_like(scale), scale, strength), shift * strength


def per_channel(coefficient: Tensor, ndim: int, channel_dim: int) -> Tensor:
    """View (C,) or (rows, C) so that it broadcasts over an activation of `ndim` dimensions whose first is the batch."""
    rows, channels = (1, *coefficient.shape)[-2:]
    shape = [rows] + [1] * (ndim - 1)
    shape[channel_dim] = channels
    return coefficient.reshape(shape)


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map of one site: T(z) = scale * z + shift, per channel.

    scale, shift: fp32 tensors of shape (C,), or (rows, C) with one row per row of a batch. Other dtypes are
        converted.
    """

    scale: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        if self.scale.shape != self.shift.shape or self.scale.ndim not in (1, 2):
            raise TransportError(f"A map got a scale of shape {tuple(self.scale.shape)} and a shift of shape "
                                 f"{tuple(self.shift.shape)}; give both the same shape, (C,) or (rows, C).")
        object.__setattr__(self, "scale", self.scale.float())
        object.__setattr__(self, "shift", self.shift.float())

    @staticmethod
    def identity(channels: int) -> AffineMap:
        """The map that changes nothing: scale 1, shift 0, of shape (channels,)."""
        return AffineMap(torch.ones(channels), torch.zeros(channels))

    def apply(self, z: Tensor, channel_dim: int = -1) -> Tensor:
        """scale * z + shift in the dtype and on the device of z; a map with rows needs a batch of as many rows."""
        scale, shift = (per_channel(t.to(z.device, z.dtype), z.ndim, channel_dim) for t in (self.scale, self.shift))
        return torch.addcmul(shift, z, scale)

    def interpolate(self, strength: float | Tensor) -> AffineMap:
        """The map at strength λ: scale 1 + λ (scale - 1), shift λ shift. A tensor of n strengths gives n rows."""
        weight = strength.reshape(-1, 1) if isinstance(strength, Tensor) and strength.ndim else strength
        return AffineMap(*blend(self.scale, self.shift, weight))

    def inverse(self) -> AffineMap:
        """The map that undoes this one: (z - shift) / scale. Raises TransportError when a scale is too close to 0."""
        smallest = float(self.scale.detach().abs().min())
        if smallest < MIN_INVERTIBLE_SCALE:
            raise TransportError(_not_invertible("this map", smallest))
        return AffineMap(1.0 / self.scale, -self.shift / self.scale)

    def then(self, other: AffineMap) -> AffineMap:
        """This map first, `other` second: other(self(z))."""
        return AffineMap(other.scale * self.scale, torch.addcmul(other.shift, other.scale, self.shift))

    def fold_into(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """New (weight, bias) of a layer whose output is then transported already, in their old dtype; computed in fp32.

        weight: (C, ...) with output channels first (Linear, Conv2d) or (C,) (affine norm); bias: (C,).
        Raises FoldError when there is no bias to take a shift, or when the map has several rows.
        """
        if self.scale.numel() != weight.shape[0]:
            raise FoldError(f"A map of shape {tuple(self.scale.shape)} cannot be folded into a weight with "
                            f"{weight.shape[0]} output channels; fold one row of maps made for this network.")
        scale = self.scale.detach().reshape(-1).to(weight.device)
        shift = self.shift.detach().reshape(-1).to(weight.device)
        if bias is None and bool(shift.any()):
            raise FoldError("The layer has no bias to fold the map's shift into; steer it live instead.")
        new_weight = (weight.detach().float() * scale.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
        if bias is None:
            return new_weight, None
        return new_weight, torch.addcmul(shift, scale, bias.detach().float()).to(bias.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class TransportMaps:
    """Maps of all sites of a network, for one concept or for several rows (one per row of a batch).

    sites: the sites in order; scale, shift: (rows, Σ channels), fp32, sites concatenated in that order;
    info: where the maps come from, JSON-able. Never changed after construction; every operation returns new maps.
    """

    sites: tuple[Site, ...]
    scale: Tensor
    shift: Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        if len(self.slices) != len(self.sites):
            raise TransportError("The list of sites names a path twice; list every site once.")
        width = total_channels(self.sites)
        if self.scale.shape != self.shift.shape or self.scale.ndim != 2 or self.scale.shape[1] != width:
            raise TransportError(f"Maps got a scale of shape {tuple(self.scale.shape)} and a shift of shape "
                                 f"{tuple(self.shift.shape)}, but its {len(self.sites)} sites need (rows, {width}).")
        object.__setattr__(self, "scale", self.scale.float())
        object.__setattr__(self, "shift", self.shift.float())

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each site's channels lie in a row: {path: slice}."""
        return site_slices(self.sites)

    @property
    def rows(self) -> int:
        """How many maps each site has: 1 for one concept."""
        return self.scale.shape[0]

    @property
    def channels(self) -> int:
        """Channels of all sites together."""
        return self.scale.shape[1]

    @property
    def requires_grad(self) -> bool:
        """Whether these maps are being trained."""
        return self.scale.requires_grad or self.shift.requires_grad

    def __getitem__(self, path: str) -> AffineMap:
        """The map of one site, with scale and shift of shape (rows, C)."""
        where = self.slices[path]
        return AffineMap(self.scale[:, where], self.shift[:, where])

    def __contains__(self, path: object) -> bool:
        return path in self.slices

    def __iter__(self) -> Iterator[str]:
        return iter(self.slices)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        rows = f"{self.rows} row" + "s" * (self.rows != 1)
        return f"TransportMaps({len(self)} sites, {self.channels} channels, {rows}, norm {self.norm():.3g})"

    @staticmethod
    def identity(sites: Sequence[Site], rows: int = 1) -> TransportMaps:
        """Maps that change nothing."""
        width = total_channels(sites)
        return TransportMaps(tuple(sites), torch.ones(rows, width), torch.zeros(rows, width), {"operation": "identity"})

    def interpolate(self, strength: float | Tensor) -> TransportMaps:
        """Maps at strength λ. A tensor (rows,) gives every row its own λ; one row becomes as many as there are λ."""
        if isinstance(strength, Tensor):
            strength = strength.reshape(-1, 1)
            if 1 not in (self.rows, strength.numel()) and self.rows != strength.numel():
                raise TransportError(f"Got {strength.numel()} strengths for {self.rows} rows of maps; "
                                     "give one, or one per row.")
        scale, shift = blend(self.scale, self.shift, strength)
        noted = strength.flatten().tolist() if isinstance(strength, Tensor) else float(strength)
        return TransportMaps(self.sites, scale, shift, _made_by("interpolate", [self], strength=noted))

    def inverse(self) -> TransportMaps:
        """Maps that undo these. Raises TransportError, naming the site, where a scale is too close to 0."""
        size = self.scale.detach().abs()
        if bool((size < MIN_INVERTIBLE_SCALE).any()):
            worst = min(self, key=lambda path: float(size[:, self.slices[path]].min()))
            raise TransportError(_not_invertible(f"site '{worst}'", float(size[:, self.slices[worst]].min())))
        return TransportMaps(self.sites, 1.0 / self.scale, -self.shift / self.scale, _made_by("inverse", [self]))

    def then(self, other: TransportMaps) -> TransportMaps:
        """These maps first, `other` second: scale = s₂ s₁, shift = s₂ b₁ + b₂. A site of only one keeps its map."""
        first, second = _on_common_sites([self, other])
        _check_rows([self, other])
        scale = second.scale * first.scale
        shift = torch.addcmul(second.shift, second.scale, first.shift)
        return TransportMaps(first.sites, scale, shift, _made_by("sequence", [self, other]))

    @staticmethod
    def sum(*maps: TransportMaps, weights: Sequence[float] | None = None) -> TransportMaps:
        """scale = 1 + Σ wᵢ (scaleᵢ - 1), shift = Σ wᵢ shiftᵢ: what stacked weight patches do; any order."""
        return _weighted_sum(maps, [1.0] * len(maps) if weights is None else weights, "sum")

    @staticmethod
    def mix(maps: Sequence[TransportMaps], weights: Sequence[float]) -> TransportMaps:
        """The weighted average of maps: like `sum` with the weights scaled to add up to 1."""
        total = float(sum(weights))
        if abs(total) < 1e-8:
            raise TransportError(f"The mixing weights add up to {total:g}, but must not add up to 0; change one.")
        return _weighted_sum(maps, [float(w) / total for w in weights], "mix")

    @staticmethod
    def stack(maps: Sequence[TransportMaps]) -> TransportMaps:
        """The rows of all maps below one another, for a batch that gives every row its own concept."""
        aligned = _on_common_sites(maps)
        scale, shift = torch.cat([m.scale for m in aligned]), torch.cat([m.shift for m in aligned])
        return TransportMaps(aligned[0].sites, scale, shift, _made_by("stack", maps))

    def row(self, index: int) -> TransportMaps:
        """One row as maps of their own; negative indices count from the end."""
        if not -self.rows <= index < self.rows:
            raise TransportError(f"There is no row {index} in maps of {self.rows} rows; choose 0 to {self.rows - 1}.")
        index %= self.rows
        parts = self.info.get("of", [])
        info = parts[index] if self.info.get("operation") == "stack" and len(parts) == self.rows else self.info
        return TransportMaps(self.sites, self.scale[index:index + 1], self.shift[index:index + 1], dict(info))

    def onto(self, sites: Sequence[Site]) -> TransportMaps:
        """The same maps on another list of sites: identity where these have none; sites not in the list are dropped."""
        sites, own = tuple(sites), {site.path: site for site in self.sites}
        if sites == self.sites:
            return self
        scales, shifts = [self.scale[:, :0]], [self.shift[:, :0]]
        for site in sites:
            mine = own.get(site.path)
            if mine is None:
                scales.append(self.scale.new_ones(self.rows, site.channels))
                shifts.append(self.shift.new_zeros(self.rows, site.channels))
                continue
            if mine.channels != site.channels or mine.channel_dim != site.channel_dim:
                raise TransportError(f"Site '{site.path}' has {mine.channels} channels in one set of maps and "
                                     f"{site.channels} in the other; combine maps of the same base model only.")
            scales.append(self.scale[:, self.slices[site.path]])
            shifts.append(self.shift[:, self.slices[site.path]])
        return TransportMaps(sites, torch.cat(scales, 1), torch.cat(shifts, 1), dict(self.info))

    def norm(self) -> float:
        """Distance from the identity: the root mean square of (scale - 1, shift) over all rows and channels."""
        return _departure(self.scale, self.shift)

    def site_norms(self) -> dict[str, float]:
        """`norm()` of every site: {path: root mean square of (scale - 1, shift)}."""
        return {path: _departure(self.scale[:, where], self.shift[:, where]) for path, where in self.slices.items()}

    def is_identity(self) -> bool:
        """Whether every scale is exactly 1 and every shift exactly 0."""
        return bool((self.scale == 1).all()) and bool((self.shift == 0).all())

    def allclose(self, other: TransportMaps, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
        """Whether both have the same sites and rows and nearly the same numbers."""
        return (self.sites == other.sites and self.rows == other.rows
                and torch.allclose(self.scale, other.scale, rtol, atol)
                and torch.allclose(self.shift, other.shift, rtol, atol))

    def to(self, device: torch.device | str) -> TransportMaps:
        """The maps on another device. They stay fp32: the dtype is chosen where they are applied."""
        device = torch.device(device)
        return TransportMaps(self.sites, self.scale.to(device), self.shift.to(device), dict(self.info))

    def detach(self) -> TransportMaps:
        """The same numbers, cut from the gradient graph."""
        return TransportMaps(self.sites, self.scale.detach(), self.shift.detach(), dict(self.info))


def _departure(scale: Tensor, shift: Tensor) -> float:
    scale, shift = scale.detach(), shift.detach()
    return float((((scale - 1).square() + shift.square()) / 2).mean().sqrt()) if scale.numel() else 0.0


def _not_invertible(where: str, smallest: float) -> str:
    return (f"The inverse does not exist: the smallest scale of {where} is {smallest:.2g} in size, but must be at "
            f"least {MIN_INVERTIBLE_SCALE:g}; invert each set of maps before combining them, or lower their weights.")


def _made_by(operation: str, parts: Sequence[TransportMaps], **details: Any) -> dict[str, Any]:
    return {"operation": operation, **details, "of": [dict(part.info) for part in parts]}


def _on_common_sites(maps: Sequence[TransportMaps]) -> list[TransportMaps]:
    """All maps on the union of their sites, in the order of first appearance."""
    if not maps:
        raise TransportError("Got no maps to combine; give at least one.")
    union = {site.path: site for m in reversed(maps) for site in m.sites}  # reversed: the first one's description wins
    order = dict.fromkeys(path for m in maps for path in m)
    sites = tuple(union[path] for path in order)
    return [m.onto(sites) for m in maps]


def _check_rows(maps: Sequence[TransportMaps]) -> None:
    rows = sorted({m.rows for m in maps} - {1})
    if len(rows) > 1:
        raise TransportError(f"Maps of {' and '.join(map(str, rows))} rows do not fit; give all as many rows, or 1.")


def _weighted_sum(maps: Sequence[TransportMaps], weights: Sequence[float], operation: str) -> TransportMaps:
    if len(maps) != len(weights):
        raise TransportError(f"Got {len(weights)} weights for {len(maps)} maps; give one weight per set of maps.")
    aligned = _on_common_sites(maps)
    _check_rows(maps)
    zero = torch.zeros_like(aligned[0].scale)
    scale = 1 + sum((w * (m.scale - 1) for w, m in zip(weights, aligned)), zero)
    shift = sum((w * m.shift for w, m in zip(weights, aligned)), zero)
    return TransportMaps(aligned[0].sites, scale, shift, _made_by(operation, maps, weights=[float(w) for w in weights]))
