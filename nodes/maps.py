"""Nodes for transport maps as things of their own: combined, inverted, saved and loaded."""
from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..hypertransport_core import step_maps
from ..hypertransport_core.files import FileError, read_header
from ..hypertransport_core.thumbnails import data_uri
from ..hypertransport_core.transport import TransportMaps
from ..hypertransport_core.weights_io import TRANSPORT_MAPS, load_step_maps, save_maps
from .folders import MODEL_FOLDER, files_of_kind, find_file, fingerprint
from .saving import first_folder, numbered_path
from .showing import with_text
from .sockets import Maps, PredictedMaps, node_schema

CATEGORY = "HyperTransport/maps"
OUTPUT_FOLDER, OUTPUT_MARK = "hypertransport", " [output]"  # the mark is the host's own for files of the output folder
PLACES = ("models", "output")


class CombineMaps(io.ComfyNode):
    """Two to four concepts as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        places = ("first", "second", "third", "fourth")
        sockets = [Maps.Input(place, optional=index > 1, tooltip=f"The maps that come {place}." + (
            " Leave it open to combine fewer." if index > 1 else "")) for index, place in enumerate(places)]
        weights = [io.Float.Input(f"{place}_weight", default=1.0, min=-4.0, max=4.0, step=0.05, optional=index > 1,
                                  tooltip=f"How much of the {place} maps: 0 = nothing of them, 1 = as they are, "
                                          "below 0 = as at a negative strength. From -4 to 4.")
                   for index, place in enumerate(places)]
        return node_schema(
            node_id="HyperTransportCombineMaps", display_name="Combine Maps", category=CATEGORY,
            description="Makes one set of maps from two, three or four: two styles at once, or a style and the removal "
                        "of another. All must be made for the same model. Connect the result to Steer With Maps.",
            search_aliases=("merge maps", "add concepts", "blend styles", "mix maps"),
            inputs=[*sockets[:2], io.Combo.Input("how", options=list(step_maps.HOW), default="sum", tooltip=(
                        "sum: the effects add up, in any order. sequence: the first acts, then the second acts on its "
                        "result. average: like sum, with weights scaled to add up to 1, so the strength stays moderate."
                    )), *weights[:2], *sockets[2:], *weights[2:]],
            outputs=[Maps.Output("maps", display_name="maps", tooltip="All of them as one set of maps.")])

    @classmethod
    def execute(cls, first: PredictedMaps, second: PredictedMaps, how: str, first_weight: float, second_weight: float,
                third: PredictedMaps | None = None, fourth: PredictedMaps | None = None, third_weight: float = 1.0,
                fourth_weight: float = 1.0) -> io.NodeOutput:
        pairs = [(maps, weight) for maps, weight in ((first, first_weight), (second, second_weight),
                                                     (third, third_weight), (fourth, fourth_weight)) if maps is not None]
        parts, weights = [maps for maps, _ in pairs], [weight for _, weight in pairs]
        same_backbone(*parts)
        steps = step_maps.combine([part.steps for part in parts], how, weights)
        joint = " then " if how == "sequence" else " + "
        name = joint.join((part.name or "maps") if weight == 1 else f"{weight:g} x {part.name or 'maps'}"
                          for part, weight in pairs)
        low, high = max(p.strength_range[0] for p in parts), min(p.strength_range[1] for p in parts)
        known = next((part.backbone for part in parts if part.backbone), {})
        return io.NodeOutput(PredictedMaps(steps, known, (low, high) if low < high else (0.0, 1.0), name))


def same_backbone(*parts: PredictedMaps) -> None:
    """Raise ValueError, in one sentence naming both, when maps were made for different models; unknown ones pass."""
    known = [part for part in parts if part.backbone]
    for part in known[1:]:
        first = known[0]
        agreement = step_maps.fingerprint_agreement(first.backbone.get("fingerprint", {}), part.backbone.get("fingerprint", {}))
        if agreement is not None and agreement < 0.75:
            raise ValueError(f"The maps '{first.name}' were made for {first.backbone.get('family') or 'an unnamed model'} and "
                             f"the maps '{part.name}' for {part.backbone.get('family') or 'an unnamed model'} with other "
                             "weights, expected the same model: make both with the same model.")


class InvertMaps(io.ComfyNode):
    """Maps that undo maps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportInvertMaps", display_name="Invert Maps", category=CATEGORY,
            description="Turns maps into their exact inverse: after the maps themselves, at strength 1, it undoes them. "
                        "It can also take a concept out of pictures whose prompt names it, but often spoils them: try a "
                        "negative strength first, which the shipped weights, and others trained with removal_share, have "
                        "learned.",
            search_aliases=("remove concept", "erase style", "unlearn", "negate maps"),
            inputs=[Maps.Input("maps", tooltip="The maps to undo. Maps that squash a channel to nothing have no inverse; "
                                               "the error names the place.")],
            outputs=[Maps.Output("inverse", display_name="maps", tooltip=(
                "The inverse, for Steer With Maps: strength 1 undoes the maps exactly, 0 does nothing. 1 can spoil a "
                "picture: then try less."))])

    @classmethod
    def execute(cls, maps: PredictedMaps) -> io.NodeOutput:
        inverse = maps.change(TransportMaps.inverse)
        return io.NodeOutput(dataclasses.replace(inverse, name=f"without {maps.name}" if maps.name else ""))


class SaveMaps(io.ComfyNode):
    """Maps to a small file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportSaveMaps", display_name="Save Maps", category=CATEGORY, is_output_node=True,
            description="Writes maps into a small .safetensors file, to be shared or loaded later without the "
                        "hypernetwork and the encoder. A file that is there is never overwritten; names are numbered.",
            search_aliases=("export maps", "store concept", "share style"),
            inputs=[Maps.Input("maps", tooltip="The maps to save."),
                    io.String.Input("filename_prefix", default="hypertransport/maps", tooltip=(
                        "Name of the file, with sub-folders if you like; _00001 and so on is added. %year%, %month%, "
                        "%day%, %hour% and %minute% are replaced.")),
                    io.Combo.Input("place", options=list(PLACES), default="models", tooltip=(
                        "models: models/hypertransport, where Load Maps lists it. output: ComfyUI's output folder, "
                        "which Load Maps lists as far as it lies in output/hypertransport.")),
                    io.Image.Input("thumbnail", optional=True, tooltip=(
                        "A picture stored inside the file, which model managers show. The first of a batch is taken, "
                        "scaled to 256 pixels. Without one the file has no picture."))],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output("path", display_name="path", tooltip="Where the file was written.")])

    @classmethod
    def execute(cls, maps: PredictedMaps, filename_prefix: str, place: str = "models",
                thumbnail: Tensor | None = None) -> io.NodeOutput:
        folder = first_folder(MODEL_FOLDER) if place == "models" else Path(folder_paths.get_output_directory())
        path = numbered_path(filename_prefix, folder)
        spec = {"title": maps.name or path.stem, "description": f"HyperTransport maps: {maps.name or path.stem}"}
        if thumbnail is not None:
            spec["thumbnail"] = data_uri(thumbnail[0, ..., :3].movedim(-1, 0))
        save_maps(path, maps.steps, family=str(maps.backbone.get("family", "")),
                  fingerprint=maps.backbone.get("fingerprint"), strength_range=maps.strength_range, name=maps.name,
                  modelspec=spec)
        size = path.stat().st_size / 1e6
        return with_text(cls, f"Saved {maps.name or 'maps'} to {path} ({size:.2f} MB)", str(path))


class LoadMaps(io.ComfyNode):
    """Maps from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportLoadMaps", display_name="Load Maps", category=CATEGORY,
            description="Reads maps that Save Maps wrote. Neither the hypernetwork nor an encoder is needed; connect the "
                        "maps to Steer With Maps. Files lie in models/hypertransport or output/hypertransport.",
            search_aliases=("open maps", "import concept", "load style"),
            inputs=[io.Combo.Input("maps_file", options=list_maps(), tooltip=(
                "The maps file. Only files that hold maps are listed; press R to look again after adding one."))],
            outputs=[Maps.Output("maps", display_name="maps", tooltip="The maps in the file, with the model they fit and "
                                                                      "the recommended strengths.")])

    @classmethod
    def validate_inputs(cls, maps_file: str) -> bool | str:
        try:
            find_maps(maps_file)
        except FileError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, maps_file: str) -> Any:
        try:
            return fingerprint(find_maps(maps_file))
        except FileError:
            return maps_file

    @classmethod
    def execute(cls, maps_file: str) -> io.NodeOutput:
        return io.NodeOutput(read_maps(find_maps(maps_file)))


def read_maps(path: Path) -> PredictedMaps:
    """What a maps file holds. Raises FileError."""
    steps, header = load_step_maps(path)
    try:
        low, high = (float(value) for value in header.get("strength_range", (0.0, 1.0)))
    except (TypeError, ValueError):
        low, high = 0.0, 1.0  # a recommendation only
    name = header.get("name") or header["info"].get("concept") or path.stem
    return PredictedMaps(steps, header["backbone"], (low, high), str(name))


def list_maps() -> list[str]:
    """The maps files of models/hypertransport and, marked, of output/hypertransport."""
    output = Path(folder_paths.get_output_directory())
    found = [path for path in sorted((output / OUTPUT_FOLDER).rglob("*.safetensors")) if kind_of(path) == TRANSPORT_MAPS]
    return files_of_kind(TRANSPORT_MAPS) + [path.relative_to(output).as_posix() + OUTPUT_MARK for path in found]


def find_maps(name: str) -> Path:
    """The path of a listed maps file. Raises FileError when it is gone, or somewhere else than it may be."""
    if not name.endswith(OUTPUT_MARK):
        return find_file(name)
    output = Path(folder_paths.get_output_directory()).resolve()
    path = (output / name.removesuffix(OUTPUT_MARK)).resolve()
    if output not in path.parents or not path.is_file():
        raise FileError(f"{name.removesuffix(OUTPUT_MARK)} is not in the output folder, expected one of its files: put it "
                        "there and refresh, or choose another")
    return path


def kind_of(path: Path) -> str:
    """The kind a file's header names, remembered as long as the file stays as it is; "" for other tools' files."""
    return _kind(str(path), fingerprint(path))


@lru_cache(maxsize=512)
def _kind(path: str, _fingerprint: str) -> str:
    try:
        return str(read_header(path)[0].get("kind", ""))
    except (FileError, OSError):
        return ""


NODES: tuple[type[io.ComfyNode], ...] = (CombineMaps, InvertMaps, SaveMaps, LoadMaps)
