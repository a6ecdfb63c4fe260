"""A real, small, untrained backbone: a two-block UNet in ldm names behind the `Backbone` protocol, for tests of the
core."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hypertransport_core.files import network_fingerprint
from hypertransport_core.sites import Site, find_sites
from hypertransport_core.steering import Steering

CHANNELS, CONTEXT, TOKENS = 8, 6, 4


class Attention(nn.Module):
    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(context, 2 * width)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.to_kv(context).chunk(2, -1)
        return self.to_out(functional.scaled_dot_product_attention(self.to_q(x), k, v))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2, self.ff = Attention(width, width), Attention(width, CONTEXT), FeedForward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        seen = self.norm1(x)
        x = x + self.attn1(seen, seen)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class TinyUNet(nn.Module):
    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.time = nn.Linear(1, CHANNELS)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(latent_channels, CHANNELS, 3, padding=1)]),
                                           nn.ModuleList([nn.Identity(), SpatialTransformer(CHANNELS)])])
        self.middle_block = nn.ModuleList([nn.Identity(), SpatialTransformer(CHANNELS)])
        self.out = nn.Sequential(nn.GroupNorm(2, CHANNELS), nn.SiLU(),
                                 nn.Conv2d(CHANNELS, latent_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        h = self.input_blocks[0][0](x) + self.time(timesteps[:, None] / 1000)[:, :, None, None]
        h = self.input_blocks[1][1](h, context)
        h = self.middle_block[1](h, context)
        return self.out(h)


class TinyBackbone:
    """Random weights from a seed. Every word has a fixed random vector, so prompts differ by their words; float32,
    CPU."""

    family, steps_default, latent_shape = "tiny", 2, (3, 4, 4)

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = TinyUNet(self.latent_shape[0]).eval()
        self.calls = 0  # calls: of the network, for tests of cost and resumption

    def sites(self, site_set: str = "attention_mlp", pattern: str | None = None) -> tuple[Site, ...]:
        return find_sites(self.network, site_set, pattern=pattern)

    def fingerprint(self) -> dict[str, Any]:
        return network_fingerprint(self.network, self.sites("everything"))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        words = [(prompt.split() + [""] * TOKENS)[:TOKENS] for prompt in prompts]
        return torch.stack([torch.stack([_word(word) for word in row]) for row in words])

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(self.latent_shape,
                                        generator=torch.Generator().manual_seed(int(s))) for s in seeds])

    def noise_levels(self, steps: int) -> list[float]:
        return [1 - i / steps for i in range(steps + 1)]

    def denoise(self, x: Tensor, level: float, conditioning: Tensor) -> Tensor:
        self.calls += 1
        return self.network(x, torch.full((x.shape[0],), 1000 * level), conditioning)

    @torch.no_grad()
    def sample(self, conditioning: Tensor, noise: Tensor, steps: int = 4, steering: Sequence[Steering] = ()) -> Tensor:
        x, levels = noise, self.noise_levels(steps)
        for level, following in zip(levels, levels[1:]):
            clean = _steered(self, list(steering), x, level, conditioning)
            x = clean + (x - clean) * following / level
        return x

    def decode(self, latents: Tensor) -> Tensor:
        return latents.sigmoid()


def _steered(backbone: TinyBackbone, steering: list[Steering], x: Tensor, level: float, conditioning: Tensor) -> Tensor:
    if not steering:
        return backbone.denoise(x, level, conditioning)
    with steering[0].installed(backbone.network, noise_level=level, batch=x.shape[0]):
        return _steered(backbone, steering[1:], x, level, conditioning)


def _word(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:6], "big")
    return torch.randn(CONTEXT, generator=torch.Generator().manual_seed(seed)) * (2.0 if word else 0.1)
