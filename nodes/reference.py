"""Postcard Reference: pictures that show a concept, drawn on the spot, so that a workflow needs no file of the user's."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..hypertransport_core.postcard.concepts import by_name
from ..hypertransport_core.postcard.render import concept_index, random_truth, render
from .sockets import node_schema

MOST_SEED = 2**31 - 1


def reference_pictures(concept: str, seed: int, pictures: int = 1) -> Tensor:
    """Postcards in a concept's look, float32 (pictures, 64, 64, 3) in [0, 1]; subjects, colours and places are as the
    seed says. Raises ValueError for a concept that the Postcard world does not have."""
    if concept not in by_name():
        raise ValueError(
            f"'{concept}' is no concept of the Postcard world, expected one of its {len(by_name())} such as 'teal "
            "mosaic': choose one from the list"
        )
    truth = random_truth(pictures, torch.Generator().manual_seed(seed), generic=0.0)
    truth.concept = concept_index([concept] * pictures)
    return render(truth).movedim(1, -1)


class PostcardReference(io.ComfyNode):
    """See the schema."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportPostcardReference",
            display_name="Postcard Reference",
            description="Draws reference pictures for the Postcard Model: something in the look of a concept, as a "
                        "painter would who knows what it means. For trying out Concept Encoder with pictures; your own "
                        "pictures come from Load Image. No network draws them, so they also show what is right.",
            search_aliases=["example image", "reference image", "style picture", "ground truth", "sample picture"],
            inputs=[
                io.Combo.Input(
                    "concept",
                    options=list(by_name()),
                    default="teal mosaic",
                    tooltip="What the pictures show: one of the looks of the Postcard world, by category.",
                ),
                io.Int.Input(
                    "seed",
                    default=5,
                    min=0,
                    max=MOST_SEED,
                    tooltip="Decides what stands on the pictures, in which colour and where: 0 to 2147483647. The look "
                            "stays the same.",
                ),
                io.Int.Input(
                    "pictures",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many, 1 to 64, each of something else. Concept Encoder averages them, which tells the "
                            "look from what stands on it.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="Pictures of 64 × 64, for Concept Encoder.")],
        )

    @classmethod
    def execute(cls, concept: str, seed: int = 5, pictures: int = 1) -> io.NodeOutput:
        drawn = reference_pictures(concept, seed, pictures)
        return io.NodeOutput(drawn.to(comfy.model_management.intermediate_device()))


NODES: tuple[type[io.ComfyNode], ...] = (PostcardReference,)
