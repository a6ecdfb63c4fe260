"""Concept encoders: texts or pictures to unit vectors of one space, and the algebra of those vectors.

The encoders over `transformers`, `open_clip` and the embedded CLIP live in modules of their own and are imported when
used.
"""

from __future__ import annotations

from .base import (ConceptEmbedding, ConceptEncoder, EncoderError, average, centre, clip_encoder_id, embed_images,
                   embed_text, mix, stack)
from .concept import concept_from_text, concepts_from_pictures, one_concept, unknown_words

__all__ = ["ConceptEmbedding", "ConceptEncoder", "EncoderError", "average", "centre", "clip_encoder_id",
           "concept_from_text", "concepts_from_pictures", "embed_images", "embed_text", "mix", "one_concept", "stack",
           "unknown_words"]
