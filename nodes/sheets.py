"""Strength Sheet and Draw Sheet: many strengths and concepts as the rows of one batch, with the same noise, labelled."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..hypertransport_core.sheets import Row, SheetError, contact_sheet
from ..hypertransport_core.sites import SITE_KINDS
from ..hypertransport_core.steering import Steering
from ..hypertransport_core.transport import TransportMaps
from .interception import steer_model
from .layers import ALL, DEPTHS, each_alone
from .sockets import Maps, PredictedMaps, Sheet, node_schema
from .strengths import numbers

MOST_PICTURES = 256
CONCEPTS, KINDS, THIRDS = "concepts", "kinds of layers", "thirds of the depth"


@dataclass(frozen=True)
class SheetPlan:
    """What a batch made for a sheet shows: a column per strength, a row per concept, or several where layers are apart."""

    strengths: tuple[float, ...]
    concepts: tuple[str, ...]

    @property
    def pictures(self) -> int:
        """How many pictures the batch has."""
        return len(self.strengths) * len(self.concepts)

    def __repr__(self) -> str:
        return f"SheetPlan({len(self.concepts)} rows x strengths {', '.join(f'{s:g}' for s in self.strengths)})"


class StrengthSheet(io.ComfyNode):
    """One sampling pass over strengths and concepts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportStrengthSheet", display_name="Strength Sheet", category="HyperTransport",
            description="Shows one picture at several strengths, for one concept or several, in a single sampling pass: every "
                        "row of the batch has the same noise and its own strength. Connect model and latent to the sampler, "
                        "and its pictures with the sheet to Draw Sheet. Use a sampler without random steps (euler, dpmpp_2m), "
                        "or rows differ in more than strength.",
            search_aliases=("XY plot", "strength grid", "comparison", "slider sheet"),
            inputs=[
                io.Model.Input("model", tooltip="The model to steer, as for Steer With Maps. Leave other HyperTransport nodes "
                                                "out unless they should act on every row."),
                Maps.Input("maps", tooltip="One concept, or several side by side (Predict Maps with several concepts as rows): "
                                           "each becomes a row of the sheet."),
                io.Latent.Input("latent", tooltip="The latent to start from, empty or of a picture. Only the first of a batch "
                                                  "is used, repeated for every picture of the sheet."),
                io.String.Input("strengths", default="0, 0.25, 0.5, 0.75, 1", tooltip=(
                    "Strengths separated by commas or spaces, one column each: 0 = the picture without steering, bit for bit; "
                    "1 = the full concept; -1 = taken away, where the prompt names it and the weights were trained with "
                    "removal_share, as the shipped ones are. All else beyond 0 and 1 extrapolates.")),
                io.Combo.Input("rows", options=[CONCEPTS, KINDS, THIRDS], default=CONCEPTS, optional=True, tooltip=(
                    "concepts: one row for each. kinds of layers, thirds of the depth: more rows per concept, first with all "
                    "layers, then with only those of each kind (attention, MLP ...) or third (early, middle, late).")),
            ],
            outputs=[
                io.Model.Output("steered_model", display_name="model", tooltip="For the sampler. It expects the batch of this "
                                                                               "node's latent."),
                io.Latent.Output("batch", display_name="latent", tooltip="For the sampler: one row per picture, all with the "
                                                                         "same noise."),
                Sheet.Output("sheet", display_name="sheet", tooltip="What each picture shows, for Draw Sheet.")])

    @classmethod
    def execute(
        cls, model: ModelPatcher, maps: PredictedMaps, latent: dict[str, Any], strengths: str, rows: str = CONCEPTS
    ) -> io.NodeOutput:
        values = numbers(strengths)
        names = concept_names(maps)
        if rows != CONCEPTS:
            maps, names = layers_apart(maps, names, SITE_KINDS if rows == KINDS else DEPTHS)
        plan = SheetPlan(values, names)
        if plan.pictures > MOST_PICTURES:
            raise SheetError(f"The sheet has {plan.pictures} pictures ({len(plan.concepts)} rows, {len(values)} strengths), "
                             f"expected at most {MOST_PICTURES}; give fewer strengths or rows.")
        steered = steer_model(model, rows_for(maps, len(values)), torch.tensor(values * len(plan.concepts)))
        return io.NodeOutput(steered, repeated(latent, plan.pictures), plan)


class DrawSheet(io.ComfyNode):
    """Labels around pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportDrawSheet", display_name="Draw Sheet", category="HyperTransport",
            description="Puts the pictures of a Strength Sheet into one image, a row per concept and a column per strength, "
                        "with labels.",
            search_aliases=("grid image", "contact sheet", "labels", "XY plot"),
            inputs=[
                io.Image.Input("images", tooltip="The decoded pictures, in the order in which Strength Sheet made them."),
                Sheet.Input("sheet", tooltip="From the Strength Sheet node that made the batch."),
                io.Int.Input("picture_size", default=256, min=32, max=2048, step=8, tooltip=(
                    "About how many pixels the longer side of each picture gets, 32 to 2048. Large pictures are reduced; small "
                    "ones are enlarged by whole factors, so their pixels stay crisp.")),
                io.String.Input("title", default="", optional=True, tooltip="Words above the sheet; empty = none. Long lines "
                                                                            "are wrapped."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="One image with everything.")])

    @classmethod
    def execute(cls, images: Tensor, sheet: SheetPlan, picture_size: int = 256, title: str = "") -> io.NodeOutput:
        if images.shape[0] != sheet.pictures:
            raise SheetError(f"Got {images.shape[0]} pictures for a sheet of {sheet.pictures} ({sheet!r}), expected as many; "
                             "connect the pictures sampled from this Strength Sheet's own latent.")
        pictures = images[..., :3].detach().float().cpu().movedim(-1, 1)
        shown, factor = resized(pictures, picture_size)
        columns, named = len(sheet.strengths), any(sheet.concepts)
        rows = [Row(list(shown[i * columns:(i + 1) * columns]), name if named else "") for i, name in enumerate(sheet.concepts)]
        headings = [f"strength {value:g}" if number == 0 and factor * shown.shape[3] > 120 else f"{value:g}"
                    for number, value in enumerate(sheet.strengths)]
        return io.NodeOutput(contact_sheet(rows, headings, title=title, upscale=factor).movedim(0, -1)[None])


def concept_names(maps: PredictedMaps) -> tuple[str, ...]:
    """A name for every row of maps, as far as known."""
    if maps.rows == 1:
        return (maps.name,)
    first = next(one for one in maps.steps if one.rows == maps.rows)
    names = [first.row(i).info.get("concept", "") for i in range(maps.rows)]
    if len(set(names)) < maps.rows:  # the rows share what is known of them all
        parts = [part.strip() for part in re.split(r"[;\n]", maps.name)]
        names = parts if len(parts) == maps.rows else [f"concept {i + 1}" for i in range(maps.rows)]
    return tuple(str(name) for name in names)


def layers_apart(maps: PredictedMaps, names: Sequence[str], layers: Sequence[str]) -> tuple[PredictedMaps, tuple[str, ...]]:
    """Several rows for each, with names: the maps as they are, then only those of each kind or third among `layers`."""
    apart = each_alone(layers, maps.steps[0].sites)
    words = {layer: f"only {layer.replace('_', ' ')}" for layer in apart if layer != ALL}
    if len(names) == 1:
        labels = [*names, *words.values()]
    else:
        labels = [f"{name}, {words[layer]}" if layer in words else name for name in names for layer in apart]

    def split(one: TransportMaps) -> TransportMaps:
        rows = [one.row(min(i, one.rows - 1)) for i in range(len(names))]
        return TransportMaps.stack(
            [Steering(row, factors=factors).blended().onto(one.sites) for row in rows for factors in apart.values()]
        )

    return maps.change(split), tuple(labels)


def rows_for(maps: PredictedMaps, strengths: int) -> PredictedMaps:
    """Every row of the maps repeated for every strength, concept by concept."""

    def repeat(one: TransportMaps) -> TransportMaps:
        if one.rows == 1:
            return one
        return TransportMaps(one.sites, one.scale.repeat_interleave(strengths, 0), one.shift.repeat_interleave(strengths, 0),
                             dict(one.info))

    return maps if maps.rows == 1 else maps.change(repeat)


def repeated(latent: dict[str, Any], count: int) -> dict[str, Any]:
    """The first row of a latent, `count` times, all of which the host's samplers give the noise of that row."""
    batch = {**latent, "samples": latent["samples"][:1].repeat(count, *[1] * (latent["samples"].ndim - 1))}
    batch["batch_index"] = list(latent.get("batch_index", [0]))[:1] * count
    if latent.get("noise_mask") is not None:
        batch["noise_mask"] = latent["noise_mask"][:1]
    return batch


def resized(pictures: Tensor, size: int) -> tuple[Tensor, int]:
    """(pictures reduced to at most `size` pixels, whole factor by which to enlarge them)."""
    longest = max(pictures.shape[-2:])
    if longest <= size:
        return pictures, max(1, size // longest)
    smaller = [max(1, round(side * size / longest)) for side in pictures.shape[-2:]]
    return interpolate(pictures, smaller, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1), 1


NODES: tuple[type[io.ComfyNode], ...] = (StrengthSheet, DrawSheet)
