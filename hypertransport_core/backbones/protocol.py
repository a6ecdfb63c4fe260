"""What training, evaluation and generation need of a text-to-image model, whatever its family."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..sites import Site
from ..steering import Steering

Conditioning = Any
"""What a backbone's `encode` makes of B prompts and its own calls take: a Tensor (B, T, D), or what has a `shape`, is
indexed by rows and goes `.to` a device as one does."""


@runtime_checkable
class Backbone(Protocol):
    """A frozen text-to-image model. Noise levels t run from 1 (pure noise) to 0 (the picture).

    family: name of the architecture, written into files. network: the module whose sites are steered; one call of
    `denoise` calls it once. latent_shape: of one row, without the batch. steps_default: sampling steps when none are asked for.
    """

    @property
    def family(self) -> str: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    @property
    def steps_default(self) -> int: ...

    def sites(self, site_set: str = "attention_mlp", pattern: str | None = None) -> tuple[Site, ...]:
        """The steerable places of `network`, see `find_sites`."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What tells these weights from others, JSON-able, see `files.network_fingerprint`."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """B prompts -> conditioning of B rows, without gradient."""
        ...

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """B seeds -> standard normal (B, *latent_shape) float32; row i depends on seeds[i] only, on every machine."""
        ...

    def noise_levels(self, steps: int) -> list[float]:
        """The steps + 1 levels of a sampling run, descending, the last 0.0."""
        ...

    def denoise(self, x: Tensor, level: float, conditioning: Conditioning) -> Tensor:
        """Predicted clean latents (B, *latent_shape) of x at a noise level. Gradients flow; steering is the caller's."""
        ...

    def sample(self, conditioning: Conditioning, noise: Tensor, steps: int = 4, steering: Sequence[Steering] = (),
               rows: Tensor | None = None, start: float = 1.0) -> Tensor:
        """Latents (B, *latent_shape). steering acts in its order at every network call; rows: as of `Steering.installed`;
        start: the noise level that `noise` has, below 1 when it is a noised picture."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures (B, 3, H, W) in [0, 1]."""
        ...
