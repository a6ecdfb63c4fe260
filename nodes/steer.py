"""The nodes that steer: from weights and a concept at once, or by way of maps that can be kept and combined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from .interception import MODES, SCOPES, predict, steer_model
from .layers import factors_of, layer_choice, layer_factors
from .sockets import Concept, HyperTransport, Maps, PredictedMaps, advanced, node_schema
from .strengths import numbers

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ..hypertransport_core.encoders.base import ConceptEmbedding
    from ..hypertransport_core.weights_io import HypernetworkFile

ALIASES = ["steering", "activation steering", "transport", "style", "concept", "slider", "hypernetwork", "remove concept"]


def strength_input() -> io.Input:
    """The strength slider."""
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-2.0,
        max=2.0,
        step=0.05,
        round=0.001,
        display_mode=io.NumberDisplay.slider,
        tooltip="-2 to 2. 0 = off, exactly; 1 = the full concept; -1 = taken away, where the prompt names it; in "
        "between, a part of it. Taking away needs weights trained with removal_share, as the shipped ones are; other "
        "maps only lead away from the concept below 0. That, and going beyond 1 or -1, can break the picture.",
    )


def steering_options() -> list[io.Input]:
    """When, where and how: the inputs that follow the strength on every steering node."""
    ends = [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            tooltip="0 to 1: from where in the noise schedule the concept acts. 0 = from the first step. With a start "
            "at or after the end it never acts.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            tooltip="0 to 1: up to where in the noise schedule the concept acts. 1 = to the end, 0 = never. Ranges 0 "
            "to 0.5 and 0.5 to 1 together are the whole.",
        ),
    ]
    return [
        *ends,
        layer_choice(),
        *_several_strengths(),
        *layer_factors(),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the concept acts: 1 = fully, 0 = not at all. Stretched over the picture; a batch of masks "
            "is one per picture. Sites without a picture grid, such as text tokens, are left alone under a mask.",
        ),
        advanced(
            io.Combo.Input(
                "scope",
                options=list(SCOPES),
                default="both",
                optional=True,
                tooltip="Which conditioning is steered. both: strength means the same at any CFG. positive: CFG "
                "multiplies the effect. negative: away from the concept. At CFG 1 only the positive one runs.",
            )
        ),
        advanced(
            io.Combo.Input(
                "mode",
                options=list(MODES),
                default="live",
                optional=True,
                tooltip="live: in each step; a new strength takes effect at once. folded: in the weights, no cost per "
                "step, but every change of strength patches them again; not with start, end, curve, mask, scope or "
                "several rows, and LoRAs belong before this node. auto: folded where possible, else live.",
            )
        ),
    ]


def _several_strengths() -> list[io.Input]:
    return [
        advanced(
            io.String.Input(
                "curve",
                default="",
                optional=True,
                tooltip="Factors on the strength over time, separated by commas: spread evenly from start_percent to "
                "end_percent, with straight lines between. 1, 0 fades out; 0, 1 fades in; 0, 1, 0 swells. 0 = off "
                "there. Empty: the same all the time.",
            )
        ),
        advanced(
            io.String.Input(
                "per_picture",
                default="",
                optional=True,
                tooltip="Factors on the strength, one per picture of the batch, separated by commas: 0, 0.5, 1 for "
                "three. 0 = that picture is left as it is. Empty: all alike.",
            )
        ),
    ]


def steered(model: ModelPatcher, maps: PredictedMaps, strength: float, options: dict[str, Any]) -> ModelPatcher:
    """`steer_model` with what `steering_options` gave."""
    factors = factors_of(maps, options)
    over_time, pictures = (str(options.pop(name, "")).strip() for name in ("curve", "per_picture"))
    curve = numbers(over_time, "curve") if over_time else (1.0,)
    rows = strength * torch.tensor(numbers(pictures, "factors per picture")) if pictures else strength
    return steer_model(model, maps, rows, curve=curve, factors=factors, **options)


def concept_input() -> io.Input:
    """The concept socket."""
    return Concept.Input(
        "concept",
        tooltip="What to steer to, from Concept Encoder or Mix Concepts, made with the encoder that the weights name. "
        "Several rows = one concept per picture of the batch.",
    )


def model_input() -> io.Input:
    """The model socket."""
    return io.Model.Input(
        "model",
        tooltip="The base model that the maps are for. It is not changed; several steering nodes in a row act in "
        "their order.",
    )


def model_output() -> io.Output:
    """The steered model."""
    return io.Model.Output(
        "steered_model",
        display_name="model",
        tooltip="The steered model, for a sampler or the next steering node. At strength 0 it is the model as it came.",
    )


def weights_input() -> io.Input:
    """The hypernetwork socket."""
    return HyperTransport.Input(
        "weights", tooltip="The hypernetwork, from Load HyperTransport, trained for this base model."
    )


class HyperTransportSteer(io.ComfyNode):
    """MODEL, HYPERTRANSPORT, CONCEPT -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportSteer",
            display_name="HyperTransport Steer",
            search_aliases=ALIASES,
            description="Steers what a model draws towards a concept, by any amount, or takes the concept away. The "
            "hypernetwork predicts, for this concept, how the model's inner activations have to move; nothing is "
            "trained. Moving the slider predicts nothing anew.",
            inputs=[model_input(), weights_input(), concept_input(), strength_input(), *steering_options()],
            outputs=[model_output()],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        weights: HypernetworkFile,
        concept: ConceptEmbedding,
        strength: float,
        **options: Any,
    ) -> io.NodeOutput:
        return io.NodeOutput(steered(model, predict(weights, concept), strength, options))


class HyperTransportPredictMaps(io.ComfyNode):
    """HYPERTRANSPORT, CONCEPT -> TRANSPORT_MAPS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportPredictMaps",
            display_name="Predict Maps",
            category="HyperTransport/maps",
            search_aliases=["transport maps", "steering vectors", "hypernetwork"],
            description="The maps that HyperTransport Steer would use for a concept, as a thing of their own: to "
            "combine, invert, save, inspect, export as a LoRA, or steer with.",
            inputs=[weights_input(), concept_input()],
            outputs=[
                Maps.Output(
                    "maps",
                    display_name="maps",
                    tooltip="One affine map per site of the base model; several rows for several concepts.",
                )
            ],
        )

    @classmethod
    def execute(cls, weights: HypernetworkFile, concept: ConceptEmbedding) -> io.NodeOutput:
        return io.NodeOutput(predict(weights, concept))


class HyperTransportSteerWithMaps(io.ComfyNode):
    """MODEL, TRANSPORT_MAPS -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportSteerWithMaps",
            display_name="Steer With Maps",
            search_aliases=ALIASES,
            description="Steers a model with maps from Predict Maps, Fit Maps, Load Maps, Combine Maps or Invert "
            "Maps. Otherwise the same as HyperTransport Steer.",
            inputs=[
                model_input(),
                Maps.Input(
                    "maps",
                    tooltip="Maps made for this base model. Several rows = one set of maps per picture of the batch.",
                ),
                strength_input(),
                *steering_options(),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, maps: PredictedMaps, strength: float, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(steered(model, maps, strength, options))


NODES: tuple[type[io.ComfyNode], ...] = (HyperTransportSteer, HyperTransportPredictMaps, HyperTransportSteerWithMaps)
