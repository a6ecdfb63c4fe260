"""Small models of every family for training: some written as files that the host's own loaders read back.

Detection fixes some dimensions, so Wan and HunyuanImage come in sizes of their own here; SD3 does with the usual one.
Import only where the host is there, inside tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import tiny_hosts

FROM_FILES = ("sd3", "wan", "hunyuan_image")
FAMILIES = ("sd15", "sdxl", "pixart", "flux", *FROM_FILES)
_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "vec_in_dim": None,
    "context_in_dim": 16, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [64, 64], "theta": 256, "qkv_bias": True, "guidance_embed": False, "byt5": False, "meanflow": False,
}  # fmt: skip
_WAN = {**tiny_hosts.FAMILIES["wan"].config, "dim": 128, "num_heads": 1, "text_dim": 4096, "freq_dim": 256}
tiny_hosts.FAMILIES.setdefault("hunyuan_image", tiny_hosts.Family("HunyuanImage21", _HUNYUAN, (64, 8, 8), 16))
tiny_hosts.FAMILIES.setdefault("wan_file", tiny_hosts.Family("WAN21_T2V", _WAN, (16, 1, 8, 8), 4096))


def family_key(name: str) -> str:
    """Under which name `tiny_hosts` has the model that is trained here."""
    return "wan_file" if name == "wan" else name


def write_model(name: str, folder: Path) -> Path:
    """A diffusion model of a family as a file, random weights."""
    network = tiny_hosts.build(family_key(name)).model.diffusion_model
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, str(path))
    return path


def small_model(name: str, folder: Path) -> tiny_hosts.TinyHost:
    """A small model with what it takes to sample: through its file where that is small, else built directly."""
    if name not in FROM_FILES:
        return tiny_hosts.TinyHost(name, tiny_hosts.build(name))
    from hypertransport_core.backbones.host_files import load_weights

    model = load_weights(write_model(name, folder), torch.float32).model
    model.model.requires_grad_(False).eval()
    assert type(model.model.model_config).__name__ == tiny_hosts.FAMILIES[family_key(name)].config_class
    return tiny_hosts.TinyHost(family_key(name), model)


_WIDE_SD3 = {
    **tiny_hosts.FAMILIES["sd3"].config, "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
}  # fmt: skip
tiny_hosts.FAMILIES.setdefault("wide_sd3", tiny_hosts.Family("SD3", _WIDE_SD3, (16, 8, 8), 4096, 2048))


def write_wide_sd3(path: Path) -> None:
    """A small SD3 that takes what SD3's real text encoders give."""
    network = tiny_hosts.build("wide_sd3").model.diffusion_model
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, str(path))


def wide_sd3(path: Path) -> tiny_hosts.TinyHost:
    """The same, loaded."""
    from hypertransport_core.backbones.host_files import load_weights

    return tiny_hosts.TinyHost("wide_sd3", load_weights(path, torch.float32).model)


def write_taesd(path: Path, channels: int) -> None:
    """A VAE small enough for tests, random weights: the host's TAESD in the form its loader takes."""
    from comfy.taesd.taesd import Decoder, Encoder

    state = {}
    for name, half in (("encoder", Encoder(channels)), ("decoder", Decoder(channels))):
        tiny_hosts.fill(half)
        state |= {f"taesd_{name}.{key}": value.contiguous() for key, value in half.state_dict().items()}
    save_file(state, str(path))


def write_clip_l(path: Path) -> None:
    """The text tower of a CLIP-L in half precision, random weights: 246 MB, the smallest the host's loader takes."""
    import comfy.ops
    import comfy.sd1_clip

    model = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float16)
    state: dict[str, Any] = {}
    for key, value in model.transformer.state_dict().items():
        if key.startswith("text_projection"):
            continue
        gain = key.endswith("weight") and value.ndim == 1
        noise = torch.empty(value.shape, dtype=torch.float16).normal_(0.0, 0.02)
        state[key] = noise + 1 if gain else noise
    save_file(state, str(path))
