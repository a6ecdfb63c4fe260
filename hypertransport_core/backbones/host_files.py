"""Models of the host from the files that a person has: found by name in ComfyUI's folders, read by its own loaders.

Import it only after `host.make_importable`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from .. import files
from ..postcard.model import KIND as POSTCARD
from .host import PACK, HostError

WEIGHTS = ("diffusion_models", "checkpoints")
TEXT_ENCODERS = ("text_encoders", "checkpoints")
VAES = ("vae", "checkpoints")
LORAS = ("loras",)
CLIPS = ("text_encoders", "clip_vision")

# For what the host reads text encoders, by the beginning of its own name for the model's configuration.
_TEXT_TYPES = {
    "PixArt": "pixart",
    "Flux": "flux",
    "SD3": "sd3",
    "WAN": "wan",
    "HunyuanImage": "hunyuan_image",
    "HunyuanVideo": "hunyuan_video",
    "Lumina2": "lumina2",
    "QwenImage": "qwen_image",
    "HiDream": "hidream",
    "Chroma": "chroma",
    "Mochi": "mochi",
    "LTXV": "ltxv",
    "HunyuanDiT": "hunyuan_dit",
}


@dataclass(frozen=True)
class HostModel:
    """What MODEL, CLIP and VAE sockets carry; the last two None where no file gave them."""

    model: ModelPatcher
    clip: comfy.sd.CLIP | None
    vae: comfy.sd.VAE | None


def find(name: str, kinds: Sequence[str]) -> Path | None:
    """A file by its path, or by its name in the host's folders of some kinds, whatever sub-folder it lies in."""
    for place in (Path(name).expanduser(), PACK / name):
        if place.is_file():
            return place
    _read_extra_paths()
    for kind in kinds:
        listed = [one for one in folder_paths.get_filename_list(kind) if _same_file(one, name)]
        found = [path for one in listed if (path := folder_paths.get_full_path(kind, one))]
        if found:
            return Path(found[0])
    return None


def find_or_refuse(setting: str, name: str, kinds: Sequence[str], source: str = "") -> Path:
    """`find`, but raises HostError: where it was looked for, and `source`, where to get the file."""
    path = find(name, kinds)
    if path is not None:
        return path
    cure = f"get it from {source} and put it there, or give" if source else "put it there or give"
    raise HostError(f"{setting} is '{name}', expected a file there or of that name in {places(kinds)}: {cure} its path.")


def places(kinds: Sequence[str]) -> str:
    """The host's folders of some kinds, as words."""
    _read_extra_paths()
    return ", ".join(str(path) for kind in kinds for path in folder_paths.get_folder_paths(kind))


def _same_file(listed: str, name: str) -> bool:
    shown = Path(listed).as_posix()
    return shown == name or Path(shown).name == name


@lru_cache(maxsize=1)
def _read_extra_paths() -> None:
    """Add the folders of extra_model_paths.yaml, as the host's server does when it starts."""
    root = Path(folder_paths.__file__).parent
    settings, reader = root / "extra_model_paths.yaml", root / "utils" / "extra_config.py"
    if not settings.is_file() or not reader.is_file():
        return
    spec = importlib.util.spec_from_file_location("comfyui_extra_config", reader)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        module.load_extra_path_config(str(settings))
    except Exception as error:  # a YAML that is not one fails in many ways
        raise HostError(
            f"{settings} cannot be read ({_first_line(error)}), expected the folders that ComfyUI is to look in: correct "
            "or remove it."
        ) from error


def load_weights(path: Path, dtype: torch.dtype | None = None) -> HostModel:
    """A checkpoint with what it holds, a diffusion model alone, or the model that comes with this pack.

    dtype: of the weights, the host's choice for None. Raises HostError, FileError.
    """
    if _is_postcard(path):
        return _postcard(path)
    state, metadata = _state(path)
    options = {} if dtype is None else {"dtype": dtype}
    try:
        if _is_checkpoint(state):
            model, clip, vae, _ = comfy.sd.load_state_dict_guess_config(state, model_options=options, metadata=metadata)
            return HostModel(model, clip, None if vae is None or vae.first_stage_model is None else vae)
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options=options)
    except RuntimeError as error:
        raise _no_model(path, f" ({_first_line(error)})") from error
    if model is None:
        raise _no_model(path)
    return HostModel(model, None, None)


def _is_postcard(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    try:
        return files.read_header(path)[0].get("kind") == POSTCARD
    except files.FileError:
        return False


def _postcard(weights: Path) -> HostModel:
    """The model that comes with this pack, as the host runs it, with the text encoder that lies beside it."""
    from ..postcard.clip import PostcardCLIP
    from .comfyui import load_postcard_model, postcard_clip, postcard_vae

    clip = PostcardCLIP.load(weights.with_name("postcard_clip.safetensors"))
    return HostModel(load_postcard_model(weights), postcard_clip(clip), postcard_vae())


def _state(path: Path) -> tuple[dict[str, Any], Any]:
    """Tensors by name, and metadata. Only weights are read, never code, whatever the file's ending."""
    try:
        state, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:  # the host passes on what torch and safetensors raise, in many kinds
        raise HostError(
            f"{path} cannot be read ({_first_line(error)}), expected a whole file of weights: download it again."
        ) from error
    return state, metadata


def _is_checkpoint(state: dict[str, Any]) -> bool:
    """Whether the host finds a model under the prefix that checkpoints have."""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    return comfy.model_detection.model_config_from_unet(state, prefix) is not None


def _no_model(path: Path, why: str = "") -> HostError:
    return HostError(
        f"{path} holds no diffusion model that this ComfyUI knows{why}, expected a checkpoint or a diffusion model: choose "
        "another file, or update ComfyUI."
    )


def load_clip(paths: Sequence[Path], kind: str, model: ModelPatcher) -> comfy.sd.CLIP:
    """The text encoders of a model, from their files or a checkpoint. kind: for what the host reads them, empty = for
    this model. Raises HostError."""
    states = [_state(path) for path in paths]
    if len(paths) == 1 and _is_checkpoint(states[0][0]):
        clip = comfy.sd.load_state_dict_guess_config(states[0][0], output_vae=False, output_model=False)[1]
        if clip is None:
            raise HostError(f"{paths[0]} is a checkpoint without text encoders, expected some in it: choose another file.")
        return clip
    name = kind or text_encoder_type(model)
    if not hasattr(comfy.sd.CLIPType, name.upper()):
        known = ", ".join(one.name.lower() for one in comfy.sd.CLIPType)
        raise HostError(f"text_encoder_type is '{name}', expected one of {known}: choose one.")
    try:
        return comfy.sd.load_text_encoder_state_dicts(
            [state for state, _ in states], clip_type=getattr(comfy.sd.CLIPType, name.upper())
        )
    except Exception as error:  # a file of another kind fails in many ways
        raise HostError(
            f"{', '.join(path.name for path in paths)} cannot be loaded as text encoders of the type '{name}' "
            f"({_first_line(error)}), expected those that the model was made with: correct text_encoders or "
            "text_encoder_type."
        ) from error


def text_encoder_type(model: ModelPatcher) -> str:
    """For what the host has to read the text encoders of a model, in its own words."""
    name = type(model.model.model_config).__name__
    return next((kind for start, kind in _TEXT_TYPES.items() if name.startswith(start)), "stable_diffusion")


def load_vae(path: Path) -> comfy.sd.VAE:
    """A VAE from its file or a checkpoint. Raises HostError."""
    state, metadata = _state(path)
    if _is_checkpoint(state):
        vae = comfy.sd.load_state_dict_guess_config(state, output_clip=False, output_model=False, metadata=metadata)[2]
    else:
        vae = comfy.sd.VAE(sd=state, metadata=metadata)
    if vae is None or vae.first_stage_model is None:
        raise HostError(f"{path} holds no VAE that this ComfyUI knows, expected one: choose another file.")
    return vae


def with_lora(
    model: ModelPatcher, clip: comfy.sd.CLIP | None, path: Path, strength: float
) -> tuple[ModelPatcher, comfy.sd.CLIP | None]:
    """Both with a LoRA on them. Raises HostError."""
    patched, text = comfy.sd.load_lora_for_models(model, clip, _state(path)[0], strength, strength)
    if len(patched.patches) <= len(model.patches):
        raise HostError(
            f"{path} holds no LoRA weights of this {type(model.model.model_config).__name__} model, expected some: choose "
            "a LoRA that was made for it."
        )
    return patched, text


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__
