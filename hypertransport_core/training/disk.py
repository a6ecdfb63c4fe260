"""What a run will take on the disk, said before work starts, and refused when it cannot fit.

Bytes follow from shapes, so nothing has to run for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..capture import MOMENTS
from ..hypernetworks import build_hypernetwork
from ..sites import Site, total_channels
from .config import ConfigError, TrainingConfig
from .data import DataFolder
from .presets import World
from .responses import Responses, read_sites
from .room import GB, disk_room, same_disk
from .states import States


@dataclass(frozen=True)
class DiskPlan:
    """Bytes on the disk of all concepts together, of which `present` were found; of checkpoints at their most, of which
    `saved` were found."""

    statistics: int
    predictions: int
    embeddings: int
    checkpoints: int
    present: int = 0
    saved: int = 0

    @property
    def data(self) -> int:
        """Bytes in the data folder."""
        return self.statistics + self.predictions + self.embeddings


def parameters(network: nn.Module) -> int:
    """How many numbers a network's weights are."""
    return sum(parameter.numel() for parameter in network.parameters())


def hypernetwork_of(config: TrainingConfig, sites: Sequence[Site], embedding_dim: int) -> nn.Module:
    """The run's hypernetwork on meta tensors: all its shapes, no memory."""
    with torch.device("meta"):
        return build_hypernetwork({**config.hypernetwork_options(), "sites": sites, "embedding_dim": embedding_dim})


def disk_plan(world: World, data: DataFolder, config: TrainingConfig) -> DiskPlan:
    """Exact up to the few kilobytes of each file's header, and to tables with values too large for half precision."""
    concepts = world.concepts.everything
    width = total_channels(data.collected_sites) * MOMENTS[data.pooling]
    levels, samples, e = len(data.levels), config.prompts_per_concept * config.samples_per_prompt, world.encoder.width
    statistics = len(concepts) * levels * config.blocks * width * 2 + 2 * levels * width * 4
    predictions = len(concepts) * levels * samples * math.prod(world.backbone.latent_shape) * 2
    pictures = min(config.images_per_concept, samples)
    embeddings = sum(1 + len(concept.phrases) + pictures for concept in concepts) * e * 4
    files = [data.path_of(concept) for concept in concepts]
    if config.response:
        files += map(Responses(data).path_of, concepts)
        texts = sum(1 + len(concept.phrases) for concept in concepts)
        embeddings += texts * total_channels(read_sites(data.sites)) * 4
    size = parameters(hypernetwork_of(config, data.sites, data.width)) * 4
    states = States(Path(config.output or "."))
    present = sum(path.stat().st_size for path in files if path.is_file())
    return DiskPlan(
        statistics,
        predictions if config.store_predictions else 0,
        embeddings,
        4 * size * (config.keep_last + 1) + size,  # weights, running mean and two moments; one more while it is written
        present,
        sum(path.stat().st_size for path in (*map(states.path, states.steps()), states.best_path) if path.is_file()),
    )


def _needs(data: DataFolder, run: Path, plan: DiskPlan) -> list[tuple[Path, int]]:
    """What is still to be written to each disk that the run uses, by a folder on it."""
    collected, saved = plan.data - plan.present, plan.checkpoints - plan.saved
    return [(run, collected + saved)] if same_disk(data.folder, run) else [(data.folder, collected), (run, saved)]


def check_disk(world: World, data: DataFolder, config: TrainingConfig, plan: DiskPlan) -> None:
    """Raises ConfigError, with a setting that helps, where what is still to be written has no room."""
    run = Path(config.output or ".")
    full = next(((at, needed) for at, needed in _needs(data, run, plan) if needed > disk_room(at)), None)
    if full is None:
        return
    folder, needed = full
    cure = f"make room or choose a folder with {needed / GB:.3g} GB free"
    frugal: dict[str, Any] = {"keep_last": 1, "blocks": config.samples_per_concept, "store_predictions": False}
    if config.partial_share > 0:
        del frugal["store_predictions"]  # which it needs
    names = [name for name, value in frugal.items() if getattr(config, name) != value]
    for chosen in [*([name] for name in names), *(names[:count] for count in range(2, len(names) + 1))]:
        other = disk_plan(world, data, config.with_values({name: frugal[name] for name in chosen}))
        if all(still <= disk_room(at) for at, still in _needs(data, run, other)):
            cure = " and ".join(f"set {name} to {str(frugal[name]).lower()}" for name in chosen) + ", or make room"
            break
    raise ConfigError(
        f"The run needs {needed / GB:.3g} GB more on the disk of {folder}, expected at most the "
        f"{disk_room(folder) / GB:.3g} GB that are free: {cure}."
    )
