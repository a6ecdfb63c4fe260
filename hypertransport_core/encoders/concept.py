"""What a person gives, words or pictures, to concept embeddings: the one way that the pipeline and the nodes share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import ConceptEmbedding, ConceptEncoder, EncoderError, average, embed_images, embed_text


def templates_of(encoder: ConceptEncoder) -> tuple[str, ...]:
    """Sentences whose mean embedding stands for a concept in words; the words alone unless the encoder says more."""
    return tuple(getattr(encoder, "templates", ("{}",)))


def concept_from_text(encoder: ConceptEncoder, text: str, templates: Sequence[str] | None = None) -> ConceptEmbedding:
    """A concept in words: one unit vector (E,), the mean over the encoder's templates, or the given ones. Raises
    EncoderError when it is empty."""
    text = text.strip()
    templates = templates_of(encoder) if templates is None else templates
    whole = getattr(encoder, "encode_concept", None)  # of encoders that read the words in more than phrasings
    if text and whole is not None:
        return ConceptEmbedding(whole(text, templates), encoder.encoder_id, "text", text)
    embedding = embed_text(encoder, [template.format(text) for template in templates] if text else [""])
    return ConceptEmbedding(embedding.single().vector, embedding.encoder_id, "text", text)


def concepts_from_pictures(encoder: ConceptEncoder, pictures: Sequence[Tensor]) -> list[ConceptEmbedding]:
    """Pictures, each (3, H, W) or a batch (N, 3, H, W), floats in [0, 1], any size -> one unit vector (E,) for each.
    Raises EncoderError for none, ValueError for other shapes."""
    batches = [picture[None] if picture.ndim == 3 else picture for picture in pictures]
    if not sum(len(batch) for batch in batches):
        raise EncoderError("there is no picture, expected at least one: connect or name one")
    return [row for batch in batches for row in embed_images(encoder, batch).each()]


def one_concept(
    embeddings: Sequence[ConceptEmbedding], weights: Sequence[float] | None = None, source: str = ""
) -> ConceptEmbedding:
    """The weighted mean direction (E,) of phrasings or of pictures of one concept, as a concept of that modality.

    Unlike `average` it keeps no parts: the modality's mean is taken off the result. Raises EncoderError.
    """
    mean = average(embeddings, weights)
    return ConceptEmbedding(mean.vector, mean.encoder_id, mean.modality, source or embeddings[0].source)


def unknown_words(encoder: ConceptEncoder, text: str) -> list[str]:
    """Words that the encoder knows it was never taught; nothing for encoders that can spell any word."""
    known = getattr(encoder, "unknown_words", None)
    return list(dict.fromkeys(known(text))) if known else []
