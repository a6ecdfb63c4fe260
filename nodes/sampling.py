"""One-Step Sampling and DMD2 Sigmas: distilled models as their makers sample them, for the stock
SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from .sockets import CATEGORY, node_schema

DMD2_TIMESTEPS = (999, 749, 499, 249)


class OneStepSampler(comfy.samplers.KSAMPLER):
    """Euler, whose starting noise is always scaled as for the highest sigma: sqrt(1 + sigma^2) times unit noise.

    The host does so only when the first sigma is the model's maximum; at a lower one it scales by sigma, which leaves
    the network with less than the unit variance that one-step models were distilled on.
    """

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        return True

    def __repr__(self) -> str:
        return "OneStepSampler()"


def one_step_sampler() -> OneStepSampler:
    """A SAMPLER."""
    return OneStepSampler(comfy.samplers.k_diffusion_sampling.sample_euler)


def sigmas_at(model: Any, timesteps: tuple[int, ...]) -> Tensor:
    """The model's sigmas (float32, CPU) at timesteps of its 1000, and a final 0. Raises ValueError for a flow model."""
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.CONST):
        raise ValueError(
            "The connected model is a flow model, which has no timesteps of 1000 noise levels, expected one of the SD, "
            "SDXL or PixArt kind: sample it with KSampler, with 1 step for a one-step model"
        )
    levels = sampling.sigma(torch.tensor([float(step) for step in timesteps]))
    return torch.cat([levels.float().cpu(), torch.zeros(1)])


class OneStepSampling(io.ComfyNode):
    """See the schema."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportOneStep",
            display_name="One-Step Sampling",
            category=f"{CATEGORY}/sampling",
            description="Sampler and sigmas for models that were distilled to a single step, for "
                        "SamplerCustomAdvanced with BasicGuider and RandomNoise. Scales the starting noise as those "
                        "models expect it; with the stock nodes alone the picture comes out pale and soft.",
            search_aliases=["one step", "1-step", "dmd2", "nitro", "distilled", "single step sampler"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A one-step model, such as DMD2 one-step (SDXL) or Nitro-1-PixArt. Its noise schedule is "
                            "read, nothing is changed.",
                ),
                io.Int.Input(
                    "timestep",
                    default=400,
                    min=1,
                    max=999,
                    tooltip="The timestep the model was distilled at, 1 to 999: 399 for DMD2 one-step, 400 for "
                            "Nitro-1-PixArt.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    display_name="sampler",
                    tooltip="For SamplerCustomAdvanced. One Euler step from noise of the right scale.",
                ),
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="The timestep's noise level, then 0. Guidance: cfg 1, so BasicGuider.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, timestep: int = 400) -> io.NodeOutput:
        return io.NodeOutput(one_step_sampler(), sigmas_at(model, (timestep,)))


class DMD2Sigmas(io.ComfyNode):
    """See the schema."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="HyperTransportDMD2Sigmas",
            display_name="DMD2 Sigmas",
            category=f"{CATEGORY}/sampling",
            description="The noise levels of the four-step DMD2 models: timesteps 999, 749, 499 and 249, then 0. For "
                        "SamplerCustomAdvanced with KSamplerSelect 'lcm', BasicGuider and RandomNoise; other samplers "
                        "do not add noise between the steps.",
            search_aliases=["dmd2", "4 step", "four step", "distilled sdxl", "lcm sigmas"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SDXL with the four-step DMD2 UNet or LoRA. Its noise schedule is read, nothing is "
                            "changed.",
                )
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="Five noise levels, for SamplerCustomAdvanced; on SDXL 14.61, 4.08, 1.61, 0.69, 0.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(sigmas_at(model, DMD2_TIMESTEPS))


NODES: tuple[type[io.ComfyNode], ...] = (OneStepSampling, DMD2Sigmas)
