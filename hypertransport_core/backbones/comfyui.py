"""The adapter to ComfyUI: Postcard as its MODEL and VAE. The one core file that imports ComfyUI; import it only inside a host."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import files
from ..postcard.model import KIND, PATCH, TIMESTEPS
from ..postcard.unet import UNetConfig


class PostcardLatents(comfy.latent_formats.LatentFormat):
    """48 channels at a quarter of the picture's side: 4 x 4 pixels of RGB in [-1, 1], unscaled."""

    latent_channels = 3 * PATCH * PATCH

    def __init__(self) -> None:
        # The preview is a linear map: the mean of each colour's 16 channels. Previews expect values in [-1, 1].
        share = 1.0 / (PATCH * PATCH)
        self.latent_rgb_factors = [[share if colour == c // PATCH**2 else 0.0 for colour in range(3)] for c in range(self.latent_channels)]


class FlowToPicture(comfy.model_sampling.CONST):
    """ComfyUI's rectified flow (x_t = (1 - t) x0 + t noise) for a network that predicts x0 itself instead of noise - x0."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_output


class PostcardSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, FlowToPicture):
    """Sigmas are noise levels in [0, 1], without shift."""


class PostcardConfig(comfy.supported_models.SD15):
    """Stable Diffusion 1.5 with free dimensions. Only built by `postcard_model`, never by ComfyUI's detection."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}  # SD15 would force 8 heads
    sampling_settings = {"shift": 1.0, "multiplier": TIMESTEPS}
    latent_format = PostcardLatents
    supported_inference_dtypes = [torch.float32, torch.bfloat16, torch.float16]

    def model_type(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.FLOW

    def inpaint_model(self) -> bool:
        return False  # more than 4 input channels would otherwise be taken for an inpainting model

    def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: Any = None) -> comfy.model_base.BaseModel:
        model = super().get_model(state_dict, prefix, device)
        model.model_sampling = PostcardSampling(self)
        return model


def postcard_model(state_dict: Mapping[str, Tensor], config: UNetConfig, *, dtype: torch.dtype = torch.float32,
                   ) -> comfy.model_patcher.ModelPatcher:
    """What a MODEL socket carries, with ComfyUI's own UNetModel inside.

    state_dict: of a `PostcardUNet`, any float dtype, all names required (RuntimeError otherwise); dtype: of the weights in use.
    """
    settings = PostcardConfig(config.to_comfy_config())
    settings.set_inference_dtype(dtype, None)
    model = settings.get_model({}).eval().requires_grad_(False)
    # ComfyUI leaves parameters uninitialised, so a missing name must not pass.
    model.diffusion_model.load_state_dict({name: value.to(dtype) for name, value in state_dict.items()}, strict=True)
    return comfy.model_patcher.ModelPatcher(model, load_device=management.get_torch_device(),
                                            offload_device=management.unet_offload_device())


def load_postcard_model(path: str | Path, *, dtype: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """`postcard_model` from a `postcard_model` file. Raises FileError."""
    tensors, header = files.load_file(path, KIND)
    try:
        return postcard_model(tensors, UNetConfig.from_dict(header["config"]), dtype=dtype)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise files.FileError(f"{path} does not hold a whole Postcard network ({reason}), expected its weights and dimensions: "
                              "download or train the file again") from error


class PixelShuffle(torch.nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] <-> latents (B, 48, H/4, W/4), without loss."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)  # the host reads dtype and device off a parameter

    def encode(self, pixels: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return F.pixel_unshuffle(pixels, PATCH)

    def decode(self, samples: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return F.pixel_shuffle(samples, PATCH)


def postcard_vae() -> comfy.sd.VAE:
    """What a VAE socket carries: exact, and nothing to load from a file."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.first_stage_model = PixelShuffle().eval().to(vae.vae_dtype)
    vae.latent_channels = 3 * PATCH * PATCH
    vae.downscale_ratio = vae.upscale_ratio = PATCH
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, load_device=vae.device,
                                                   offload_device=management.vae_offload_device())
    return vae
