"""Held-out evaluation of a trained hypernetwork and its weights file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from statistics import median_high, median_low
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..encoders.response import ResponseEncoder
from ..files import network_fingerprint, write_atomically
from ..hypernetworks import Hypernetwork, build_hypernetwork
from ..weights_io import HypernetworkFile, load_hypernetwork, save_hypernetwork
from .config import TrainingConfig
from .data import DataFolder, network_device
from .presets import World
from .progress import log
from .states import States, TrainingError
from .validation import Probe


def chosen_state(run: Path, config: TrainingConfig) -> dict[str, Any]:
    """The state whose averaged weights are judged and exported: the latest checkpoint, or the best validation. Raises
    TrainingError.
    """
    states = States(run)
    if config.export_from == "best":
        if states.best_path.is_file():
            return states.load(str(states.best_path))
        raise TrainingError(
            f'{states.best_path} is not there, expected the weights of a validation: use export_from = "latest".'
        )
    return states.load()


def averaged_network(state: dict[str, Any], world: World) -> Hypernetwork:
    """The hypernetwork with the averaged weights of a state, in evaluation mode."""
    network = build_hypernetwork(state["architecture"])
    network.load_state_dict(state["average"])
    return network.to(network_device(world)).eval().requires_grad_(False)


def evaluate(world: World, data: DataFolder, config: TrainingConfig, run: Path) -> dict[str, Any]:
    """Losses on the held-out concepts at every noise level, by text, by pictures, for identity and mean map, per
    category too.

    Written to `evaluation.json`. Raises TrainingError without a checkpoint or held-out concepts.
    """
    concepts = list(world.concepts.heldout)
    if not concepts:
        raise TrainingError(
            "There are 0 held-out concepts, expected at least 1: raise heldout_fraction or mark concepts with part = "
            '"heldout".'
        )
    state = chosen_state(run, config)
    network = averaged_network(state, world)
    probe = Probe(world, data, config, concepts, state["means"], range(len(data.levels)), "heldout")
    train = data.embeddings(world.concepts.train, state["means"])
    rows = {
        "identity": probe.identity(),
        "mean_map": probe.mean_map(network, train),
        "text": probe.from_text(network),
        "image": probe.from_images(network),
    }
    scores = {name: values for name, values in rows.items() if values is not None}
    report = {
        "step": state["step"],
        "concepts": len(concepts),
        "heldout": {name: _means(values) for name, values in scores.items()},
        "categories": _by_category(concepts, scores),
        "per_concept": {
            c.name: {name: round(float(v["loss"][i]), 6) for name, v in scores.items()} for i, c in enumerate(concepts)
        },
    }
    write_atomically(
        run / "evaluation.json", lambda temporary: temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    )
    log.info(
        "held-out loss at step %d: %s",
        state["step"],
        ", ".join(f"{name} {v['loss']:.4f}" for name, v in report["heldout"].items()),
    )
    return report


def export(world: World, data: DataFolder, config: TrainingConfig, run: Path) -> Path:
    """Write the weights file of a run: averaged weights, means of both modalities, provenance. Raises FileError,
    TrainingError.
    """
    state = chosen_state(run, config)
    network = averaged_network(state, world).cpu()
    teachers = [load_hypernetwork(Path(name)) for name in config.teacher_files()]
    path = Path(config.export) if config.export else run / "hypernetwork.safetensors"
    title = config.title or f"HyperTransport for {world.backbone.family} ({config.site_set})"
    spec = {
        "title": title,
        "description": "Predicts affine transport maps from one concept embedding (arXiv 2605.08254).",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "tags": "hypertransport, activation steering",
    }
    fingerprint = network_fingerprint(world.backbone.network, network.sites)
    save_hypernetwork(
        path,
        network,
        family=world.backbone.family,
        fingerprint=fingerprint,
        encoder_id=world.encoder.encoder_id,
        means=state["means"],
        strength_range=_strengths(config, teachers),
        training=_summary(world, config, run, state, teachers),
        licence=world.licence,
        modelspec=spec,
        reader=world.encoder.reader if isinstance(world.encoder, ResponseEncoder) else None,
    )
    log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def _strengths(config: TrainingConfig, teachers: Sequence[HypernetworkFile]) -> tuple[float, float]:
    """The strengths that the file recommends, without forbidding others: beyond what it was trained at, pictures of few-step
    models tend to fall apart. A student has learned what more than half of its teachers were trained for."""
    if not teachers:
        return (-1.0 if config.removal_share else 0.0, 1.0)
    lows, highs = zip(*(one.strength_range for one in teachers))
    return median_high(lows), median_low(highs)


def _summary(
    world: World, config: TrainingConfig, run: Path, state: dict[str, Any], teachers: Sequence[HypernetworkFile]
) -> dict[str, Any]:
    concepts = world.concepts
    kept = (
        "preset",
        "seed",
        "collect_seed",
        "training_concepts",
        "training_samples",
        "standardise",
        "site_set",
        "pattern",
        "pooling",
        "steps",
        "concepts_per_step",
        "samples_per_concept",
        "levels_per_step",
        "sampling_steps",
        "inputs",
        "transport_weight",
        "paired_weight",
        "partial_share",
        "removal_share",
        "partial_from",
        "channel_weighting",
        "response",
        "image_share",
        "phrase_share",
        "embedding_noise",
        "embedding_mix",
        "learning_rate",
        "head_learning_rate",
        "ema",
        "prompts_per_concept",
        "samples_per_prompt",
        "blocks",
        "images_per_concept",
    )
    settings = asdict(config)
    summary: dict[str, Any] = {
        "step": state["step"],
        "settings": {name: settings[name] for name in kept},
        "concept_set": concepts.fingerprint(),
        "concepts": {
            "train": len(concepts.train),
            "validation": len(concepts.validation),
            "heldout": len(concepts.heldout),
        },
        "versions": {"hypertransport": __version__, "torch": torch.__version__},
    }
    if teachers:
        summary["teachers"] = [one.header.get("training", {}) for one in teachers]
    try:
        report = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return summary
    return {**summary, "heldout": report["heldout"]} if report.get("step") == state["step"] else summary


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: round(float(value.mean()), 6) for name, value in values.items()}


def _by_category(concepts: list[Any], scores: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[int]] = {}
    for number, concept in enumerate(concepts):
        groups.setdefault(concept.category, []).append(number)
    return {
        category: {name: round(float(values["loss"][rows].mean()), 6) for name, values in scores.items()}
        for category, rows in sorted(groups.items())
    }
