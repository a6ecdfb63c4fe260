"""A CLIP through `open_clip`: an architecture known by name and a safetensors checkpoint on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..files import check_safetensors, network_fingerprint
from .base import EncoderError, clip_encoder_id
from .preprocess import CLIP_MEAN, CLIP_STD, check_pictures, normalise, resize_and_crop
from .transformers_clip import first_line, in_batches


class OpenClipEncoder:
    """`ConceptEncoder` over an open_clip model."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str = "open_clip") -> None:
        """model: an open_clip CLIP with `encode_text` and `encode_image`; tokenizer: its tokenizer; name:
        architecture."""
        self.model = model.train(False)
        self.tokenizer = tokenizer
        size = model.visual.image_size
        self.size = int(size[0] if isinstance(size, (tuple, list)) else size)
        self.mean = tuple(getattr(model.visual, "image_mean", None) or CLIP_MEAN)
        self.std = tuple(getattr(model.visual, "image_std", None) or CLIP_STD)
        self.width = int(model.encode_text(tokenizer(["a"]).to(_device(model))).shape[-1])
        self.encoder_id = _encoder_id(model, name)

    @classmethod
    def from_checkpoint(cls, name: str, path: str | Path, *, device: torch.device | str = "cpu",
                        dtype: torch.dtype = torch.float32) -> OpenClipEncoder:
        """name: an architecture such as 'ViT-L-14'; path: its .safetensors checkpoint. Nothing is downloaded.
        Raises EncoderError, or FileError for a damaged file."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise EncoderError(f"{path} is no .safetensors file, expected one: download that variant, others are never "
                               "opened")
        check_safetensors(path)
        open_clip = import_open_clip()
        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if config is None:
            raise EncoderError(f"open_clip knows no architecture '{name}', expected one such as 'ViT-L-14' or "
                               "'ViT-B-32': check the name in open_clip's list")
        if any(key.startswith("hf_") for key in config["text_cfg"]) or "siglip" in name.lower():
            raise EncoderError(f"the architecture '{name}' fetches its text tower or tokenizer from the network, "
                               "expected one that is complete by itself: choose an architecture such as 'ViT-L-14'")
        try:
            model = open_clip.create_model(name, load_weights=False, pretrained_text=False, pretrained_image=False)
            open_clip.load_checkpoint(model, str(path))
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # open_clip and torch name a mismatch in many kinds
            raise EncoderError(f"{path} cannot be loaded as '{name}' ({first_line(error)}), expected the weights of "
                               "that architecture: choose the architecture that the file was made for") from error
        return cls(model.to(device, dtype), tokenizer, name=name)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, width) float32 unit vectors on the model's device."""
        encode = lambda part: self.model.encode_text(self.tokenizer(part).to(_device(self.model)))  # noqa: E731
        return functional.normalize(in_batches(encode, list(texts), 64).float(), dim=-1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], any size -> (N, width) float32 unit vectors; raises ValueError for other shapes."""
        return functional.normalize(in_batches(self._encode_images, check_pictures(images), 16).float(), dim=-1)

    def _encode_images(self, images: Tensor) -> Tensor:
        pixels = normalise(resize_and_crop(images, self.size), self.mean, self.std)
        weight = next(self.model.parameters())
        return self.model.encode_image(pixels.to(weight.device, weight.dtype))


def import_open_clip() -> Any:
    """The module `open_clip`; raises EncoderError with the cure when it, or the torchvision it needs, is missing or
    broken."""
    try:
        import open_clip
    except Exception as error:  # a torchvision built for another torch raises RuntimeError, AttributeError, ...
        raise EncoderError(f"open_clip cannot be imported ({first_line(error)}), expected the package "
                           "'open_clip_torch' and a torchvision that belongs to the installed torch: install both or "
                           "use a transformers CLIP folder") from error
    return open_clip


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


def _encoder_id(model: Any, name: str) -> str:
    """The id that the same weights get through transformers, where towers are alike; else one from the first
    weights."""
    text = getattr(model, "text", model)
    try:
        return clip_encoder_id(text.token_embedding.weight, text.text_projection.T, model.visual.conv1.weight,
                               model.visual.proj.T)
    except (AttributeError, IndexError):
        signs = "".join(network_fingerprint(model, ())["weights"].values())
        return f"open_clip-{name}-{hashlib.sha256(signs.encode()).hexdigest()[:12]}"
