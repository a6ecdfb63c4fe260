"""The base model's responses to the words of every concept, kept beside the collected data, and what is read of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoints import load_checkpoint
from ..concepts import Concept
from ..encoders.response import ResponseEncoder, ResponseReader, response_encoder, responses
from ..sites import Site, site_slices
from .distribution import Group
from .states import save_whole

if TYPE_CHECKING:
    from .config import TrainingConfig
    from .data import DataFolder
    from .presets import World

# Of the run's sites, in their order, the last third is read: what the others say arrives there (docs/training.md).
READ_FROM = 2 / 3


def read_sites(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Those of a run's sites whose response is read."""
    return tuple(sites[int(READ_FROM * len(sites)) :])


class Responses:
    """Responses of a data folder's concepts, one file each in `responses`, and the encoder made of them."""

    def __init__(self, data: DataFolder) -> None:
        self.data, self.base = data, data.world.encoder
        self.sites = read_sites(data.sites)
        self.encoder: ResponseEncoder | None = None

    def path_of(self, concept: Concept) -> Path:
        """The file of a concept, named as that of its statistics."""
        return self.data.folder / "responses" / self.data.path_of(concept).name

    def _about(self, concept: Concept) -> str:
        parts = [self.data.source_hash(), *[site.path for site in self.sites], concept.name, *concept.phrases]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def of(self, concept: Concept) -> Tensor:
        """(1 + phrases, D) fp32 of a concept's name and phrases, measured and written where no file has it. Raises
        TrainingError for a disk that refuses it."""
        path, about = self.path_of(concept), self._about(concept)
        try:
            state = load_checkpoint(path)
            if state["header"] == about:
                return state["responses"].clone()
        except (OSError, ValueError, KeyError):
            pass  # not there, damaged, or of other words
        found = responses(self.data.world.backbone, self.sites, [concept.name, *concept.phrases])
        save_whole(path, {"header": about, "responses": found}, f"The response to '{concept.name}'")
        return found

    def read(self, concepts: Sequence[Concept], width: int) -> ResponseEncoder:
        """The encoder whose reader keeps `width` principal components of the responses to some concepts' names, or fewer
        where there are fewer concepts. The reader is written beside the responses, so that every stage and every process has
        the same to the last bit. Raises TrainingError for a disk that refuses it."""
        about = hashlib.sha256("\n".join([str(width), *map(self._about, concepts)]).encode()).hexdigest()[:16]
        backbone = self.data.world.backbone
        shape = backbone.latent_shape
        path = self.data.folder / "responses" / f"reader-{about}.safetensors"
        try:
            state = load_checkpoint(path)
        except (OSError, ValueError):
            names = torch.stack([self.of(concept)[0] for concept in concepts])
            where = site_slices(self.data.sites)
            deviation = torch.cat([self.data.source()[1][0, where[site.path]] for site in self.sites])
            made = ResponseReader.from_responses(self.sites, names, deviation, width, shape)
            state = {"matrix": made.matrix, "mean": made.mean}
            save_whole(path, state, "The reader of responses")
        reader = ResponseReader(self.sites, state["matrix"], state["mean"], shape)
        self.encoder = response_encoder(self.base, backbone, reader)
        return self.encoder

    def text(self, vectors: Tensor, concept: Concept) -> Tensor:
        """(1 + phrases, E + P) unit vectors of a concept's name and phrases, as `concept_from_text` makes them, from the
        other encoder's (1 + phrases, E)."""
        assert self.encoder is not None
        return self.encoder.join(vectors, self.of(concept))

    def images(self, vectors: Tensor) -> Tensor:
        """(N, E + P) unit vectors of the collected pictures' (N, E)."""
        assert self.encoder is not None
        return self.encoder.join(vectors, None)


def with_responses(world: World, data: DataFolder, config: TrainingConfig, group: Group) -> World:
    """The world with the encoder that reads the base model's response too, from which the data then take their embeddings;
    both as they are where the config asks for no response. Raises TrainingError."""
    if not config.response:
        return world
    found = Responses(data)
    with group.together():
        if group.main:
            found.read(world.concepts.train, config.response)
    with group.together():
        encoder = found.read(world.concepts.train, config.response)
    data.responses, data.width, data.world = found, encoder.width, replace(world, encoder=encoder)
    return data.world
