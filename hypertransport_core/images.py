"""A user's own pictures: any file that Pillow reads to a float tensor, and tensors to PNG files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from .files import FileError, write_atomically


def load_picture(path: str | Path) -> Tensor:
    """Read a picture as (3, H, W) float32 in [0, 1].

    Any size and mode: greyscale, palette, 16 bit, float, CMYK; transparency is laid over white; the camera's rotation
    (EXIF) is applied; of an animation the first frame is taken. Raises FileError.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} is {'a folder' if path.is_dir() else 'not there'}, expected a picture file: check the "
                        "path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return _to_tensor(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileError(f"{path} is larger than {Image.MAX_IMAGE_PIXELS} pixels, expected a smaller picture: scale it "
                        "down") from error
    except Exception as error:  # decoders raise nearly every kind for broken data
        reason = str(error).splitlines()[0].rstrip(".").replace(f" {str(path)!r}",
                                                                "") if str(error) else type(error).__name__
        raise FileError(f"{path} cannot be read as a picture ({reason}), expected a whole PNG, JPEG, WebP or similar: "
                        "open it in a picture program and save it again") from error


def _to_tensor(picture: Any) -> Tensor:
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        # integer greys are 16-bit pictures, however dark; floats come in several ranges
        ranges = (1.0, 255.0, 65535.0) if picture.mode.startswith("F") else (65535.0,)
        return _grey_to_tensor(numpy.asarray(picture).astype(numpy.float32), ranges)
    if "A" in picture.getbands() or "transparency" in picture.info or picture.mode in ("PA", "La", "RGBa"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    values = numpy.array(picture.convert("RGB"), dtype=numpy.float32)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous() / 255.0


def _grey_to_tensor(values: numpy.ndarray, ranges: tuple[float, ...]) -> Tensor:
    """(H, W) greys to (3, H, W) in [0, 1]; white is the first of `ranges` that holds all values, or the brightest
    value."""
    values = numpy.nan_to_num(values, posinf=0.0, neginf=0.0).clip(min=0.0)
    brightest = float(values.max())
    white = next((limit for limit in ranges if brightest <= limit), brightest)
    return torch.from_numpy(values / numpy.float32(white)).expand(3, -1, -1).contiguous()


def save_picture(path: str | Path, image: Tensor, texts: Mapping[str, str] | None = None) -> None:
    """Write (3, H, W) floats in [0, 1] as an 8-bit PNG, whole or not at all; values outside are clipped.

    texts: written as PNG text entries. Raises FileError, for NaN as well.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise FileError(f"{path} was not written: the picture has the shape {tuple(image.shape)}, expected (3, height, "
                        "width): take one picture out of the batch")
    values = image.detach().float().cpu()
    if not torch.isfinite(values).all():
        raise FileError(f"{path} was not written: the picture holds NaN or infinite values, expected numbers in [0, "
                        "1]: lower the strength or run the model in a wider dtype")
    data = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_itxt(key, text)
    write_atomically(path, lambda temporary: Image.fromarray(data).save(temporary, format="PNG", pnginfo=info))
