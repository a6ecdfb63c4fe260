"""What each preset for real checkpoints is made of: usual file names, noise levels, and sizes. Nothing is loaded here.

Sources: DMD2 (tianweiy/DMD2) for its timesteps, AMD-Diffusion-Distillation for Nitro-1; hypernetwork sizes, K, n and
learning rates as reasoned in docs/training.md, measured on Postcard only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Names = tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """One preset. settings: of `TrainingConfig`; weights: names that the base model's file usually has, the first found
    is taken; text_encoders, vae: likewise, each a group of files that are all needed, for base models whose file holds
    none; lora: names of the LoRA; source, parts_source, lora_source: where to get them, for people; resolution: side of
    the pictures that the base model was made for, in pixels.
    """

    settings: Mapping[str, Any]
    weights: Names = ()
    text_encoders: tuple[Names, ...] = ()
    vae: Names = ()
    lora: Names = ()
    source: str = ""
    parts_source: str = ""
    lora_source: str = ""
    resolution: int = 1024

    @property
    def all_settings(self) -> dict[str, Any]:
        """Those that all presets share, and its own."""
        return {**COMMON, **self.settings}


# W2² of pooled activations, as published, on the shipped concepts. blocks = n keeps SDXL's statistics at 3.65 GB a noise
# level; K x n = 32 rows a step.
COMMON: dict[str, Any] = {
    "concepts": "styles-777",
    "precision": "bf16",  # that of the weights too: fp32 would take twice the memory
    "site_set": "norm",
    "blocks": 8,
    "samples_per_concept": 8,
    "concepts_per_step": 4,
    "concepts_per_pass": 1,
    "gradient_checkpointing": True,
    "images_per_concept": 8,
    "batch": 8,
    "width": 1024,
    "depth": 1,
    "bottleneck": 128,
    "learning_rate": 1e-4,
    "head_learning_rate": 3e-4,
    "warmup": 200,
    "ema": 0.999,
    "steps": 6000,
    "validate_every": 500,
    "save_every": 250,
}
_FOUR_STEPS = {"sampling_steps": 4, "inputs": "sampled"}
_ONE_STEP = {"sampling_steps": 1}
_SDXL_BASE = ("sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors")
_SDXL_TEXTS = (("sd_xl_base_1.0.safetensors",), ("clip_l.safetensors", "clip_g.safetensors"))
_SDXL_VAES = ("sdxl_vae.safetensors", *_SDXL_BASE)
_SDXL_SOURCE = "stabilityai/stable-diffusion-xl-base-1.0 on Hugging Face"
_T5 = ("t5xxl_fp16.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors", "t5xxl_fp8_e4m3fn.safetensors")
_DMD2 = "tianweiy/DMD2 on Hugging Face"
_FLUX: dict[str, Any] = {"site_set": "attention_mlp", **_FOUR_STEPS}
_FLUX_PARTS: dict[str, Any] = {
    "text_encoders": tuple(("clip_l.safetensors", t5) for t5 in _T5),
    "vae": ("ae.safetensors",),
    "parts_source": "comfyanonymous/flux_text_encoders and black-forest-labs on Hugging Face",
}

RECIPES: dict[str, Recipe] = {
    "dmd2": Recipe(
        {**_FOUR_STEPS, "timesteps": "999 749 499 249", "sampler": "lcm"},
        ("dmd2_sdxl_4step_unet_fp16.safetensors", "dmd2_sdxl_4step_unet_fp16.bin", "dmd2_sdxl_4step_unet.bin"),
        _SDXL_TEXTS,
        _SDXL_VAES,
        source=_DMD2,
        parts_source=_SDXL_SOURCE,
    ),
    "dmd2-1step": Recipe(
        {**_ONE_STEP, "timesteps": "399"},
        ("dmd2_sdxl_1step_unet_fp16.safetensors", "dmd2_sdxl_1step_unet_fp16.bin", "dmd2_sdxl_1step_unet.bin"),
        _SDXL_TEXTS,
        _SDXL_VAES,
        source=_DMD2,
        parts_source=_SDXL_SOURCE,
    ),
    "dmd2-lora": Recipe(
        {**_FOUR_STEPS, "timesteps": "999 749 499 249", "sampler": "lcm"},
        _SDXL_BASE,
        _SDXL_TEXTS,
        _SDXL_VAES,
        ("dmd2_sdxl_4step_lora_fp16.safetensors", "dmd2_sdxl_4step_lora.safetensors"),
        source=_SDXL_SOURCE,
        lora_source=_DMD2,
        parts_source=_SDXL_SOURCE,
    ),
    "nitro-pixart": Recipe(
        {**_ONE_STEP, "timesteps": "400"},
        ("nitro-1-pixart.safetensors", "Nitro-1-PixArt.safetensors", "nitro_1_pixart.safetensors"),
        tuple((t5,) for t5 in _T5),
        _SDXL_VAES,
        source="amd/Nitro-1-PixArt on Hugging Face",
        parts_source="comfyanonymous/flux_text_encoders and stabilityai/sdxl-vae on Hugging Face",
    ),
    "sdxl": Recipe(
        dict(_FOUR_STEPS), _SDXL_BASE, _SDXL_TEXTS, _SDXL_VAES, source=_SDXL_SOURCE, parts_source=_SDXL_SOURCE
    ),
    "sd15": Recipe(
        {**_FOUR_STEPS, "batch": 16},
        (
            "v1-5-pruned-emaonly-fp16.safetensors",
            "v1-5-pruned-emaonly.safetensors",
            "v1-5-pruned-emaonly.ckpt",
            "v1-5-pruned.safetensors",
        ),
        (("clip_l.safetensors",),),
        ("vae-ft-mse-840000-ema-pruned.safetensors",),
        source="Comfy-Org/stable-diffusion-v1-5-archive on Hugging Face",
        parts_source="Comfy-Org/stable-diffusion-v1-5-archive on Hugging Face",
        resolution=512,
    ),
    "flux-schnell": Recipe(
        _FLUX,
        ("flux1-schnell.safetensors", "flux1-schnell-fp8.safetensors"),
        source="black-forest-labs/FLUX.1-schnell on Hugging Face",
        **_FLUX_PARTS,
    ),
    "flux-dev": Recipe(
        {**_FLUX, "guidance": 3.5},
        ("flux1-dev.safetensors", "flux1-dev-fp8.safetensors"),
        source="black-forest-labs/FLUX.1-dev on Hugging Face",
        **_FLUX_PARTS,
    ),
    "comfyui": Recipe({**_FOUR_STEPS, "site_set": "attention_mlp"}),
}
"""comfyui: any model that the host loads; `weights` has to be given."""
