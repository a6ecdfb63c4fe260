"""Small pictures as text, for the `modelspec.thumbnail` of a file, which model managers show."""
from __future__ import annotations

import base64
import io

import torch
from torch import Tensor

from .files import FileError

SIDES = (256, 192, 128, 64)  # pixels of the longer side, the first that fits is taken
MOST_BYTES = 64 * 1024  # a file's header should stay quick to read


def data_uri(picture: Tensor) -> str:
    """A picture (3, H, W) in [0, 1] of any size as "data:image/jpeg;base64,...", at most about 88 kB of text. Raises FileError."""
    from PIL import Image

    if picture.ndim != 3 or picture.shape[0] != 3:
        raise FileError(f"The thumbnail has the shape {tuple(picture.shape)}, expected (3, height, width): give a "
                         "picture with three colours")
    values = (picture.detach().float().cpu().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    image = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
    for side in SIDES:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
        if buffer.tell() <= MOST_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
