"""Export as LoRA: maps in the weights of a file that every ComfyUI can load."""
from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..hypertransport_core.files import FileError
from ..hypertransport_core.lora import lora_tensors, save_lora, size_in_bytes
from .interception import check_maps
from .saving import first_folder, numbered_path
from .showing import with_text
from .sockets import Maps, PredictedMaps, node_schema

FORMS = ("small", "full", "full, 16 bit")
LARGE = 512 * 1024**2  # bytes from which the output warns


class ExportLora(io.ComfyNode):
    """Maps to models/loras."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportExportLora", display_name="Export as LoRA", category="HyperTransport/maps",
            is_output_node=True,
            description="Writes maps as a LoRA file into models/loras, for people who do not have this pack: the stock Load "
                        "LoRA nodes then steer the model, at no cost per step. Works where a map can become weights; where "
                        "not, the error names the places and why.",
            search_aliases=("save lora", "bake", "merge into weights", "fold", "share concept"),
            inputs=[
                io.Model.Input("model", tooltip="The model the maps were made for. LoRAs connected before this node are not "
                                                "part of the file."),
                Maps.Input("maps", tooltip="The maps to export: of one concept, for all noise levels."),
                io.Float.Input("strength", default=1.0, min=-4.0, max=4.0, step=0.05, tooltip=(
                    "The strength that LoRA strength 1 will mean: 1 = the full maps; 0 would export nothing and is "
                    "refused. The loader's slider scales from there. From -4 to 4.")),
                io.String.Input("filename_prefix", default="hypertransport/concept", tooltip=(
                    "Name of the file below models/loras; _00001 and so on is added, nothing is overwritten.")),
                io.Combo.Input("form", options=list(FORMS), default="small", tooltip=(
                    "small: kilobytes to a few megabytes, in the DoRA format, which ComfyUI and most other programs load. "
                    "full: weight differences, as large as the steered layers, for programs without DoRA. full, 16 bit: "
                    "half of that, rounded.")),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output("path", display_name="path", tooltip="Where the LoRA was written."),
                     io.String.Output("summary", display_name="summary", tooltip="What was written, how large it is, and "
                                                                                 "how to load it.")])

    @classmethod
    def execute(cls, model: ModelPatcher, maps: PredictedMaps, strength: float, filename_prefix: str,
                form: str = "small") -> io.NodeOutput:
        check_maps(model, maps)
        if len(maps.steps) > 1:
            raise FileError(f"The maps of '{maps.name}' differ between {len(maps.steps)} stretches of noise level, but a "
                            "LoRA is the same for all of them: steer live, or export maps of a file with one set")
        tensors = lora_tensors(model.model.diffusion_model, maps.steps[0], strength, form=form.split(",")[0],
                               original=original_weights(model))
        if form.endswith("16 bit"):
            tensors = {name: value.half() for name, value in tensors.items()}
        path = numbered_path(filename_prefix, first_folder("loras"))
        family = str(maps.backbone.get("family") or "")
        save_lora(path, tensors, {
            "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": f"{family or 'unknown'}/lora",
            "modelspec.implementation": "hypertransport", "modelspec.title": maps.name or path.stem,
            "modelspec.description": f"HyperTransport maps of '{maps.name}' at strength {strength:g}"})
        text = summary(maps, len(maps.steps[0]), strength, str(path), size_in_bytes(tensors), form)
        return with_text(cls, text, str(path), text)


def original_weights(model: ModelPatcher) -> Callable[[str], Tensor | None]:
    """Parameter name -> its value as loaded from the checkpoint, whatever LoRAs are in the weights right now."""
    patches = model.get_key_patches("diffusion_model.")

    def original(name: str) -> Tensor | None:
        found = patches.get(f"diffusion_model.{name}")
        if found is None:
            return None
        weight, convert = found[0]
        return None if weight is None else convert(weight.to(torch.float32, copy=True), inplace=True)

    return original


def summary(maps: PredictedMaps, sites: int, strength: float, path: str, size: int, form: str) -> str:
    """What the node says when it has written a file."""
    lines = [f"'{maps.name or 'maps'}' at strength {strength:g}: {sites} sites, {size / 1e6:.2f} MB, written to {path}.",
             "Load it with Load LoRA (Model Only), strength 1; its slider then works like the strength here."]
    if size > LARGE:
        lines.append(f"This is a large file ({size / 1e9:.1f} GB) because the form '{form}' stores whole weights; the form "
                     "'small' says the same in a few megabytes.")
        logging.warning("HyperTransport: %s", lines[-1])
    return "\n".join(lines)


NODES: tuple[type[io.ComfyNode], ...] = (ExportLora,)
