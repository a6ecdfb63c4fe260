"""The table "What to expect" of docs/training.md: full-size networks on meta tensors, through the code of the plan.

    python docs/expect_table.py [preset ...]

Needs ComfyUI, no weights and no GPU. Shapes are exact, so are multiplications; attention counts as a fused kernel
(inputs, output and one number a row and head are kept), because on meta tensors PyTorch would count the whole matrix
that no GPU makes. Hours are work divided by a third of a card's peak, as its data sheet says it for dense bf16.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypertransport_core.backbones.families import family_network
from hypertransport_core.sites import Site, find_sites, total_channels
from hypertransport_core.training import memory
from hypertransport_core.training.config import TrainingConfig
from hypertransport_core.training.host_recipes import RECIPES

# Of each family: latent channels, text tokens and their width, keyword arguments beside.
FAMILIES: dict[str, tuple[int, tuple[int, int], dict[str, tuple[int, ...]]]] = {
    "sdxl": (4, (77, 2048), {"y": (2816,)}),
    "pixart": (4, (120, 4096), {}),
    "sd15": (4, (77, 768), {}),
    "flux": (16, (256, 4096), {"y": (768,), "guidance": ()}),
}
PRESETS = {
    "dmd2": "sdxl", "dmd2-1step": "sdxl", "dmd2-lora": "sdxl", "nitro-pixart": "pixart", "sdxl": "sdxl", "sd15": "sd15",
    "flux-schnell": "flux", "flux-dev": "flux",
}  # fmt: skip
CARDS = {"RTX 4090": (165e12, 24), "A100": (312e12, 80), "H100": (989e12, 80)}  # dense bf16 a second, GB
SHARE = 1 / 3
CONCEPTS, VALIDATION, WIDTH = 776, 61, 768  # beside the generic class; of the shipped list; of ViT-L/14
ENCODER = 428e6 * 4  # ViT-L/14 in fp32
GB = memory.GB


class FusedAttention(torch.autograd.Function):
    """What a fused kernel makes and keeps, and how much it multiplies, without computing anything."""

    multiplied = 0

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        ctx.product = 2 * q.numel() * k.shape[-2]
        FusedAttention.multiplied += 2 * ctx.product
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        FusedAttention.multiplied += 5 * ctx.product  # the scores once more, and four gradients
        return tuple(torch.empty_like(value) for value in ctx.saved_tensors[:3])


def fused(q: Tensor, k: Tensor, v: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return FusedAttention.apply(q, k, v)


class MetaBackbone:
    """A full-size network on meta tensors, as far as the plan asks of a backbone."""

    def __init__(self, family: str, network: nn.Module, side: int) -> None:
        channels, self.tokens, self.others = FAMILIES[family]
        self.network, self.latent_shape = network, (channels, side // 8, side // 8)

    def noise(self, seeds: Any) -> Tensor:
        return torch.empty(len(seeds), *self.latent_shape, device="meta")

    def encode(self, prompts: Any) -> Tensor:
        return torch.empty(len(prompts), *self.tokens, device="meta")

    def noise_levels(self, steps: int) -> list[float]:
        return [1.0, 0.0]

    def denoise(self, x: Tensor, level: float, conditioning: Tensor) -> Tensor:
        rows, dtype = len(x), torch.bfloat16
        others = {name: torch.empty(rows, *shape, device="meta", dtype=dtype) for name, shape in self.others.items()}
        time = torch.empty(rows, device="meta", dtype=dtype)
        from hypertransport_core.backbones.host_backbone import safe_norms

        with safe_norms(self.network):
            return self.network(x.to(dtype), time, conditioning.to(dtype), **others).float()


@dataclass(frozen=True)
class Calls:
    """One family at one size. weights: parameters; training, outside: memory of a call with and without gradient; step,
    forward: floating-point operations of a sample in them."""

    weights: int
    sites: tuple[Site, ...]
    training: memory.Growth
    outside: memory.Growth
    step: float
    forward: float


@cache
def calls_of(family: str, site_set: str, side: int) -> Calls:
    config = TrainingConfig().with_values(settings("sdxl"))
    network = family_network(family).to(torch.bfloat16)
    backbone, sites = MetaBackbone(family, network, side), find_sites(network, site_set)
    found = []
    for gradient in (True, False):
        growth: Any = memory.measured_call(backbone, config, sites, "", gradient)
        FusedAttention.multiplied = 0
        with FlopCounterMode(display=False) as counter:  # which keeps tensors alive, so not while memory is measured
            memory.measured_call(backbone, config, sites, "", gradient)
        found.append((growth, (counter.get_total_flops() + FusedAttention.multiplied) / 3))  # of one sample and of two
    (training, step), (outside, forward) = found
    return Calls(memory.parameters(network), sites, training, outside, step, forward)


def settings(preset: str) -> dict[str, Any]:
    """The preset's; the network is bf16 as a whole here, as there is no autocast on meta tensors."""
    return {**RECIPES[preset].all_settings, "preset": preset, "precision": "fp32"}


def row_of(preset: str) -> str:
    family, config = PRESETS[preset], TrainingConfig().with_values(settings(preset))
    calls = calls_of(family, config.site_set, RECIPES[preset].resolution)
    levels, width = config.sampling_steps, total_channels(calls.sites)
    size = memory.parameters(memory.hypernetwork_of(config, calls.sites, WIDTH))
    statistics = CONCEPTS * levels * config.blocks * width * 2
    checkpoints = 4 * size * (4 * (config.keep_last + 1) + 1)
    plan = plan_of(family, config, calls)
    rows = config.concepts_per_step * config.samples_per_concept
    collecting = (CONCEPTS + 1) * config.prompts_per_concept * levels * calls.forward
    training = config.steps * rows * (calls.step + (levels - 1) / 2 * calls.forward)
    work = collecting + training
    hours = ["–" if plan.peak > room * GB else in_hours(work / (SHARE * peak)) for peak, room in CARDS.values()]
    cells = [f"`{preset}`", f"{statistics / GB:.1f}", f"{checkpoints / GB:.1f}", f"{size * 2 / 1e6:.0f} MB"]
    cells += [f"{plan.peak / GB:.0f}", f"{plan.least / GB:.0f}", f"{calls.forward / 1e12:.1f}"]
    cells += [f"{collecting / 1e15:,.0f}", f"{training / 1e15:,.0f}", *hours]
    return f"| {' | '.join(cells)} |"


def in_hours(seconds: float) -> str:
    return f"{seconds / 3600:.0f}" if seconds > 36000 else f"{seconds / 3600:.1f}"


def plan_of(family: str, config: TrainingConfig, calls: Calls) -> memory.DevicePlan:
    states, graph = memory.hypernetwork_bytes(config, calls.sites, WIDTH)
    backbone: Any = MetaBackbone(family, nn.Module(), RECIPES[config.preset].resolution)
    world: Any = SimpleNamespace(backbone=backbone, concepts=SimpleNamespace(validation=range(VALIDATION)))
    data: Any = SimpleNamespace(sites=calls.sites, levels=range(config.sampling_steps))
    return memory.DevicePlan(
        weights=2 * calls.weights, encoders=int(ENCODER), program=0, outside=calls.outside, batch=config.batch,
        states=states, graph=graph, material=memory._material(world, data, config, ""), training=calls.training,
        rows=config.rows_per_pass(),
    )  # fmt: skip


def main() -> None:
    from hypertransport_core.backbones import host

    host.make_importable()
    import comfy.ldm.modules.attention as attention

    if attention.optimized_attention is not attention.attention_pytorch:
        raise SystemExit("ComfyUI chose another attention than PyTorch's, expected --use-pytorch-cross-attention.")
    torch.nn.functional.scaled_dot_product_attention = fused  # which the host looks up at each call
    for preset in sys.argv[1:] or PRESETS:
        sys.stdout.write(row_of(preset) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
