"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path


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
