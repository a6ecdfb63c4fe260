"""A CLIP that has no part in making or steering pictures, asked which concept's words a picture is nearest to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..encoders.postcard_clip import PostcardClipEncoder
from ..postcard.captions import TEMPLATES
from ..postcard.clip import PostcardCLIP
from ..postcard.concepts import concepts
from ..postcard.render import render
from ..postcard.train_clip import concept_renders


class SecondClip:
    """A CLIP of another seed than the conditioning one, with the words of all concepts of the world."""

    def __init__(self, clip: PostcardCLIP) -> None:
        """clip: trained on renders and captions of all concepts, held-out ones too, as the conditioning one."""
        self.encoder = PostcardClipEncoder(clip)
        texts = [template.format(concept.name) for concept in concepts() for template in TEMPLATES]
        several = self.encoder.encode_text(texts).unflatten(0, (-1, len(TEMPLATES)))
        self.words = torch.nn.functional.normalize(several.mean(1), dim=-1)

    def nearest(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] -> index of the concept, of all, whose words are nearest by cosine, int64
        (n,)."""
        return (self.encoder.encode_images(pictures) @ self.words.T).argmax(1)

    def right_on_renders(self, names: Sequence[str], per_concept: int = 8) -> float:
        """Share of fresh renders of these concepts whose nearest words are theirs."""
        truth = concept_renders(names, per_concept)
        parts = [truth[start : start + 128] for start in range(0, len(truth), 128)]
        return float(torch.cat([self.nearest(render(part)) == part.concept for part in parts]).float().mean())
