"""The Postcard model as a `Backbone`: its UNet, its CLIP, and Euler sampling of the flow between noise and picture."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..network_state import built
from ..sites import Site, find_sites
from ..steering import Steering
from .clip import PostcardCLIP
from .coupling import PATCH, to_images, to_latents
from .unet import PostcardUNet, UNetConfig

__all__ = ["KIND", "PATCH", "TIMESTEPS", "PostcardBackbone", "load_network"]

KIND = "postcard_model"
TIMESTEPS = 1000  # the network's time at noise level 1


class PostcardBackbone:
    """64 x 64 pictures from captions. x_t = (1 - t) x0 + t noise; the network predicts x0 (rectified flow, Liu et al. 2022)."""

    family = "postcard"
    steps_default = 4

    def __init__(self, network: PostcardUNet, clip: PostcardCLIP, side: int = 16) -> None:
        """Freezes both and puts them in evaluation mode. side: of the latents, a quarter of the picture's."""
        self.network = network.eval().requires_grad_(False)
        self.clip = clip.eval().requires_grad_(False)
        self.latent_shape = (network.config.in_channels, side, side)

    @classmethod
    def load(cls, path: str | Path, clip: PostcardCLIP | str | Path, *, dtype: torch.dtype = torch.float32) -> PostcardBackbone:
        """Read a `postcard_model` file; the network goes to the device of `clip` (a model or its file). Raises FileError."""
        clip = clip if isinstance(clip, PostcardCLIP) else PostcardCLIP.load(clip)
        return cls(load_network(path, dtype=dtype).to(clip.device), clip)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        return next(self.network.parameters())

    def sites(self, site_set: str = "attention_mlp", pattern: str | None = None) -> tuple[Site, ...]:
        """The steerable places of the network, see `find_sites`. Raises SiteError."""
        return find_sites(self.network, site_set, pattern=pattern)

    def fingerprint(self, sites: Sequence[Site] | None = None) -> dict[str, Any]:
        """What tells these weights from others, see `files.network_fingerprint`; over all sites unless some are given."""
        return files.network_fingerprint(self.network, self.sites("everything") if sites is None else sites)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> text states (B, 24, 192)."""
        return self.clip.text_tokens(self.clip.tokenize(prompts)[0])

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """B seeds -> standard normal (B, 48, 16, 16) float32; row i depends on seeds[i] only, also on a GPU."""
        rows = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return torch.stack(rows).to(self.device) if rows else torch.empty(0, *self.latent_shape, device=self.device)

    def noise_levels(self, steps: int, start: float = 1.0) -> list[float]:
        """steps + 1 equally spaced levels from `start` to 0.0. Raises ValueError for less than one step or a start outside (0, 1]."""
        if steps < 1:
            raise ValueError(f"the number of steps is {steps}, expected at least 1: use {self.steps_default}")
        if not 0.0 < start <= 1.0:
            raise ValueError(f"the first noise level is {start}, expected more than 0 and at most 1: use 1 for pure noise")
        return [start * (steps - i) / steps for i in range(steps + 1)]

    def denoise(self, x: Tensor, level: float, conditioning: Tensor) -> Tensor:
        """Predicted clean latents of x (B, 48, 16, 16) at a noise level, in x's dtype. One row of conditioning serves all.

        Gradients flow to x, to the conditioning and to whatever is installed.
        """
        weight = self._weight
        if conditioning.shape[0] == 1 < x.shape[0]:
            conditioning = conditioning.expand(x.shape[0], -1, -1)
        time = torch.full((x.shape[0],), TIMESTEPS * float(level), device=x.device)
        return self.network(x.to(weight.dtype), time, conditioning.to(weight)).to(x.dtype)

    def sample(self, conditioning: Tensor, noise: Tensor, steps: int = 4, steering: Sequence[Steering] = (),
               rows: Tensor | None = None, start: float = 1.0) -> Tensor:
        """Euler's method from `noise` (B, 48, 16, 16) at level `start` to latents of the same shape; gradients flow.

        steering: installed around every network call at that call's noise level, the first acts first. rows: which rows of
        the batch are steered or which map row each uses, see `Steering.installed`. start: below 1, `noise` is a picture
        noised to that level. Raises ValueError, SteeringError.
        """
        levels = self.noise_levels(steps, start)
        x = noise
        for level, following in zip(levels, levels[1:]):
            with ExitStack() as stack:
                for one in steering:
                    stack.enter_context(one.installed(self.network, noise_level=level, batch=x.shape[0], rows=rows))
                x0 = self.denoise(x, level, conditioning)
            # The Euler step x + (following - level) (x - x0) / level, in the form that ends exactly at x0.
            x = torch.lerp(x0, x, following / level) if following else x0
        return x

    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) in [0, 1] -> latents (B, 48, 16, 16), the exact inverse of `decode` up to its clamp."""
        return to_latents(pictures.to(self.device))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 48, 16, 16) -> pictures (B, 3, 64, 64) float32 in [0, 1]; gradients flow where none is clamped."""
        return to_images(latents)


def load_network(path: str | Path, *, dtype: torch.dtype = torch.float32) -> PostcardUNet:
    """The UNet of a `postcard_model` file, on the CPU. Raises FileError."""
    tensors, header = files.load_file(path, KIND)
    config = header.get("config")
    if not isinstance(config, dict):
        raise files.FileError(f"{path} has no 'config' in its header, expected the dimensions of a Postcard network: "
                              "download or train the file again")
    network = built(lambda: PostcardUNet(UNetConfig.from_dict(config)), config, tensors, path)
    return network.to(dtype)
