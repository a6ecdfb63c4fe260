"""Small models of the host's own classes, filled with random numbers, and what it takes to sample with them.

    host = tiny_host("sd15")
    picture = host.sample(host.model)
    steered = host.sample(steer_model(host.model, host.maps(seed=1)))

Built without the host's detection, so dimensions are free; everything after that treats them as the family they are of.
Import only where the host is there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import comfy.model_management as management
import comfy.sample
import comfy.supported_models as supported
import torch
from comfy.model_patcher import ModelPatcher

from pack import pack_module

UNET = {
    "use_checkpoint": False,
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": 16,
    "use_temporal_resblock": False,
    "use_temporal_attention": False,
    "num_heads": 4,
}


@dataclass(frozen=True)
class Family:
    """How a small model of one family is made: comfy's class and config, and the shapes of what it is given."""

    config_class: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    context: int
    pooled: int = 0
    foldable: tuple[str, ...] = ("self_attention", "cross_attention", "mlp")


FAMILIES = {
    # comfy's PixArt needs latents with a mean side of at least 33
    "pixart": Family(
        "PixArtAlpha",
        {
            "image_model": "pixart_alpha",
            "num_heads": 4,
            "patch_size": 2,
            "hidden_size": 48,
            "in_channels": 4,
            "depth": 2,
            "model_max_length": 120,
            "micro_condition": True,
            "caption_channels": 16,
        },
        (4, 34, 34),
        16,
    ),
    "sd15": Family("SD15", UNET, (4, 8, 8), 16, foldable=("self_attention", "cross_attention", "mlp", "norm")),
    # heads of 64 channels, whatever the config says
    "sdxl": Family(
        "SDXL",
        {
            **UNET,
            "num_classes": "sequential",
            "adm_in_channels": 32 + 6 * 256,
            "use_linear_in_transformer": True,
            "model_channels": 64,
            "channel_mult": [1, 1],
        },
        (4, 8, 8),
        16,
        32,
        foldable=("self_attention", "cross_attention", "mlp", "norm"),
    ),
    "flux": Family(
        "FluxSchnell",
        {
            "image_model": "flux",
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "vec_in_dim": 16,
            "context_in_dim": 16,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [8, 12, 12],
            "theta": 10000,
            "qkv_bias": True,
            "guidance_embed": False,
        },
        (16, 8, 8),
        16,
        16,
    ),
    # SD3's width is 64 x depth
    "sd3": Family(
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 32,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 16, "out_features": 128},
            },
            "num_patches": 1024,
            "pos_embed_max_size": 32,
            "qk_norm": "rms",
            "pos_embed_scaling_factor": None,
            "x_block_self_attn_layers": [],
        },
        (16, 8, 8),
        16,
        32,
    ),
    "wan": Family(
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "dim": 64,
            "out_dim": 16,
            "num_heads": 2,
            "ffn_dim": 64,
            "num_layers": 2,
            "patch_size": (1, 2, 2),
            "freq_dim": 32,
            "window_size": (-1, -1),
            "qk_norm": True,
            "cross_attn_norm": True,
            "eps": 1e-6,
            "in_dim": 16,
            "model_type": "t2v",
            "text_dim": 16,
        },
        (16, 3, 8, 8),
        16,
    ),
}


def build(
    name: str, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None, seed: int = 0
) -> ModelPatcher:
    """What a MODEL socket carries. compute: the dtype to compute in where weights are kept in another (manual cast)."""
    family = FAMILIES[name]
    config = getattr(supported, family.config_class)(copy.deepcopy(family.config))
    config.set_inference_dtype(dtype, compute)
    base = config.get_model({}, "").eval().requires_grad_(False)
    fill(base.diffusion_model, seed)
    return ModelPatcher(
        base, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )


@torch.no_grad()
def fill(network: torch.nn.Module, seed: int = 0) -> None:
    """Random numbers of well-behaved size everywhere: comfy leaves parameters and some buffers as undefined memory."""
    generator = torch.Generator().manual_seed(seed)
    named = [*network.named_parameters(), *((n, b) for n, b in network.named_buffers() if n.endswith("pos_embed"))]
    for name, p in named:
        noise = torch.randn(p.shape, generator=generator)
        gain = name.rsplit(".", 1)[-1] in ("weight", "scale") and p.ndim == 1
        p.copy_(
            (noise / max(1, p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1 * noise + (1.0 if gain else 0.0)).to(p.dtype)
        )


@dataclass
class TinyHost:
    """A small model with its conditioning and sampling."""

    name: str
    model: ModelPatcher
    family: Family = field(init=False)

    def __post_init__(self) -> None:
        self.family = FAMILIES[self.name]

    @property
    def network(self) -> torch.nn.Module:
        return self.model.model.diffusion_model

    def sites(self, site_set: str = "all") -> tuple[Any, ...]:
        """Those of the core, that the host's model really calls."""
        return pack_module("hypertransport_core.sites").find_sites(self.network, site_set)

    def maps(
        self,
        seed: int = 1,
        amount: float = 0.1,
        rows: int = 1,
        steps: int = 1,
        site_set: str = "all",
        kinds: Any = None,
    ) -> Any:
        """Random PredictedMaps."""
        sites = tuple(s for s in self.sites(site_set) if kinds is None or s.kind in kinds)
        transport = pack_module("hypertransport_core.transport")
        generator = torch.Generator().manual_seed(seed)
        width = sum(site.channels for site in sites)
        one = [
            transport.TransportMaps(
                sites,
                1 + amount * torch.randn(rows, width, generator=generator),
                amount * torch.randn(rows, width, generator=generator),
            )
            for _ in range(steps)
        ]
        return pack_module("nodes.sockets").PredictedMaps(tuple(one), {}, (0.0, 1.0), f"concept {seed}")

    def identity(self) -> Any:
        return self.maps(amount=0.0)

    def cond(self, seed: int, tokens: int = 6, **values: Any) -> list:
        """A CONDITIONING of random numbers."""
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, tokens, self.family.context, generator=generator)
        pooled = (
            {"pooled_output": torch.randn(1, self.family.pooled, generator=generator)} if self.family.pooled else {}
        )
        return [[context, {**pooled, **values}]]

    def latent(self, batch: int = 1) -> torch.Tensor:
        return torch.zeros(batch, *self.family.latent)

    def noise(self, batch: int = 1, seed: int = 3) -> torch.Tensor:
        return torch.randn(batch, *self.family.latent, generator=torch.Generator().manual_seed(seed))

    def sample(
        self,
        model: ModelPatcher | None = None,
        *,
        steps: int = 2,
        cfg: float = 3.0,
        batch: int = 1,
        sampler: str = "euler",
        scheduler: str = "simple",
        positive: list | None = None,
        negative: list | None = None,
        latent: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """What a KSampler node does, in inference mode as in the server."""
        latent = self.latent(batch) if latent is None else latent
        noise = self.noise(latent.shape[0]) if noise is None else noise
        with torch.inference_mode():
            return comfy.sample.sample(
                self.model if model is None else model,
                noise,
                steps,
                cfg,
                sampler,
                scheduler,
                positive or self.cond(11),
                negative or self.cond(12),
                latent,
                disable_pbar=True,
                seed=5,
                **options,
            )

    def guide(self, guider: Any, steps: int = 2) -> torch.Tensor:
        """What SamplerCustomAdvanced does with a guider of the host."""
        sigmas = comfy.samplers.calculate_sigmas(
            guider.model_patcher.get_model_object("model_sampling"), "simple", steps
        )
        latent = comfy.sample.fix_empty_latent_channels(guider.model_patcher, self.latent())
        with torch.inference_mode():
            return guider.sample(
                self.noise(), latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=5
            )

    def traces(self) -> list[str]:
        """Modules on which something was left behind."""
        return [
            n
            for n, m in self.network.named_modules()
            if "forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks
        ]


@cache
def tiny_host(name: str) -> TinyHost:
    """A small model of a family, made once."""
    return TinyHost(name, build(name))
