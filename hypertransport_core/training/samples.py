"""The strength strip: concepts the network was not trained on, from the inverse side of the identity to beyond the full
map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..concepts import Concept
from ..encoders.base import centred
from ..encoders.concept import concept_from_text
from ..files import FileError
from ..hypernetworks import Hypernetwork
from ..pipeline import steerings
from ..sheets import Row, contact_sheet, save_sheet
from .config import TrainingConfig
from .data import arithmetic, network_device, seeds_for
from .presets import World
from .progress import log

STRENGTHS = (-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
HEADINGS = ("-1", "0 (off)", "0.25", "0.5", "0.75", "1", "1.5")
CELL = 128  # pixels; small pictures are enlarged to about this, large ones reduced to twice this


@torch.no_grad()
def strip_rows(
    world: World, config: TrainingConfig, network: Hypernetwork, means: dict[str, Tensor], concepts: Sequence[Concept]
) -> list[Row]:
    """One row of seven pictures per concept, all from one noise and one scene, by strength."""
    backbone, device = world.backbone, network_device(world)
    rows = []
    for number, (concept, seed) in enumerate(zip(concepts, seeds_for(len(concepts), config.seed, "strip"))):
        vector = concept_from_text(world.encoder, concept.name, world.templates).vector.cpu()
        vector = centred(vector, "text", means)
        maps = network.all_steps(vector[None].to(network.source_mean.device))
        scene = world.scenes[number % len(world.scenes)]
        conditioning = backbone.encode([scene] * len(STRENGTHS)).to(device)
        noise = backbone.noise([seed] * len(STRENGTHS)).to(device)
        power = torch.tensor(STRENGTHS)
        with arithmetic(config, device):
            latents = backbone.sample(
                conditioning,
                noise,
                steps=config.sampling_steps,
                steering=steerings(maps[0] if len(maps) == 1 else maps, power),
            )
        pictures = backbone.decode(latents.float()).float().cpu().nan_to_num()
        rows.append(Row(list(_reduced(pictures)), label=concept.name, note=scene))
    return rows


def save_strip(
    path: Path,
    world: World,
    config: TrainingConfig,
    network: Hypernetwork,
    means: dict[str, Tensor],
    concepts: Sequence[Concept],
    title: str,
) -> Tensor | None:
    """Draw and write the strip; returns it as (3, H, W), or None with a warning when the disk refuses it: no reason to
    stop training.
    """
    rows = strip_rows(world, config, network, means, concepts)
    side = next(picture.shape[-1] for row in rows for picture in row.pictures if picture is not None)
    sheet = contact_sheet(
        rows,
        HEADINGS,
        title=f"Strength, {title}",
        subtitle="Concepts that were not trained on; one noise per row.",
        upscale=max(1, CELL // side),
    )
    try:
        save_sheet(path, sheet)
    except FileError as error:
        log.warning("%s", error)
        return None
    return sheet


def _reduced(pictures: Tensor) -> Tensor:
    largest = max(pictures.shape[-2:])
    if largest <= 2 * CELL:
        return pictures
    size = [max(1, round(side * 2 * CELL / largest)) for side in pictures.shape[-2:]]
    return torch.nn.functional.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False).clamp(
        0, 1
    )
