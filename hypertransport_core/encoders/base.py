"""What every concept encoder offers, and the algebra of its unit vectors: averaging and centring."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..files import weight_signs

MODALITIES = ("text", "image")
# A mean of unit vectors shorter than this has no direction that means anything.
SHORTEST = 1e-4


class EncoderError(ValueError):
    """An encoder that cannot be loaded, or embeddings that do not fit; the message is one sentence with the cure."""


@runtime_checkable
class ConceptEncoder(Protocol):
    """Text or pictures to unit vectors of one shared space."""

    encoder_id: str
    width: int

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, width) float32 unit vectors, without gradient."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], any size -> (N, width) float32 unit vectors, without gradient."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class ConceptEmbedding:
    """A concept as an encoder sees it.

    vector: (E,) or (N, E) float32, unit length; encoder_id: which encoder; modality: "text", "image" or, for an
    average over both, "mixed"; source: for people, such as the text or a file name; parts: what an average was made of,
    with weights, so that centring can be done per modality later; centred: whether the modality's mean is gone already;
    rows: of (N, E), each row as an embedding of its own where rows differ in origin, see `stack`.
    """

    vector: Tensor
    encoder_id: str
    modality: str
    source: str = ""
    parts: tuple[tuple[ConceptEmbedding, float], ...] = ()
    centred: bool = False
    rows: tuple[ConceptEmbedding, ...] = ()

    def __post_init__(self) -> None:
        vector = self.vector.detach().float()
        if vector.ndim not in (1, 2) or not vector.numel():
            raise EncoderError(f"a concept has the shape {tuple(vector.shape)}, expected (width,) or (number, width): "
                               "reshape it")
        mixed = self.modality == "mixed" and bool(self.parts or self.rows or self.centred)
        if self.modality not in MODALITIES and not mixed:
            raise EncoderError(f"a concept has the modality '{self.modality}', expected 'text' or 'image': name where "
                               "it comes from")
        object.__setattr__(self, "vector", unit(vector))

    @property
    def width(self) -> int:
        """Length E of the vectors."""
        return self.vector.shape[-1]

    def single(self) -> ConceptEmbedding:
        """One vector (E,): the mean direction of several rows, or the embedding itself. Raises EncoderError if rows
        cancel."""
        if self.rows:
            return replace(average(self.rows), source=self.source)
        return self if self.vector.ndim == 1 else replace(self, vector=self.vector.mean(0))

    def each(self) -> list[ConceptEmbedding]:
        """Every row as an embedding of one vector (E,); one vector is its own only row."""
        if self.rows or self.vector.ndim == 1:
            return list(self.rows) or [self]
        return [replace(self, vector=row) for row in self.vector]

    def __repr__(self) -> str:
        source = self.source if len(self.source) <= 60 else self.source[:57] + "..."
        return f"ConceptEmbedding({source!r}, {self.modality}, {tuple(self.vector.shape)}, encoder {self.encoder_id!r})"


def unit(vector: Tensor) -> Tensor:
    """Vectors (..., E) at length 1 in float32; raises EncoderError when one is (almost) zero or not finite."""
    vector = vector.float()
    length = vector.norm(dim=-1)
    if not torch.isfinite(length).all() or bool((length < SHORTEST).any()):
        raise EncoderError(f"a concept has a vector of length {float(length.min()):.2g}, expected a clear direction: "
                           "its parts cancel out, so change the weights or the pictures")
    # What is unit already keeps its last bits, so that a concept read from a file equals the one written.
    return vector if bool(((length - 1).abs() < 1e-6).all()) else functional.normalize(vector, dim=-1)


def average(embeddings: Sequence[ConceptEmbedding], weights: Sequence[float] | None = None) -> ConceptEmbedding:
    """The direction of the weighted sum of concepts of one encoder, as one vector (E,).

    weights: one finite number each, negative ones subtract; None = equal. Several rows of one embedding count as their
    mean. Raises EncoderError for no embeddings, other encoders, mixed centring, or a sum without direction.
    """
    weights = [1.0] * len(embeddings) if weights is None else [float(weight) for weight in weights]
    if not embeddings or len(weights) != len(embeddings):
        raise EncoderError(f"got {len(weights)} weights for {len(embeddings)} concepts, expected one for each of at "
                           "least one concept")
    first = embeddings[0]
    for other in embeddings:
        if (other.encoder_id, other.width) != (first.encoder_id, first.width):
            raise EncoderError(f"concepts come from the encoders '{first.encoder_id}' (width {first.width}) and "
                               f"'{other.encoder_id}' (width {other.width}), expected one encoder: encode all of them "
                               "with the same one")
        if other.centred != first.centred:
            raise EncoderError("some concepts are centred and some are not, expected all alike: average first, centre "
                               "last")
    total = sum((weight * item.single().vector for item, weight in zip(embeddings, weights)), torch.zeros(first.width))
    modalities = {item.modality for item in embeddings}
    source = " + ".join(f"{weight:g} x {item.source}" for item, weight in zip(embeddings, weights))
    return ConceptEmbedding(total, first.encoder_id, first.modality if len(modalities) == 1 else "mixed", source,
                            tuple(zip(embeddings, weights)), first.centred)


def centred(vector: Tensor, modality: str, means: Mapping[str, Tensor]) -> Tensor:
    """Embeddings (..., E) of one modality as a hypernetwork reads them: unit, their modality's mean (E,) gone, unit
    again, and, where `means` holds a matrix `<modality>_map` (E, E), multiplied by it. Raises EncoderError.

    The mean closes CLIP's gap between words and pictures (reference section 10.3), the matrix what is left of it: a
    picture is also of a subject, which has nothing to do with the concept (`toward_words`).
    """
    vector = unit(vector)
    for key in (modality, f"{modality}_map"):
        if key not in means:
            continue
        value = means[key].to(vector.device, torch.float32)
        if value.shape[0] != vector.shape[-1]:
            raise EncoderError(f"the mean of modality '{modality}' has the shape {tuple(value.shape)}, expected "
                               f"({vector.shape[-1]},): use the hypernetwork made for this encoder")
        vector = unit(vector - value if value.ndim == 1 else vector @ value)
    return vector


def centre(embedding: ConceptEmbedding, means: Mapping[str, Tensor]) -> ConceptEmbedding:
    """An embedding as a hypernetwork reads it, by `centred` with the means from the hypernetwork's file; a modality
    without mean stays as it is. Averages are made again from their centred parts. An embedding already centred is
    returned unchanged. Raises EncoderError."""
    if embedding.centred:
        return embedding
    if embedding.rows:
        return stack([centre(row, means) for row in embedding.rows])
    if embedding.parts:
        again = average([centre(part, means) for part, _ in embedding.parts], [weight for _, weight in embedding.parts])
        return replace(again, source=embedding.source)
    return replace(embedding, vector=centred(embedding.vector, embedding.modality, means), centred=True)


def toward_words(pictures: Tensor, words: Tensor, penalty: float = 10.0) -> Tensor:
    """The matrix (E, E) that moves pictures half the way to the words of their concept, by ridge regression.

    pictures, words: (N, E), centred unit vectors of the same concepts, row by row. The other half stays, because words
    do not say everything that a picture shows.
    """
    gram = pictures.T @ pictures + penalty * torch.eye(pictures.shape[1])
    matrix = torch.linalg.solve(gram, pictures.T @ words)
    return torch.eye(pictures.shape[1]) + matrix / (pictures @ matrix).norm(dim=1).mean()


def stack(embeddings: Sequence[ConceptEmbedding]) -> ConceptEmbedding:
    """Concepts of one encoder as rows (N, E), each row keeping its modality and parts for centring; one row alone is
    returned as it is. Raises EncoderError for none, other encoders or mixed centring."""
    rows = [row for embedding in embeddings for row in embedding.each()]
    if len(rows) == 1:
        return rows[0]
    about = average(rows, [1.0] + [0.0] * (len(rows) - 1))  # checks that they belong together
    modalities = {row.modality for row in rows}
    return ConceptEmbedding(torch.stack([row.vector for row in rows]), about.encoder_id,
                            rows[0].modality if len(modalities) == 1 else "mixed",
                            "; ".join(row.source for row in rows), (), about.centred, tuple(rows))


def mix(embeddings: Sequence[ConceptEmbedding], weights: Sequence[float] | None = None) -> ConceptEmbedding:
    """`average` row by row: concepts of N rows and of one row give N rows. Raises EncoderError, also for other
    numbers."""
    several = [embedding.each() for embedding in embeddings]
    counts = {len(rows) for rows in several} - {1}
    if len(counts) > 1:
        numbers = " and ".join(map(str, sorted(counts)))
        raise EncoderError(f"concepts have {numbers} rows, expected one number of rows, or single concepts, which "
                           "serve every row: give each the same number")
    if not counts:
        return average(embeddings, weights)
    number = counts.pop()
    return stack([average([rows[i % len(rows)] for rows in several], weights) for i in range(number)])


def embed_text(encoder: ConceptEncoder, texts: Sequence[str]) -> ConceptEmbedding:
    """Encode texts: one text -> vector (E,), several -> rows (N, E). Raises EncoderError for none or an empty one."""
    texts = [text.strip() for text in texts]
    if not texts or not all(texts):
        raise EncoderError("the concept text is empty, expected at least one word: type what the picture should show")
    vectors = encoder.encode_text(texts).cpu()
    return ConceptEmbedding(vectors[0] if len(texts) == 1 else vectors, encoder.encoder_id, "text", "; ".join(texts))


def embed_images(encoder: ConceptEncoder, images: Tensor, source: str = "") -> ConceptEmbedding:
    """Encode pictures (N, 3, H, W) in [0, 1]: one -> vector (E,), several -> rows (N, E). Raises ValueError for other
    shapes."""
    vectors = encoder.encode_images(images).cpu()
    return ConceptEmbedding(vectors[0] if len(vectors) == 1 else vectors, encoder.encoder_id, "image",
                            source or f"{len(vectors)} picture" + "s" * (len(vectors) != 1))


def clip_encoder_id(token_embedding: Tensor, text_projection: Tensor, patch_embedding: Tensor,
                    visual_projection: Tensor,
                    label: str = "clip") -> str:
    """A name for a CLIP that depends on its weights only, whatever library, folder, file name or dtype they come from.

    token_embedding (V, D), text_projection (E, D), patch_embedding (Dv, 3, p, p), visual_projection (E, Dv):
    orientation of `transformers`. Looks like `clip-vit1024p14-768-t0123abcd-v4567cdef`, with one part per tower.
    """
    text, vision = tower_sign(token_embedding, text_projection), tower_sign(patch_embedding, visual_projection)
    shape = f"vit{patch_embedding.shape[0]}p{patch_embedding.shape[-1]}-{text_projection.shape[0]}"
    return f"{label}-{shape}-t{text}-v{vision}"


def tower_sign(embedding: Tensor, projection: Tensor) -> str:
    """A tower's eight letters within `clip_encoder_id`, from its first and its last matrix."""
    return hashlib.sha256("".join(weight_signs(t, 1024) for t in (embedding, projection)).encode()).hexdigest()[:8]
