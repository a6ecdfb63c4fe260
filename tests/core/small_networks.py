"""Small networks with the module names of real families, filled with reproducible numbers, and random maps for them."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hypertransport_core.postcard.unet import PostcardUNet, UNetConfig
from hypertransport_core.sites import Site, find_sites, total_channels
from hypertransport_core.steering import Steering
from hypertransport_core.transport import TransportMaps


TWO_BLOCKS = tuple(Site(f"blocks.{i}.{name}", kind, 16) for i in (0, 1)
                   for name, kind in (("attn.proj", "self_attention"), ("mlp", "mlp")))


def two_blocks(seed: int = 0) -> nn.Module:
    """A tree of modules with the sites `TWO_BLOCKS`, for what looks at names and weights only."""
    torch.manual_seed(seed)

    def block() -> nn.ModuleDict:
        return nn.ModuleDict({"attn": nn.ModuleDict({"proj": nn.Linear(16, 16)}),
                              "mlp": nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))})

    return nn.ModuleDict({"blocks": nn.ModuleList([block(), block()])})


class Attention(nn.Module):
    """PixArt's: a composite that ends with `proj` and returns a tuple, as some attention modules do."""

    def __init__(self, width: int, as_tuple: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj, self.as_tuple = nn.Linear(width, 3 * width), nn.Linear(width, width), as_tuple

    def forward(self, x: Tensor):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out = self.proj(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v)
        return (out, None) if self.as_tuple else out


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=affine)
        self.attn = Attention(width, as_tuple=True)
        self.cross_attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=affine)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))[0]
        x = x + self.cross_attn(x)
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.norm_final, self.linear = nn.LayerNorm(width, elementwise_affine=affine), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm_final(x))


class SmallDiT(nn.Module):
    """Tokens (B, T, width) -> (B, T, width), with PixArt's names; affine norms can be folded, PixArt's own cannot."""

    def __init__(self, width: int = 8, depth: int = 2, affine: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, affine) for _ in range(depth)])
        self.final_layer = FinalLayer(width, affine)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.final_layer(x)


def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every parameter drawn anew, those that start at zero included, in well-behaved sizes."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            fan_in = p[0].numel() if p.ndim > 1 else 1
            p.copy_(noise / fan_in ** 0.5 if p.ndim > 1 else 0.1 * noise + (1.0 if "norm" in name else 0.0))
    return network.eval().requires_grad_(False)


def small_dit(**options) -> SmallDiT:
    return filled(SmallDiT(**options))


def small_unet() -> PostcardUNet:
    return filled(PostcardUNet(UNetConfig(in_channels=4, out_channels=4, model_channels=32, context_dim=16)))


def unet_inputs(batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 4, 8, 8, generator=g), torch.linspace(900, 500, batch),
            torch.randn(batch, 5, 16, generator=g))


def random_maps(sites: Sequence[Site], rows: int = 1, seed: int = 0, amount: float = 0.1) -> TransportMaps:
    g = torch.Generator().manual_seed(seed)
    width = total_channels(sites)
    scale, shift = (torch.randn(rows, width, generator=g) for _ in range(2))
    return TransportMaps(tuple(sites), 1 + amount * scale, amount * shift, {"seed": seed})


def traces(network: nn.Module) -> list[str]:
    """Modules on which something was left behind: an instance attribute `forward`, or hooks."""
    return [name for name, m in network.named_modules()
            if "forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks]


def network_case(name: str) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Site, ...]]:
    """The "unet" or the "dit", inputs of batch 3 for it, and all of its sites."""
    if name == "unet":
        network, inputs = small_unet(), unet_inputs(3)
    else:
        network, inputs = small_dit(), (torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0)),)
    return network, inputs, find_sites(network, "everything")


def steered(network: nn.Module, inputs: tuple, *steerings: Steering, **options) -> torch.Tensor:
    """One call with steerings nested in order."""
    if not steerings:
        return network(*inputs)
    with steerings[0].installed(network, **options):
        return steered(network, inputs, *steerings[1:], **options)
