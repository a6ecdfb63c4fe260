"""All settings of a training run: typed, checked when made, saved beside the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from ..capture import POOLINGS
from ..hypernetworks import SCALES
from ..sites import SITE_SETS
from ..toml_files import dump


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence: value, expectation, cure."""


def _setting(default: Any, text: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run. Every field has its meaning and range in `metadata`. Raises ConfigError when made with a bad
    value.
    """

    preset: str = _setting("postcard", "which world: base model, encoder, concepts and scenes")
    output: str = _setting("", "folder of the run")
    data: str = _setting("", "folder of collected data, shared by runs; empty = `data` in the run's folder")
    device: str = _setting("auto", "where to compute: auto, cpu, cuda, cuda:0 ...")
    precision: str = _setting(
        "auto",
        "dtype of the base model's arithmetic; maps and loss are fp32. auto = bf16, on a CPU only where it multiplies that by "
        "matrix units, as without them it takes longer than fp32",
        choices=("auto", "fp32", "bf16"),
    )
    memory_limit: float = _setting(
        0.0, "gigabytes that a run may take on its device; 0 = what is free", low=0.0, high=1e6
    )
    seed: int = _setting(0, "one number that decides scenes, noise, order and initial weights", low=0, high=2**31 - 1)
    collect_seed: int = _setting(
        -1, "seed of what is collected, so that trainings with several seeds can share it; -1 = seed", low=-1, high=2**31 - 1
    )

    weights: str = _setting(
        "", "file of the base model; empty = the preset's; relative to the current folder or the package's, or the name "
        "of one in ComfyUI's model folders"
    )
    text_encoders: str = _setting(
        "", "files of the base model's text encoders, several separated by commas, or a checkpoint that holds them; "
        "empty = those in the base model's file, or the preset's"
    )
    text_encoder_type: str = _setting(
        "", "which model text encoders are for, in ComfyUI's words, such as flux or pixart; empty = as the base model says"
    )
    vae: str = _setting("", "file of the VAE, or a checkpoint that holds one; empty = as for text_encoders")
    lora: str = _setting("", "LoRA file on the base model; empty = the preset's")
    lora_strength: float = _setting(1.0, "strength of the LoRA", low=-10.0, high=10.0)
    encoder_weights: str = _setting(
        "", "the concept encoder: a file or folder with both towers of a CLIP, or two files separated by a comma, words "
        "first; empty = the preset's, which for models of ComfyUI is the CLIP ViT-L/14 in its folders"
    )
    concepts: str = _setting("", "concept list (.json, .toml, .csv), or styles-777 or styles-777-free; empty = the preset's")
    heldout_fraction: float = _setting(
        0.21, "share of every category of a concept list that is held out", low=0.0, high=0.9
    )
    validation_fraction: float = _setting(0.10, "share of the rest that chooses settings", low=0.0, high=0.9)
    training_concepts: int = _setting(
        0, "training concepts used, spread over the categories; 0 = all; for curves over their number", low=0, high=10**6
    )
    training_samples: int = _setting(
        0, "stored predictions of each concept used; 0 = all; for curves over their number", low=0, high=4096
    )
    scenes: str = _setting("", "text file with one generic scene a line; empty = those of the concepts or the preset")

    site_set: str = _setting("attention_mlp", "which outputs of the base model are steered", choices=tuple(SITE_SETS))
    pattern: str = _setting(
        "", "regular expression that site paths must contain; empty = all of the set", flags=("--sites",)
    )
    pooling: str = _setting(
        "mean", "what of a picture's tokens the transport loss compares", choices=tuple(p for p in POOLINGS if p != "tokens")
    )
    collect_site_set: str = _setting(
        "", "sites to collect statistics of, to serve several runs; empty = those of this run", choices=("", *SITE_SETS)
    )

    prompts_per_concept: int = _setting(32, "generic scenes, and prompts of each concept", low=1, high=4096)
    samples_per_prompt: int = _setting(1, "noises per prompt when statistics are collected", low=1, high=1024)
    blocks: int = _setting(
        32, "block means kept per channel; divides the number of collected samples", low=1, high=4096
    )
    images_per_concept: int = _setting(
        16, "pictures of each concept that the base model makes for the image embeddings", low=0, high=1024
    )
    store_predictions: bool = _setting(
        False,
        "keep the base model's predictions under each concept's prompts when collecting; the paired loss then reads them "
        "instead of computing them at every step",
    )
    sampling_steps: int = _setting(
        4, "steps in which the base model samples; their noise levels are trained on", low=1, high=64
    )
    timesteps: str = _setting(
        "", "timesteps, 0 to 999 and falling, at which a distilled model is sampled, as many as sampling_steps; empty = "
        "equally spaced noise levels"
    )
    sampler: str = _setting(
        "euler", "how the base model goes from one noise level to the next; lcm adds fresh noise", choices=("euler", "lcm")
    )
    guidance: float = _setting(
        0.0, "guidance that models like FLUX.1-dev read as a number; 0 = ComfyUI's default, 3.5", low=0.0, high=100.0
    )
    resolution: int = _setting(
        0, "side of the pictures in pixels, a multiple of 16; 0 = the size the base model is made for", low=0, high=8192
    )
    batch: int = _setting(32, "rows per call of the base model outside of training", low=1, high=4096)

    hypernetwork: str = _setting("mlp", "architecture", choices=("mlp", "perceiver"))
    width: int = _setting(512, "width of the hypernetwork's hidden layers", low=1, high=65536)
    bottleneck: int = _setting(64, "width before the head (mlp only)", low=1, high=65536)
    depth: int = _setting(1, "residual or attention layers", low=0, high=64)
    hypernetwork_precision: str = _setting(
        "fp32", "dtype of the hypernetwork's arithmetic in training; weights and maps are fp32", choices=("fp32", "bf16")
    )
    dropout: float = _setting(0.0, "share of hidden units dropped (mlp only)", low=0.0, high=0.95)
    scale: str = _setting(
        "bounded",
        "how the scale of a map comes from the network: bounded, positive and within limits, so that every map can be "
        "inverted; linear to measure what that costs",
        choices=tuple(SCALES),
    )
    standardise: bool = _setting(
        True, "predict shifts in standard deviations of the generic class, about its mean; off to measure what that brings"
    )
    maps_per_step: bool = _setting(False, "one set of maps per sampling step instead of one for all")

    steps: int = _setting(2000, "optimisation steps", low=1, high=10**9)
    concepts_per_step: int = _setting(4, "concepts in a step (K)", low=1, high=4096)
    samples_per_concept: int = _setting(8, "samples of each concept in a step (n); divides `blocks`", low=1, high=4096)
    concepts_per_pass: int = _setting(
        0, "concepts per call of the base model, to save memory, exact; 0 = all of a step", low=0, high=4096
    )
    samples_per_pass: int = _setting(
        0,
        "samples per call of the base model, also fewer than a concept has, to save memory, exact; 0 = whole concepts",
        low=0,
        high=10**6,
    )
    gradient_checkpointing: bool = _setting(
        False, "run the base model's blocks twice instead of keeping what is inside them, to save memory, exact"
    )
    levels_per_step: int = _setting(1, "noise levels drawn per step, of the sampling ones", low=1, high=64)
    inputs: str = _setting(
        "target",
        "latents below the first noise level: from the target's prediction at the first, from the target's sampling step "
        "by step (sampled), or from the map's own steered sampling",
        choices=("target", "sampled", "own"),
    )
    transport_weight: float = _setting(1.0, "weight of W2² between pooled activations", low=0.0, high=1e6)
    paired_weight: float = _setting(
        0.0, "weight of the squared difference to the prediction under the concept's prompt", low=0.0, high=1e6
    )
    partial_share: float = _setting(
        0.0,
        "share of concepts trained at a strength between 0 and 1, toward the blend of the predictions with and without "
        "the concept; needs store_predictions",
        low=0.0,
        high=1.0,
    )
    removal_share: float = _setting(
        0.0,
        "share of concepts trained at strength -1 on prompts that name them, toward the prediction without the concept; "
        "needs store_predictions",
        low=0.0,
        high=1.0,
    )
    partial_from: float = _setting(
        0.0,
        "share of the steps after which partial_share and removal_share begin: the whole concept is learned first",
        low=0.0,
        high=1.0,
    )
    channel_weighting: str = _setting(
        "inverse_variance", "weight of a channel in the transport loss", choices=("none", "inverse_variance")
    )

    response: int = _setting(
        0,
        "numbers that tell what the base model itself does with the words, joined to their embedding, for one call of the base "
        "model per concept in use; better from words, not from pictures; 0 = the encoder alone, 64 to 128 else",
        low=0,
        high=1024,
    )
    image_share: float = _setting(0.5, "share of concepts read from pictures instead of words", low=0.0, high=1.0)
    phrase_share: float = _setting(
        0.0, "share of word embeddings that use another phrase for the concept", low=0.0, high=1.0
    )
    embedding_noise: float = _setting(0.1, "length of the Gaussian noise on a unit embedding", low=0.0, high=10.0)
    teachers: str = _setting(
        "", "hypernetwork files, separated by commas, trained on the same data: the mean of their maps is learned, without the "
        "base model; empty = the losses above"
    )
    embedding_mix: float = _setting(
        0.0, "share of embeddings blended with another concept's; with teachers, as a blend has no prompts", low=0.0, high=1.0
    )

    learning_rate: float = _setting(3e-4, "of the trunk", low=0.0, high=10.0)
    head_learning_rate: float = _setting(1e-3, "of the last layer", low=0.0, high=10.0)
    final_learning_rate: float = _setting(
        0.01, "share of the learning rates that is left at the end (cosine)", low=0.0, high=1.0
    )
    warm_start: float = _setting(
        0.0,
        "share of the closed-form maps (ridge regression on the statistics) that the fresh network predicts, 0.1 to 0.3; "
        "0 = start from the identity; mlp only",
        low=0.0,
        high=1.0,
    )
    warmup: int = _setting(50, "steps over which the learning rates rise", low=0, high=10**9)
    weight_decay: float = _setting(0.01, "of the trunk's weights (AdamW)", low=0.0, high=10.0)
    gradient_clip: float = _setting(1.0, "largest norm of the gradient; 0 = no limit", low=0.0, high=1e9)
    ema: float = _setting(
        0.99, "memory of the running mean of the weights, which is what is judged and exported", low=0.0, high=0.99999
    )

    log_every: int = _setting(10, "steps between log lines", low=1, high=10**9)
    validate_every: int = _setting(200, "steps between validations", low=1, high=10**9)
    save_every: int = _setting(200, "steps between checkpoints and strength strips", low=1, high=10**9)
    keep_last: int = _setting(3, "checkpoints kept", low=1, high=10**6)
    validation_concepts: int = _setting(
        24, "validation concepts used, spread over the categories; 0 = all", low=0, high=10**6
    )
    validation_levels: int = _setting(2, "noise levels used in validation", low=1, high=64)
    patience: int = _setting(5, "validations without improvement before a warning", low=1, high=10**6)
    early_stop: bool = _setting(False, "end training at that warning")
    tensorboard: bool = _setting(True, "write scalars for TensorBoard where it is installed")
    strip_concepts: int = _setting(6, "rows of the strength strip; 0 = no strips", low=0, high=256)
    export_from: str = _setting("latest", "which weights are judged and exported", choices=("latest", "best"))
    export: str = _setting("", "weights file to write; empty = `hypernetwork.safetensors` in the run's folder")
    title: str = _setting("", "title in the exported file; empty = made from the preset and the sites")

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(
                self, spec.name, _checked(spec.name, getattr(self, spec.name), spec.default, spec.metadata)
            )
        collected = self.prompts_per_concept * self.samples_per_prompt
        if collected % self.blocks:
            raise ConfigError(
                f"blocks is {self.blocks}, expected a divisor of the {collected} samples collected "
                "(prompts_per_concept x samples_per_prompt): change one of them."
            )
        if self.blocks % self.samples_per_concept:
            raise ConfigError(
                f"samples_per_concept is {self.samples_per_concept}, expected a divisor of blocks = {self.blocks}: "
                "change one of them."
            )
        if self.levels_per_step > self.sampling_steps:
            raise ConfigError(
                f"levels_per_step is {self.levels_per_step}, expected at most sampling_steps = "
                f"{self.sampling_steps}: lower it."
            )
        steps = timesteps_of(self.timesteps)
        if steps and len(steps) != self.sampling_steps:
            raise ConfigError(
                f"timesteps names {len(steps)} steps, expected sampling_steps = {self.sampling_steps} of them: change one "
                "of them."
            )
        if self.resolution % 16:
            raise ConfigError(
                f"resolution is {self.resolution}, expected a multiple of 16: use {self.resolution // 16 * 16 or 16}."
            )
        if self.transport_weight == 0 and self.paired_weight == 0:
            raise ConfigError(
                "transport_weight and paired_weight are both 0, expected at least one above 0: there would be "
                "nothing to learn."
            )
        if self.store_predictions and (self.paired_weight == 0 or self.inputs != "target"):
            raise ConfigError(
                f"store_predictions is on with paired_weight = {self.paired_weight:g} and inputs = \"{self.inputs}\", expected "
                'paired_weight above 0 and inputs = "target", which are what it serves: change one of them.'
            )
        if self.training_samples > self.prompts_per_concept:
            most = f"at most prompts_per_concept = {self.prompts_per_concept}"
            raise ConfigError(f"training_samples is {self.training_samples}, expected {most}: lower it, or set it to 0 for all.")
        for name in ("partial_share", "removal_share", "training_samples"):
            if getattr(self, name) > 0 and (not self.store_predictions or self.transport_weight > 0):
                raise ConfigError(
                    f"{name} is {getattr(self, name):g} with store_predictions = {str(self.store_predictions).lower()} "
                    f"and transport_weight = {self.transport_weight:g}, expected stored predictions and no transport loss, "
                    f"whose targets are those of strength 1 and of every sample: change them or set {name} to 0."
                )
        if self.partial_share + self.removal_share > 1:
            raise ConfigError(
                f"partial_share is {self.partial_share:g} and removal_share {self.removal_share:g}, expected at most 1 "
                "together: lower one of them."
            )
        if self.warm_start > 0 and not self.standardise:
            raise ConfigError(
                f"warm_start is {self.warm_start:g} with standardise = false, expected standardise = true, whose units the "
                "closed form is in: change one of them."
            )
        if self.embedding_mix > 0 and not self.teacher_files():
            raise ConfigError(
                f"embedding_mix is {self.embedding_mix:g} without teachers, expected some, who alone know what a blend of "
                "concepts should do: name teachers or set embedding_mix to 0."
            )
        if self.image_share > 0 and self.images_per_concept == 0:
            raise ConfigError(
                f"image_share is {self.image_share:g} but images_per_concept is 0, expected at least 1 picture: "
                "raise it or set image_share to 0."
            )

    def with_values(self, values: Mapping[str, Any], where: str = "the settings") -> TrainingConfig:
        """A copy with other values. Raises ConfigError, for unknown names too."""
        check_names(values, where)
        return replace(self, **values)

    def seed_of_data(self) -> int:
        """The seed that decides what is collected."""
        return self.seed if self.collect_seed < 0 else self.collect_seed

    def teacher_files(self) -> list[str]:
        """The files that `teachers` names."""
        return [name.strip() for name in self.teachers.split(",") if name.strip()]

    def rows_per_pass(self) -> int:
        """Most rows in one call of the base model in training: whole concepts, or else a part of one."""
        n, k = self.samples_per_concept, self.concepts_per_step
        size = min(self.samples_per_pass or k * n, (self.concepts_per_pass or k) * n, k * n)
        return size - size % n if size >= n else size

    def hypernetwork_options(self) -> dict[str, Any]:
        """Arguments of the hypernetwork's class beside sites and width of the embedding."""
        common = {
            "kind": self.hypernetwork,
            "steps": self.sampling_steps if self.maps_per_step else 1,
            "width": self.width,
            "depth": self.depth,
            "scale": self.scale,
        }
        return (
            {**common, "bottleneck": self.bottleneck, "dropout": self.dropout} if self.hypernetwork == "mlp" else common
        )

    def to_toml(self) -> str:
        """Every setting with its meaning, as a TOML file that `read_config` takes."""
        return dump(asdict(self), {spec.name: spec.metadata["help"] for spec in fields(self)})


def timesteps_of(text: str) -> tuple[int, ...]:
    """The numbers in "999, 749 499 249". Raises ConfigError for anything but falling whole numbers from 0 to 999."""
    words = text.replace(",", " ").split()
    steps = [int(word) if word.isdecimal() else -1 for word in words]
    if any(not 0 <= step <= 999 for step in steps) or steps != sorted(set(steps), reverse=True):
        raise ConfigError(f"timesteps is '{text}', expected falling whole numbers from 0 to 999: correct them.")
    return tuple(steps)


def check_names(values: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for the first name that is no setting. where: it stands, for the message."""
    from difflib import get_close_matches

    known = {spec.name for spec in fields(TrainingConfig)}
    for name in values:
        if name not in known:
            close = get_close_matches(name.replace("-", "_"), sorted(known), 1, 0.6)
            hint = f"expected perhaps '{close[0]}'" if close else "expected only settings that --help lists"
            raise ConfigError(f"{where} has the unknown key '{name}', {hint}: correct or remove it.")


def _checked(name: str, value: Any, default: Any, limits: Mapping[str, Any]) -> Any:
    assert default is not MISSING
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise ConfigError(f"{name} is {value!r}, expected {kinds[type(default)]}: correct it.")
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(
            f"{name} is '{value}', expected one of {', '.join(repr(c) if not c else c for c in limits['choices'])}: "
            "choose one."
        )
    if "low" in limits and not (math.isfinite(value) and limits["low"] <= value <= limits["high"]):
        raise ConfigError(f"{name} is {value:g}, expected {limits['low']:g} to {limits['high']:g}: change it.")
    return value
