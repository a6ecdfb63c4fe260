"""A user's CLIP as a concept encoder that the host moves: onto its device for text encoders when it is used, off it when
the room is needed."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..hypertransport_core.encoders.transformers_clip import TransformersClipEncoder


def clip_dtype(device: torch.device) -> torch.dtype:
    """What a CLIP computes in on a device: float32 on the CPU, else the dtype that the host keeps text encoders in;
    float16 instead of its float8 ones, which transformers cannot compute in."""
    if management.is_device_cpu(device):
        return torch.float32
    dtype = management.text_encoder_dtype(device)
    return dtype if dtype in (torch.float32, torch.bfloat16) else torch.float16


class ConceptClip(nn.ModuleList):
    """A CLIP's network as the host holds it: unlike the one of transformers its `device` can be set."""


class HostedClip:
    """`ConceptEncoder` over a `TransformersClipEncoder` whose network is in the host's care."""

    def __init__(self, encoder: TransformersClipEncoder) -> None:
        """encoder: on the CPU in float32; its network is moved and cast from now on."""
        self.encoder = encoder
        self.encoder_id, self.width = encoder.encoder_id, encoder.width
        device = management.text_encoder_device()
        self.patcher = ModelPatcher(
            ConceptClip([encoder.model.to(clip_dtype(device))]),
            load_device=device,
            offload_device=management.text_encoder_offload_device(),
        )

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, width) float32 unit vectors on the host's device."""
        self._load()
        return self.encoder.encode_text(texts)

    def encode_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], any size -> (N, width) float32 unit vectors on the host's device; raises ValueError
        for other shapes."""
        self._load()
        return self.encoder.encode_images(images)

    def _load(self) -> None:
        # Whole: layers of transformers cannot take weights that stay behind, as the host's own layers can.
        management.load_models_gpu([self.patcher], force_full_load=True)

    def __repr__(self) -> str:
        return f"HostedClip({self.encoder_id}, {self.patcher.load_device})"
