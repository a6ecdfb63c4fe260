"""The embedded world's own CLIP as a concept encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..postcard.captions import TEMPLATES
from ..postcard.clip import PostcardCLIP, words_of
from .transformers_clip import in_batches, model_encoder_id


class PostcardClipEncoder:
    """`ConceptEncoder` over a `PostcardCLIP`."""

    templates = TEMPLATES

    def __init__(self, clip: PostcardCLIP) -> None:
        """clip: a trained model; it is put into evaluation mode."""
        self.clip = clip.train(False)
        self.encoder_id = model_encoder_id(clip.model, "postcard-clip")
        self.width = clip.width

    @classmethod
    def from_file(cls, path: str | Path, *, device: torch.device | str = "cpu") -> PostcardClipEncoder:
        """Load a `postcard_clip` file; raises FileError."""
        return cls(PostcardCLIP.load(path).to(device))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, 128) float32 unit vectors."""
        return in_batches(self.clip.encode_text, list(texts), 256)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], any size -> (N, 128) float32 unit vectors; raises ValueError for other shapes."""
        return in_batches(self.clip.encode_images, images, 64)

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the model was never taught, and knows no spelling close to."""
        tokenizer = self.clip.tokenizer
        return [word for word in words_of(text) if tokenizer.word_id(word) == tokenizer.unknown_id]

    def __repr__(self) -> str:
        return f"PostcardClipEncoder({self.encoder_id})"
