"""The shipped Postcard world as MODEL, CLIP, VAE and CONCEPT_ENCODER, and an empty latent of its shape."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..hypertransport_core.encoders.base import ConceptEncoder
from ..hypertransport_core.encoders.postcard_clip import PostcardClipEncoder
from ..hypertransport_core.encoders.response import ResponseEncoder, ResponseReader
from ..hypertransport_core.files import FileError
from ..hypertransport_core.pipeline import CLIP_FILE, HYPERNETWORK_FILE, MODEL_FILE
from ..hypertransport_core.postcard.clip import PostcardCLIP
from ..hypertransport_core.postcard.model import PostcardBackbone
from ..hypertransport_core.weights_io import load_hypernetwork
from .folders import WEIGHTS
from .sockets import Encoder, advanced, node_schema

FileState = tuple[str, int, int]
"""Path, time of change in nanoseconds, size in bytes: equal as long as a file is the same."""

CHANNELS, PATCH, SIDE = 48, 4, 64


def file_state(path: str | Path) -> FileState:
    """What a cache of loaded files is keyed by. Raises OSError when the file is gone."""
    about = Path(path).stat()
    return str(path), about.st_mtime_ns, about.st_size


def shipped_file(name: str) -> Path:
    """A file of the Postcard world, from this pack's own folder. Raises FileError."""
    path = WEIGHTS / name
    if not path.is_file():
        raise FileError(
            f"{name} is not in the pack's folder {WEIGHTS}, expected the weights of the Postcard world: install the "
            "pack again"
        )
    return path


@lru_cache(maxsize=2)
def _load(model: FileState, clip: FileState) -> tuple[Any, Any, Any]:
    from ..hypertransport_core.backbones.comfyui import load_postcard_model, postcard_clip, postcard_vae

    # The server runs nodes in inference mode; weights made there could never be trained through, as Fit Maps does.
    with torch.inference_mode(False):
        return load_postcard_model(model[0]), postcard_clip(PostcardCLIP.load(clip[0])), postcard_vae()


@lru_cache(maxsize=2)
def _load_clip(clip: FileState) -> PostcardClipEncoder:
    with torch.inference_mode(False):
        return PostcardClipEncoder.from_file(clip[0])


@lru_cache(maxsize=2)
def _load_backbone(model: FileState, clip: FileState) -> PostcardBackbone:
    with torch.inference_mode(False):
        return PostcardBackbone.load(model[0], _load_clip(clip).clip)


@lru_cache(maxsize=2)
def _reader(weights: FileState) -> ResponseReader | None:
    with torch.inference_mode(False):
        return load_hypernetwork(weights[0]).reader


def postcard_clip_encoder() -> PostcardClipEncoder:
    """The shipped CLIP as a concept encoder, on the CPU, loaded once. Raises FileError."""
    return _load_clip(file_state(shipped_file(CLIP_FILE)))


def postcard_responding(reader: ResponseReader) -> ConceptEncoder:
    """The shipped CLIP joined by the shipped model's response to the words. Raises FileError."""
    model, clip = file_state(shipped_file(MODEL_FILE)), file_state(shipped_file(CLIP_FILE))
    return ResponseEncoder(_load_clip(clip), lambda: _load_backbone(model, clip), reader)


@lru_cache(maxsize=2)
def _encoder_for(reader: ResponseReader | None) -> ConceptEncoder:
    return postcard_clip_encoder() if reader is None else postcard_responding(reader)


def postcard_encoder() -> ConceptEncoder:
    """The concept encoder that the shipped hypernetwork reads, on the CPU, loaded once; the shipped CLIP where somebody has
    removed that file. Raises FileError."""
    weights = WEIGHTS / HYPERNETWORK_FILE
    return _encoder_for(_reader(file_state(weights)) if weights.is_file() else None)


class PostcardModelNode(io.ComfyNode):
    """See the schema."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportPostcard",
            display_name="Postcard Model",
            description="The small text-to-image model that comes with this pack: 64 × 64 pictures of a house, a "
                        "boat, a cat and other things, in many styles, within a second on any CPU. Nothing to "
                        "download. Sample it with KSampler: 4 steps, cfg 1, euler, simple, on an Empty Postcard "
                        "Latent.",
            search_aliases=["demo model", "example checkpoint", "load postcard", "built-in model"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The text-to-image network, an SD-style UNet of 9 million parameters. For KSampler (4 "
                            "steps, cfg 1, euler, simple) and for HyperTransport Steer.",
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Its text encoder, for CLIP Text Encode. Reads up to 22 plain English words of the "
                            "Postcard world, such as: a small red house on the left, in snow. Weights like (snow:1.3) "
                            "work.",
                ),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="Latents to pictures and back, without loss: 4 × 4 pixels are 48 channels.",
                ),
                Encoder.Output(
                    display_name="encoder",
                    tooltip="Its concept encoder, for Concept Encoder: words or pictures to the concept that the "
                            "shipped hypernetwork reads.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> Any:
        weights = WEIGHTS / HYPERNETWORK_FILE
        files = [shipped_file(MODEL_FILE), shipped_file(CLIP_FILE), *([weights] if weights.is_file() else [])]
        return tuple(map(file_state, files))

    @classmethod
    def execute(cls) -> io.NodeOutput:
        model, clip, vae = _load(file_state(shipped_file(MODEL_FILE)), file_state(shipped_file(CLIP_FILE)))
        return io.NodeOutput(model, clip, vae, postcard_encoder())


class EmptyPostcardLatent(io.ComfyNode):
    """See the schema."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportEmptyPostcardLatent",
            display_name="Empty Postcard Latent",
            description="A batch of empty latents for the Postcard Model, whose latents are a quarter of a picture's "
                        "side with 48 channels. The stock Empty Latent Image makes an eighth instead, so its pictures "
                        "come out at half the size.",
            search_aliases=["empty latent image", "postcard size", "batch size"],
            inputs=[
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="How many pictures, 1 to 256, each from its own noise.",
                ),
                advanced(
                    io.Int.Input(
                        "width",
                        default=SIDE,
                        min=32,
                        max=256,
                        step=8,
                        optional=True,
                        tooltip="Width in pixels, 32 to 256. The model was taught 64; other sizes are a curiosity.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "height",
                        default=SIDE,
                        min=32,
                        max=256,
                        step=8,
                        optional=True,
                        tooltip="Height in pixels, 32 to 256. The model was taught 64; other sizes are a curiosity.",
                    )
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Zeros (batch, 48, height / 4, width / 4), for KSampler's latent_image.",
                )
            ],
        )

    @classmethod
    def execute(cls, batch_size: int, width: int = SIDE, height: int = SIDE) -> io.NodeOutput:
        zeros = torch.zeros(
            batch_size, CHANNELS, height // PATCH, width // PATCH, device=comfy.model_management.intermediate_device()
        )
        return io.NodeOutput({"samples": zeros})


NODES: tuple[type[io.ComfyNode], ...] = (PostcardModelNode, EmptyPostcardLatent)
