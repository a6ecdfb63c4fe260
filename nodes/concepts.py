"""Concept Encoder and Mix Concepts: words and pictures to what a hypernetwork reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..hypertransport_core.encoders.base import ConceptEmbedding, ConceptEncoder, EncoderError, average, mix, stack
from ..hypertransport_core.encoders.concept import (
    concept_from_text,
    concepts_from_pictures,
    one_concept,
    unknown_words,
)
from .showing import with_text
from .sockets import Concept, Encoder, advanced, node_schema

AVERAGE, ROWS = "average", "one per row"


def numbers(text: str, count: int) -> list[float] | None:
    """Comma-separated weights of `count` pictures; None when empty. Raises EncoderError."""
    parts = [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
    if not parts:
        return None
    try:
        weights = [float(part) for part in parts]
    except ValueError as error:
        raise EncoderError(
            f"image_weights are '{text}', expected numbers with commas between them such as '1, 0.5': correct them"
        ) from error
    if len(weights) != count:
        raise EncoderError(
            f"image_weights hold {len(weights)} numbers for {count} pictures, expected one for each: correct them, or "
            "leave them empty"
        )
    return weights


def lines_of(text: str) -> list[str]:
    """The lines that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def encode(
    encoder: ConceptEncoder, text: str, images: Tensor | None, image_weights: str, mode: str
) -> ConceptEmbedding:
    """The concept of lines of words and of pictures (N, H, W, C), see the node's schema. Raises EncoderError,
    ValueError."""
    phrasings = [concept_from_text(encoder, line) for line in lines_of(text)]
    pictures = [] if images is None else concepts_from_pictures(encoder, [images[..., :3].movedim(-1, 1).cpu()])
    weights = numbers(image_weights, len(pictures)) if pictures else None
    if not phrasings and not pictures:
        raise EncoderError(
            "there is nothing to encode, expected words or pictures: type what the picture should show, or connect "
            "images"
        )
    if mode == ROWS:
        if weights is not None:
            raise EncoderError(
                "image_weights are given but every picture is a row of its own, expected none: leave them empty, or "
                "choose 'average'"
            )
        return stack([*phrasings, *pictures])
    parts = []
    if phrasings:
        parts.append(one_concept(phrasings, source=" / ".join(one.source for one in phrasings)))
    if pictures:
        parts.append(one_concept(pictures, weights, source=f"{len(pictures)} picture" + "s" * (len(pictures) != 1)))
    return parts[0] if len(parts) == 1 else average(parts)


class ConceptEncoderNode(io.ComfyNode):
    """See the schema."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportConceptEncoder",
            display_name="Concept Encoder",
            description="Turns words, reference pictures or both into one concept, such as 'teal mosaic' or the look "
                        "of three photographs. Or into one concept per row, for a batch whose pictures are each "
                        "steered elsewhere. Changing the strength later does not encode again.",
            search_aliases=[
                "concept",
                "style reference",
                "reference image",
                "clip embedding",
                "embed text",
                "embed image",
            ],
            inputs=[
                Encoder.Input(
                    "encoder",
                    tooltip="The CLIP that the HyperTransport weights were trained with, from Load Concept Encoder or "
                            "Postcard Model.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder="the concept, such as: teal mosaic",
                    tooltip="The concept in words, a few are best. Several lines are several phrasings of one "
                            "concept, averaged, or one concept per row. Empty: only pictures.",
                ),
                io.Combo.Input(
                    "mode",
                    options=[AVERAGE, ROWS],
                    default=AVERAGE,
                    tooltip="average: one concept from everything; words and pictures count the same, however many "
                            "there are of each. one per row: every line, then every picture, is a concept of its own, "
                            "for the rows of a latent batch in this order.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Reference pictures, one or a batch, any size: the centre square is looked at.",
                ),
                advanced(
                    io.String.Input(
                        "image_weights",
                        default="",
                        optional=True,
                        tooltip="One number per picture with commas between them, such as 1, 0.5, -0.2. 0 leaves a "
                                "picture out, below 0 leads away from it. Empty: all count the same.",
                    )
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                Concept.Output(
                    display_name="concept", tooltip="For HyperTransport Steer, Predict Maps and Mix Concepts."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        encoder: ConceptEncoder,
        text: str = "",
        mode: str = AVERAGE,
        images: Tensor | None = None,
        image_weights: str = "",
    ) -> io.NodeOutput:
        concept = encode(encoder, text, images, image_weights, mode)
        return with_text(cls, "\n".join([*_warnings(encoder, text), _about(concept)]), concept)


def _about(concept: ConceptEmbedding) -> str:
    rows = "" if concept.vector.ndim == 1 else f"{len(concept.vector)} concepts, one per row: "
    return f"{rows}{concept.source}"


def _warnings(encoder: ConceptEncoder, text: str) -> list[str]:
    unknown = unknown_words(encoder, text)
    if not unknown:
        return []
    message = (
        f"The encoder was never taught {', '.join(repr(word) for word in unknown)}; use words it knows, or a picture."
    )
    logging.warning("Concept Encoder: %s", message)
    return [f"Warning: {message}"]


class MixConcepts(io.ComfyNode):
    """See the schema."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs: list[Any] = []
        for number in range(1, 5):
            optional = number > 2
            inputs.append(
                Concept.Input(
                    f"concept_{number}",
                    optional=optional,
                    tooltip="A concept of one encoder, from words or pictures. With several rows the mix is made row "
                            "by row.",
                )
            )
            inputs.append(
                io.Float.Input(
                    f"weight_{number}",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    optional=optional,
                    tooltip=f"How much of concept {number}, -10 to 10 beside the other weights: 0 leaves it out, "
                            "below 0 leads away from it. Only the direction of the mix counts, so 1, 1 is the same "
                            "as 2, 2.",
                )
            )
        return node_schema(
            node_id="HyperTransportMixConcepts",
            display_name="Mix Concepts",
            description="One concept between two to four, words and pictures alike: each with a weight, and a weight "
                        "below 0 subtracts. How strongly the result acts is set later, in HyperTransport Steer.",
            search_aliases=[
                "blend concepts",
                "interpolate",
                "subtract concept",
                "concept arithmetic",
                "combine concepts",
            ],
            inputs=inputs,
            hidden=[io.Hidden.unique_id],
            outputs=[
                Concept.Output(display_name="concept", tooltip="The mix, for HyperTransport Steer and Predict Maps.")
            ],
        )

    @classmethod
    def execute(
        cls,
        concept_1: ConceptEmbedding,
        weight_1: float,
        concept_2: ConceptEmbedding,
        weight_2: float,
        concept_3: ConceptEmbedding | None = None,
        weight_3: float = 1.0,
        concept_4: ConceptEmbedding | None = None,
        weight_4: float = 1.0,
    ) -> io.NodeOutput:
        given = [(concept_1, weight_1), (concept_2, weight_2), (concept_3, weight_3), (concept_4, weight_4)]
        used = [(concept, weight) for concept, weight in given if concept is not None and weight != 0.0]
        if not used:
            raise EncoderError(
                "every weight is 0, so there is no concept left, expected at least one other number: raise a weight"
            )
        mixed = _mixed([concept for concept, _ in used], [weight for _, weight in used])
        return with_text(cls, _about(mixed), mixed)


def _mixed(concepts: Sequence[ConceptEmbedding], weights: Sequence[float]) -> ConceptEmbedding:
    return concepts[0] if len(concepts) == 1 and weights[0] > 0 else mix(concepts, weights)


NODES: tuple[type[io.ComfyNode], ...] = (ConceptEncoderNode, MixConcepts)
