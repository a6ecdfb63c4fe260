"""Models of the host's own classes at the size of their checkpoints, bf16, random weights, made in seconds.

    host = large_host("sdxl", px=256)     # 2.57 G parameters, 5.2 GB
    picture = host.sample(steps=1, cfg=1.0)

For what depends on size: memory, time, whether it runs at all. Import only where the host is there.
"""

from __future__ import annotations

import comfy.model_management as management
import comfy.supported_models as supported
import torch
from comfy.model_patcher import ModelPatcher

import tiny_hosts
from pack import pack_module

CONFIGS = {"pixart": ("PixArtAlpha", 4096, 0), "sdxl": ("SDXL", 2048, 1280)}
BLOCK = 1 << 22  # random numbers drawn once and used over and over: drawing billions would take minutes


def large_host(name: str, px: int, device: torch.device | str | None = None) -> tiny_hosts.TinyHost:
    """Full-size PixArt ("pixart") or SDXL ("sdxl") for pictures of `px` pixels, on a device (the host's own choice)."""
    families = pack_module("hypertransport_core.backbones.families").FAMILIES
    config_class, context, pooled = CONFIGS[name]
    family = tiny_hosts.Family(config_class, dict(families[name].config), (4, px // 8, px // 8), context, pooled)
    return built(f"large {name}", family, device)


def small_host(name: str, device: torch.device | str | None = None) -> tiny_hosts.TinyHost:
    """The small model of a family, made in the same way and dtype, to try scripts with."""
    family = tiny_hosts.FAMILIES[name]
    return built(f"small {name}", family, device)


def built(name: str, family: tiny_hosts.Family, device: torch.device | str | None = None) -> tiny_hosts.TinyHost:
    """A family's model in bf16, known to `tiny_hosts` under a name from now on."""
    tiny_hosts.FAMILIES[name] = family
    target = torch.device(device) if device is not None else management.get_torch_device()
    config = getattr(supported, family.config_class)(dict(family.config))
    config.set_inference_dtype(torch.bfloat16, None)
    base = config.get_model({}, "", device=target).eval().requires_grad_(False)
    base.to(target)
    fill_quickly(base.diffusion_model, target)
    return tiny_hosts.TinyHost(
        name, ModelPatcher(base, load_device=target, offload_device=management.unet_offload_device())
    )


@torch.no_grad()
def fill_quickly(network: torch.nn.Module, device: torch.device) -> None:
    """As `tiny_hosts.fill`, weights that keep activations of moderate size, but from one pool of random numbers; every
    parameter begins elsewhere in it."""
    pool = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    named = [*network.named_parameters(), *((n, b) for n, b in network.named_buffers() if n.endswith("pos_embed"))]
    start = 0
    for name, value in named:
        gain = name.rsplit(".", 1)[-1] in ("weight", "scale") and value.ndim == 1
        factor = max(1, value[0].numel()) ** -0.5 if value.ndim > 1 else 0.1
        flat = value.view(-1)
        for part in flat.split(BLOCK):
            first = pool[start : start + part.numel()]
            part[: first.numel()].copy_(first)
            part[first.numel() :].copy_(pool[: part.numel() - first.numel()])
            start = (start + part.numel() + 7919) % BLOCK
        flat.mul_(factor).add_(1.0 if gain else 0.0)
