"""Worlds around real checkpoints: base model through ComfyUI's own loaders, concept encoder from the user's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..backbones.host import PACK, HostError, make_importable
from ..concepts import BUILTIN, ConceptSplit, builtin_concepts, generic_scenes, split_concepts
from ..encoders.base import ConceptEncoder
from ..encoders.clip_files import ClipFile, is_clip_folder, load_clip_files, read_clip_file
from ..encoders.concept import templates_of
from ..files import FileError, read_header
from .config import ConfigError, TrainingConfig, timesteps_of
from .host_recipes import RECIPES, Names, Recipe
from .presets import World, append_words, chosen_concepts, chosen_scenes, device_of, precision_of

if TYPE_CHECKING:
    from ..backbones.host_backbone import HostBackbone
    from ..backbones.host_files import HostModel

CLIP_L_WIDTH = 768
CLIP_SOURCE = "openai/clip-vit-large-patch14 on Hugging Face (model.safetensors)"
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def host_world(name: str, config: TrainingConfig) -> World:
    """The world of a preset for models that ComfyUI loads. Raises HostError, HostBackboneError, ConfigError and what
    concepts and encoders raise."""
    recipe, device = RECIPES[name], device_of(config)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # which the host then takes
    make_importable(device.type)
    scenes = chosen_scenes(config, generic_scenes)
    concepts = chosen_concepts(config, lambda: _shipped_concepts(config))
    encoder = concept_encoder(config.encoder_weights, device)  # small, so what is missing is said soon
    loaded = load_model(name, recipe, config)
    backbone = build_backbone(recipe, config, loaded)
    prompts = [*scenes, *(prompt for one in concepts.everything for prompt in one.prompts)]
    backbone.pad_to_longest(prompts)
    return World(
        backbone,
        encoder,
        concepts,
        scenes,
        templates_of(encoder),
        matched_words(config, scenes, concepts),
        facts=facts_of(config, backbone),
    )


def _shipped_concepts(config: TrainingConfig) -> ConceptSplit:
    every = builtin_concepts("styles-777", config.prompts_per_concept)
    return split_concepts(every, config.heldout_fraction, config.validation_fraction)


def matched_words(
    config: TrainingConfig, scenes: Sequence[str], concepts: ConceptSplit
) -> Callable[[Sequence[str], str], list[str]]:
    """How a scene is put into a concept: as in the shipped list where prompts belong to scenes one by one, else with
    the concept's name behind."""
    if BUILTIN.get(config.concepts) != "matched":
        return append_words
    known = {one.name: dict(zip(scenes, one.prompts)) for one in concepts.everything}

    def in_concept(words: Sequence[str], concept: str) -> list[str]:
        prompts = known.get(concept, {})
        return [prompts.get(scene) or append_words([scene], concept)[0] for scene in words]

    return in_concept


# -- the base model ---------------------------------------------------------------------------------------------------


def load_model(name: str, recipe: Recipe, config: TrainingConfig) -> HostModel:
    """Base model, text encoders and VAE from the files that settings and preset name. Raises HostError, ConfigError."""
    from ..backbones import host_files

    if not config.weights and not recipe.weights:
        raise ConfigError(
            f"weights is empty, expected the file of a base model, as the preset '{name}' takes any: give --weights FILE."
        )
    weights = _one("weights", config.weights, recipe.weights, host_files.WEIGHTS, recipe.source)
    lora = None
    if config.lora or recipe.lora:
        lora = _one("lora", config.lora, recipe.lora, host_files.LORAS, recipe.lora_source)
    found = host_files.load_weights(weights, _DTYPES[precision_of(config, device_of(config))])
    model, clip, vae = found.model, found.clip, found.vae
    if config.text_encoders or clip is None:
        texts = _group("text_encoders", config.text_encoders, recipe.text_encoders, host_files.TEXT_ENCODERS, recipe)
        clip = host_files.load_clip(texts, config.text_encoder_type, model)
    if config.vae or (vae is None and (config.images_per_concept or config.strip_concepts)):
        groups = tuple((one,) for one in recipe.vae)
        vae = host_files.load_vae(_group("vae", config.vae, groups, host_files.VAES, recipe)[0])
    if lora is not None:
        model, clip = host_files.with_lora(model, clip, lora, config.lora_strength)
    return host_files.HostModel(model, clip, vae)


def _one(setting: str, given: str, usual: Names, kinds: Sequence[str], source: str) -> Path:
    from ..backbones import host_files

    if given:
        return host_files.find_or_refuse(setting, given, kinds)
    found = next((path for one in usual if (path := host_files.find(one, kinds))), None)
    return found or host_files.find_or_refuse(setting, usual[0], kinds, source)


def _group(setting: str, given: str, usual: Sequence[Names], kinds: Sequence[str], recipe: Recipe) -> list[Path]:
    """The files that were named, or the first usual group that is there whole."""
    from ..backbones import host_files

    if given:
        return [host_files.find_or_refuse(setting, name, kinds) for name in split_names(given)]
    for group in usual:
        paths = [path for name in group if (path := host_files.find(name, kinds))]
        if len(paths) == len(group):
            return paths
    wanted = "; or ".join(" with ".join(group) for group in usual)
    source = f"get them from {recipe.parts_source} or give" if recipe.parts_source else "give"
    raise HostError(
        f"{setting} is empty and the base model's file holds none, expected "
        f"{f'{wanted}, ' if wanted else ''}in {host_files.places(kinds)}: {source} --{setting.replace('_', '-')} FILE."
    )


def split_names(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def build_backbone(recipe: Recipe, config: TrainingConfig, loaded: HostModel) -> HostBackbone:
    """The base model as training sees it: at the preset's resolution and noise levels, without guidance."""
    from ..backbones.host_backbone import HostBackbone

    return HostBackbone(
        loaded.model,
        loaded.clip,
        vae=loaded.vae,
        latent=empty_latent(loaded, config.resolution or recipe.resolution),
        timesteps=timesteps_of(config.timesteps),
        renoise=config.sampler == "lcm",
        extra={"guidance": config.guidance} if config.guidance else None,
    )


def empty_latent(loaded: HostModel, side: int) -> torch.Tensor:
    """(1, C, H, W) zeros for pictures of `side` x `side` pixels. Raises ConfigError when they are too small."""
    # Newer hosts say the factor with the latents, older ones with the VAE only.
    factor = getattr(loaded.model.get_model_object("latent_format"), "spatial_downscale_ratio", None)
    if factor is None:
        factor = 8 if loaded.vae is None else loaded.vae.spacial_compression_encode()
    size = side // int(factor)
    if size < 1:
        raise ConfigError(f"resolution is {side}, expected at least {int(factor)} for this base model: raise it.")
    return torch.zeros(1, loaded.model.get_model_object("latent_format").latent_channels, size, size)


def facts_of(config: TrainingConfig, backbone: HostBackbone) -> dict[str, Any]:
    """What the collected numbers depend on beside the weights' fingerprint."""
    facts: dict[str, Any] = {"latents": list(backbone.latent_shape), "sampler": config.sampler}
    if config.guidance:
        facts["guidance"] = config.guidance
    if RECIPES[config.preset].lora or config.lora:  # whose changes are too small for the weights' fingerprint
        facts["lora"] = [Path(config.lora).name, config.lora_strength]
    return facts


# -- the concept encoder ----------------------------------------------------------------------------------------------


def concept_encoder(given: str, device: torch.device) -> ConceptEncoder:
    """The CLIP that the user named, or the ViT-L/14 with both projections among the user's files. Raises HostError,
    EncoderError, FileError.

    SDXL's own CLIP-L will not do: its file has no projection into the space that words and pictures share.
    """
    import comfy.sd1_clip

    from ..encoders.transformers_clip import TransformersClipEncoder

    if given and (postcard := _postcard_encoder(given, device)) is not None:
        return postcard
    folder = _clip_folder(given)
    if folder is not None:
        return TransformersClipEncoder.from_folder(folder, device=device)
    text, vision = _two_towers(given) if given else _usual_towers()
    encoder = load_clip_files(text, vision, Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")
    encoder.model.to(device)
    return encoder


def _postcard_encoder(given: str, device: torch.device) -> ConceptEncoder | None:
    from ..backbones import host_files
    from ..encoders.postcard_clip import PostcardClipEncoder

    path = host_files.find(given, host_files.CLIPS)
    try:
        ours = path is not None and read_header(path)[0].get("kind") == "postcard_clip"
    except FileError:
        return None
    return PostcardClipEncoder.from_file(str(path), device=device) if ours else None


def _clip_folder(given: str) -> Path | None:
    """The folder that is meant, or without a name the first one with a CLIP of the usual width."""
    import folder_paths

    from ..backbones import host_files

    roots = [Path(root) for kind in host_files.CLIPS for root in folder_paths.get_folder_paths(kind)]
    if given:
        places = (Path(given).expanduser(), PACK / given, *(root / given for root in roots))
        return next((place for place in places if place.is_dir()), None)
    folders = (place for root in roots if root.is_dir() for place in sorted(root.iterdir()) if is_clip_folder(place))
    return next((folder for folder in folders if _width_of_folder(folder) == CLIP_L_WIDTH), None)


def _width_of_folder(folder: Path) -> int:
    import json

    settings = json.loads((folder / "config.json").read_text("utf-8"))
    return int(settings.get("projection_dim", 512))


def _two_towers(given: str) -> tuple[ClipFile, ClipFile]:
    from ..backbones import host_files

    found = []
    for name in split_names(given):
        path = host_files.find_or_refuse("encoder_weights", name, host_files.CLIPS)
        tower = read_clip_file(path)
        if tower is None:
            raise HostError(
                f"encoder_weights is '{name}', which holds no CLIP with its projection (the text encoders of SDXL and "
                f"FLUX have none), expected one: use {CLIP_SOURCE}, or another complete CLIP."
            )
        found.append(tower)
    return found[0], found[-1]


def _usual_towers() -> tuple[ClipFile, ClipFile]:
    """Text and vision tower of the usual width, preferably of one file."""
    from ..backbones import host_files

    known = [file for file in _clip_files() if _is_usual(file)]
    whole = next((file for file in known if file.text and file.vision), None)
    if whole is not None:
        return whole, whole
    text, vision = next((f for f in known if f.text), None), next((f for f in known if f.vision), None)
    if text is None or vision is None:
        there = f"; only a tower for {'words' if text else 'pictures'} is there" if text or vision else ""
        raise HostError(
            f"encoder_weights is empty and no CLIP ViT-L/14 with its projections is in {host_files.places(host_files.CLIPS)}"
            f"{there}, expected one to read concepts with: get {CLIP_SOURCE} and put it there, or give --encoder-weights "
            "FILE."
        )
    return text, vision


def _clip_files() -> Iterable[ClipFile]:
    import folder_paths

    from ..backbones import host_files

    host_files.places(host_files.CLIPS)  # with the folders of extra_model_paths.yaml
    for kind in host_files.CLIPS:
        for name in folder_paths.get_filename_list(kind):
            path = folder_paths.get_full_path(kind, name)
            if path is None or not name.lower().endswith((".safetensors", ".sft")):
                continue
            try:
                file = read_clip_file(path)
            except FileError:
                continue  # damaged, or not for us
            if file is not None:
                yield file


def _is_usual(file: ClipFile) -> bool:
    towers = [tower for tower in (file.text, file.vision) if tower is not None]
    return all(tower.projected == CLIP_L_WIDTH for tower in towers)
