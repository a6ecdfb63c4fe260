"""A concept slider: a low-rank change of every linear layer, fitted to one concept (Gandikota et al., arXiv 2311.12092).

There the changed network under a neutral prompt learns to predict what the untouched one predicts under it, moved from
an opposite prompt towards the concept's; here the prompt with the concept alone is the target, as a concept has no
opposite, which is the paper's target at guidance 1.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import load_file, save_file
from ..measuring import device_of, frozen, levels_of, next_latents, prompt_per_seed
from ..steering import shadowed
from .moments import FitError

RANK = 4  # as its authors
KIND = "low_rank"


@dataclass(frozen=True)
class LowRank:
    """What is added to linear layers: {module path: (down (rank, inputs), up (outputs, rank))}, fp32; facts about it."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    info: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def installed(self, network: nn.Module, strength: float = 1.0) -> Iterator[None]:
        """Inside the block, layer(x) is layer(x) + strength · up(down(x)); afterwards all is as it was. Strength 0
        installs nothing. Raises SiteError where the network lacks a layer."""
        makers = {path: _added(down, up, strength) for path, (down, up) in self.layers.items()}
        with shadowed(network, makers if strength != 0 else {}):
            yield

    def save(self, path: str | Path) -> None:
        """Raises FileError."""
        tensors = {f"{name}.{part}": tensor for name, pair in self.layers.items() for part, tensor in zip(PARTS, pair)}
        save_file(path, tensors, KIND, dict(self.info))

    @classmethod
    def load(cls, path: str | Path) -> LowRank:
        """Raises FileError."""
        tensors, info = load_file(path, KIND)
        names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        return cls({name: (tensors[f"{name}.{PARTS[0]}"], tensors[f"{name}.{PARTS[1]}"]) for name in names}, info)


PARTS = ("down", "up")


def slider_lora(backbone: Any, source_prompts: Sequence[str], target_prompts: Sequence[str], seeds: Sequence[int], *,
                iterations: int = 200, batch: int = 4, learning_rate: float = 2e-3, rank: int = RANK, steps: int = 4,
                seed: int = 0, progress: Callable[[int, float], None] | None = None) -> LowRank:
    """Fit one concept by Adam with a cosine: the mean square distance of predicted clean latents, at a noise level of
    `steps` sampling steps drawn anew each iteration and reached with the change in place, as its authors do.

    Sample i is source and target prompt i, prompts repeating in order; its noise is new in every iteration. The same
    seed gives the same result. progress(iteration, loss): after every iteration; what it raises cancels the fit. Raises
    FitError, MeasureError.
    """
    if not 1 <= batch <= len(seeds) or iterations < 1 or rank < 1:
        raise FitError(f"Got a batch of {batch}, {iterations} iterations and rank {rank}, expected a batch from 1 to "
                       f"{len(seeds)} and positive numbers.")
    device, levels = device_of(backbone), levels_of(backbone, steps)
    generator = torch.Generator().manual_seed(seed)
    change = LowRank(_fresh(backbone.network, rank, generator, device))
    trained = [tensor.requires_grad_() for pair in change.layers.values() for tensor in pair]
    optimiser = torch.optim.Adam(trained, lr=learning_rate)
    with frozen(backbone.network):
        source, target = (backbone.encode(prompt_per_seed(prompts, seeds)).to(device)
                          for prompts in (source_prompts, target_prompts))
        for iteration in range(iterations):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * (1 + math.cos(math.pi * iteration / iterations)) / 2
            chosen = torch.randperm(len(seeds), generator=generator)[:batch].to(device)
            last = int(torch.randint(len(levels), (), generator=generator))
            x = backbone.noise(torch.randint(2**31, (batch,), generator=generator).tolist()).to(device)
            with torch.no_grad():
                with change.installed(backbone.network):
                    for level, following in zip(levels[:last], levels[1:]):
                        x = next_latents(x, backbone.denoise(x, level, source[chosen]), level, following)
                wanted = backbone.denoise(x, levels[last], target[chosen])
            with torch.enable_grad(), change.installed(backbone.network):
                loss = (backbone.denoise(x, levels[last], source[chosen]) - wanted).square().mean()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FitError(f"The loss became {value} at iteration {iteration + 1}; the learning rate is "
                               f"{learning_rate:g}, lower it.")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            if progress:
                progress(iteration + 1, value)
    info = {"operation": "slider_lora", "samples": len(seeds), "iterations": iterations, "batch": batch, "rank": rank,
            "learning_rate": learning_rate, "steps": steps, "seed": seed}
    return LowRank({path: (down.detach().cpu(), up.detach().cpu()) for path, (down, up) in change.layers.items()}, info)


def _fresh(network: nn.Module, rank: int, generator: torch.Generator, device: torch.device,
           ) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every linear layer: `down` uniform, as fresh linear layers are, `up` zero, so that nothing is changed yet."""
    layers = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear):
            bound = (3 / module.in_features) ** 0.5
            down = (2 * torch.rand(rank, module.in_features, generator=generator) - 1) * bound
            layers[path] = (down.to(device), torch.zeros(module.out_features, rank, device=device))
    if not layers:
        raise FitError("The network has no linear layers, expected at least one to change: fit maps instead.")
    return layers


def _added(down: Tensor, up: Tensor, strength: float) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A maker for `shadowed`; computes in the dtype of the layer's output."""

    def make(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def changed(x: Tensor) -> Tensor:
            output = forward(x)
            first, second = (part.to(output.device, output.dtype) for part in (down, up))
            return output + strength * nn.functional.linear(nn.functional.linear(x.to(output.dtype), first), second)

        return changed

    return make
