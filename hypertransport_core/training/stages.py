"""The four stages of a run, each resumable and runnable alone: collect, train, evaluate, export."""

from __future__ import annotations

from pathlib import Path

from ..files import write_atomically
from ..sites import total_channels
from .config import TrainingConfig
from .data import DataFolder
from .export import evaluate, export
from .interruption import Interruption
from .loop import Trainer
from .presets import World
from .progress import Curves, Rate, log
from .states import States, TrainingError

STAGES = ("collect", "train", "evaluate", "export")


def run_stages(world: World, config: TrainingConfig, stages: tuple[str, ...] = STAGES, resume: str = "") -> None:
    """Do some stages of a run. Raises Interrupted when asked to stop, TrainingError and its like in one sentence
    otherwise.
    """
    run = Path(config.output)
    with Interruption() as interruption:
        data = DataFolder(config.data or run / "data", world, config)
        describe(world, data)
        if "collect" in stages:
            collect(world, data, interruption)
        if "train" in stages:
            train(world, data, config, run, interruption, resume)
        if "evaluate" in stages and (world.concepts.heldout or stages == ("evaluate",)):
            _require(data, world.concepts.heldout)
            evaluate(world, data, config, run)
            interruption.stop_if_requested("Stopped after the evaluation; continue with --stage export.")
        if "export" in stages:
            export(world, data, config, run)


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


def collect(world: World, data: DataFolder, interruption: Interruption) -> None:
    """Statistics and embeddings of every concept that has none yet. Raises Interrupted between two concepts."""
    rate = Rate()

    def report(done: int, of: int, name: str) -> None:
        rate.count(1 if name else 0)
        if not name:
            log.info("collecting %d concepts (%d are there)", of, len(world.concepts.everything) - of)
        elif done % 10 == 0 or done == of:
            log.info("collected %d/%d, %.2f concepts/s, %s left", done, of, rate.per_second(), rate.left(of - done))
        if done < of:
            interruption.stop_if_requested(
                f"Stopped after {done} of {of} concepts, saved in {data.folder}; continue with --resume latest."
            )

    data.collect(world.concepts.everything, report)
    interruption.stop_if_requested(f"Stopped after collecting, saved in {data.folder}; continue with --resume latest.")


def train(
    world: World, data: DataFolder, config: TrainingConfig, run: Path, interruption: Interruption, resume: str = ""
) -> None:
    """Train from the start, or from the checkpoint that `resume` names if there is one yet."""
    _require(data, (*world.concepts.train, *world.concepts.validation))
    states = States(run, config.keep_last)
    states.clean()
    trainer = Trainer(world, data, config, run)
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
    for step in states.steps():
        if step > trainer.step:  # of a course that is left now
            states.path(step).unlink(missing_ok=True)
    curves = Curves(run, trainer.step, config.tensorboard)
    try:
        trainer.fit(curves, interruption)
    finally:
        curves.close()


def save_settings(config: TrainingConfig, run: Path) -> None:
    """Write the resolved settings beside the run."""
    write_atomically(run / "config.toml", lambda temporary: temporary.write_text(config.to_toml(), encoding="utf-8"))


def _require(data: DataFolder, concepts: tuple) -> None:  # type: ignore[type-arg]
    missing = data.missing(concepts)
    if missing:
        raise TrainingError(
            f"The data in {data.folder} lack {len(missing)} of {len(concepts)} concepts, first '{missing[0].name}', "
            "expected all of them: run --stage collect first."
        )
