"""Load Concept Encoder: the shipped CLIP, or one that the user has among the host's text encoders and vision models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.sd1_clip
import folder_paths
import torch
from comfy_api.latest import io

from ..hypertransport_core.encoders.base import ConceptEncoder, EncoderError
from ..hypertransport_core.encoders.clip_files import (
    ClipFile,
    is_clip_folder,
    load_clip_files,
    read_clip_file,
    signs_in_id,
)
from ..hypertransport_core.encoders.response import ResponseEncoder, plain_id
from ..hypertransport_core.encoders.transformers_clip import TransformersClipEncoder
from ..hypertransport_core.files import FileError, check_fits
from ..hypertransport_core.postcard.model import PostcardBackbone
from ..hypertransport_core.weights_io import HypernetworkFile
from .hosted_clip import HostedClip
from .postcard import FileState, file_state, postcard_clip_encoder, postcard_encoder, postcard_responding
from .showing import with_text
from .sockets import Encoder, HyperTransport, advanced, node_schema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

AUTOMATIC, POSTCARD = "automatic", "Postcard (shipped)"
KINDS = ("text_encoders", "clip_vision")
TOKENIZER = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"


@dataclass(frozen=True)
class Candidate:
    """Something of the user's that a concept encoder can be made of. folder: a transformers CLIP; file: what its
    weights offer."""

    path: Path
    folder: bool
    file: ClipFile | None

    @property
    def has_text(self) -> bool:
        return self.folder or bool(self.file and self.file.text)

    @property
    def has_vision(self) -> bool:
        return self.folder or bool(self.file and self.file.vision)

    @property
    def state(self) -> FileState:
        """Changes when the weights do."""
        return file_state(self.file.path if self.file else self.path)


def candidates() -> dict[str, Candidate]:
    """By the name shown, what lies in models/text_encoders, models/clip and models/clip_vision and looks like (half) a
    CLIP.

    Only the tables of .safetensors files are read, and remembered until a file changes. A folder that transformers
    saved stands for the files within it.
    """
    found: dict[str, Candidate] = {}
    for kind in KINDS:
        for name in folder_paths.get_filename_list(kind):
            path = folder_paths.get_full_path(kind, name)
            if path is None or not name.lower().endswith((".safetensors", ".sft")):
                continue
            with suppress(OSError):
                shown, candidate = f"{kind}/{Path(name).as_posix()}", _candidate(file_state(path))
                if candidate and candidate.folder:
                    shown = shown.rpartition("/")[0]
                if candidate and shown not in found:
                    found[shown] = candidate
    return found


@lru_cache(maxsize=512)
def _candidate(state: FileState) -> Candidate | None:
    path = Path(state[0])
    try:
        file = read_clip_file(path)
    except (FileError, OSError, RuntimeError):
        file = None  # damaged, or not for us
    if is_clip_folder(path.parent):
        whole = file if file and file.text and file.vision else None
        return Candidate(path.parent, True, whole)
    return Candidate(path, False, file) if file else None


@lru_cache(maxsize=1024)
def _sign(state: FileState, half: str) -> str | None:
    file = read_clip_file(state[0])
    tower = None if file is None else getattr(file, half)
    return None if tower is None else tower.sign()


@lru_cache(maxsize=2)
def _load(text: Candidate, vision: Candidate, states: tuple[FileState, FileState]) -> ConceptEncoder:
    with torch.inference_mode(False):
        if text.folder:
            return HostedClip(TransformersClipEncoder.from_folder(text.path))
        if text.file is None or vision.file is None:
            raise EncoderError(
                f"{(vision if text.file else text).path} cannot be one tower of two, expected a single .safetensors "
                "file"
            )
        return HostedClip(load_clip_files(text.file, vision.file, TOKENIZER))


def load(text: Candidate, vision: Candidate) -> ConceptEncoder:
    """The encoder, in the host's care; the last two stay in memory. Raises EncoderError, FileError."""
    return _load(text, vision, (text.state, vision.state))


def find(encoder_id: str, wanted_by: str) -> ConceptEncoder:
    """The encoder with this id, without the model's response: the shipped one, or among the candidates, by their weights.
    Raises EncoderError naming the id, where it was looked for, and the cure."""
    shipped = postcard_clip_encoder()
    if shipped.encoder_id == encoder_id:
        return shipped
    signs = signs_in_id(encoder_id)
    halves: dict[str, Candidate] = {}
    for candidate in candidates().values():
        for half, sign in zip(("text", "vision"), signs or ()):
            if candidate.file and half not in halves and _matches(candidate.file, half, sign):
                halves[half] = candidate
    if len(halves) == 2:
        return load(halves["text"], halves["vision"])
    there = f"; its {next(iter(halves))} tower is there, the other is not" if halves else ""
    raise EncoderError(
        f"{wanted_by} reads concepts of the encoder '{encoder_id}', which is neither shipped nor among the "
        f".safetensors files in {_places()}{there}: put that CLIP there, with both towers, or choose it by name"
    )


def _matches(file: ClipFile, half: str, sign: str) -> bool:
    try:
        return _sign(file_state(file.path), half) == sign
    except (FileError, OSError, RuntimeError):
        return False


def _places() -> str:
    return ", ".join(str(path) for kind in KINDS for path in folder_paths.get_folder_paths(kind))


def pick_vision(text: Candidate, name: str, known: Mapping[str, Candidate]) -> Candidate:
    """The candidate that gives the vision tower: the named one; else the same file or folder; else the only one of the
    same width. Raises EncoderError."""
    if name != AUTOMATIC:
        return known[name]
    if text.has_vision:
        return text
    assert text.file is not None and text.file.text is not None
    width = text.file.text.projected
    fitting = {
        shown: one
        for shown, one in known.items()
        if one.file and one.file.vision and one.file.vision.projected == width
    }
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    among = f"{len(fitting)} others do ({', '.join(fitting)})" if fitting else "no other file there does"
    raise EncoderError(
        f"{text.path.name} holds the text tower of a CLIP only, expected a vision tower of width {width} too, and "
        f"{among}: "
        + ("choose one as vision" if fitting else "put that CLIP's vision model into models/clip_vision")
    )


def responding(
    encoder: ConceptEncoder, weights: HypernetworkFile, model: ModelPatcher | None, clip: CLIP | None
) -> ConceptEncoder:
    """The encoder joined by the base model's response to the words, where the weights read it; for the shipped world model
    and CLIP are known. Raises EncoderError without them, FileError for another model than the weights are for."""
    from ..hypertransport_core.backbones.host_backbone import HostBackbone, family_of

    reader, name = weights.reader, weights.path.name
    if reader is None:
        return encoder
    both = model is None and clip is None
    if both and weights.header["backbone"].get("family") == PostcardBackbone.family:
        return postcard_responding(reader)
    if model is None or clip is None:
        lacking = "model and clip are" if both else "model is" if model is None else "clip is"
        raise EncoderError(
            f"{name} also reads what the base model itself does with the words, but {lacking} not connected, expected the "
            "MODEL and the CLIP that you make pictures with: connect them to Load Concept Encoder"
        )
    family, network = family_of(model), model.model.diffusion_model
    check_fits(weights.header, name, network=network, family=family)
    empty = torch.zeros(1, *reader.latent_shape)
    return ResponseEncoder(encoder, lambda: HostBackbone(model, clip, latent=empty), reader)


class LoadConceptEncoder(io.ComfyNode):
    """See the schema."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        known = candidates()
        return node_schema(
            node_id="HyperTransportLoadEncoder",
            display_name="Load Concept Encoder",
            description="Loads the CLIP that turns words and pictures into concepts. It must be the very CLIP that "
                        "the HyperTransport weights were trained with: connect the weights and leave 'automatic', and "
                        "it is found among your files by its content, whatever it is called. Runs where "
                        "ComfyUI runs text encoders; nothing is ever downloaded.",
            search_aliases=["clip", "clip vision", "text encoder", "image encoder", "open_clip", "transformers"],
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=[AUTOMATIC, POSTCARD, *(name for name, one in known.items() if one.has_text)],
                    default=AUTOMATIC,
                    tooltip="automatic: the one that the connected weights name; without weights the shipped one. "
                            "Else a CLIP in safetensors from models/text_encoders, models/clip or models/clip_vision, "
                            "or a transformers folder there.",
                ),
                advanced(
                    io.Combo.Input(
                        "vision",
                        options=[
                            AUTOMATIC,
                            *(name for name, one in known.items() if one.has_vision and not one.folder),
                        ],
                        default=AUTOMATIC,
                        optional=True,
                        tooltip="Where the vision tower comes from when the chosen file has only the text tower, as "
                                "clip_l has. automatic: the same file, else the only file whose width fits.",
                    )
                ),
                HyperTransport.Input(
                    "weights",
                    optional=True,
                    tooltip="HyperTransport weights. With 'automatic' the encoder they name is searched by its "
                            "content; with another choice it is checked that both belong together.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Only for weights that also read what the base model itself does with the words (trained with "
                            "response): that model, as loaded, LoRAs included. One call of it per concept in words; "
                            "pictures need none.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Only with model: the text encoder that belongs to it, which reads the words as a prompt.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[Encoder.Output(display_name="encoder", tooltip="For Concept Encoder.")],
        )

    @classmethod
    def fingerprint_inputs(cls, encoder: str = AUTOMATIC, vision: str = AUTOMATIC, **connected: Any) -> Any:
        if encoder == POSTCARD:
            return POSTCARD
        return tuple((name, one.state) for name, one in candidates().items())

    @classmethod
    def execute(
        cls,
        encoder: str,
        vision: str = AUTOMATIC,
        weights: HypernetworkFile | None = None,
        model: ModelPatcher | None = None,
        clip: CLIP | None = None,
    ) -> io.NodeOutput:
        wanted = None if weights is None else (weights.header.get("encoder") or {}).get("id")
        if weights is None and encoder in (POSTCARD, AUTOMATIC):
            loaded: ConceptEncoder = postcard_encoder()
        elif encoder == POSTCARD or wanted is None and encoder == AUTOMATIC:
            loaded = postcard_clip_encoder()
        elif encoder == AUTOMATIC:
            assert weights is not None
            loaded = find(plain_id(str(wanted)), weights.path.name)
        else:
            loaded = cls._named(encoder, vision)
        if weights is not None:
            loaded = responding(loaded, weights, model, clip)
            check_fits(weights.header, weights.path.name, encoder_id=loaded.encoder_id, encoder_width=loaded.width)
        return with_text(cls, f"{loaded.encoder_id}, {loaded.width} numbers per concept", loaded)

    @staticmethod
    def _named(encoder: str, vision: str) -> ConceptEncoder:
        known = candidates()
        for name in (encoder, vision):
            if name != AUTOMATIC and name not in known:
                raise EncoderError(
                    f"'{name}' is no CLIP in {_places()}, expected one of "
                    f"{', '.join(known) or 'none, as there is no CLIP'}: choose another, or refresh the page after "
                    "adding files"
                )
        return load(known[encoder], pick_vision(known[encoder], vision, known))


NODES: tuple[type[io.ComfyNode], ...] = (LoadConceptEncoder,)
