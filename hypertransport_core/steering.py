"""Steering a live network: maps installed for one network call, and nothing left behind.

A site's `forward` is shadowed by an instance attribute for the length of one call. Forward hooks would read nicer, but
torch.compile skips their guards by default: a graph that was traced without steering would ignore them without a word.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from .folding import FoldError, fold_maps
from .masks import mask_for
from .sites import SITE_KINDS, Site, site_module
from .transport import TransportMaps, blend, per_channel

__all__ = ["Envelope", "FoldError", "Steering", "SteeringError", "depth_factors", "fold_maps", "shadowed"]

Forward = Callable[..., Any]


class SteeringError(ValueError):
    """Steering that does not fit the network call; the message is one sentence with the cure."""


@dataclass(frozen=True)
class Envelope:
    """When steering acts, in noise level t: 1 is pure noise, 0 the finished picture. Active while end < t <= start.

    With start <= end it is closed, that is never active. Levels above 1, which rounding can produce, count as 1.
    """

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if not 0.0 <= value <= 1.0:
                raise SteeringError(f"The envelope's {name} is {value:g}, but must be a noise level from 0 to 1.")

    def active(self, noise_level: float) -> bool:
        """Whether steering acts at this noise level."""
        return self.end < min(noise_level, 1.0) <= self.start


class Steering:
    """Maps, how strongly, when and where they act. Made once, never changed, usable on any number of networks at once.

    maps: one row for all rows of a batch, or one row for each.
    strength: λ for all rows, or a tensor (rows,) with one per row. 0 is off, exactly; 1 the full map.
    envelope: when to act, by noise level. Without one: always.
    mask: where to act, float (H, W) or (B, H, W) in [0, 1]; a factor on the strength, laid on each site by
        `masks.mask_for`. Sites without a picture grid (text tokens, grids of another aspect) are then left alone.
    factors: {site kind or site path: factor on the strength}; 1 where nothing is named, the product where both kind and
        path are. Sites at 0 are left alone.

    Has no `.to` and is no nn.Module on purpose: a host that casts whatever it finds to the model's dtype would turn the
    maps into fp8. Coefficients are blended in fp32 and cast once to the dtype in which they act.
    """

    def __init__(self, maps: TransportMaps, strength: float | Tensor = 1.0, *, envelope: Envelope | None = None,
                 mask: Tensor | None = None, factors: Mapping[str, float] | None = None) -> None:
        self.maps, self.envelope = maps, envelope
        self.strength = _checked_strength(strength, maps.rows)
        self.mask = _checked_mask(mask)
        self.factors = _checked_factors(factors, maps)
        self.sites = tuple(s for s in maps.sites if self._factor(s) != 0.0)
        self._nowhere = not self.sites or (self.mask is not None and not bool(self.mask.any()))
        self._cache: dict[tuple, dict[str, tuple[Tensor, Tensor]]] = {}

    def __repr__(self) -> str:
        strength = f"{self.strength:g}" if isinstance(self.strength, float) else f"{self.strength.numel()} values"
        extras = [name for name in ("envelope", "mask") if getattr(self, name) is not None]
        return f"Steering({self.maps!r}, strength {strength}{''.join(', ' + e for e in extras)})"

    @property
    def rows(self) -> int:
        """How many rows these maps and strengths tell apart; 1 acts on a batch of any size."""
        return max(self.maps.rows, self.strength.numel() if isinstance(self.strength, Tensor) else 1)

    def at(self, noise_level: float | None = None) -> float | Tensor:
        """The strength at a noise level in [0, 1]: a float, or a tensor (rows,). None: whatever the envelope says."""
        if self.envelope is not None and noise_level is not None and not self.envelope.active(noise_level):
            return 0.0
        return self.strength

    def is_off(self, noise_level: float | None = None) -> bool:
        """Whether nothing at all would be steered at this noise level."""
        strength = self.at(noise_level)
        if isinstance(strength, Tensor):
            return self._nowhere or (not strength.requires_grad and not bool(strength.any()))
        return self._nowhere or strength == 0.0

    @contextmanager
    def installed(self, network: nn.Module, *, noise_level: float | None = None, batch: int | None = None,
                  rows: Tensor | None = None, dtype: torch.dtype | None = None,
                  device: torch.device | str | None = None, mask: Tensor | None = None,
                  frames: int = 1, text_tokens: int | None = None) -> Iterator[None]:
        """Steer the network calls made inside the `with` block; meant for one call, and exception-safe.

        Several can be nested; the one installed first acts first. Rows that are not steered stay as they are.

        noise_level: t in [0, 1] for the envelope. batch: rows of the network's batch, to check early.
        rows: bool (B,), which rows of the batch are steered; or long (B,), the map row that each uses, -1 for none.
        dtype, device: what activations have, when known; saves a cast per site. Otherwise read from each activation.
        mask: for this call instead of the steering's own, (h, w) or (B, h, w) in [0, 1], not checked again.
        frames, text_tokens: how masks lie on tokens, see `masks.mask_for`.
        Raises SteeringError when rows and maps do not fit, SiteError when the network lacks a site; both at the start.
        """
        used, steered = self._rows_of_batch(rows, batch)
        if self.is_off(noise_level) or (steered is not None and not bool(steered.any())):
            yield
            return
        mask = self.mask if mask is None else mask
        mask = mask if device is None or mask is None else mask.to(device)
        flags = steered if steered is None or device is None else steered.to(device)
        device = None if device is None else torch.device(device)
        coefficients = self._coefficients(self.at(noise_level), used, dtype, device)
        laid = None if mask is None else (mask, frames, text_tokens)
        makers = {site.path: _steered(site, *coefficients[site.path], flags, laid) for site in self.sites}
        with shadowed(network, makers):
            yield

    def blended(self) -> TransportMaps:
        """The maps as they act at full envelope and mask: strength and factors applied, sites that are left alone gone."""
        scale, shift = blend(self.maps.scale, self.maps.shift, self._weight(self.strength))
        return TransportMaps(self.maps.sites, scale, shift, dict(self.maps.info)).onto(self.sites)

    def _factor(self, site: Site) -> float:
        return self.factors.get(site.kind, 1.0) * self.factors.get(site.path, 1.0)

    def _rows_of_batch(self, rows: Tensor | None, batch: int | None) -> tuple[Tensor | None, Tensor | None]:
        """(the map row of every batch row or None, which batch rows are steered or None for all)."""
        if rows is None:
            rows = torch.ones(self.rows if self.rows > 1 else batch or 1, dtype=torch.bool)
        if rows.ndim != 1 or rows.dtype not in (torch.bool, torch.int64):
            raise SteeringError(f"rows has shape {tuple(rows.shape)} and dtype {rows.dtype}, but must be bool or "
                                "long of shape (B,).")
        rows = rows.cpu()
        if batch is not None and rows.numel() != batch:
            raise SteeringError(f"There are {rows.numel()} rows to steer for a batch of {batch}; "
                                "give one per row of the batch.")
        if rows.dtype == torch.bool:
            if self.rows not in (1, rows.numel()):
                raise SteeringError(f"A batch of {rows.numel()} rows needs 1 row of maps or as many, not {self.rows}; "
                                    "pass `rows` as map indices.")
            used = torch.arange(rows.numel()) if self.rows > 1 else torch.zeros(rows.numel(), dtype=torch.long)
            used = torch.where(rows, used, -1)
        else:
            used = rows
        if used.numel() and (int(used.min()) < -1 or int(used.max()) >= self.rows):
            raise SteeringError(f"rows names map rows {int(used.min())} to {int(used.max())}, but there are "
                                f"{self.rows}; use 0 to the last, or -1 for none.")
        if isinstance(self.strength, Tensor) and not self.strength.requires_grad and self.rows > 1:
            used = torch.where(self.strength.cpu()[used.clamp(min=0)] == 0.0, -1, used)
        steered = used >= 0
        return (used if self.rows > 1 else None), (None if bool(steered.all()) else steered)

    def _coefficients(self, strength: float | Tensor, used: Tensor | None, dtype: torch.dtype | None,
                      device: torch.device | None) -> dict[str, tuple[Tensor, Tensor]]:
        """{site: (scale, shift)}, one row or one per batch row, blended in fp32 and cast once."""
        trained = self.maps.requires_grad or (isinstance(strength, Tensor) and strength.requires_grad)
        # Tensors made in inference mode cannot take part in a later backward pass, hence a separate entry.
        key = (_hashable(strength), _hashable(used), dtype, device, torch.is_inference_mode_enabled())
        if not trained and key in self._cache:
            return self._cache[key]
        scale, shift = blend(self.maps.scale, self.maps.shift, self._weight(strength))
        if used is not None:
            index = used.clamp(min=0).to(scale.device)
            scale, shift = (t.expand(self.rows, -1).index_select(0, index) for t in (scale, shift))
        scale, shift = scale.to(device, dtype), shift.to(device, dtype)
        result = {path: (scale[:, where], shift[:, where]) for path, where in self.maps.slices.items()}
        if not trained:
            if len(self._cache) >= 8:  # batch layouts of a run are few; a longer list means they keep changing
                self._cache.clear()
            self._cache[key] = result
        return result

    def _weight(self, strength: float | Tensor) -> float | Tensor:
        """The strength as a float, or per row and channel."""
        strength = strength.reshape(-1, 1) if isinstance(strength, Tensor) else strength
        if not self.factors:
            return strength
        factors = [torch.full((s.channels,), self._factor(s)) for s in self.maps.sites]
        device = self.maps.scale.device
        return torch.cat(factors).to(device) * (strength.to(device) if isinstance(strength, Tensor) else strength)


@contextmanager
def shadowed(network: nn.Module, makers: Mapping[str, Callable[[Forward], Forward]]) -> Iterator[None]:
    """Replace `forward` of the modules at some paths by maker(forward); afterwards put back exactly what was there.

    Each maker gets what was in place before, so nested use chains: the first installed is the innermost. All paths are
    looked up before anything is replaced. Raises SiteError when one is missing.
    """
    modules = [(site_module(network, path), make) for path, make in makers.items()]
    undo: list[tuple[nn.Module, Forward | None]] = []
    try:
        for module, make in modules:
            before = module.__dict__.get("forward")  # None: the class's own method, nothing on the instance
            replacement = make(module.forward)
            undo.append((module, before))
            module.forward = replacement
        yield
    finally:
        for module, before in reversed(undo):
            if before is None:
                del module.forward
            else:
                module.forward = before


def depth_factors(sites: Sequence[Site], early: float = 1.0, middle: float = 1.0, late: float = 1.0) -> dict[str, float]:
    """{site path: factor} for the first, second and last third of the sites in their order; factors of 1 are left out."""
    thirds = (early, middle, late)
    found = {site.path: thirds[3 * number // len(sites)] for number, site in enumerate(sites)}
    return {path: factor for path, factor in found.items() if factor != 1.0}


def _steered(site: Site, scale: Tensor, shift: Tensor, flags: Tensor | None,
             mask: tuple | None) -> Callable[[Forward], Forward]:
    """A maker for `shadowed`: transports what forward returns. Holds tensors, no numbers, so compiled graphs last."""

    def make(forward: Forward) -> Forward:
        def steered_forward(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if isinstance(output, tuple):
                return (_transport(output[0], site, scale, shift, flags, mask), *output[1:])
            return _transport(output, site, scale, shift, flags, mask)

        return steered_forward

    return make


def _transport(z: Tensor, site: Site, scale: Tensor, shift: Tensor, flags: Tensor | None,
               mask: tuple | None) -> Tensor:
    """The transported activation, in its own dtype. z: (B, T, C) or (B, C, H, W)."""
    scale, shift = (_for_batch(t.to(z.device, z.dtype), z.shape[0], site) for t in (scale, shift))
    moved = torch.addcmul(per_channel(shift, z.ndim, site.channel_dim), z, per_channel(scale, z.ndim, site.channel_dim))
    if mask is not None:
        where = mask_for(z, site, *mask)
        if where is None:
            return z
        moved = torch.lerp(z, moved, _for_batch(where, z.shape[0], site).to(z.dtype))  # exact where the mask is 0 or 1
    if flags is not None:  # selected, not multiplied by 1: untouched rows stay as they are, bit for bit
        chosen = _for_batch(flags.to(z.device), z.shape[0], site)
        moved = torch.where(per_channel(chosen[:, None], z.ndim, -1), moved, z)
    return moved


def _for_batch(rows: Tensor, batch: int, site: Site) -> Tensor:
    """Rows matched to a module's batch, which may be a multiple of the network's (frames of a video, folded in)."""
    if rows.shape[0] in (1, batch):
        return rows
    if batch % rows.shape[0]:
        raise SteeringError(f"Site '{site.path}' sees a batch of {batch}, which does not fit {rows.shape[0]} rows of "
                            "maps; give one row, or one per row of the batch.")
    return rows.repeat_interleave(batch // rows.shape[0], 0)


def _hashable(value: float | Tensor | None) -> float | tuple[float, ...] | None:
    return tuple(value.tolist()) if isinstance(value, Tensor) else value


def _checked_strength(strength: float | Tensor, rows: int) -> float | Tensor:
    if isinstance(strength, Tensor) and strength.numel() == 1 and not strength.requires_grad:
        strength = float(strength)
    if not isinstance(strength, Tensor):
        if not isfinite(strength):
            raise SteeringError(f"The strength is {strength}, but must be a finite number; "
                                "0 is off and 1 the full map.")
        return float(strength)
    strength = strength.float().reshape(-1)
    if not bool(torch.isfinite(strength).all()):
        raise SteeringError("A strength is not a finite number; 0 is off and 1 the full map.")
    if strength.numel() != 1 and rows not in (1, strength.numel()):
        raise SteeringError(f"Got {strength.numel()} strengths for {rows} rows of maps; give one, or one per row.")
    return strength


def _checked_mask(mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    if mask.ndim not in (2, 3) or not mask.numel():
        raise SteeringError(f"The mask has shape {tuple(mask.shape)}, but must be (H, W) or (B, H, W).")
    mask = mask.detach().float()
    low, high = float(mask.min()), float(mask.max())
    if not (0.0 <= low and high <= 1.0):
        raise SteeringError(f"The mask has values from {low:g} to {high:g}, but they must lie between 0 and 1.")
    return None if low == 1.0 else mask  # a mask of ones is no mask


def _checked_factors(factors: Mapping[str, float] | None, maps: TransportMaps) -> dict[str, float]:
    factors = {key: float(factor) for key, factor in (factors or {}).items()}
    for key, factor in factors.items():
        if key not in SITE_KINDS and key not in maps:
            raise SteeringError(f"There is no site kind '{key}', nor a site of that path in these maps; choose from "
                                f"{', '.join(SITE_KINDS)}, or name a site.")
        if not isfinite(factor):
            raise SteeringError(f"The strength factor of '{key}' is {factor}, but must be a finite number.")
    return {key: factor for key, factor in factors.items() if factor != 1.0}
