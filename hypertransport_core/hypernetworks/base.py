"""What every hypernetwork shares: the way from raw outputs to transport maps, in units of the source statistics."""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..capture import floored_deviation
from ..files import sites_to_header
from ..sites import Site, total_channels
from ..transport import TransportMaps

# Within these a map stays monotone and invertible, so strength and inverse keep their meaning.
SCALE_RANGE = (0.1, 5.0)


class HypernetworkError(ValueError):
    """A config, embedding or source statistics that do not fit; the message is one sentence with the cure."""


def bounded_scale(raw: Tensor, limits: tuple[float, float] = SCALE_RANGE) -> Tensor:
    """A smooth increasing positive function of `raw` (any shape) with values within `limits`; at 0 it is exactly 1 and
    so is its slope."""
    low, high = (math.log(limit) for limit in limits)
    return torch.where(raw > 0, high * torch.tanh(raw / high), low * torch.tanh(raw / low)).exp()


def unbounded_scale(raw: Tensor) -> Tensor:
    """1 + raw (any shape): what a scale would be without limits, zero and negative ones among them."""
    return 1 + raw


SCALES: dict[str, Callable[[Tensor], Tensor]] = {"bounded": bounded_scale, "linear": unbounded_scale}


class Hypernetwork(nn.Module):
    """Concept embedding (B, E) -> `TransportMaps` with B rows; the identity, bit for bit, as long as it is untrained.

    Raw outputs (ρ, β) per channel become T(z) = μ + σ β + scale(ρ) (z - μ), that is shift = σ β + (1 - scale) μ, with
    the source mean μ and standard deviation σ as buffers of shape (steps, ΣC). Changing a scale then leaves the source
    mean in place, and β counts in standard deviations, which conditions the training (fresh: μ = 0, σ = 1, so shift =
    β).

    sites: the sites in order; embedding_dim: E; steps: how many sets of maps, one per sampling step; 1 serves all
    steps; scale: which of `SCALES` makes a scale of ρ; only with bounded ones has every map an inverse. Subclasses
    implement `raw(embedding, step) -> (B, 2 ΣC)`, all scales before all shifts, zero at the start, and set `kind`.
    Their constructor arguments become the config; only plain numbers and texts, please.
    """

    kind: ClassVar[str]
    source_mean: Tensor
    source_std: Tensor

    def __init__(self, sites: Sequence[Site], embedding_dim: int, *, steps: int = 1, scale: str = "bounded") -> None:
        super().__init__()
        if scale not in SCALES:
            raise HypernetworkError(f"A hypernetwork got the scale '{scale}'; choose one of {', '.join(SCALES)}.")
        self.scale = scale
        if not sites or embedding_dim < 1 or steps < 1:
            raise HypernetworkError(f"A hypernetwork got {len(sites)} sites, embeddings of width {embedding_dim} and "
                                    f"{steps} steps; each must be at least 1.")
        self.sites, self.embedding_dim, self.steps = tuple(sites), int(embedding_dim), int(steps)
        self.channels = total_channels(sites)
        self.register_buffer("source_mean", torch.zeros(steps, self.channels))
        self.register_buffer("source_std", torch.ones(steps, self.channels))

    def raw(self, embedding: Tensor, step: int) -> Tensor:
        """Raw outputs (B, 2 ΣC): ρ of all channels, then β of all channels."""
        raise NotImplementedError

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the last layer, which an optimiser may give a learning rate of their own."""
        raise NotImplementedError

    def trunk_parameters(self) -> list[nn.Parameter]:
        """All parameters but those of the last layer."""
        head = {id(parameter) for parameter in self.head_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in head]

    def set_source(self, mean: Tensor, std: Tensor) -> None:
        """Take μ and σ of the source (generic) class: (D,) or (S, D), D = ΣC or 2 ΣC, of which the first ΣC are used.

        S may be the number of steps, or any number for a hypernetwork of one step, which takes the average over S.
        Channels that hardly vary get a hundredth of the median σ, or their shift could never be learned.
        Raises HypernetworkError.
        """
        mean, std = (torch.atleast_2d(values.detach().float())[:, :self.channels] for values in (mean, std))
        fits = mean.shape[1] == self.channels and (self.steps == 1 or mean.shape[0] == self.steps)
        if mean.shape != std.shape or not fits:
            raise HypernetworkError(f"The source statistics have the shapes {tuple(mean.shape)} and "
                                    f"{tuple(std.shape)}, but this hypernetwork needs ({self.steps}, {self.channels}); "
                                    "collect them on its sites.")
        if not bool(mean.isfinite().all()) or not bool((std.isfinite() & (std >= 0)).all()):
            raise HypernetworkError("The source statistics hold values that are not finite or a negative standard "
                                    "deviation; collect them anew.")
        if self.steps == 1:
            mean, std = mean.mean(0, keepdim=True), std.square().mean(0, keepdim=True).sqrt()
        self.source_mean.copy_(mean)
        self.source_std.copy_(floored_deviation(std))

    def forward(self, embedding: Tensor, step: int | None = None) -> TransportMaps:
        """Maps of every embedding (B, E), B rows, fp32. `step` names the sampling step where `steps` > 1.

        Raises HypernetworkError.
        """
        if embedding.ndim != 2 or embedding.shape[1] != self.embedding_dim:
            raise HypernetworkError(f"The embedding has shape {tuple(embedding.shape)}, but must be (B, "
                                    f"{self.embedding_dim}); use the encoder that this hypernetwork was trained with.")
        if self.steps == 1:
            step = 0
        elif step is None or not 0 <= step < self.steps:
            raise HypernetworkError(f"This hypernetwork has maps for {self.steps} steps, but step is {step}; choose 0 "
                                    f"to {self.steps - 1}.")
        # Under autocast the last layer gives half precision; maps are fp32 by contract.
        rho, beta = self.raw(embedding.float(), step).float().split(self.channels, dim=1)
        scale = SCALES[self.scale](rho)
        shift = self.source_std[step] * beta + (1 - scale) * self.source_mean[step]
        return TransportMaps(self.sites, scale, shift, {"operation": "hypernetwork", "kind": self.kind})

    def all_steps(self, embedding: Tensor) -> list[TransportMaps]:
        """The maps of every embedding (B, E) for every step: `steps` maps of B rows. Raises HypernetworkError."""
        return [self(embedding, step) for step in range(self.steps)]

    def config(self) -> dict[str, Any]:
        """What `build_hypernetwork` needs to make the same network, JSON-able: kind, sites and constructor
        arguments."""
        arguments = [name for name in inspect.signature(type(self)).parameters if name != "sites"]
        return {"kind": self.kind, "sites": sites_to_header(self.sites),
                **{name: getattr(self, name) for name in arguments}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Hypernetwork:
        """A fresh network from `config()`. Raises HypernetworkError for unknown or missing keys and unusable values."""
        arguments = {key: value for key, value in config.items() if key != "kind"}
        known = inspect.signature(cls).parameters
        unknown = sorted(arguments.keys() - known.keys())
        missing = sorted(name for name in ("sites", "embedding_dim") if name in known and name not in arguments)
        if unknown or missing:
            what = f"the unknown key '{unknown[0]}'" if unknown else f"no key '{missing[0]}'"
            raise HypernetworkError(f"The config of a '{cls.kind}' hypernetwork has {what}; its keys are "
                                    f"{', '.join(known)}.")
        try:
            sites = tuple(s if isinstance(s, Site) else Site(str(s[0]), str(s[1]), int(s[2]), int(s[3]))
                          for s in arguments["sites"])
            return cls(**{**arguments, "sites": sites})
        except HypernetworkError:
            raise
        except (TypeError, ValueError, IndexError, KeyError, RuntimeError) as error:
            raise HypernetworkError(f"The config of a '{cls.kind}' hypernetwork cannot be used ({error}); correct it "
                                    "or use the one in its weights file.") from error


class FreeMaps(Hypernetwork):
    """No network at all: the raw outputs of each of `concepts` rows are parameters, and the embedding is only counted.

    What LinEAS optimises (arXiv 2503.10679), in the parametrisation of the hypernetworks. Zero at the start: the
    identity.
    """

    kind = "free"

    def __init__(self, sites: Sequence[Site], embedding_dim: int = 1, *, steps: int = 1, concepts: int = 1) -> None:
        super().__init__(sites, embedding_dim, steps=steps)
        self.concepts = int(concepts)
        self.values = nn.Parameter(torch.zeros(self.steps, self.concepts, 2 * self.channels))

    def raw(self, embedding: Tensor, step: int) -> Tensor:
        """The parameters of a step, (concepts, 2 ΣC); the embedding must have `concepts` rows."""
        if embedding.shape[0] != self.concepts:
            raise HypernetworkError(f"Got {embedding.shape[0]} embeddings for the free maps of {self.concepts} "
                                    "concepts; give as many.")
        return self.values[step]

    def head_parameters(self) -> list[nn.Parameter]:
        """The free maps themselves."""
        return [self.values]
