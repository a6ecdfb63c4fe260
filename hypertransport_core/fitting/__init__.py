"""Maps fitted for one concept at a time: the baselines that a hypernetwork replaces."""
from __future__ import annotations

from .linear_act import least_squares_map, linear_act
from .lineas import lineas
from .moments import FitError, iti_c, mean_act
from .slider_lora import LowRank, slider_lora

__all__ = ["FitError", "LowRank", "iti_c", "least_squares_map", "linear_act", "lineas", "mean_act", "slider_lora"]
