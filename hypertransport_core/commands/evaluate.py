"""Measure steering on held-out concepts against prompting and per-concept fits, judged by an independent network."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline import JUDGE_FILE, WEIGHTS, Pipeline, find_hypernetwork, weights_file
from . import CommandError
from .options import add_weights_options, image_adapter, methods_with

if TYPE_CHECKING:
    from ..evaluation.runner import EvaluationSettings

QUICK: dict[str, Any] = {"concepts": 12, "prompts": 8, "fit_concepts": 1, "world": 102, "renders": 500}
QUICK_FIT_BATCH = 4
RECORDED = ("concept", "subject", "colour", "joint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the numbers")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="12 held-out concepts, 8 prompts each, LinEAS with 1000 steps on one of them: at most 10 minutes on 2 "
        "cores",
    )
    parser.add_argument(
        "--methods",
        default=None,
        metavar="A,B",
        help="methods to compare: ours_text, ours_image, prompting, lineas_1000, lineas_50, nearest, mean_act (the "
        "default), and ours_images_4, linear_act, linear_act_once, iti_c, ridge, mean_map, slider_lora, "
        "image_adapter",
    )
    parser.add_argument(
        "--concepts",
        type=int,
        default=None,
        metavar="N",
        help="held-out concepts, spread over the categories (default: all)",
    )
    parser.add_argument("--prompts", type=int, default=None, metavar="N", help="scenes per concept (default: 16)")
    parser.add_argument(
        "--rise-prompts",
        type=int,
        default=None,
        metavar="N",
        help="scenes per concept for how it rises over strength, at least --prompts (default: 32)",
    )
    parser.add_argument(
        "--no-world",
        action="store_true",
        help="leave out what says nothing about steering: pictures of prompted concepts, judge and CLIP on renders",
    )
    parser.add_argument("--seed", type=int, default=None, help="of scenes and starting noise (default: 90000)")
    parser.add_argument("--steps", type=int, default=None, help="sampling steps (default: 4)")
    parser.add_argument(
        "--fit-concepts",
        type=int,
        default=None,
        metavar="N",
        help="concepts on which LinEAS with 1000 steps is run (default: 9, one per category)",
    )
    parser.add_argument(
        "--fit-batch",
        type=int,
        default=None,
        metavar="N",
        help="samples per step of LinEAS, a divisor of 32 (default: 8)",
    )
    parser.add_argument(
        "--fit-levels",
        type=int,
        default=None,
        metavar="N",
        help="sampling steps in LinEAS's loss (default: 1, as its authors do)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="keep finished fits here, so that a stopped evaluation goes on",
    )
    parser.add_argument(
        "--sheet", type=Path, default=None, metavar="FILE.png", help="write one picture per concept and method as well"
    )
    parser.add_argument(
        "--record", action="store_true", help="write the shares into the header of the hypernetwork's file as well"
    )
    add_weights_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on the way")


def run(options: argparse.Namespace) -> int:
    """Measure, write the report, print the main numbers; returns the exit code."""
    settings = settings_of(options)
    if options.json.is_dir():
        raise CommandError(f"--json is the folder {options.json}, expected a file such as results.json.")
    from ..evaluation.report import flatten, table, write_json, write_sheet
    from ..evaluation.runner import evaluate
    from ..postcard.judge import Judge
    from ..weights_io import record_measured

    folder = WEIGHTS if options.weights is None else options.weights
    judge = Judge.load(weights_file(folder, JUDGE_FILE))
    pipeline = Pipeline.load(folder, hypernetwork=options.hypernetwork)
    adapter = image_adapter(folder, pipeline, settings.methods)
    settings = replace(settings, methods=methods_with(settings.methods, adapter, named=True))
    result = evaluate(pipeline, judge, settings, adapter=adapter, quiet=options.quiet)
    flat = flatten(result, settings)
    flat.update(described(options, settings, pipeline))
    write_json(options.json, flat)
    if options.sheet is not None:
        write_sheet(options.sheet, result, settings.methods)
    if options.record:
        record_measured(find_hypernetwork(folder, options.hypernetwork), _recorded(flat, settings))
    print(table(flat))
    print(
        f"\n{options.json}: {result.images} pictures of {len(result.heldout)} held-out concepts in "
        f"{result.seconds / 60:.1f} minutes"
    )
    return 0


def _recorded(flat: Mapping[str, Any], settings: EvaluationSettings) -> dict[str, Any]:
    """Shares of every method on held-out concepts with their intervals, and on what."""
    shares = [f"heldout.{method}.{measure}" for method in settings.methods for measure in RECORDED]
    keys = ["counts.heldout", "counts.prompts", "counts.steps", *shares, *(f"interval.{key}" for key in shares)]
    return {"seed": settings.seed, **{key: flat[key] for key in keys if flat.get(key) is not None}}


def settings_of(options: argparse.Namespace) -> EvaluationSettings:
    """Checked settings; what is named beats --quick, which beats the defaults. Raises CommandError."""
    from ..evaluation.fits import SAMPLES
    from ..evaluation.methods import EVERY
    from ..evaluation.runner import EvaluationSettings

    settings = EvaluationSettings(**QUICK) if options.quick else EvaluationSettings()
    fit = replace(settings.fit, cache=options.cache, batch=QUICK_FIT_BATCH if options.quick else settings.fit.batch)
    fit = replace(
        fit,
        **{
            name: value
            for name, value in (("batch", options.fit_batch), ("levels", options.fit_levels))
            if value is not None
        },
    )
    named = {
        name: getattr(options, name)
        for name in ("concepts", "prompts", "rise_prompts", "seed", "steps", "fit_concepts")
        if getattr(options, name) is not None
    }
    if options.no_world:
        named |= {"world": 0, "renders": 0}
    settings = replace(settings, fit=fit, **named)
    if options.methods is not None:
        settings = replace(
            settings, methods=tuple(dict.fromkeys(name.strip() for name in options.methods.split(",") if name.strip()))
        )
    for name in settings.methods:
        if name not in EVERY:
            raise CommandError(f"--methods names '{name}', expected some of {', '.join(EVERY)}.")
    for name, low, high in (
        ("concepts", 1, 10**6),
        ("prompts", 1, 10**5),
        ("rise_prompts", 1, 10**5),
        ("seed", 0, 2**62),
        ("steps", 1, 1000),
        ("fit_concepts", 1, 10**6),
    ):
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise CommandError(f"--{name.replace('_', '-')} is {value}, expected a whole number from {low} to {high}.")
    if fit.batch < 4 or SAMPLES % fit.batch:
        raise CommandError(f"--fit-batch is {fit.batch}, expected 4, 8, 16 or 32.")
    if not 1 <= fit.levels <= 64:
        raise CommandError(f"--fit-levels is {fit.levels}, expected a number from 1 to 64: 1 or 4 are usual.")
    return settings


def described(options: argparse.Namespace, settings: EvaluationSettings, pipeline: Pipeline) -> dict[str, object]:
    """What was evaluated, and how, beside the numbers."""
    from ..evaluation.methods import info_of
    from ..files import content_checksum

    network = pipeline.hypernetwork
    sites = network.sites if network is not None else ()
    training = pipeline.header.get("training", {})
    return {
        **info_of(settings.fit),
        "quick": bool(options.quick),
        "hypernetwork.checksum": None if network is None else content_checksum(network.state_dict(), network.kind, {})[:16],
        "hypernetwork.sites": len(sites),
        "hypernetwork.channels": sum(site.channels for site in sites),
        "hypernetwork.kinds": sorted({site.kind for site in sites}),
        "hypernetwork.training": {key: value for key, value in training.items() if key in ("step", "concept_set")},
    }
