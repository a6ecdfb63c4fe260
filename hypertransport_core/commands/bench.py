"""Measure what predicting, fitting, steering, collecting and training cost, as ratios within one run."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

from ..pipeline import WEIGHTS
from . import CommandError
from .options import add_weights_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    from ..benchmarks.report import KEYS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the numbers")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer rounds, and the fit extrapolated from a few of its steps: within a minute",
    )
    parser.add_argument("--fits", type=int, default=None, metavar="N", help="fits that are timed (default: 3)")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda, cuda:0 ... (default: cpu)")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count this process's processor time, for a machine that is busy with other work; set OMP_NUM_THREADS=1 "
        "too, as the time of several threads adds up",
    )
    add_weights_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on the way")
    parser.epilog = "\n".join(
        [
            "Ratios are taken round by round: what is compared takes turns within a round. Growth is drawn beside the",
            "JSON as FILE.png where matplotlib is installed.",
            "",
            "keys of the JSON (* = .median, .min and .max over the rounds; N = a number):",
            *(f"  {key}\n      {meaning}" for key, meaning in KEYS.items()),
        ]
    )


def run(options: argparse.Namespace) -> int:
    """Measure, write numbers and plot, print the table; returns the exit code."""
    import torch

    from ..benchmarks.report import draw_growth, table
    from ..benchmarks.runner import QUICK, BenchSettings, bench
    from ..evaluation.report import clean, write_json

    if options.json.is_dir():
        raise CommandError(f"--json is the folder {options.json}, expected a file such as bench.json.")
    settings = QUICK if options.quick else BenchSettings()
    if options.fits is not None:
        if not 1 <= options.fits <= 1000:
            raise CommandError(f"--fits is {options.fits}, expected a whole number from 1 to 1000.")
        settings = replace(settings, fits=options.fits)
    if options.processor_time and not options.device.startswith("cpu"):
        raise CommandError(
            f"--processor-time was given with --device {options.device}, expected cpu: leave one of them out."
        )
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(
            f"--device is '{options.device}', expected cpu or a device of this machine "
            f"({str(error).splitlines()[0][:100]})."
        ) from error
    logging.getLogger("hypertransport.training").setLevel(logging.ERROR)  # a run of a few steps cannot be any good
    flat = bench(
        options.weights or WEIGHTS,
        settings,
        hypernetwork=options.hypernetwork,
        device=options.device,
        processor_time=options.processor_time,
        tell=(lambda part: None) if options.quiet else (lambda part: print(f"measuring {part} ...", file=sys.stderr)),
    )
    flat["about.quick"] = options.quick
    write_json(options.json, flat)
    flat = clean(flat)
    print(table(flat))
    drawn = draw_growth(options.json.with_suffix(".png"), flat)
    plot = options.json.with_suffix(".png") if drawn else "no plot, as matplotlib is not installed"
    print(f"\n{options.json}, {plot}: {flat['seconds']:.0f} s")
    return 0
