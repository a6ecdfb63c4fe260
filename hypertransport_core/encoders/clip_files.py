"""CLIPs that a ComfyUI user has already: one safetensors file with both towers, or one file per tower, and folders.

Files name their tensors as `transformers` or as `open_clip` does. Nothing but their weights is known, so the dimensions
are read from the shapes, and what shapes do not tell follows the host: activations and heads as in its own encoders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..files import check_safetensors
from .base import EncoderError, tower_sign
from .transformers_clip import TransformersClipEncoder, first_line

VOCABULARY = 49408  # of every CLIP that OpenAI and LAION published
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_TEXT = {"token_embedding": "embeddings.token_embedding", "ln_final": "final_layer_norm"}
_VISION = {"conv1": "embeddings.patch_embedding", "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
_ID = re.compile(r"clip-vit\d+p\d+-\d+-t([0-9a-f]{8})-v([0-9a-f]{8})")


@dataclass(frozen=True)
class Tower:
    """One half of a CLIP in a file. embedding, projection: names of its first and last matrix; turned: whether the
    projection is stored (width, projected), as open_clip does; projected: width of the shared space."""

    path: Path
    embedding: str
    projection: str
    turned: bool
    projected: int

    def sign(self) -> str:
        """Its part of the encoder id; reads two matrices."""
        with safe_open(str(self.path), "pt") as file:
            first, last = file.get_tensor(self.embedding), file.get_tensor(self.projection)
        return tower_sign(first, last.T if self.turned else last)


@dataclass(frozen=True)
class ClipFile:
    """A file that holds a CLIP's text tower, its vision tower or both, each with its projection."""

    path: Path
    text: Tower | None
    vision: Tower | None


def read_clip_file(path: str | Path) -> ClipFile | None:
    """What a safetensors file offers, from its table alone; None when it holds no tower with a projection. Raises
    FileError for a file that is no whole safetensors."""
    path = Path(path)
    check_safetensors(path)
    with safe_open(str(path), "pt") as file:
        names = set(file.keys())
        text = _tower(
            file,
            names,
            path,
            (
                ("text_model.embeddings.token_embedding.weight", "text_projection.weight"),
                ("token_embedding.weight", "text_projection"),
            ),
        )
        vision = _tower(
            file,
            names,
            path,
            (
                ("vision_model.embeddings.patch_embedding.weight", "visual_projection.weight"),
                ("visual.conv1.weight", "visual.proj"),
            ),
        )
    return ClipFile(path, text, vision) if text or vision else None


def _tower(file: Any, names: set[str], path: Path, layouts: Sequence[tuple[str, str]]) -> Tower | None:
    for embedding, projection in layouts:
        if embedding in names and projection in names:
            turned = not projection.endswith(".weight")
            shape = file.get_slice(projection).get_shape()
            if len(shape) == 2:
                return Tower(path, embedding, projection, turned, shape[1 if turned else 0])
    return None


def is_clip_folder(folder: str | Path) -> bool:
    """Whether a folder looks like a CLIP saved by transformers: a config.json that says so, and safetensors."""
    folder = Path(folder)
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return False
    return kind == "clip" and any(folder.glob("*.safetensors"))


def signs_in_id(encoder_id: str) -> tuple[str, str] | None:
    """The text and the vision tower's part of an encoder id, None for ids of another form."""
    found = _ID.fullmatch(encoder_id)
    return (found[1], found[2]) if found else None


def load_clip_files(text: ClipFile, vision: ClipFile, tokenizer_folder: str | Path) -> TransformersClipEncoder:
    """An encoder, float32 on the CPU, from the text tower of one file and the vision tower of another or the same.

    tokenizer_folder: vocab.json and merges.txt of CLIP's 49408 tokens. Raises EncoderError, FileError.
    """
    if text.text is None or vision.vision is None:
        lacking, path = ("text", text.path) if text.text is None else ("vision", vision.path)
        raise EncoderError(
            f"{path} holds no {lacking} tower with its projection, expected one: choose a complete CLIP, or a file "
            f"that has the {lacking} tower"
        )
    if text.text.projected != vision.vision.projected:
        raise EncoderError(
            f"{text.path.name} gives vectors of width {text.text.projected} and {vision.path.name} of width "
            f"{vision.vision.projected}, expected two towers of one CLIP: choose files that belong together"
        )
    try:
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    except Exception as error:  # a broken installation fails in many ways
        raise EncoderError(
            f"transformers cannot be imported ({first_line(error)}), expected a working installation: install or "
            "repair the package 'transformers'"
        ) from error
    state = {**_state(text, "text"), **_state(vision, "vision")}
    state.setdefault("logit_scale", torch.tensor(0.0))  # no part of any embedding
    words = state.get("text_model.embeddings.token_embedding.weight", torch.empty(0)).shape[0]
    if words != VOCABULARY:
        raise EncoderError(
            f"{text.path.name} knows {words} tokens, expected the {VOCABULARY} of CLIP's own tokenizer: use this CLIP "
            "as a transformers folder with its tokenizer files"
        )
    try:
        with torch.device("meta"):
            model = CLIPModel(CLIPConfig(**_config(state)))
        _fill(model, state)
        tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
    except Exception as error:  # transformers and torch name what does not fit in many kinds
        pair = text.path.name if text.path == vision.path else f"{text.path.name} with {vision.path.name}"
        raise EncoderError(
            f"{pair} cannot be loaded as a CLIP ({first_line(error)}), expected both towers whole: download the "
            "complete model"
        ) from error
    return TransformersClipEncoder(model.requires_grad_(False), tokenizer)


def _fill(model: Any, state: Mapping[str, Tensor]) -> None:
    """Put `state` into a model without memory; strict, except for what a tower of a larger model brings along."""
    model.load_state_dict(state, strict=True, assign=True)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:  # only the numbers of the positions, which no file needs to hold
                module.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)


def _config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    tokens = state["text_model.embeddings.token_embedding.weight"]
    patches = state["vision_model.embeddings.patch_embedding.weight"]
    places = state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    projected = state["text_projection.weight"].shape[0]
    # OpenAI's models, and what was made from them, use the quick form; LAION's larger ones the exact one.
    activation = "quick_gelu" if tokens.shape[1] <= 768 else "gelu"
    shared = {"projection_dim": projected, "hidden_act": activation}
    text = {
        **shared,
        "vocab_size": tokens.shape[0],
        "hidden_size": tokens.shape[1],
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
        "num_attention_heads": max(1, tokens.shape[1] // 64),
        **_depth(state, "text_model"),
    }
    vision = {
        **shared,
        "hidden_size": patches.shape[0],
        "patch_size": patches.shape[-1],
        "image_size": round(places**0.5) * patches.shape[-1],
        "num_attention_heads": 16 if patches.shape[0] >= 1024 else max(1, patches.shape[0] // 64),
        **_depth(state, "vision_model"),
    }
    return {"text_config": text, "vision_config": vision, "projection_dim": projected}


def _depth(state: Mapping[str, Tensor], tower: str) -> dict[str, int]:
    layers = [name for name in state if name.startswith(f"{tower}.encoder.layers.") and name.endswith("mlp.fc1.bias")]
    return {"num_hidden_layers": len(layers), "intermediate_size": state[layers[0]].shape[0] if layers else 0}


def _state(file: ClipFile, half: str) -> dict[str, Tensor]:
    """One tower's tensors in float32 under the names of `transformers`."""
    tower = file.text if half == "text" else file.vision
    assert tower is not None
    other = "visual." if half == "text" else ""
    mine = "" if half == "text" else "visual."
    state: dict[str, Tensor] = {}
    with safe_open(str(file.path), "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - the object is no mapping
            if not tower.turned:
                if name.startswith(
                    (f"{half}_model.", f"{half}_projection." if half == "text" else "visual_projection.")
                ):
                    state[name] = tensors.get_tensor(name).float()
            elif name.startswith(mine) and not (other and name.startswith(other)):
                state.update(_from_open_clip(name.removeprefix(mine), tensors.get_tensor(name).float(), half))
    return {name: value for name, value in state.items() if not name.endswith("position_ids")}


def _from_open_clip(name: str, value: Tensor, half: str) -> dict[str, Tensor]:
    if name in ("text_projection", "proj"):
        return {"text_projection.weight" if half == "text" else "visual_projection.weight": value.T.contiguous()}
    if name == "positional_embedding":
        return {f"{half}_model.embeddings.position_embedding.weight": value}
    if name == "class_embedding":
        return {"vision_model.embeddings.class_embedding": value}
    block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
    if block:
        place, part, kind = f"{half}_model.encoder.layers.{block[1]}", block[2], block[3]
        if part == "attn.in_proj":
            return {f"{place}.self_attn.{one}_proj.{kind}": third.clone() for one, third in zip("qkv", value.chunk(3))}
        return {f"{place}.{_BLOCK.get(part, part)}.{kind}": value}
    part, _, kind = name.rpartition(".")
    renamed = (_TEXT if half == "text" else _VISION).get(part)
    return {f"{half}_model.{renamed}.{kind}": value} if renamed else {}  # the rest is no part of the tower
