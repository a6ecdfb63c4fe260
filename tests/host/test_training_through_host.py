"""Training through the host's own classes and loaders: collect, train, export, and steer the same model with the file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pack import load_pack, pack_module, run_node

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = ("teal mosaic", "crimson stripes", "golden dots")
FAMILIES = ("sd15", "sdxl", "pixart", "flux", "sd3", "wan", "hunyuan_image")
SMALL = {
    "device": "cpu", "precision": "fp32", "prompts_per_concept": 4, "blocks": 4, "samples_per_concept": 4,
    "concepts_per_step": 2, "concepts_per_pass": 0, "images_per_concept": 0, "image_share": 0.0, "batch": 4,
    "width": 16, "bottleneck": 8, "steps": 2, "warmup": 0, "learning_rate": 0.01, "head_learning_rate": 0.05,
    "sampling_steps": 2, "validate_every": 2, "validation_concepts": 1, "strip_concepts": 0, "tensorboard": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def core() -> SimpleNamespace:
    """The training's modules, as train_hypernet.py imports them: not those of the pack."""
    load_pack()
    from hypertransport_core import concepts
    from hypertransport_core.backbones import host_backbone
    from hypertransport_core.encoders import concept
    from hypertransport_core.training import config, data, host_recipes, host_worlds, presets, stages

    return SimpleNamespace(**{module.__name__.rpartition(".")[2]: module for module in (
        concepts, host_backbone, concept, config, data, host_recipes, host_worlds, presets, stages)})


def chosen(core: SimpleNamespace) -> Any:
    every = [core.concepts.Concept(name, "look", (), ()) for name in CONCEPTS]
    return core.concepts.ConceptSplit(tuple(every[:2]), (every[2],), ())


def small_world(core: SimpleNamespace, tiny: Any, config: Any) -> Any:
    """What `host_world` makes, around a model that is there already, with words as fixed random vectors."""
    from tests.host.test_fit import word_clip

    from hypertransport_core.backbones.host_files import HostModel

    loaded = HostModel(tiny.model, word_clip(tiny.family.context, tiny.family.pooled), None)
    recipe = core.host_recipes.RECIPES["comfyui"]
    backbone = core.host_worlds.build_backbone(recipe, config, loaded)
    scenes = core.concepts.generic_scenes(config.prompts_per_concept)
    backbone.pad_to_longest([*scenes, *core.presets.append_words(scenes, max(CONCEPTS, key=lambda c: len(c.split())))])
    encoder = core.host_worlds.concept_encoder("weights/postcard_clip.safetensors", torch.device("cpu"))
    return core.presets.World(backbone, encoder, chosen(core), scenes, core.concept.templates_of(encoder),
                              facts=core.host_worlds.facts_of(config, backbone))


def loaded_by_the_node(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file through Load HyperTransport, as a user has it in models/hypertransport."""
    import folder_paths

    name = "hypertransport"
    paths, extensions = folder_paths.folder_names_and_paths[name]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(path.parent), *paths], extensions))
    node = pack_module("nodes.load").LoadHyperTransport
    assert node.validate_inputs(path.name) is True
    return run_node(node, file=path.name)[0]


def check_steering(tiny: Any, weights: Any, steps: int = 2, cfg: float = 3.0) -> None:
    """The concept acts, is finite, and strength 0 is nothing at all, bit for bit."""
    encoder = pack_module("nodes.postcard").postcard_encoder()
    concept = pack_module("hypertransport_core.encoders.concept").concept_from_text(encoder, "teal mosaic")
    steer = pack_module("nodes.steer").HyperTransportSteer
    plain = tiny.sample(steps=steps, cfg=cfg)
    steered, off = (
        tiny.sample(run_node(steer, model=tiny.model, weights=weights, concept=concept, strength=strength)[0],
                    steps=steps, cfg=cfg)
        for strength in (1.0, 0.0)
    )  # fmt: skip
    assert bool(steered.isfinite().all()) and torch.equal(off, plain)
    assert float((steered - plain).abs().max()) > 1e-3 * float(plain.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_from_concepts_to_a_steered_model(name: str, core: SimpleNamespace, tmp_path: Path, monkeypatch) -> None:
    import host_training

    tiny = host_training.small_model(name, tmp_path)
    side = 8 * tiny.family.latent[-1]
    config = core.config.TrainingConfig().with_values(
        {**core.host_recipes.RECIPES["comfyui"].all_settings, **SMALL, "resolution": side, "output": str(tmp_path / "run"),
         "preset": "comfyui", "site_set": "all" if name == "sdxl" else "attention_mlp"})  # fmt: skip
    world = small_world(core, tiny, config)
    assert world.backbone.latent_shape[-1] == tiny.family.latent[-1]
    core.stages.run_stages(world, config, ("collect", "train", "export"))
    weights = loaded_by_the_node(tmp_path / "run" / "hypernetwork.safetensors", monkeypatch)
    assert weights.header["backbone"]["family"] == world.backbone.family
    check_steering(tiny, weights)
