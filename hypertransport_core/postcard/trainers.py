"""What the trainers of the Postcard world have in common: their options, a log with the clock, refusals in one
sentence."""
from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from ..commands import guarded


def trainer_options(about: str, output: str, state: str, seed: int) -> argparse.ArgumentParser:
    """A parser with what every trainer takes: where its file and its state go, and the seed. about: its first line is
    the description."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("weights") / output, help="the weights file to write")
    parser.add_argument("--state", type=Path, default=Path("runs/postcard") / state,
                        help="training state; an interrupted training continues from it")
    parser.add_argument("--seed", type=int, default=seed, help="of weights and pictures")
    parser.add_argument("--traceback", action="store_true", help="show where in the program an error happened")
    return parser


def carried_out(train: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Train with a log; the exit code: 0 done, 2 refused in one sentence, 1 an unexpected error, 130 stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    return guarded(train, options)
