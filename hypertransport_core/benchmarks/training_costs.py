"""What collecting and training cost, on a short real run in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..concepts import ConceptSplit
from ..pipeline import CLIP_FILE, MODEL_FILE
from ..training.config import TrainingConfig
from ..training.data import DataFolder, arithmetic
from ..training.loop import Trainer
from ..training.presets import World, preset
from .timing import Clock, interleaved, ratio, spread

RECIPES = {"paired": "postcard", "faithful": "postcard-faithful"}


def training(weights: Path, clock: Clock, concepts: int, steps: int, **changes: Any) -> dict[str, Any]:
    """Concepts and steps per second of both recipes, beside the untouched network's calls that they cannot do without.

    concepts: how many are collected one by one (at least 2); steps: how many are trained. changes: of the settings, for
    quick tests. Collecting is measured with the paired recipe, which takes the most sites and keeps predictions; the
    other one trains on the same data.
    """
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for name, recipe in RECIPES.items():
            settings = {
                **preset(recipe).settings,
                "output": folder,
                "strip_concepts": 0,
                "tensorboard": False,
                "images_per_concept": 32,
                **changes,
            }
            config = TrainingConfig().with_values(
                {
                    **settings,
                    "device": str(clock.device),
                    "weights": str(weights / MODEL_FILE),
                    "encoder_weights": str(weights / CLIP_FILE),
                    "collect_site_set": "all",
                    "validation_concepts": 1,
                }
            )
            found |= _one(name, preset(recipe).build(config), config, Path(folder), clock, concepts, steps)
    return found


def _one(
    name: str, world: World, config: TrainingConfig, folder: Path, clock: Clock, concepts: int, steps: int
) -> dict[str, Any]:
    world = replace(world, concepts=ConceptSplit(world.concepts.train[:concepts], world.concepts.validation[:1]))
    data = DataFolder(folder / "data", world, config)
    found = _collecting(world, config, data, clock) if name == "paired" else {}
    data.collect(world.concepts.everything)
    rows = config.concepts_per_step * config.samples_per_concept
    trainer = Trainer(world, data, config, folder / name)
    trainer.advance()
    cases = {"step": trainer.advance, "calls": _calls(world, config, data.levels[:1], rows, clock.device)}
    trained = interleaved(cases, steps, clock, 0)
    found |= spread(f"train.{name}.steps_per_second", [1 / value for value in trained["step"]])
    found |= spread(f"ratio.train_{name}_over_calls", ratio(trained["step"], trained["calls"]))
    return {**found, f"train.{name}.rows": rows, f"train.{name}.sites": len(data.sites)}


def _collecting(world: World, config: TrainingConfig, data: DataFolder, clock: Clock) -> dict[str, Any]:
    """Every training concept collected alone."""
    data.collect(())  # the generic class, which also warms up
    rest = list(world.concepts.train)
    cases = {
        "one": lambda: data.collect([rest.pop()]),
        "calls": _calls(world, config, data.levels, data.collected, clock.device),
    }
    times = interleaved(cases, len(rest), clock, 0)
    return {
        "memory.collected_bytes_per_concept": data.path_of(world.concepts.train[0]).stat().st_size,
        **spread("collect.concept_seconds", times["one"]),
        **spread("collect.concepts_per_second", [1 / value for value in times["one"]]),
        **spread("ratio.collect_over_calls", ratio(times["one"], times["calls"])),
    }


def _calls(
    world: World, config: TrainingConfig, levels: list[float], rows: int, device: torch.device
) -> Callable[[], None]:
    """The untouched network on `rows` rows at each of some noise levels."""
    backbone = world.backbone
    conditioning, noise = backbone.encode([world.scenes[0]] * rows).to(device), backbone.noise(range(rows)).to(device)

    @torch.no_grad()
    def calls() -> None:
        with arithmetic(config, device):
            for level in levels:
                for start in range(0, rows, config.batch):
                    part = slice(start, start + config.batch)
                    backbone.denoise(noise[part], level, conditioning[part])

    return calls
