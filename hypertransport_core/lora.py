"""Maps as a LoRA file: what folding does to the weights, in keys that ComfyUI's stock LoRA loader applies.

A map turns a layer's weight into diag(s) W and its bias into s b + t (folding.py). Two forms say that in a LoRA file:

small  diag(s) W is a change of the length of W's rows, which is what the magnitude of DoRA (arXiv 2402.09353) stores:
       one number per row, here beside a low-rank part of zeros. Kilobytes per site. The loader computes
       W + λ (m / |W| - 1) W row by row, m = s |W|, so its strength slider is λ, as it is live.
full   the difference (s - 1) W itself, as large as the steered layers' weights. For loaders without DoRA.

Biases and norms are small and are stored as differences in both.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import write_atomically
from .folding import FoldError, check_foldable
from .transport import AffineMap, TransportMaps

FORMS = ("small", "full")
PREFIX = "diffusion_model"  # the loader's own name for the network: no family-specific spelling is needed
# The loader divides by a row's length plus this, so that rows of zeros do no harm.
ROW_EPSILON = torch.finfo(torch.float32).eps


def lora_tensors(network: nn.Module, maps: TransportMaps, strength: float = 1.0, *, form: str = "small",
                 original: Callable[[str], Tensor | None] | None = None) -> dict[str, Tensor]:
    """The contents of a LoRA file that does to `network` what folding `maps` at `strength` does, float32 on the CPU.

    original: parameter name -> its value without patches, or None where that is what the module holds. Sites whose map
    is the identity get no keys, so maps that only shift give a small file in either form.
    Raises FoldError, naming the sites, where a map cannot become weights (see `check_foldable`); SiteError.
    """
    if form not in FORMS:
        raise FoldError(f"There is no LoRA form '{form}'; choose {' or '.join(FORMS)}.")
    if maps.rows != 1:
        raise FoldError(f"Maps of {maps.rows} concepts cannot be exported: a LoRA file holds one; choose one of them.")
    blended = maps.interpolate(strength)
    tensors: dict[str, Tensor] = {}
    for path, (leaf_path, leaf) in check_foldable(network, blended).items():
        weight, bias = (_value(leaf, leaf_path, name, original) for name in ("weight", "bias"))
        assert weight is not None  # or it would have been refused
        for key, value in _of_site(blended[path], weight, bias, form).items():
            tensors[f"{PREFIX}.{leaf_path}.{key}"] = value.cpu().contiguous()
    if not tensors:
        raise FoldError("The maps change nothing at this strength, so there is nothing to export; use a strength other "
                        "than 0 and maps other than the identity.")
    return tensors


def _value(leaf: nn.Module, path: str, name: str, original: Callable[[str], Tensor | None] | None) -> Tensor | None:
    found = original(f"{path}.{name}") if original else None
    return getattr(leaf, name, None) if found is None else found


def _of_site(site_map: AffineMap, weight: Tensor, bias: Tensor | None, form: str) -> dict[str, Tensor]:
    """{key below the layer: tensor} of one site; maps with one row."""
    scale, shift = (t.detach().reshape(-1).to(weight.device, torch.float32) for t in (site_map.scale, site_map.shift))
    found: dict[str, Tensor] = {}
    if bool((scale != 1).any()):
        rows = weight.detach().float()
        if form == "full" or weight.ndim < 2:
            found["diff"] = (scale - 1).reshape(-1, *[1] * (weight.ndim - 1)) * rows
        else:
            length = rows.flatten(1).norm(dim=1) + ROW_EPSILON
            found["dora_scale"] = (scale * length).reshape(-1, *[1] * (weight.ndim - 1))
            found["lora_up.weight"] = rows.new_zeros(weight.shape[0], 1, *[1] * (weight.ndim - 2))
            found["lora_down.weight"] = rows.new_zeros(1, *weight.shape[1:])
    if bias is not None:
        difference = torch.addcmul(shift, scale - 1, bias.detach().float())
        if bool(difference.any()):
            found["diff_b"] = difference
    return found


def save_lora(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write LoRA tensors as safetensors with texts as metadata, whole or not at all. Raises FileError."""
    from safetensors.torch import save_file

    texts = {"format": "pt", **{key: str(value) for key, value in metadata.items()}}
    write_atomically(path, lambda temporary: save_file(dict(tensors), str(temporary), metadata=texts))


def size_in_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors together, which is the file's size but for its header."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
