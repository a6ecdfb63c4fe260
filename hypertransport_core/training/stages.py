"""The four stages of a run, each resumable and runnable alone: collect, train, evaluate, export."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import __version__
from ..concepts import Concept
from ..encoders.concept import unknown_words
from ..files import write_atomically
from ..sites import total_channels
from .config import TrainingConfig
from .data import DataFolder, network_device
from .distilling import read_teachers
from .distribution import Group
from .export import evaluate, export
from .interruption import Interruption
from .loop import Trainer
from .memory import check_memory
from .presets import World
from .progress import Curves, Rate, log
from .responses import Responses, with_responses
from .states import States, TrainingError

RESPONSES_AT_ONCE = 100  # concepts between two log lines
STAGES = ("collect", "train", "evaluate", "export")


def run_stages(
    world: World,
    config: TrainingConfig,
    stages: tuple[str, ...] = STAGES,
    resume: str = "",
    group: Group | None = None,
) -> None:
    """Do some stages of a run, the first two by all processes of the group. Raises Interrupted when asked to stop,
    TrainingError and its like in one sentence otherwise.
    """
    run, group = Path(config.output), group or Group()
    with Interruption(group) as interruption:
        with group.together():
            data = DataFolder(config.data or run / "data", world, config)
        describe(world, data)
        with group.together():
            check_plan(world, data, config, stages)
        if group.count > 1:
            log.info("%d processes work together", group.count)
        group.same(_common(data, config), "start all with the same settings, files and versions")
        if "collect" in stages:
            collect(world, data, interruption)
        if config.response and stages != ("collect",):
            require(data, world.concepts.train)
            world = with_responses(world, data, config, group)
        if "train" in stages:
            train(world, data, config, run, interruption, resume)
        if not group.main:
            return
        interruption.group = Group()  # what is left is for one
        if "evaluate" in stages and (world.concepts.heldout or stages == ("evaluate",)):
            require(data, world.concepts.heldout)
            evaluate(world, data, config, run)
            interruption.stop_if_requested("Stopped after the evaluation; continue with --stage export.")
        if "export" in stages:
            export(world, data, config, run)


def check_plan(world: World, data: DataFolder, config: TrainingConfig, stages: Sequence[str]) -> None:
    """Whatever can be known to fail before anything is collected: teachers, disk, memory. Raises ConfigError, FileError."""
    if "train" in stages:
        read_teachers(data, config)
    check_memory(world, data, config, stages)


def describe(world: World, data: DataFolder) -> None:
    """Say at the start what is worked on."""
    concepts = world.concepts
    log.info(
        "base model %s (weights %s), encoder %s (width %d)",
        world.backbone.family,
        data.key["weights"],
        world.encoder.encoder_id,
        world.encoder.width,
    )
    log.info(
        "%d sites, %d channels, noise levels %s",
        len(data.sites),
        total_channels(data.sites),
        " ".join(f"{level:g}" for level in data.levels),
    )
    log.info(
        "concepts: %d train, %d validation, %d held out; %d generic scenes",
        len(concepts.train),
        len(concepts.validation),
        len(concepts.heldout),
        len(world.scenes),
    )
    untaught = {c.name: words for c in concepts.everything if (words := unknown_words(world.encoder, c.name))}
    if untaught:
        name, words = next(iter(untaught.items()))
        log.warning(
            "concepts with words that the encoder was never taught: %d, such as '%s' in '%s'; nothing can be learned of these "
            "words: write them otherwise or leave the concepts out",
            len(untaught),
            words[0],
            name,
        )


def _common(data: DataFolder, config: TrainingConfig) -> dict[str, object]:
    """What must be the same in all processes, by name."""
    local = dict.fromkeys(("output", "data", "device"), "")
    return {
        "the package's version": __version__,
        "the version of PyTorch": torch.__version__,
        "the settings": config.with_values(local).to_toml(),
        "base model, encoder and scenes": json.dumps(data.key),
        "the kind of device": network_device(data.world).type,
    }


def collect(world: World, data: DataFolder, interruption: Interruption) -> None:
    """Statistics and embeddings of every concept that has none yet. Raises Interrupted between two concepts."""
    rate = Rate()

    def report(done: int, of: int, name: str) -> None:
        now = done - rate.done
        rate.count(now)
        if not name:
            log.info("collecting %d concepts (%d are there)", of, len(world.concepts.everything) - of)
        elif now and (done // 10 > (done - now) // 10 or done == of):
            log.info("collected %d/%d, %.2f concepts/s, %s left", done, of, rate.per_second(), rate.left(of - done))
        if done < of:
            interruption.stop_if_requested(
                f"Stopped after {done} of {of} concepts, saved in {data.folder}; continue with --resume latest."
            )

    data.collect(world.concepts.everything, report, interruption.group)
    if data.config.response:
        _collect_responses(world, data, interruption)
    interruption.stop_if_requested(f"Stopped after collecting, saved in {data.folder}; continue with --resume latest.")


def _collect_responses(world: World, data: DataFolder, interruption: Interruption) -> None:
    """What the base model does with every concept's words, where no file has it. Raises Interrupted between two parts."""
    responses, group, concepts = Responses(data), interruption.group, world.concepts.everything
    mine, most, rate = concepts[group.share(len(concepts))], math.ceil(len(concepts) / group.count), Rate()
    for start in range(0, most, RESPONSES_AT_ONCE):
        part = mine[start : start + RESPONSES_AT_ONCE]
        with group.together():
            for concept in part:
                responses.of(concept)
        rate.count(len(part))
        done = min(start + RESPONSES_AT_ONCE, most)
        log.info("responses to %d/%d, %s left", min(done * group.count, len(concepts)), len(concepts), rate.left(most - done))
        interruption.stop_if_requested(
            f"Stopped while reading responses, saved in {data.folder}; continue with --resume latest."
        )


def train(
    world: World, data: DataFolder, config: TrainingConfig, run: Path, interruption: Interruption, resume: str = ""
) -> None:
    """Train from the start, or from the checkpoint that `resume` names if there is one yet."""
    group, states = interruption.group, States(run, config.keep_last)
    with group.together():
        trainer = _prepared(world, data, config, run, group, resume)
    group.same({"the step to go on from": trainer.step}, "let all machines see the same folder")
    trainer.agree()
    with group.together():
        curves = _left_behind(states, trainer.step, config, run) if group.main else None
    try:
        trainer.fit(curves, interruption)
    finally:
        if curves is not None:
            curves.close()


def _prepared(
    world: World, data: DataFolder, config: TrainingConfig, run: Path, group: Group, resume: str
) -> Trainer:
    require(data, (*world.concepts.train, *world.concepts.validation))
    states = States(run, config.keep_last)
    trainer = Trainer(world, data, config, run, group)
    parameters = sum(p.numel() for p in trainer.network.parameters())
    log.info(
        "hypernetwork %s: %.2f million parameters; %d steps of %d concepts x %d samples at %d level(s)",
        config.hypernetwork,
        parameters / 1e6,
        config.steps,
        config.concepts_per_step,
        config.samples_per_concept,
        config.levels_per_step,
    )
    if resume and (states.steps() or resume != "latest"):
        trainer.load(states.load(resume))
        log.info("resumed at step %d", trainer.step)
    return trainer


def _left_behind(states: States, step: int, config: TrainingConfig, run: Path) -> Curves:
    """Drop what is left of a killed process and of a course after a step; returns the curves up to there."""
    states.clean()
    for later in states.steps():
        if later > step:
            states.path(later).unlink(missing_ok=True)
    return Curves(run, step, config.tensorboard)


def save_settings(config: TrainingConfig, run: Path) -> None:
    """Write the resolved settings beside the run."""
    write_atomically(run / "config.toml", lambda temporary: temporary.write_text(config.to_toml(), encoding="utf-8"))


def require(data: DataFolder, concepts: Sequence[Concept]) -> None:
    """Raises TrainingError where a concept has not been collected."""
    missing = data.missing(concepts)
    if missing:
        raise TrainingError(
            f"The data in {data.folder} lack {len(missing)} of {len(concepts)} concepts, first '{missing[0].name}', "
            "expected all of them: run --stage collect first."
        )
