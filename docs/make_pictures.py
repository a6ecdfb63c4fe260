# ruff: noqa: T201 (a command speaks to a person)
"""Makes the pictures of the help pages, by running the nodes on the shipped weights inside ComfyUI.

    python docs/make_pictures.py               all of them, a few minutes on one core
    python docs/make_pictures.py steer mask    some of them, by the names of the files in web/docs/pictures

Run it again after the shipped weights have changed, and look at what comes out.
"""
from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from picture_painters import PAINTERS
from picture_world import ROOT, World

import torch
from torch import Tensor

FOLDER = ROOT / "web" / "docs" / "pictures"
MOST_BYTES = 60_000


def save(path: Path, image: Tensor) -> int:
    """Write (3, H, W) in [0, 1] as a JPEG of at most MOST_BYTES, as good as fits; returns its size in bytes."""
    import io

    from PIL import Image

    wide = Image.fromarray((image.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy())
    if wide.width > 1000:
        wide = wide.resize((1000, round(wide.height * 1000 / wide.width)), Image.Resampling.LANCZOS)
    for quality in range(92, 30, -4):
        data = io.BytesIO()
        wide.save(data, "JPEG", quality=quality, optimize=True, subsampling=0 if quality > 70 else 2)
        if data.tell() <= MOST_BYTES:
            path.write_bytes(data.getvalue())
            return data.tell()
    raise SystemExit(f"{path.name} does not fit {MOST_BYTES} bytes; show less in it")


def main(wanted: Sequence[str]) -> None:
    """Make the named pictures, or all."""
    unknown = [name for name in wanted if name not in PAINTERS]
    if unknown:
        raise SystemExit(f"There is no picture {', '.join(unknown)}; choose from {', '.join(PAINTERS)}.")
    logging.getLogger().setLevel(logging.ERROR)
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with torch.inference_mode():  # as in the server
        world = World()
        for name in wanted or PAINTERS:
            print(f"{name}: {save(FOLDER / f'{name}.jpg', PAINTERS[name](world))} bytes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
