"""Which layers take part in a steering: choices by name, and a factor per kind of layer and per third of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..hypertransport_core.sites import SITE_KINDS, Site
from ..hypertransport_core.steering import SteeringError, depth_factors
from .sockets import PredictedMaps, advanced

DEPTHS = ("early", "middle", "late")
ALL = "all"
LAYERS: dict[str, tuple[str, ...]] = {
    ALL: (*SITE_KINDS, *DEPTHS),
    "attention": ("self_attention", "cross_attention", *DEPTHS),
    "attention and mlp": ("self_attention", "cross_attention", "mlp", *DEPTHS),
    "mlp": ("mlp", *DEPTHS),
    "norm": ("norm", *DEPTHS),
    "early": (*SITE_KINDS, "early"),
    "early and middle": (*SITE_KINDS, "early", "middle"),
    "middle": (*SITE_KINDS, "middle"),
    "middle and late": (*SITE_KINDS, "middle", "late"),
    "late": (*SITE_KINDS, "late"),
}
"""Choice -> the kinds and thirds that take part; what is named in neither is left alone."""

_WORDS = {
    "self_attention": "the outputs of self-attention, where parts of the picture look at one another",
    "cross_attention": "the outputs of cross-attention, where the picture looks at the prompt",
    "mlp": "the outputs of the MLPs",
    "norm": "the outputs of the norms",
    "convolution": "the outputs of convolutions (UNets only)",
    "early": "the first third of the sites, in the order in which the model runs them",
    "middle": "the second third of the sites, in the order in which the model runs them",
    "late": "the last third of the sites, in the order in which the model runs them",
}


def layer_choice() -> io.Input:
    """The choice by name."""
    return io.Combo.Input(
        "layers",
        options=list(LAYERS),
        default=ALL,
        optional=True,
        tooltip="Which of the layers that the maps are for take part: all, only a kind, or only a part of the depth "
        "(early, middle and late are thirds). The factors per kind and third come on top.",
    )


def layer_factors() -> list[io.Input]:
    """A factor per kind and per third."""
    return [_factor(name, what) for name, what in _WORDS.items()]


def _factor(name: str, what: str) -> io.Input:
    return advanced(
        io.Float.Input(
            name,
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            round=0.001,
            optional=True,
            tooltip=f"0 to 2, multiplies the strength on {what}. 0 = these are left alone.",
        )
    )


def factors_of(maps: PredictedMaps, options: dict[str, Any]) -> dict[str, float]:
    """Take what `layer_choice` and `layer_factors` gave out of a node's inputs: {site kind or path: factor}, for `steer_model`.

    Raises SteeringError for a choice that these maps have no layer of.
    """
    sites = maps.steps[0].sites
    chosen = chosen_layers(str(options.pop("layers", ALL)), sites)
    return {
        **{kind: float(options.pop(kind, 1.0)) * chosen[kind] for kind in SITE_KINDS},
        **depth_factors(sites, *(float(options.pop(depth, 1.0)) * chosen[depth] for depth in DEPTHS)),
    }


def chosen_layers(choice: str, sites: Sequence[Site]) -> dict[str, float]:
    """{kind or third: 1 where it takes part, else 0} of a choice. Raises SteeringError where nothing is left."""
    if choice not in LAYERS:
        raise SteeringError(f"The layers are '{choice}', but must be one of {', '.join(LAYERS)}.")
    if not any(site.kind in LAYERS[choice] for site in sites):
        kinds = ", ".join(kind for kind in SITE_KINDS if any(site.kind == kind for site in sites))
        raise SteeringError(f"The layers are '{choice}', but these maps are for {kinds} only; choose {ALL}.")
    return {name: float(name in LAYERS[choice]) for name in (*SITE_KINDS, *DEPTHS)}


def each_alone(names: Sequence[str], sites: Sequence[Site]) -> dict[str, dict[str, float]]:
    """{"all": {}, kind or third: factors by site path that leave only its sites}, for those of the names that occur."""
    found: dict[str, dict[str, float]] = {ALL: {}}
    for name in names:
        if name in DEPTHS:
            factors = depth_factors(sites, *(float(depth == name) for depth in DEPTHS))
        else:
            factors = {site.path: 0.0 for site in sites if site.kind != name}
        if 0 < len(factors) < len(sites):
            found[name] = factors
    return found
