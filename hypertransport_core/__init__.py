"""HyperTransport: steer text-to-image models with affine transport maps that a hypernetwork predicts from one concept.

The names below are loaded on first use, so importing the package costs nothing.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, which cannot follow `__getattr__`
    from .capture import PooledCapture as PooledCapture
    from .folding import fold_maps as fold_maps
    from .pipeline import Pipeline as Pipeline
    from .sites import Site as Site
    from .sites import find_sites as find_sites
    from .steering import Envelope as Envelope
    from .steering import Steering as Steering
    from .transport import AffineMap as AffineMap
    from .transport import TransportMaps as TransportMaps
    from .weights_io import load_hypernetwork as load_hypernetwork
    from .weights_io import load_maps as load_maps
    from .weights_io import save_maps as save_maps

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
    "Pipeline": "pipeline",
    "load_hypernetwork": "weights_io",
    "load_maps": "weights_io",
    "save_maps": "weights_io",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
