"""The full-size networks of known families without their weights: through the host's own classes, on meta tensors.

    network = family_network("sdxl")        # 2.57 billion parameters, no memory
    find_sites(network, "norm")             # 256 sites

Needs ComfyUI beside it, see `host.find_host`. Dimensions are those of the checkpoints named in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from ..sites import Site, SiteError, find_sites
from . import host


@dataclass(frozen=True)
class Family:
    """One architecture at the size of its checkpoints.

    network: module and class of the host that computes it; config: what the host's detection reads from such a
    checkpoint and passes to that class; checkpoints: which ones, for people; all of them have the same sites.
    """

    network: str
    config: Mapping[str, Any]
    checkpoints: str

    def build(self) -> nn.Module:
        """The network on meta tensors, for evaluation; a forward of meta tensors shows shapes. Raises HostError without
        ComfyUI."""
        host.make_importable()
        module, name = self.network.split(":")
        operations = import_module("comfy.ops").disable_weight_init
        network = getattr(import_module(module), name)(**self.config, device="meta", operations=operations)
        return network.to("meta").eval()  # PixArt makes a few of its tables on the CPU


_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "use_checkpoint": False,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
_UNET_CLASS = "comfy.ldm.modules.diffusionmodules.openaimodel:UNetModel"
_SD15 = {
    **_UNET,
    "adm_in_channels": None,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
}
_SDXL = {
    **_UNET,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
}
_PIXART = {
    "image_model": "pixart_alpha",
    "num_heads": 16,
    "patch_size": 2,
    "hidden_size": 1152,
    "in_channels": 4,
    "depth": 28,
    "model_max_length": 120,
    "micro_condition": True,
}
_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
_SD3: dict[str, Any] = {
    "input_size": None,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 24,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "num_patches": 192 * 192,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
}
_WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "dim": 1536,
    "ffn_dim": 8960,
    "num_heads": 12,
    "num_layers": 30,
    "in_dim": 16,
    "out_dim": 16,
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
_HUNYUAN_IMAGE = {
    "image_model": "hunyuan_video",
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "vec_in_dim": None,
    "context_in_dim": 3584,
    "hidden_size": 3584,
    "mlp_ratio": 4.0,
    "num_heads": 28,
    "depth": 20,
    "depth_single_blocks": 40,
    "axes_dim": [64, 64],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": True,
    "meanflow": False,
}

FAMILIES: dict[str, Family] = {
    "sdxl": Family(_UNET_CLASS, _SDXL, "SDXL base and fine-tunes, DMD2, Lightning, Turbo"),
    "sd15": Family(_UNET_CLASS, _SD15, "Stable Diffusion 1.5 and fine-tunes"),
    "pixart": Family("comfy.ldm.pixart.pixartms:PixArtMS", _PIXART, "PixArt-alpha and -sigma XL/2, Nitro-1-PixArt"),
    "flux": Family("comfy.ldm.flux.model:Flux", _FLUX, "FLUX.1-dev, FLUX.1-schnell"),
    "sd3": Family(
        "comfy.ldm.modules.diffusionmodules.mmdit:OpenAISignatureMMDITWrapper", _SD3, "Stable Diffusion 3 medium"
    ),
    "wan": Family("comfy.ldm.wan.model:WanModel", _WAN, "Wan 2.1 1.3B"),
    "wan_14b": Family(
        "comfy.ldm.wan.model:WanModel",
        {**_WAN, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
        "Wan 2.1 14B",
    ),
    "hunyuan_image": Family("comfy.ldm.hunyuan_video.model:HunyuanVideo", _HUNYUAN_IMAGE, "HunyuanImage 2.1"),
}


def family_network(name: str) -> nn.Module:
    """The full-size network of a family on meta tensors. Raises SiteError for an unknown name, HostError without
    ComfyUI."""
    if name not in FAMILIES:
        raise SiteError(f"There is no family '{name}'; choose one of {', '.join(FAMILIES)}.")
    return FAMILIES[name].build()


def family_sites(name: str, site_set: str = "attention_mlp", pattern: str | None = None) -> tuple[Site, ...]:
    """The sites of a family's full-size network, see `find_sites`. Raises SiteError, HostError."""
    return find_sites(family_network(name), site_set, pattern=pattern)
