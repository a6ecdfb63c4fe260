"""Folding maps into weights: the steered network as plain weights, at no cost per step.

Possible because the map follows a linear step with the same output channels: with W' = diag(s) W and c' = s c + b,
s (W x + c) + b = W' x + c', and likewise γ' = s γ, β' = s β + b for a norm with learned affine.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .sites import output_module, site_module
from .transport import AffineMap, FoldError, TransportMaps

__all__ = ["FoldError", "check_foldable", "fold_maps"]


def fold_maps(network: nn.Module, maps: TransportMaps, strength: float = 1.0) -> dict[str, Tensor]:
    """New parameter values that make `network` do what `Steering(maps, strength)` does to it live.

    Returns {parameter name: tensor} with dtype and device of the old value; the network is not changed. Sites may be
    Linear, Conv2d, LayerNorm or GroupNorm with learned affine, or a composite that ends with a Linear. Products are in
    fp32, but parameters kept in half precision or less round the result. Strength 0 gives an empty dict.

    Raises FoldError, naming the sites, for norms without learned affine, layers without a bias that need a shift, and
    maps of several rows; SiteError for sites that the network does not have.
    """
    if maps.rows != 1:
        raise _several_rows(maps)
    if strength == 0.0:
        return {}
    blended = maps.interpolate(strength)
    leaves = check_foldable(network, blended)
    folded: dict[str, Tensor] = {}
    for path, (leaf_path, leaf) in leaves.items():
        weight, bias = blended[path].fold_into(*_parameters(leaf))
        folded[f"{leaf_path}.weight"] = weight
        if bias is not None:
            folded[f"{leaf_path}.bias"] = bias
    return folded


def check_foldable(network: nn.Module, maps: TransportMaps) -> dict[str, tuple[str, nn.Module]]:
    """{site path: (path, module) of the layer whose parameters take the site's map}. Raises what `fold_maps` raises."""
    if maps.rows != 1:
        raise _several_rows(maps)
    leaves = {path: output_module(site_module(network, path), path) for path in maps}
    obstacles = {path: _obstacle(leaf, maps[path]) for path, (_, leaf) in leaves.items()}
    refused = [f"'{path}' {obstacle}" for path, obstacle in obstacles.items() if obstacle]
    if refused:
        named = ", ".join(refused[:4]) + (f", and {len(refused) - 4} more" if len(refused) > 4 else "")
        raise FoldError(f"{len(refused)} of {len(maps)} sites cannot fold ({named}); steer live, or use other sites.")
    return leaves


def _several_rows(maps: TransportMaps) -> FoldError:
    return FoldError(f"Maps of {maps.rows} rows cannot be folded: weights hold one concept; fold `maps.row(i)`.")


def _parameters(leaf: nn.Module) -> tuple[Any, Tensor | None]:
    return getattr(leaf, "weight", None), getattr(leaf, "bias", None)


def _obstacle(leaf: nn.Module, site_map: AffineMap) -> str | None:
    """Why a map cannot become part of a module's weights, as the end of a sentence; None when it can."""
    weight, bias = _parameters(leaf)
    if weight is None:
        return "has no learned affine"
    if weight.shape[0] != site_map.scale.shape[-1]:
        return f"has {weight.shape[0]} channels instead of {site_map.scale.shape[-1]}"
    if bias is None and bool(site_map.shift.any()):
        return "has no bias to take the shift"
    return None
