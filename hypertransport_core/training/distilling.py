"""Learning from other hypernetworks instead of from the base model: the student predicts the mean of its teachers' maps.

Knowledge distillation of an ensemble (Hinton et al., arXiv 1503.02531): what each teacher learned by chance should go down
in the mean, and the student is a file of one. A step costs no call of the base model, so embeddings that
no prompts exist for, blends of two concepts, serve as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..files import check_fits
from ..hypernetworks import FreeMaps, Hypernetwork
from ..sites import site_slices
from ..transport import TransportMaps
from ..weights_io import HypernetworkFile, load_hypernetwork
from .batches import Draw
from .config import ConfigError, TrainingConfig
from .data import DataFolder, network_device

# By how much the means of the same concepts differ, as a share of their length, where a machine or precision of its own made
# the pictures: 0.006 was seen, and 0.23 to 0.40 between all 846 training concepts of Postcard and 400 of them.
SAME_MEANS = 0.03


class Teachers:
    """Some hypernetworks for the sites, encoder and data of a run."""

    def __init__(self, data: DataFolder, config: TrainingConfig, means: dict[str, Tensor]) -> None:
        """means: of the run's embeddings. Raises ConfigError for teachers that do not fit the run, FileError for files
        that cannot be read or were made for another model or encoder."""
        world, device = data.world, network_device(data.world)
        self.files = read_teachers(data, config)
        for found in self.files:
            encoder = world.encoder
            check_fits(found.header, found.path, encoder_id=encoder.encoder_id, encoder_width=encoder.width)
            _check_means(found, means)
            found.hypernetwork.to(device)
        units = FreeMaps(data.sites, steps=config.hypernetwork_options()["steps"])
        units.set_source(*data.source())
        self.mean, self.std = units.source_mean.to(device), units.source_std.to(device)
        self.weights = _channel_weights(units).to(device)

    @torch.no_grad()
    def maps(self, embeddings: Tensor, step: int | None) -> TransportMaps:
        """The mean of the teachers' maps of embeddings (B, E), B rows."""
        every = [file.hypernetwork(embeddings, step) for file in self.files]
        return TransportMaps.mix(every, [1.0] * len(every))

    def distance(self, maps: TransportMaps, wanted: TransportMaps, step: int = 0) -> Tensor:
        """(B,) mean over sites of E[(T(z) - T*(z))²], for z with the generic class's mean and variance per channel, as a
        share of the site's mean variance: at 1 the maps differ as much as a picture of that class does from their mean."""
        scale, shift = maps.scale - wanted.scale, maps.shift - wanted.shift
        square = (scale * self.std[step]).square() + (shift + scale * self.mean[step]).square()
        return square @ self.weights[step]

    def backward(self, network: Hypernetwork, batch: Draw) -> dict[str, float]:
        """Add the gradient of a step's mean distance to the network's parameters; returns the losses of `gradients.backward`,
        transport and paired being 0."""
        embeddings = batch.embeddings.to(self.mean.device)
        steps: Sequence[int | None] = batch.levels if network.steps > 1 else [None]
        losses = [
            self.distance(network(embeddings, step), self.maps(embeddings, step), step or 0).mean() for step in steps
        ]
        loss = torch.stack(losses).mean()
        loss.backward()
        return {"loss": float(loss.detach()), "transport": 0.0, "paired": 0.0}


def read_teachers(data: DataFolder, config: TrainingConfig) -> list[HypernetworkFile]:
    """The run's teachers, before anything is collected. Raises ConfigError unless their maps are for the run's sites and
    steps, FileError for files that cannot be read or were made for another model."""
    files, steps = [load_hypernetwork(Path(name)) for name in config.teacher_files()], config.hypernetwork_options()["steps"]
    backbone = data.world.backbone
    for found in files:
        check_fits(found.header, found.path, network=backbone.network, family=backbone.family)
        network = found.hypernetwork
        if network.sites != data.sites or network.steps != steps:
            raise ConfigError(
                f"The teacher {found.path} has {len(network.sites)} sites ({network.channels} channels) and maps for "
                f"{network.steps} step(s), expected the run's {len(data.sites)} sites and {steps}: set site_set, pattern and "
                "maps_per_step as it was trained with, or choose another."
            )
    return files


def _check_means(found: HypernetworkFile, means: dict[str, Tensor]) -> None:
    """Raise ConfigError unless a teacher centres embeddings as the run does."""
    alike = means.keys() == found.means.keys() and all(
        float((mean.cpu() - found.means[name]).norm()) <= SAME_MEANS * float(mean.norm()) for name, mean in means.items()
    )
    if not alike:
        raise ConfigError(
            f"The teacher {found.path} subtracts other means from embeddings than this run, expected the same, so that both "
            "read a concept alike: use the data that it was trained on (data, training_concepts)."
        )


def _channel_weights(units: Hypernetwork) -> Tensor:
    """(steps, ΣC): 1 / (sites · channels of the site · its mean variance)."""
    weights = torch.empty_like(units.source_std)
    for where in site_slices(units.sites).values():
        power = units.source_std[:, where].square().sum(1, keepdim=True)
        weights[:, where] = 1 / (len(units.sites) * power)
    return weights
