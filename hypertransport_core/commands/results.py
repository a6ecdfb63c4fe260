"""Write the results page: every claim measured again, with tables, charts and pictures, from nothing but this
repository."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline import JUDGE_FILE, WEIGHTS, Pipeline, weights_file
from . import CommandError
from .options import add_weights_options, image_adapter, methods_with

if TYPE_CHECKING:
    from ..evaluation.results import ResultsSettings
    from ..evaluation.stored import Stored
    from ..postcard.clip import PostcardCLIP

FIT_BATCH = 4  # samples per step of LinEAS
QUICK: dict[str, Any] = {"concepts": 12, "prompts": 4, "fit_concepts": 0, "world": 102, "renders": 500}
QUICK_STUDIES: dict[str, Any] = {"validation": 4, "validation_fits": 0, "scenes": 2, "pairs": 20, "seeds": 4}
TABLE, PAGE = "results.csv", "results.md"
MEASURED = Path("runs") / "results"
SECOND_CLIP_FILE = "postcard_clip_2.safetensors"  # of train_clip --seed 1 --size small, where there is one
SECOND_JUDGE_FILE = "postcard_judge_2.safetensors"  # of train_judge --architecture patches, where someone trained one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where to write results.md, results.json, results.csv and the folder results",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="12 held-out concepts, 4 scenes each, without the methods that need minutes (lineas_1000, nearest, slider_lora, ridge)",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        default=MEASURED,
        metavar="FOLDER",
        help=f"where all that is measured is kept, part by part as it comes in (default: {MEASURED})",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="measure nothing: page, table, charts and sheets again from what a run has kept there, also where that run "
        "was stopped; from a page's own folder, its sheets stay as they are",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="GROUP/NAME=FILE",
        help="another training of the hypernetwork, measured by evaluate or results, such as seeds/2=seed2.json or "
        "concepts/100=hundred.json: a table per group, a curve where names are numbers; can be repeated; a group takes the "
        "place of the page's of that name, all else that the page has of other trainings stays",
    )
    parser.add_argument(
        "--again",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="results.json of another run of this command with another --seed on the same weights: whether the conclusions "
        "hold; can be repeated, and without it those that the page has stay where the weights are the same",
    )
    parser.add_argument(
        "--cache", type=Path, default=None, metavar="FOLDER", help="keep finished fits here, so that a stopped run goes on"
    )
    parser.add_argument(
        "--yardsticks",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="measurements of the other methods, in which the hypernetwork has no part: take over those kept here, and "
        "keep new ones (default: measure everything)",
    )
    parser.add_argument("--seed", type=int, default=None, help="of scenes and starting noise (default: 90000)")
    for name, words in (
        ("concepts", "held-out concepts, spread over the categories (default: all)"),
        ("prompts", "scenes per concept (default: 8)"),
        ("fit-concepts", "held-out concepts on which LinEAS with 1000 steps (the concept's own and that of the nearest training "
                         "concept) and the slider are run (default: 3)"),
        ("fit-validation", "validation concepts on which their strengths are chosen (default: 1)"),
        ("validation", "validation concepts on which the other strengths are chosen (default: 9)"),
        ("pairs", "pairs of concepts to show at once (default: 100)"),
    ):
        parser.add_argument(f"--{name}", type=int, default=None, metavar="N", help=words)
    parser.add_argument("--methods", default=None, metavar="A,B", help="methods to compare, as of evaluate (default: all)")
    add_weights_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on the way")


def run(options: argparse.Namespace) -> int:
    """Measure and write the page; returns the exit code."""
    from ..evaluation import charts, other_runs, other_seeds, stored
    from ..evaluation.page_tables import GOALS
    from ..evaluation.results import ResultsError
    from ..files import FileError

    if options.output.exists() and not options.output.is_dir():
        raise CommandError(f"--output is the file {options.output}, expected a folder such as docs.")
    charts.check()
    others, again = other_runs.added(options.also), other_seeds.read(options.again)
    source, failure, before = options.source, None, {}
    if source is None:
        source, before = options.measured, _page_before(options.output)
        try:
            _measure(options, source)
        except ResultsError as error:  # the page of all that went well first
            failure = error
    found = stored.load(source)
    goals = [key for _, key, _, _ in GOALS]
    flat = other_runs.renewed({**found.flat, **other_runs.of(before)}, others)
    if again:
        flat = other_seeds.without(flat)
        flat |= other_seeds.added(flat, again, goals)
    elif runs := other_seeds.of(before):
        try:
            flat |= other_seeds.added(flat, runs, goals)
        except FileError as error:
            print(f"What the page before had of other seeds is left out. {error}")
    _draw(replace(found, flat=flat), options.output, keep_sheets=source.resolve() == options.output.resolve())
    if failure is not None:
        raise failure
    return 0


def _page_before(output: Path) -> dict[str, Any]:
    """The numbers of the page that a new measurement will replace: what came from other runs is not in it, and where they
    lie nobody may know any more. {} where there is none. Raises CommandError for one that cannot be read, before hours go
    into a page that would cost the user what is in it."""
    from ..evaluation.stored import NUMBERS, read_numbers
    from ..files import FileError

    if not (output / NUMBERS).exists():
        return {}
    try:
        return read_numbers(output / NUMBERS)
    except FileError as error:
        raise CommandError(
            f"--output {output} has a {NUMBERS} that this command cannot read, expected one of its own or none, as this run "
            "would write over it: move it away, or choose another folder."
        ) from error


def _measure(options: argparse.Namespace, folder: Path) -> None:
    """A run, kept in `folder`."""
    from ..evaluation import stored
    from ..evaluation.results import measure
    from ..postcard.judge import Judge
    from .evaluate import described

    settings = settings_of(options)
    weights = WEIGHTS if options.weights is None else options.weights
    judge = Judge.load(weights_file(weights, JUDGE_FILE))
    pipeline = Pipeline.load(weights, hypernetwork=options.hypernetwork)
    second, methods = weights / SECOND_JUDGE_FILE, settings.evaluation.methods
    adapter = image_adapter(weights, pipeline, methods)
    methods = methods_with(methods, adapter, named=options.methods is not None)
    settings = replace(settings, evaluation=replace(settings.evaluation, methods=methods))
    about = described(options, settings.evaluation, pipeline) | {"command": command_of(options)}
    measure(
        pipeline,
        judge,
        settings,
        lambda flat, pictures: stored.save(folder, flat | about, pictures),
        second=Judge.load(second) if second.is_file() else None,
        second_clip=_second_clip(weights / SECOND_CLIP_FILE, pipeline),
        adapter=adapter,
        yardsticks=options.yardsticks,
        quiet=options.quiet,
    )


def _second_clip(file: Path, pipeline: Pipeline) -> PostcardCLIP | None:
    """The CLIP of a file, where there is one. Raises FileError, and CommandError for the one that reads the concepts."""
    from ..encoders.postcard_clip import PostcardClipEncoder
    from ..postcard.clip import PostcardCLIP

    if not file.is_file():
        return None
    clip = PostcardCLIP.load(file)
    if PostcardClipEncoder(clip).encoder_id == pipeline.without_response().encoder.encoder_id:
        raise CommandError(f"{file} is the CLIP that reads the concepts, expected one of another seed: train it with "
                           f"python -m hypertransport_core.postcard.train_clip --seed 1 --size small --output {file} with a "
                           "--state of its own.")
    return clip


def _draw(found: Stored, output: Path, *, keep_sheets: bool) -> None:
    """Page, table, numbers, charts and sheets. keep_sheets: where no pictures are kept, those drawn before stay."""
    from ..evaluation import charts, gallery
    from ..evaluation.page import FOLDER, write_csv, write_page
    from ..evaluation.report import write_json
    from ..evaluation.stored import NUMBERS

    pictures = output / FOLDER
    before = sorted(path.name for path in pictures.glob("*.jpg"))
    sheets = before if keep_sheets and found.pictures is None else gallery.draw_all(found, pictures)
    drawn = charts.draw_all(found.flat, pictures)
    for path in [*pictures.glob("*.jpg"), *pictures.glob("*.png")]:
        if path.name not in (*sheets, *drawn):  # of a run with more of them
            path.unlink()
    write_json(output / NUMBERS, found.flat)
    write_csv(output / TABLE, found.flat)
    write_page(output, found.flat, [*drawn, *sheets])
    minutes = found.flat["seconds"] / 60
    print(f"{output / PAGE}: {len(drawn)} charts, {len(sheets)} sheets, measured in {minutes:.1f} minutes")


def command_of(options: argparse.Namespace) -> str:
    """The command line that gives these numbers again; where files lie is not part of it."""
    words = ["python -m hypertransport_core results --output docs"]
    words += ["--quick"] if options.quick else []
    for name in ("seed", "concepts", "prompts", "fit_concepts", "fit_validation", "validation", "pairs", "methods"):
        value = getattr(options, name)
        if value is not None:
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def settings_of(options: argparse.Namespace) -> ResultsSettings:
    """Checked settings; what is named beats --quick, which beats the defaults. Raises CommandError."""
    from ..evaluation.methods import DEAR, EVERY
    from ..evaluation.results import ResultsSettings
    from ..evaluation.studies import StudySettings

    settings = ResultsSettings()
    one, studies = settings.evaluation, settings.studies
    one = replace(one, fit=replace(one.fit, batch=FIT_BATCH, cache=options.cache))
    if options.quick:
        cheap = tuple(method for method in EVERY if method not in (*DEAR, "ridge"))
        one, studies = replace(one, methods=cheap, **QUICK), StudySettings(**QUICK_STUDIES)
    if options.methods is not None:
        methods = tuple(dict.fromkeys(name.strip() for name in options.methods.split(",") if name.strip()))
        for name in methods:
            if name not in EVERY:
                raise CommandError(f"--methods names '{name}', expected some of {', '.join(EVERY)}.")
        one = replace(one, methods=methods)
    for name, low in (("seed", 0), ("concepts", 1), ("prompts", 1), ("fit_concepts", 0), ("fit_validation", 0),
                      ("validation", 1), ("pairs", 1)):
        value = getattr(options, name)
        if value is None:
            continue
        if not low <= value <= 10**6:
            raise CommandError(f"--{name.replace('_', '-')} is {value}, expected a whole number from {low} to 1000000.")
        if name in ("validation", "pairs", "fit_validation"):
            studies = replace(studies, **{"validation_fits" if name == "fit_validation" else name: value})
        else:
            one = replace(one, **{name: value})
    return replace(settings, evaluation=one, studies=studies)
