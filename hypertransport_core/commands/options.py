"""What several commands have in common: options, and numbers for other programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import CommandError

if TYPE_CHECKING:
    from ..fitting.image_adapter import ImageAdapterFile
    from ..pipeline import Pipeline

ADAPTER = "image_adapter"
IMAGE_ADAPTER_FILE = "postcard_image_adapter.safetensors"  # of train_adapter, where someone trained one


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


def image_adapter(folder: Path, pipeline: Pipeline, methods: tuple[str, ...]) -> ImageAdapterFile | None:
    """The image-prompt adapter of a weights folder; None where it has none or no method asks for it. Raises FileError
    for one that is damaged or was made for another model or encoder."""
    from ..files import check_fits
    from ..fitting.image_adapter import load_image_adapter

    if ADAPTER not in methods or not (folder / IMAGE_ADAPTER_FILE).is_file():
        return None
    found = load_image_adapter(folder / IMAGE_ADAPTER_FILE)
    network, encoder = pipeline.backbone.network, pipeline.without_response().encoder
    check_fits(found.header, found.path, network=network, family=pipeline.backbone.family,
               encoder_id=encoder.encoder_id, encoder_width=encoder.width)
    return found


def methods_with(methods: tuple[str, ...], adapter: ImageAdapterFile | None, named: bool) -> tuple[str, ...]:
    """The methods that can take part: without an adapter not its own. named: by the user, who is told so. Raises
    CommandError."""
    if adapter is not None or ADAPTER not in methods:
        return methods
    if named:
        raise CommandError(
            f"--methods names '{ADAPTER}', which needs {IMAGE_ADAPTER_FILE} in the weights folder: train it with "
            "python -m hypertransport_core.postcard.train_adapter."
        )
    return tuple(method for method in methods if method != ADAPTER)


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
