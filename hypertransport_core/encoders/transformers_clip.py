"""A CLIP from a folder on this machine, through `transformers`: config.json, model.safetensors and tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..files import check_safetensors
from .base import EncoderError, clip_encoder_id
from .preprocess import CLIP_MEAN, CLIP_STD, check_pictures, normalise, resize_and_crop


class TransformersClipEncoder:
    """`ConceptEncoder` over a `transformers.CLIPModel`. Pictures are prepared as tensors, without Pillow or
    torchvision."""

    def __init__(self, model: Any, tokenizer: Any, *, mean: Sequence[float] = CLIP_MEAN,
                 std: Sequence[float] = CLIP_STD) -> None:
        """model: a CLIPModel; tokenizer: its tokenizer; mean, std: per colour channel, for pictures in [0, 1]."""
        self.model = model.train(False)
        self.tokenizer = tokenizer
        self.mean, self.std = tuple(mean), tuple(std)
        self.size = int(model.config.vision_config.image_size)
        self.width = int(model.config.projection_dim)
        self.encoder_id = model_encoder_id(model)

    @classmethod
    def from_folder(cls, folder: str | Path, *, device: torch.device | str = "cpu",
                    dtype: torch.dtype = torch.float32) -> TransformersClipEncoder:
        """Load a folder as saved by `CLIPModel.save_pretrained` and its tokenizer. Nothing is downloaded, only
        safetensors are read. Raises EncoderError, or FileError for a damaged weights file."""
        folder = Path(folder)
        _check_folder(folder)
        try:
            from transformers import AutoTokenizer, CLIPModel
        except Exception as error:  # a broken installation fails in many ways
            raise EncoderError(f"transformers cannot be imported ({first_line(error)}), expected a working "
                               "installation: install or repair the package 'transformers'") from error
        try:
            model, report = CLIPModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True,
                                                      output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise EncoderError(f"{folder} cannot be loaded as a CLIP ({first_line(error)}), expected config.json, "
                               "model.safetensors and tokenizer files that belong together: download the folder "
                               "again") from error
        # transformers only warns and fills what is missing with noise
        lacking = sorted(str(key) for key in [*report["missing_keys"], *report.get("mismatched_keys", [])])
        if lacking:
            raise EncoderError(f"{folder} lacks {len(lacking)} weights of its CLIP such as '{lacking[0]}', expected "
                               "both towers and projections: download the complete model, not only one tower")
        words, room = len(tokenizer), int(model.config.text_config.vocab_size)
        if not 4 <= words <= room:
            raise EncoderError(f"{folder} has a tokenizer of {words} tokens for a model of {room}, expected tokenizer "
                               "files that belong to the model: download the folder again")
        return cls(model.to(device, dtype), tokenizer, **_picture_statistics(folder))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, width) float32 unit vectors on the model's device; words beyond the model's length are left
        out."""
        return in_batches(self._encode_text, list(texts), 64)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], any size -> (N, width) float32 unit vectors; raises ValueError for other shapes."""
        return in_batches(self._encode_images, check_pictures(images), 16)

    def _encode_text(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids, mask = (batch[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return functional.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def _encode_images(self, images: Tensor) -> Tensor:
        pixels = normalise(resize_and_crop(images, self.size), self.mean, self.std)
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype)).pooler_output
        return functional.normalize(self.model.visual_projection(pooled).float(), dim=-1)


def model_encoder_id(model: Any, label: str = "clip") -> str:
    """`clip_encoder_id` of a `transformers.CLIPModel`."""
    return clip_encoder_id(model.text_model.embeddings.token_embedding.weight, model.text_projection.weight,
                           model.vision_model.embeddings.patch_embedding.weight, model.visual_projection.weight, label)


def in_batches(function: Callable[[Any], Tensor], items: Any, size: int) -> Tensor:
    """`function` over slices of `items` (list or tensor), joined along the first dimension; bounds memory."""
    if not len(items):
        raise EncoderError("there is nothing to encode, expected at least one text or picture: add one")
    return torch.cat([function(items[start:start + size]) for start in range(0, len(items), size)])


def first_line(error: BaseException) -> str:
    """The first line of an error's message without the full stop, for use inside a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise EncoderError(f"{folder} holds no config.json, expected a folder with a CLIP saved by transformers: check "
                           "the path")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise EncoderError(f"{folder} holds no .safetensors file, expected model.safetensors: download that variant, "
                           "other weights files are never opened")
    # Without its files transformers makes an empty tokenizer and says nothing.
    if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name
                                                             in ("vocab.json", "merges.txt")):
        raise EncoderError(f"{folder} holds no tokenizer, expected tokenizer.json or vocab.json with merges.txt: "
                           "download those files too")
    for path in weights:
        check_safetensors(path)
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise EncoderError(f"{folder}/config.json cannot be read ({first_line(error)}), expected JSON: download it "
                           "again") from error
    if kind != "clip":
        raise EncoderError(f"{folder} holds a model of the type '{kind}', expected 'clip': choose a CLIP with both "
                           "towers")


def _picture_statistics(folder: Path) -> dict[str, Sequence[float]]:
    try:
        settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
        found = {"mean": settings["image_mean"], "std": settings["image_std"]}
        if all(len(values) == 3 and all(float(value) == value for value in values) for values in found.values()):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the file is optional; nearly every CLIP uses the same numbers
    return {"mean": CLIP_MEAN, "std": CLIP_STD}
