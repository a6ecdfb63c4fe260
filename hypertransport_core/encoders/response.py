"""Words read twice: by a CLIP, and by what the base model itself does when it is given them as a prompt.

A CLIP puts words that are alike in use near each other; what a look *does* inside a model cannot be told from that for a
look unlike all others. The model knows it: one call at the first noise level, with the words alone as the prompt, moves the
mean outputs of its sites in directions that foretell the concept's mean shifts at all levels: on Postcard a linear regression
explains 0.93 of what tells those of unseen concepts apart, 0.70 from the CLIP's words (docs/training.md). Those means,
projected onto a few principal components, are joined to the CLIP's vector. Pictures have no such response; zeros stand there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..capture import PooledCapture, floored_deviation
from ..files import AGAIN, RESPONSE, FileError, sites_from_header, sites_to_header, weight_signs
from ..sites import Site, total_channels
from .base import ConceptEncoder, unit
from .concept import templates_of, unknown_words

if TYPE_CHECKING:
    from pathlib import Path

    from ..backbones.protocol import Backbone

SEED = 0  # of the noise


@dataclass(frozen=True, eq=False, repr=False)
class ResponseReader:
    """How a response is measured and what is kept of it.

    sites: whose mean outputs are read; matrix (P, D), mean (D,): float32, D = ΣC of the sites; latent_shape: of the one noise
    that all words meet, from `SEED`. Raises ValueError for other shapes.
    """

    sites: tuple[Site, ...]
    matrix: Tensor
    mean: Tensor
    latent_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        channels = total_channels(self.sites)
        if self.matrix.ndim != 2 or self.matrix.shape[1] != channels or self.mean.shape != (channels,):
            raise ValueError(f"a reader of {channels} channels has the matrix {tuple(self.matrix.shape)} and the mean "
                             f"{tuple(self.mean.shape)}, expected (numbers, {channels}) and ({channels},): use those of one file")

    @property
    def width(self) -> int:
        """How many numbers are kept, P."""
        return self.matrix.shape[0]

    @property
    def sign(self) -> str:
        """Sixteen letters that tell readers apart, the same in half precision."""
        return weight_signs(self.matrix)

    def __repr__(self) -> str:
        return f"ResponseReader({self.sign}, {len(self.sites)} sites, {self.width} numbers)"

    def keep(self, response: Tensor) -> Tensor:
        """Of responses (..., D) the numbers (..., P), float32; about 1 long over the concepts it was made of."""
        return (response.float() - self.mean) @ self.matrix.T

    @classmethod
    def from_responses(
        cls, sites: Sequence[Site], responses: Tensor, deviation: Tensor, width: int, latent_shape: Sequence[int]
    ) -> ResponseReader:
        """The principal components of some concepts' responses (N, D), in units of the channels' deviation (D,) over
        pictures without a concept; at most `width`, fewer where there are fewer concepts.

        Each is divided by the square root of its own deviation: the last would otherwise drown in what training adds as
        noise, and at full whiteness be as loud as the first.
        """
        deviation = floored_deviation(deviation)
        mean = responses.float().mean(0)
        moved = (responses.float() - mean) / deviation
        _, size, components = torch.linalg.svd(moved, full_matrices=False)
        rank = min(width, int((size > max(1e-5 * float(size[0]), 1e-6)).sum()))
        if not rank:  # one concept, or all answered alike: nothing tells them apart
            return cls(tuple(sites), torch.zeros(1, moved.shape[1]), mean, tuple(latent_shape))
        scaled = components[:rank] / (size[:rank, None] / len(moved) ** 0.5).sqrt()
        scaled = scaled / (moved @ scaled.T).square().sum(1).mean().sqrt()
        # What a file keeps, so that training and use read alike to the last bit.
        return cls(tuple(sites), (scaled / deviation).half().float(), mean, tuple(latent_shape))

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, header entry) for a file of the one format."""
        tensors = {"response.matrix": self.matrix.half(), "response.mean": self.mean}
        return tensors, {"sites": sites_to_header(self.sites), "latent_shape": list(self.latent_shape)}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], header: Any, path: str | Path) -> ResponseReader | None:
        """Read what `to_file` gave; None where there is nothing of it. Raises FileError."""
        if header is None:
            return None
        try:
            sites = sites_from_header(header, path)
            shape = tuple(int(size) for size in header["latent_shape"])
            return cls(sites, tensors["response.matrix"].float(), tensors["response.mean"].float(), shape)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} holds no usable response reader ({error}), expected its sites, matrix and mean: "
                            f"{AGAIN}") from error


class ResponseEncoder:
    """`ConceptEncoder`: another encoder's vectors, for words joined by the base model's response to them."""

    def __init__(self, encoder: ConceptEncoder, backbone: Callable[[], Backbone], reader: ResponseReader) -> None:
        """backbone: asked for whenever words are encoded, as hosts move models in and out of memory; not steered then; its
        weights are those that the reader was made for, or a fine-tune's."""
        self.encoder, self.backbone, self.reader = encoder, backbone, reader
        self.encoder_id = f"{encoder.encoder_id}{RESPONSE}{reader.sign}"
        self.width = encoder.width + reader.width
        self.templates = templates_of(encoder)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, width) float32 unit vectors; one row of a network call each."""
        return self.join(self.encoder.encode_text(texts), self.responses(texts))

    def encode_concept(self, words: str, templates: Sequence[str]) -> Tensor:
        """A concept in words -> (width,): the other encoder's mean over several phrasings, and the response to the words
        alone, so that one row of a network call serves."""
        vectors = self.encoder.encode_text([template.format(words) for template in templates])
        return self.join(vectors.float().mean(0), self.responses([words])[0])

    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], any size -> (N, width) float32 unit vectors whose response is 0."""
        return self.join(self.encoder.encode_images(images), None)

    def unknown_words(self, text: str) -> list[str]:
        """Words that the other encoder knows it was never taught."""
        return unknown_words(self.encoder, text)

    def join(self, vectors: Tensor, responses: Tensor | None) -> Tensor:
        """Unit vectors (..., width) of the other encoder's (..., E) and of responses (..., D), or of none."""
        vectors = vectors.float().cpu()
        kept = vectors.new_zeros(*vectors.shape[:-1], self.reader.width) if responses is None else self.reader.keep(responses)
        return unit(torch.cat([unit(vectors), kept], -1))

    def responses(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, D) float32 on the CPU: what the reader's sites put out in the mean, see `responses`."""
        return responses(self.backbone(), self.reader.sites, texts)

    def __repr__(self) -> str:
        return f"ResponseEncoder({self.encoder_id})"


@torch.no_grad()
def responses(backbone: Backbone, sites: Sequence[Site], texts: Sequence[str]) -> Tensor:
    """N texts -> (N, ΣC) float32 on the CPU: the mean outputs of sites in one call of the network at noise level 1 for each
    text, with it as the prompt and the noise of `SEED`, the same for all."""
    # One by one: text encoders without a fixed length would pad a text to the longest beside it, and answer otherwise.
    encode, found = getattr(backbone, "encode_alone", lambda text: backbone.encode([text])), []
    for text in texts:
        conditioning = encode(text)
        with PooledCapture(backbone.network, sites, stop_after_last_site=True) as capture:
            backbone.denoise(backbone.noise([SEED]), 1.0, conditioning)
        found.append(capture.features().float().cpu())
    return torch.cat(found)


def plain_id(encoder_id: str) -> str:
    """The id of the encoder without the response that is joined to it; any other id as it is."""
    return encoder_id.partition(RESPONSE)[0]


def response_encoder(encoder: ConceptEncoder, backbone: Backbone, reader: ResponseReader) -> ResponseEncoder:
    """A `ResponseEncoder` over a base model that stays where it is."""
    return ResponseEncoder(encoder, lambda: backbone, reader)
