"""What several commands have in common: options, and numbers for other programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import CommandError


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Which weights to work with: `--weights FOLDER`, `--hypernetwork FILE`."""
    parser.add_argument(
        "--weights",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="the weights folder (default: the one of this package)",
    )
    parser.add_argument(
        "--hypernetwork",
        default=None,
        metavar="FILE",
        help="a hypernetwork file, or the name of one in the weights folder",
    )


def write_numbers(target: str, numbers: Mapping[str, Any]) -> None:
    """`--json TARGET`: one line of JSON on the standard output for "-", else in a file. Raises CommandError."""
    line = json.dumps(numbers)
    if target == "-":
        print(line)
        return
    try:
        Path(target).write_text(line + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(
            f"{target} cannot be written ({error.strerror}), expected a file for the numbers: choose another."
        ) from error
