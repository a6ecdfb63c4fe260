"""How the starting noise decides what a caption leaves open.

The world is built so that picture = function(noise, caption): where the caption names no place, the subject stands where the
noise is brightest, and the warmth of the light is read off the noise too. Both are fixed linear projections of the noise that
a first layer can read; a network trained on such pairs has one right answer, learns straight paths, and needs one step.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .render import CENTRES

PATCH = 4  # side of the square of pixels that becomes channels
CHANNELS, LATENT_SIDE = 3 * PATCH**2, 16


def to_latents(images: Tensor) -> Tensor:
    """(B, 3, 64, 64) in [0, 1] -> (B, 48, 16, 16) in [-1, 1]."""
    return torch.nn.functional.pixel_unshuffle(images, PATCH) * 2 - 1


def to_images(latents: Tensor) -> Tensor:
    """(B, 48, 16, 16) -> (B, 3, 64, 64) float32, clamped to [0, 1]."""
    return torch.nn.functional.pixel_shuffle(latents.float().add(1).div(2), PATCH).clamp(0, 1)


def place_of(noise: Tensor) -> Tensor:
    """The place each noise (B, 48, 16, 16) chooses, int64 (B,): of the nine, the one whose 3 x 3 blocks are brightest."""
    mean = noise.mean(1)
    scores = [mean[:, y // PATCH - 2:y // PATCH + 1, x // PATCH - 2:x // PATCH + 1].mean((1, 2)) for x, y in CENTRES]
    return torch.stack(scores, 1).argmax(1)


def warmth_of(noise: Tensor) -> Tensor:
    """The warmth of the light, standard normal clamped to +-2, float32 (B,): red minus blue over the whole noise."""
    red, blue = noise[:, :16].sum((1, 2, 3)), noise[:, 32:].sum((1, 2, 3))
    return ((red - blue) / (2 * 16 * LATENT_SIDE ** 2) ** .5).clamp(-2, 2)
