"""The table of docs/training.md on memory: full-size networks on meta tensors, through the code of the plan.

    python docs/memory_table.py [family ...]

Needs ComfyUI, no weights and no GPU. Shapes are exact; attention counts as a fused kernel (inputs, output and one
number a row and head are kept), because on meta tensors PyTorch would count the whole matrix that no GPU makes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypertransport_core.backbones.families import family_network
from hypertransport_core.sites import find_sites, total_channels
from hypertransport_core.training.config import TrainingConfig
from hypertransport_core.training.host_recipes import RECIPES
from hypertransport_core.training.memory import GB, hypernetwork_bytes, hypernetwork_of, measured_call

# Preset, latent channels, text tokens and their width, keyword arguments beside.
FAMILIES: dict[str, tuple[str, int, tuple[int, int], dict[str, tuple[int, ...]]]] = {
    "sdxl": ("sdxl", 4, (77, 2048), {"y": (2816,)}),
    "pixart": ("nitro-pixart", 4, (120, 4096), {}),
    "sd15": ("sd15", 4, (77, 768), {}),
    "flux": ("flux-dev", 16, (256, 4096), {"y": (768,), "guidance": ()}),
}
CONCEPTS, EMBEDDING = 777, 768


class FusedAttention(torch.autograd.Function):
    """What a fused kernel makes and keeps, without computing anything."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(value) for value in ctx.saved_tensors[:3])


def fused(q: Tensor, k: Tensor, v: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return FusedAttention.apply(q, k, v)


class MetaBackbone:
    """A full-size network on meta tensors, as far as the plan asks of a backbone."""

    def __init__(self, family: str, network: nn.Module, side: int) -> None:
        _, channels, self.tokens, self.others = FAMILIES[family]
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


def rows_of(family: str, site_set: str) -> None:
    recipe = RECIPES[FAMILIES[family][0]].all_settings
    # The network is bf16 as a whole here; there is no autocast on meta tensors.
    config = TrainingConfig().with_values(
        {**recipe, "site_set": site_set, "precision": "fp32", "gradient_checkpointing": False}
    )
    network = family_network(family).to(torch.bfloat16)
    sites = find_sites(network, site_set)
    weights = sum(parameter.numel() for parameter in network.parameters())
    statistics = CONCEPTS * config.blocks * total_channels(sites) * 2
    states, graph = hypernetwork_bytes(config, sites, EMBEDDING)
    size = sum(parameter.numel() for parameter in hypernetwork_of(config, sites, EMBEDDING).parameters())
    for side in (512, 1024):
        backbone = MetaBackbone(family, network, side)
        calls = [
            measured_call(backbone, config.with_values({"gradient_checkpointing": on}), sites, "", True)
            for on in (False, True)
        ]
        fixed = weights * 2 + states + graph
        n = config.samples_per_concept
        whole = [(fixed + call.of(rows)) / GB for call, rows in ((calls[0], n), (calls[1], n), (calls[1], 1))]
        cells = [f"{family} `{site_set}`", f"{side}", f"{statistics / GB:.2f}", f"{weights * 2 / GB:.1f}"]
        cells += [f"{size / 1e6:.0f} M, {(states + graph) / GB:.1f}"]
        cells += [f"{call.per_row / GB:.2f}" for call in calls] + [f"{each:.0f}" for each in whole]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()


def main() -> None:
    from hypertransport_core.backbones import host

    host.make_importable()
    import comfy.ldm.modules.attention as attention

    if attention.optimized_attention is not attention.attention_pytorch:
        raise SystemExit("ComfyUI chose another attention than PyTorch's, expected --use-pytorch-cross-attention.")
    torch.nn.functional.scaled_dot_product_attention = fused  # which the host looks up at each call
    for family in sys.argv[1:] or FAMILIES:
        for site_set in ("norm", "attention_mlp"):
            rows_of(family, site_set)


if __name__ == "__main__":
    main()
