"""Laying a picture mask on the activations of a site."""
from __future__ import annotations

import re

from torch import Tensor
from torch.nn.functional import interpolate, pad

from .sites import Site

# Blocks that see the tokens of text and picture in one row.
_JOINT = re.compile(r"(?:^|\.)single_blocks\.")


def mask_for(z: Tensor, site: Site, mask: Tensor, frames: int = 1, text_tokens: int | None = None) -> Tensor | None:
    """The mask, resized by area to an activation's grid, in a shape that broadcasts over it; None: z has no such grid.

    z: (B, C, H, W), or tokens (B, T, C); mask: (h, w) or (B, h, w) in [0, 1]. Tokens have a grid when they are the
    mask's picture at some patch size (see `token_grid`). Text tokens never have one, whatever their number. Tokens of a
    video are `frames` such grids in a row, and the mask is the same on each. Blocks that see text and picture together
    have a grid when it is known that `text_tokens` of text come first; on these the mask is 0.
    """
    joint = _JOINT.search(site.path) is not None
    text = (text_tokens or 0) if joint else 0
    if site.channel_dim == 1:
        grid = tuple(z.shape[-2:]) if z.ndim == 4 else None
    else:
        tokens = z.shape[1] - text if z.ndim == 3 and not (joint and text_tokens is None) else 0
        tokens = tokens // frames if tokens > 0 and tokens % frames == 0 else 0
        grid = token_grid(tokens, mask.shape[-2], mask.shape[-1]) if tokens and not site.is_text_stream else None
    if grid is None:
        return None
    resized = interpolate(mask.to(z.device).reshape(-1, 1, *mask.shape[-2:]), size=grid, mode="area")
    if site.channel_dim == 1:
        return resized
    return pad(resized.flatten(2).transpose(1, 2).repeat(1, frames, 1), (0, 0, text, 0))


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """(h, w) with h * w = tokens and the aspect of a mask of height × width, or None.

    Accepted: exactly the mask's aspect at any size, or the mask's size halved some times and rounded up, which is what
    strided convolutions and padded patches make of odd sizes.
    """
    h = round((tokens * height / width) ** 0.5)
    if h and tokens % h == 0 and h * width == (tokens // h) * height:
        return h, tokens // h
    step = 1
    while step <= max(height, width):
        h, w = -(-height // step), -(-width // step)
        if h * w == tokens:
            return h, w
        step *= 2
    return None
