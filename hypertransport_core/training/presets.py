"""The worlds a hypernetwork can be trained in: base model, encoder, concepts and generic scenes, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..concepts import (
    BUILTIN,
    Concept,
    ConceptSplit,
    builtin_concepts,
    generic_scenes,
    load_concepts,
    split_concepts,
)
from ..encoders.base import ConceptEncoder
from .config import ConfigError, TrainingConfig
from .host_recipes import RECIPES

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

PACKAGE_PARENT = Path(__file__).resolve().parents[2]


def append_words(scenes: Sequence[str], concept: str) -> list[str]:
    """The scenes with a concept's words behind: "a red house, teal mosaic"."""
    return [f"{scene}, {concept}" for scene in scenes]


@dataclass(frozen=True)
class World:
    """Everything a training needs from outside.

    backbone, encoder: frozen; concepts: split; scenes: the generic prompts; templates: sentences whose mean embedding
    stands for a concept in words; in_concept: scenes and words to prompts; facts: what else the collected numbers
    depend on, JSON-able. All prompts are plain texts.
    """

    backbone: Backbone
    encoder: ConceptEncoder
    concepts: ConceptSplit
    scenes: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)
    in_concept: Callable[[Sequence[str], str], list[str]] = append_words
    licence: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scenes or any(not scene.strip() for scene in self.scenes):
            raise ConfigError(
                f"There are {len(self.scenes)} generic scenes with an empty one or none among them, expected prompts "
                "without a concept: give a scenes file with one a line."
            )

    def prompts(self, concept: Concept, count: int) -> list[str]:
        """`count` prompts of a concept: its own, repeated if there are fewer, or the generic scenes in its words."""
        own = list(concept.prompts) or self.in_concept(list(self.scenes), concept.name)
        return [own[i % len(own)] for i in range(count)]


@dataclass(frozen=True)
class Preset:
    """How to build a world from a config, and the settings it changes."""

    build: Callable[[TrainingConfig], World]
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {}


def register_preset(
    name: str, build: Callable[[TrainingConfig], World], settings: Mapping[str, Any] | None = None
) -> None:
    """Make `--preset name` known; a name known before is replaced."""
    PRESETS[name] = Preset(build, dict(settings or {}))


def preset(name: str) -> Preset:
    """The preset of a name. Raises ConfigError."""
    if name not in PRESETS:
        raise ConfigError(f"preset is '{name}', expected one of {', '.join(sorted(PRESETS))}: choose one.")
    return PRESETS[name]


def device_of(config: TrainingConfig) -> torch.device:
    """The device to compute on. Raises ConfigError when there is none of that name."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=config.device)
        return torch.device(config.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device is '{config.device}', expected auto, cpu or a device of this machine "
            f"({str(error).splitlines()[0][:100]}): choose one."
        ) from error


def precision_of(config: TrainingConfig, device: torch.device) -> str:
    """"fp32" or "bf16", the dtype of the base model's arithmetic on a device."""
    if config.precision != "auto":
        return config.precision
    units: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # what older versions of PyTorch cannot tell is taken as missing
    return "bf16" if device.type != "cpu" or units.get("amx_bf16") else "fp32"


def found_file(path: str, what: str) -> Path:
    """A file relative to the current folder or to the package's. Raises ConfigError."""
    for place in (Path(path), PACKAGE_PARENT / path):
        if place.is_file():
            return place
    raise ConfigError(
        f"{what} is '{path}', expected a file there or in {PACKAGE_PARENT}: train it, download it or correct the path."
    )


def chosen_scenes(config: TrainingConfig, default: Callable[[int], Sequence[str]]) -> tuple[str, ...]:
    """The generic scenes: lines of the scenes file, those of a shipped concept list by its name or because the concepts
    are that list's, or `default(count)`. Raises ConfigError or ConceptError when there are too few.
    """
    if config.scenes in BUILTIN or (not config.scenes and config.concepts in BUILTIN):
        return generic_scenes(config.prompts_per_concept)
    if not config.scenes:
        return tuple(default(config.prompts_per_concept))
    lines = found_file(config.scenes, "scenes").read_text(encoding="utf-8-sig").splitlines()
    scenes = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(scenes) < config.prompts_per_concept:
        raise ConfigError(
            f"The scenes file {config.scenes} holds {len(scenes)} different prompts, expected prompts_per_concept = "
            f"{config.prompts_per_concept}: add lines or lower it."
        )
    return scenes[: config.prompts_per_concept]


def chosen_concepts(config: TrainingConfig, default: Callable[[], ConceptSplit]) -> ConceptSplit:
    """A shipped list by its name or the user's, split, or `default()`. Raises ConceptError."""
    if not config.concepts:
        return default()
    if config.concepts in BUILTIN:
        concepts = builtin_concepts(config.concepts, config.prompts_per_concept)
    else:
        concepts = load_concepts(found_file(config.concepts, "concepts"))
    return split_concepts(concepts, config.heldout_fraction, config.validation_fraction)


def _postcard(config: TrainingConfig, *, variations: bool = False) -> World:
    from ..encoders.postcard_clip import PostcardClipEncoder
    from ..postcard.captions import TEMPLATES, in_concept, scene_prompts
    from ..postcard.clip import PostcardCLIP
    from ..postcard.model import PostcardBackbone

    device = device_of(config)
    scenes = chosen_scenes(config, scene_prompts)
    concepts = chosen_concepts(config, partial(_postcard_concepts, variations))
    clip = PostcardCLIP.load(
        found_file(config.encoder_weights or "weights/postcard_clip.safetensors", "encoder_weights")
    ).to(device)
    backbone = PostcardBackbone.load(found_file(config.weights or "weights/postcard.safetensors", "weights"), clip)
    backbone.network.to(device)
    return World(backbone, PostcardClipEncoder(clip), concepts, scenes, tuple(TEMPLATES), in_concept, "Apache-2.0")


def _postcard_concepts(varied: bool) -> ConceptSplit:
    from ..postcard.concepts import by_name, split, variations

    known = by_name()
    train, validation, heldout = (
        tuple(Concept(name, known[name].category, (), known[name].phrases) for name in split()[part])
        for part in ("train", "validation", "heldout")
    )
    more = tuple(Concept(one.name, one.category, (), one.phrases) for one in variations()) if varied else ()
    return ConceptSplit(train + more, validation, heldout)


# What the shipped hypernetwork was trained with: pairs of one noise, with and without the concept in the prompt. The loss
# on whole predictions carries patterns and colours alike; pooled activations, the published recipe, know no patterns.
_PAIRED = {
    "site_set": "all",
    "transport_weight": 0.0,
    "paired_weight": 1.0,
    "store_predictions": True,
    "images_per_concept": 32,
    "batch": 64,
    "partial_share": 0.4,  # without it nearly all of the change lies between strengths 1/2 and 3/4 ...
    "removal_share": 0.2,  # ... and a negative strength spoils the picture instead of taking the concept out ...
    "partial_from": 0.8,  # ... and with both all the time strength 1 is learned half as fast
    "steps": 3000,
    "concepts_per_step": 16,
    "samples_per_concept": 2,
    "learning_rate": 1e-3,
    "head_learning_rate": 3e-3,
    "bottleneck": 128,
    "image_share": 0.5,
    "phrase_share": 0.3,
}
register_preset("postcard", partial(_postcard, variations=True), _PAIRED)
register_preset("postcard-faithful", _postcard)


def _hosted(name: str, config: TrainingConfig) -> World:
    from .host_worlds import host_world  # which needs ComfyUI

    return host_world(name, config)


for _name, _recipe in RECIPES.items():
    register_preset(_name, partial(_hosted, _name), _recipe.all_settings)
