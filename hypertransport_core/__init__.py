"""HyperTransport: steer text-to-image models with affine transport maps that a hypernetwork predicts from one concept.

The names below are loaded on first use, so importing the package costs nothing.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AffineMap": "transport",
    "TransportMaps": "transport",
    "Site": "sites",
    "find_sites": "sites",
    "Envelope": "steering",
    "Steering": "steering",
    "fold_maps": "folding",
    "PooledCapture": "capture",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
