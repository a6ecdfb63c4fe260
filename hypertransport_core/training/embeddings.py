"""Concept embeddings as the hypernetwork reads them: centred per modality, drawn from words and pictures alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..encoders.base import centred, toward_words, unit
from .config import ConfigError, TrainingConfig

FEWEST_CONCEPTS = 32  # below, a regression from pictures to words says little
MOST_PICTURES = 4  # a reference is given as 1 to 4 pictures ...
SINGLE = 0.6  # ... and mostly as one, which is also the hardest: its subject is in it as much as the concept


class EmbeddingBank:
    """Word and picture embeddings of some concepts.

    text: per concept (1 + phrases, E), the name's first; images: per concept (pictures, E); unit vectors. means: what
    `encoders.base.centred` takes; None = as these concepts say, none for a single concept.
    """

    def __init__(
        self, text: Sequence[Tensor], images: Sequence[Tensor], means: dict[str, Tensor] | None = None
    ) -> None:
        self.text, self.images = list(text), list(images)
        self.width = self.text[0].shape[-1]
        self.means = self._own_means() if means is None else means

    def _own_means(self) -> dict[str, Tensor]:
        if len(self.text) < 2:
            return {}
        means = {"text": torch.stack([t[0] for t in self.text]).mean(0)}
        pictures = torch.cat(self.images)
        if len(pictures):
            means["image"] = pictures.mean(0)
        if len(pictures) and len(self.text) >= FEWEST_CONCEPTS:
            words = [centred(t[0], "text", means).expand(len(i), -1) for t, i in zip(self.text, self.images)]
            means["image_map"] = toward_words(centred(pictures, "image", means), torch.cat(words))
        return means

    def centred(self, vectors: Tensor, modality: str) -> Tensor:
        """Unit vectors (..., E) as the hypernetwork reads them."""
        return centred(vectors, modality, self.means)

    def of_text(self, concept: int, phrase: int = 0) -> Tensor:
        """(E,) of a concept's name, or of one of its phrases."""
        return self.centred(self.text[concept][phrase], "text")

    def of_images(self, concept: int, chosen: Sequence[int] | Tensor | None = None) -> Tensor:
        """(E,) of some pictures of a concept together; all by default."""
        pictures = self.images[concept] if chosen is None else self.images[concept][chosen]
        return self.centred(unit(pictures.mean(0)), "image")

    def all_text(self) -> Tensor:
        """(concepts, E) of all names."""
        return torch.stack([self.of_text(i) for i in range(len(self.text))])

    def draw(self, concept: int, config: TrainingConfig, generator: torch.Generator) -> Tensor:
        """(E,): words, another phrase or 1 to 4 pictures, by the config's shares, with its noise."""
        dice = torch.rand(3, generator=generator).tolist()
        order = torch.randperm(max(1, len(self.images[concept])), generator=generator)
        noise = torch.randn(self.width, generator=generator) * (config.embedding_noise / self.width**0.5)
        if dice[0] < config.image_share and len(self.images[concept]):
            several = max(0.0, dice[1] - SINGLE) / (1 - SINGLE)
            vector = self.of_images(concept, order[: 1 + math.ceil(several * (MOST_PICTURES - 1))])
        else:
            phrases = len(self.text[concept]) - 1
            vector = self.of_text(
                concept, 1 + int(dice[1] * phrases) if phrases and dice[2] < config.phrase_share else 0
            )
        return unit(vector + noise) if config.embedding_noise else vector


def check_width(bank: EmbeddingBank, width: int, encoder_id: str) -> None:
    """Raises ConfigError when collected embeddings are not of the encoder's width."""
    if bank.width != width:
        raise ConfigError(
            f"The collected embeddings have the width {bank.width}, expected {width} as the encoder '{encoder_id}' "
            "gives: use the encoder they were collected with, or collect anew."
        )
