"""The command line of training: `python train_hypernet.py --preset postcard --output runs/mine`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..backbones.host import HostBackboneError, HostError
from ..commands import Parser
from ..concepts import ConceptError
from ..encoders.base import EncoderError
from ..files import FileError
from ..hypernetworks import HypernetworkError
from ..sites import SiteError
from ..wasserstein import LossError
from .config import ConfigError, TrainingConfig
from .config_text import parse_value, read_config
from .data import DataFolder
from .distribution import Elsewhere, Group, join
from .interruption import Interrupted
from .presets import preset
from .progress import log
from .stages import STAGES, check_plan, describe, run_stages, save_settings
from .states import States, TrainingError, disk_is_full

REFUSALS = (
    ConfigError,
    ConceptError,
    EncoderError,
    FileError,
    HostBackboneError,
    HostError,
    HypernetworkError,
    LossError,
    SiteError,
    TrainingError,
)
# What a run's own config.toml does not decide when it goes on elsewhere.
OF_THE_RUN = ("output",)


class _Parser(Parser):
    status = 1  # as of every other refusal of this command


def parser() -> argparse.ArgumentParser:
    """All flags: a few of the command, and one for every setting."""
    out = _Parser(
        prog="train_hypernet.py",
        description="From concepts to a hypernetwork's weights file: collect, train, evaluate, export.",
        epilog="Ctrl-C saves and stops; --resume latest goes on.",
        allow_abbrev=False,
    )
    out.add_argument(
        "--stage", choices=(*STAGES, "all"), default="all", help="what to do (default: all, one after the other)"
    )
    out.add_argument("--config", metavar="FILE", help="TOML file of settings; flags override it")
    out.add_argument(
        "--resume", metavar="WHICH", default="", help="go on with a run: latest, a step's number, or a checkpoint file"
    )
    out.add_argument(
        "--dry-run", action="store_true", help="check settings, files and concepts, say what would be done, and stop"
    )
    settings = out.add_argument_group("settings", "each is a key of the TOML file too")
    for spec in fields(TrainingConfig):
        default = spec.default if spec.default != "" else "empty"
        choices = (
            f"; one of {', '.join(c for c in spec.metadata['choices'] if c)}" if "choices" in spec.metadata else ""
        )
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(spec.default, bool) else {}
        settings.add_argument(
            f"--{spec.name.replace('_', '-')}",
            *spec.metadata.get("flags", ()),
            dest=f"set_{spec.name}",
            metavar=type(spec.default).__name__.upper(),
            **flag,
            help=f"{spec.metadata['help']}{choices} (default: {default})".replace("%", "%%"),
        )
    return out


def resolved(arguments: argparse.Namespace) -> TrainingConfig:
    """The settings: defaults, then the preset's, then those of a run that goes on, then the file's, then flags. Raises
    ConfigError.
    """
    flags = {
        spec.name: parse_value(spec.name, getattr(arguments, f"set_{spec.name}"))
        for spec in fields(TrainingConfig)
        if getattr(arguments, f"set_{spec.name}") is not None
    }
    given = {**(read_config(arguments.config) if arguments.config else {}), **flags}
    output = given.get("output", "")
    if not isinstance(output, str) or not output:
        raise ConfigError("output is empty, expected the folder of the run: give --output runs/NAME.")
    saved: dict[str, Any] = {}
    own = Path(output) / "config.toml"
    if own.is_file() and (arguments.resume or arguments.stage not in ("all", "collect")):
        saved = {name: value for name, value in read_config(own).items() if name not in OF_THE_RUN}
    name = given.get("preset", saved.get("preset", TrainingConfig().preset))
    return TrainingConfig().with_values({**preset(str(name)).settings, **saved, **given})


def refuse_overwriting(config: TrainingConfig, stage: str, resume: str) -> None:
    """Raises TrainingError when a run would be written over."""
    run = Path(config.output)
    if run.exists() and not run.is_dir():
        raise TrainingError(f"output is '{run}', which is a file, expected a folder: choose another name.")
    begun = States(run).steps() or (stage in ("all", "collect") and (run / "data" / "source.safetensors").exists())
    if not resume and stage not in ("evaluate", "export") and begun:
        raise TrainingError(
            f"{run} holds a run already, expected a new folder: continue it with --resume latest or choose another "
            "--output."
        )
    if resume and not run.is_dir():
        raise TrainingError(f"{run} is not there, expected a run to resume: correct --output or leave --resume out.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 refused with a sentence, 130 stopped by Ctrl-C after
    saving. Of several processes one speaks.
    """
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    group = Group()
    try:
        config, refusal = _settings(arguments)
        group = join(config.device if config else "cpu")
        if not group.main:
            log.setLevel(logging.CRITICAL)
        with group.together():
            if config is None:
                raise refusal or AssertionError
        _run(arguments, config, group)
        status = 0
    except Elsewhere:
        status = 1
    except Interrupted as stop:
        status = _said(f"{stop}", 130) if group.main else 130
    except KeyboardInterrupt:
        # Whether the others can still be reached is not known, so nothing is waited for.
        return _said("Stopped at once; what was saved before is intact, continue with --resume latest.", 130)
    except REFUSALS as error:
        status = _said(f"error: {error}", 1)
    except OSError as error:
        reason = "the disk is full" if disk_is_full(error) else f"{error.strerror or error}"
        status = _said(
            f"error: Writing '{error.filename or arguments.set_output}' failed ({reason}), expected a writable "
            "folder with free space: make room and continue with --resume latest, earlier checkpoints are intact.",
            1,
        )
    group.leave()
    return status


def _said(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return status


def _settings(arguments: argparse.Namespace) -> tuple[TrainingConfig | None, Exception | None]:
    """The settings, or why there are none: said only when the processes know of each other."""
    try:
        return resolved(arguments), None
    except REFUSALS as error:
        return None, error


def _run(arguments: argparse.Namespace, config: TrainingConfig, group: Group) -> None:
    stages, chosen = STAGES if arguments.stage == "all" else (arguments.stage,), config.device
    with group.together():
        refuse_overwriting(config, arguments.stage, arguments.resume)
        if group.count > 1 and group.device is not None:
            config = config.with_values({"device": str(group.device)})
        world = preset(config.preset).build(config)
        world = replace(world, concepts=world.concepts.with_training(config.training_concepts))
        if arguments.dry_run:
            data = DataFolder(config.data or Path(config.output) / "data", world, config)
            describe(world, data)
            check_plan(world, data, config, stages)
    if arguments.dry_run:
        return
    with group.together():
        if group.main and set(stages) & {"collect", "train"}:
            save_settings(config.with_values({"device": chosen}), Path(config.output))
    run_stages(world, config, stages, arguments.resume, group)
