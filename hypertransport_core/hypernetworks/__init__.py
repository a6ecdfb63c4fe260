"""Hypernetworks: one concept embedding in, transport maps of all sites out."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import SCALES, FreeMaps, Hypernetwork, HypernetworkError
from .mlp import MLPHypernetwork
from .perceiver import PerceiverHypernetwork

HYPERNETWORKS: dict[str, type[Hypernetwork]] = {c.kind: c for c in (MLPHypernetwork, PerceiverHypernetwork, FreeMaps)}

__all__ = ["HYPERNETWORKS", "SCALES", "FreeMaps", "Hypernetwork", "HypernetworkError", "MLPHypernetwork", "PerceiverHypernetwork",
           "build_hypernetwork"]


def build_hypernetwork(config: Mapping[str, Any]) -> Hypernetwork:
    """A fresh hypernetwork (the identity) from a config: {"kind": "mlp", "sites": [...], "embedding_dim": 512, ...}.

    Takes what `Hypernetwork.config()` gives; `sites` may hold `Site`s or [path, kind, channels, channel_dim] lists,
    other keys are arguments of the class and have its defaults. Weights and source statistics are loaded into it
    afterwards. Raises HypernetworkError.
    """
    kind = config.get("kind", "mlp")
    if kind not in HYPERNETWORKS:
        raise HypernetworkError(f"There is no hypernetwork kind '{kind}'; choose one of {', '.join(HYPERNETWORKS)}.")
    return HYPERNETWORKS[kind].from_config(config)
