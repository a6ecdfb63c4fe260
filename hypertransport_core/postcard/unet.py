"""The Postcard network: a small UNet with the layout and parameter names of Stable Diffusion 1.5.

ComfyUI's own `UNetModel` loads the same weights and computes the same function, see `UNetConfig.to_comfy_config`. Pictures
are 64 x 64 RGB in [-1, 1], pixel-unshuffled by 4 into 48 channels of 16 x 16. The network predicts the clean picture x0 of
x_t = (1 - t) x0 + t noise; its timestep input is 1000 t.

Every module that can be steered is *called* (never bypassed by a functional form), because steering replaces `forward`.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of every GroupNorm, fixed by the layout


@dataclass(frozen=True)
class UNetConfig:
    """Dimensions of a `PostcardUNet`.

    model_channels: width of the first level, a multiple of 32; channel_mult: width of each level in units of it; each level
    but the last ends with a halving of the side. num_res_blocks: residual blocks per level on the way down (one more on the
    way up), one number or one per level. transformer_depth: transformer blocks after each residual block, one number or one
    per level, 0 = none. transformer_depth_middle: the same in the middle, -1 = no attention there. num_head_channels: width
    of an attention head; set num_heads instead (and num_head_channels = -1) for a fixed count. context_dim: width of a text
    token. Raises ValueError where widths do not divide.
    """

    in_channels: int = 48
    out_channels: int = 48
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2)
    num_res_blocks: int | tuple[int, ...] = 1
    transformer_depth: int | tuple[int, ...] = 1
    transformer_depth_middle: int = 1
    num_head_channels: int = 32
    num_heads: int = -1
    context_dim: int = 192

    def __post_init__(self) -> None:
        for name in ("channel_mult", "num_res_blocks", "transformer_depth"):
            value = getattr(self, name)
            if not isinstance(value, int):
                object.__setattr__(self, name, tuple(value))  # JSON knows lists only
                if len(getattr(self, name)) != len(self.channel_mult):
                    raise ValueError(f"{name} has {len(value)} entries, expected one per level ({len(self.channel_mult)}): "
                                     "give one number or one per level")
        if self.model_channels % GROUPS:
            raise ValueError(f"model_channels is {self.model_channels}, expected a multiple of {GROUPS}: round it up")
        if (self.num_head_channels == -1) == (self.num_heads == -1):
            raise ValueError(f"num_head_channels is {self.num_head_channels} and num_heads is {self.num_heads}, "
                             "expected exactly one of them to be -1: choose one")
        for mult in self.channel_mult:
            heads, width = self.heads(mult * self.model_channels)
            if heads * width != mult * self.model_channels:
                raise ValueError(f"a level of {mult * self.model_channels} channels cannot be split into {heads} heads of "
                                 f"{width}, expected an even split: change num_head_channels or num_heads")

    def heads(self, channels: int) -> tuple[int, int]:
        """(number of heads, channels per head) at a level of `channels`."""
        if self.num_head_channels == -1:
            return self.num_heads, channels // self.num_heads
        return channels // self.num_head_channels, self.num_head_channels

    @property
    def res_blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level, first level first."""
        n = self.num_res_blocks
        return (n,) * len(self.channel_mult) if isinstance(n, int) else n

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks per residual block of each level, first level first."""
        d = self.transformer_depth
        return (d,) * len(self.channel_mult) if isinstance(d, int) else d

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values, read back by `from_dict`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """Raises ValueError for a name that is none of the fields."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"the network configuration has the unknown entry '{sorted(unknown)[0]}', expected only "
                             f"{', '.join(f.name for f in fields(cls))}: use the file of this version")
        return cls(**values)

    def to_comfy_config(self) -> dict[str, Any]:
        """Arguments of ComfyUI's `UNetModel(**config)`, also `supported_models.SD15(config)`.

        The lists of depths are fresh at each call, because ComfyUI consumes them (the output list from its end).
        """
        down = [depth for depth, n in zip(self.depths, self.res_blocks) for _ in range(n)]
        up = [depth for depth, n in zip(self.depths, self.res_blocks) for _ in range(n + 1)]
        return {
            "image_size": 32, "use_checkpoint": False, "legacy": False, "use_spatial_transformer": True,
            "in_channels": self.in_channels, "out_channels": self.out_channels, "model_channels": self.model_channels,
            "channel_mult": list(self.channel_mult), "num_res_blocks": list(self.res_blocks), "transformer_depth": down,
            "transformer_depth_output": up, "transformer_depth_middle": self.transformer_depth_middle,
            "num_head_channels": self.num_head_channels, "num_heads": self.num_heads, "context_dim": self.context_dim,
            "use_linear_in_transformer": True, "adm_in_channels": None, "use_temporal_resblock": False,
            "use_temporal_attention": False,
        }


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoids of `timesteps` (B,), float: (B, width), cosines first, periods from 2 pi to 10000 * 2 pi."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(10000.0) / half))
    angles = timesteps.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _conv(inner: int, outer: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride=stride, padding=1)


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions with the time embedding added between them: (B, C, H, W), (B, 4M) -> (B, C', H, W)."""

    def __init__(self, channels: int, embedding: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), _conv(channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(nn.GroupNorm(GROUPS, out_channels), nn.SiLU(), nn.Identity(), _conv(out_channels, out_channels))
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        h = h + self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Multi-head attention of x (B, N, C) to `context` (B, T, D), or to itself."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        # Written out: on a CPU the fused kernel's backward takes four times as long for so few tokens.
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)
        return self.to_out((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """A linear layer whose second half gates the first."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """(B, N, C) -> (B, N, C) through four times the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, MLP; each behind a LayerNorm and beside a skip."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1 = Attention(channels, channels, heads)
        self.attn2 = Attention(channels, context_dim, heads)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map: (B, C, H, W), (B, T, D) -> (B, C, H, W)."""

    def __init__(self, channels: int, context_dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, context_dim, heads) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        # In channels_last both ways between pixels and tokens are views, nothing is copied.
        tokens = self.proj_in(self.norm(x).movedim(1, 3).flatten(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).unflatten(1, x.shape[2:]).movedim(3, 1)


class Downsample(nn.Module):
    """Halves the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = _conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.Sequential):
    """Layers in a row; each gets what it needs of the time embedding and the text."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class PostcardUNet(nn.Module):
    """x (B, 48, 16, 16), timesteps (B,) = 1000 t, context (B, T, D) -> x0 (B, 48, 16, 16).

    Sides are free as long as each halving is even. Final and residual outputs start at zero, so a fresh network gives 0.
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        width = config.model_channels
        embedding = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

        def stage(channels: int, out: int, depth: int, *more: nn.Module) -> Stage:
            attention = [SpatialTransformer(out, config.context_dim, config.heads(out)[0], depth)] if depth > 0 else []
            return Stage(ResBlock(channels, embedding, out), *attention, *more)

        last = len(config.channel_mult) - 1
        levels = list(zip(config.channel_mult, config.res_blocks, config.depths))
        self.input_blocks = nn.ModuleList([Stage(_conv(config.in_channels, width))])
        skips, channels = [width], width
        for level, (mult, count, depth) in enumerate(levels):
            for _ in range(count):
                self.input_blocks.append(stage(channels, mult * width, depth))
                channels = mult * width
                skips.append(channels)
            if level != last:
                self.input_blocks.append(Stage(Downsample(channels)))
                skips.append(channels)
        middle: list[nn.Module] = [ResBlock(channels, embedding, channels)]
        if config.transformer_depth_middle >= 0:
            middle += [SpatialTransformer(channels, config.context_dim, config.heads(channels)[0], config.transformer_depth_middle),
                       ResBlock(channels, embedding, channels)]
        self.middle_block = Stage(*middle)
        self.output_blocks = nn.ModuleList()
        for level, (mult, count, depth) in reversed(list(enumerate(levels))):
            for i in range(count + 1):
                up = [Upsample(mult * width)] if level and i == count else []
                self.output_blocks.append(stage(channels + skips.pop(), mult * width, depth, *up))
                channels = mult * width
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), _conv(channels, config.out_channels))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, Attention):
                for projection in (module.to_q, module.to_k, module.to_v):
                    nn.init.xavier_uniform_(projection.weight)
            # Zero at the end of each residual branch: a deep stack starts as the identity and trains without warm-up trouble.
            if isinstance(module, (ResBlock, SpatialTransformer)):
                _zero(module.out_layers[3] if isinstance(module, ResBlock) else module.proj_out)
        _zero(self.out[2])

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """See the class; in the dtype of x, gradients flow."""
        emb = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(x.dtype))
        h = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h.to(x.dtype))
