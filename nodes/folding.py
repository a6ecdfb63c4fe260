"""Maps as patches of the host's patcher: steering that costs nothing per step, where weights can hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from ..hypertransport_core.folding import FoldError, check_foldable
from ..hypertransport_core.transport import TransportMaps, blend

if TYPE_CHECKING:
    from .interception import LiveSteering

KEPT_EXACTLY = (torch.float32, torch.float16, torch.bfloat16)


class AffinePatch(WeightAdapterBase):
    """A weight patch like a LoRA's, but affine: every output channel of what is there so far is scaled and shifted.

    Acts on the weight with the patches before it, so a LoRA loaded before the Steer node is steered like the model's
    own weights. scale: (C,) fp32; shift: (C,) fp32 for a bias, None for a weight.
    """

    name = "hypertransport"

    def __init__(self, scale: Tensor, shift: Tensor | None = None) -> None:
        self.scale, self.shift = scale, shift
        self.loaded_keys: set[str] = set()
        self.weights: list[Tensor] = []

    def __repr__(self) -> str:
        return f"AffinePatch({self.scale.numel()} channels)"

    def calculate_weight(self, weight: Tensor, key: str, strength: float, *_args: Any, **_kwargs: Any) -> Tensor:
        """The patched weight, in its dtype; computed in fp32. `strength` is the patcher's own and normally 1."""
        scale, shift = blend(self.scale, torch.zeros_like(self.scale) if self.shift is None else self.shift, strength)
        scale = scale.to(weight.device).reshape(-1, *[1] * (weight.ndim - 1))
        moved = weight.float() * scale
        return (moved if self.shift is None else moved + shift.to(weight.device)).to(weight.dtype)


def fold_into_patches(model: ModelPatcher, maps: TransportMaps) -> ModelPatcher:
    """A clone of MODEL with the maps (one row) in its weight patches. Raises FoldError where a site cannot take one."""
    patches: dict[str, AffinePatch] = {}
    for path, (leaf_path, leaf) in check_foldable(model.model.diffusion_model, maps).items():
        site = maps[path]
        scale, shift = site.scale.reshape(-1), site.shift.reshape(-1)
        patches[f"diffusion_model.{leaf_path}.weight"] = AffinePatch(scale)
        if leaf.bias is not None:
            patches[f"diffusion_model.{leaf_path}.bias"] = AffinePatch(scale, shift)
    clone = model.clone()
    clone.add_patches(patches)
    return clone


def why_not_folded(model: ModelPatcher, steering: LiveSteering, wary: bool = False) -> str | None:
    """What stands against folding, to follow "because"; None: nothing. wary: weights in 8 bits or less do too."""
    from .interception import KEY

    stretch = steering.stretches[0]
    if len(steering.stretches) > 1 or stretch.start > 0.0 or stretch.end < 1.0:
        return "they act in a part of the schedule only"
    if steering.curve.constant is None:
        return "their strength changes over the schedule"
    if steering.mask is not None:
        return "a mask limits them to a part of the picture"
    if steering.rows > 1:
        return "they differ by row of the batch"
    if steering.scope != "both":
        return f"they act on the {steering.scope} conditioning only"
    if model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        return "a live steering comes before them, and weights always act first"
    try:
        leaves = check_foldable(model.model.diffusion_model, stretch.steering.blended())
    except FoldError as error:
        return str(error).split("; ")[0]
    rounded = next((leaf.weight.dtype for _, leaf in leaves.values() if leaf.weight.dtype not in KEPT_EXACTLY), None)
    return f"weights in {rounded} would round them away" if wary and rounded is not None else None
