"""Pictures as tensors, made ready for a vision tower: resize, centre crop, normalise. Needs neither Pillow nor
torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

CLIP_MEAN: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


def check_pictures(images: Tensor) -> Tensor:
    """Return `images` as float32 if they are RGB pictures (B, 3, H, W) with B, H, W >= 1; otherwise raise
    ValueError."""
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape) < 1:
        raise ValueError(f"pictures have the shape {tuple(images.shape)}, expected (batch, 3, height, width): "
                         "add the batch dimension, put channels second and drop an alpha channel")
    if not images.is_floating_point():
        raise ValueError(f"pictures are {images.dtype}, expected floats in [0, 1]: divide bytes by 255")
    images = images.float()
    if not torch.isfinite(images).all():
        raise ValueError("pictures hold NaN or infinite values, expected floats in [0, 1]: check the step that made "
                         "them")
    return images


def resize_and_crop(images: Tensor, size: int) -> Tensor:
    """Resize the shortest side to `size` (antialiased bicubic), then cut the centre square.

    images: (B, 3, H, W) floats in [0, 1], any H and W; returns (B, 3, size, size) float32 in [0, 1].
    """
    images = check_pictures(images)
    height, width = images.shape[-2:]
    # An endless strip would be enlarged in full before nearly all of it is cut away.
    if max(height, width) > 32 * min(height, width):
        side = 32 * min(height, width)
        images = centre_crop(images, min(height, side), min(width, side))
        height, width = images.shape[-2:]
    short = min(height, width)
    target = (size, int(size * width / short)) if height <= width else (int(size * height / short), size)
    if (height, width) != target:
        # uneven sizes of pictures in channels_last memory go wrong in some builds; contiguous is always right
        images = functional.interpolate(images.contiguous(), target, mode="bicubic", antialias=True,
                                        align_corners=False)
        images = images.clamp(0.0, 1.0)  # bicubic overshoots at sharp edges
    return centre_crop(images, size, size)


def centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """Cut the central (height, width) out of (..., H, W); H >= height and W >= width."""
    top = (images.shape[-2] - height) // 2
    left = (images.shape[-1] - width) // 2
    return images[..., top:top + height, left:left + width]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std per colour channel of (B, 3, H, W)."""
    mean_, std_ = (torch.tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1) for values
                   in (mean, std))
    return (images - mean_) / std_
