"""Training through the host's own classes and loaders: collect, train, export, and steer the same model with the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pack import ROOT, load_pack, pack_module, run_node

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
    from hypertransport_core.encoders import concept, response
    from hypertransport_core.training import config, data, host_recipes, host_worlds, presets, stages

    return SimpleNamespace(**{module.__name__.rpartition(".")[2]: module for module in (
        concepts, host_backbone, concept, response, config, data, host_recipes, host_worlds, presets, stages)})


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


def check_steering(tiny: Any, weights: Any, steps: int = 2, cfg: float = 3.0, clip: Any = None) -> None:
    """The concept acts, is finite, and strength 0 is nothing at all, bit for bit. clip: for weights that read responses."""
    wires = {} if clip is None else {"model": tiny.model, "clip": clip}
    encoder = run_node(pack_module("nodes.encoders").LoadConceptEncoder, encoder="automatic", weights=weights, **wires)[0]
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


@pytest.mark.parametrize("name, response", [*((name, 0) for name in FAMILIES), ("sdxl", 2), ("flux", 2)])
def test_from_concepts_to_a_steered_model(name: str, response: int, core: SimpleNamespace, tmp_path: Path, monkeypatch) -> None:
    import host_training
    from tests.host.test_fit import word_clip

    tiny = host_training.small_model(name, tmp_path)
    side = 8 * tiny.family.latent[-1]
    config = core.config.TrainingConfig().with_values(
        {**core.host_recipes.RECIPES["comfyui"].all_settings, **SMALL, "resolution": side, "output": str(tmp_path / "run"),
         "preset": "comfyui", "site_set": "all" if name == "sdxl" else "attention_mlp", "response": response})  # fmt: skip
    world = small_world(core, tiny, config)
    assert world.backbone.latent_shape[-1] == tiny.family.latent[-1]
    core.stages.run_stages(world, config, ("collect", "train", "export"))
    weights = loaded_by_the_node(tmp_path / "run" / "hypernetwork.safetensors", monkeypatch)
    assert weights.header["backbone"]["family"] == world.backbone.family
    if not response:
        return check_steering(tiny, weights)
    # Two training concepts differ in one direction. In use, MODEL and CLIP answer as they did in training.
    clip = word_clip(tiny.family.context, tiny.family.pooled)
    check_steering(tiny, weights, clip=clip)
    load, responding = pack_module("nodes.encoders").LoadConceptEncoder, core.response.response_encoder
    encoder = run_node(load, encoder="automatic", weights=weights, model=tiny.model, clip=clip)[0]
    used = pack_module("hypertransport_core.encoders.concept").concept_from_text(encoder, CONCEPTS[2])
    trained = core.concept.concept_from_text(responding(world.encoder, world.backbone, weights.reader), CONCEPTS[2])
    assert used.encoder_id == trained.encoder_id and used.width == trained.width == world.encoder.width + 1
    assert float(trained.vector[-1].abs()) > 1e-2
    torch.testing.assert_close(used.vector, trained.vector, atol=1e-4, rtol=0)


# -- the real command, real loaders, files by name --------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """ComfyUI, linked, with models that its extra_model_paths.yaml names: SD3 with its CLIP-L and a VAE, random weights."""
    load_pack()
    import folder_paths
    import host_training

    root = tmp_path_factory.mktemp("ComfyUI")
    for entry in Path(folder_paths.__file__).resolve().parent.iterdir():
        if entry.name != "extra_model_paths.yaml":
            (root / entry.name).symlink_to(entry)
    models = root.with_name("large disk")
    for kind in ("unet", "text_encoders", "vae"):
        (models / kind / "tests").mkdir(parents=True)
    host_training.write_wide_sd3(models / "unet" / "tests" / "small_sd3.safetensors")
    host_training.write_clip_l(models / "text_encoders" / "random_clip_l.safetensors")
    host_training.write_taesd(models / "vae" / "random_taesd3.safetensors", 16)
    kinds = "\n".join(f"  {kind}: {kind}" for kind in ("text_encoders", "vae"))
    (root / "extra_model_paths.yaml").write_text(f"mine:\n  base_path: {models}\n  diffusion_models: unet\n{kinds}\n")
    return root


COMMAND = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
from comfy_boot import mend_torchvision
mend_torchvision()
sys.argv[0] = "train_hypernet.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_command_with_files_by_name(core: SimpleNamespace, checkout: Path, tmp_path: Path, monkeypatch) -> None:
    """`train_hypernet.py --preset comfyui` in a process of its own: stock loaders of model, text encoder and VAE, pictures
    for the concept encoder, a choice of sites; then steered through the nodes."""
    import host_training

    (tmp_path / "mine.json").write_text(json.dumps(list(CONCEPTS)))
    fewer = dict.fromkeys(("prompts_per_concept", "blocks", "samples_per_concept", "images_per_concept"), 2)
    settings = {**SMALL, **fewer, "image_share": 0.5}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value).lower())]
    flags += ["--weights", "small_sd3.safetensors", "--text-encoders", "random_clip_l.safetensors",
              "--vae", "random_taesd3.safetensors", "--encoder-weights", "weights/postcard_clip.safetensors",
              "--concepts", str(tmp_path / "mine.json"), "--resolution", "64", "--sites", r"joint_blocks\.0\.",
              "--heldout-fraction", "0", "--validation-fraction", "0.3", "--output", str(tmp_path / "run")]  # fmt: skip
    command = [sys.executable, "-c", COMMAND, str(ROOT / "tests" / "support"), "--preset", "comfyui"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COMFYUI_PATH": str(checkout)}
    done = subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "base model SD3" in done.stdout and "collected 3/3" in done.stdout
    weights = loaded_by_the_node(tmp_path / "run" / "hypernetwork.safetensors", monkeypatch)
    assert all(site.path.startswith("joint_blocks.0.") for site in weights.hypernetwork.sites)
    model = checkout.with_name("large disk") / "unet" / "tests" / "small_sd3.safetensors"
    check_steering(host_training.wide_sd3(model), weights)


# -- Postcard through the same path -----------------------------------------------------------------------------------


def test_postcard_through_the_host_is_the_plain_postcard(core: SimpleNamespace, tmp_path: Path) -> None:
    """The host's UNet, text encoder and VAE against our own: collected statistics, embeddings and losses to 1e-4."""
    from hypertransport_core.backbones.host_files import load_weights
    from hypertransport_core.encoders.postcard_clip import PostcardClipEncoder
    from hypertransport_core.postcard.captions import TEMPLATES, in_concept, scene_prompts
    from hypertransport_core.postcard.model import PostcardBackbone
    from hypertransport_core.training.batches import Objective
    from hypertransport_core.transport import TransportMaps

    config = core.config.TrainingConfig().with_values(
        {**SMALL, "images_per_concept": 2, "image_share": 0.5, "paired_weight": 1.0, "site_set": "all",
         "resolution": 64, "preset": "comfyui", "output": str(tmp_path)})  # fmt: skip
    weights = ROOT / "weights"
    encoder = PostcardClipEncoder.from_file(weights / "postcard_clip.safetensors")
    recipe = core.host_recipes.RECIPES["comfyui"]
    through_host = core.host_worlds.build_backbone(recipe, config, load_weights(weights / "postcard.safetensors"))
    plain = PostcardBackbone.load(weights / "postcard.safetensors", weights / "postcard_clip.safetensors")
    assert core.host_backbone.family_of(through_host.model) == plain.family
    scenes = tuple(scene_prompts(4))
    found, tables = [], []
    for number, backbone in enumerate((plain, through_host)):
        world = core.presets.World(backbone, encoder, chosen(core), scenes, tuple(TEMPLATES), in_concept)
        data = core.data.DataFolder(tmp_path / str(number), world, config)
        data.collect(world.concepts.everything)
        sites, concepts = tuple(sorted(data.sites, key=lambda site: site.path)), list(world.concepts.train)
        order = order_of(data.sites)
        stored = torch.stack([data.targets(c, level, 4)[:, order] for c in concepts for level in range(2)])
        observed = [data._observe(world.prompts(c, 4), 0, data.seeds(c), keep=False) for c in concepts]  # before storing
        seen = [features[..., order] for features, _, _ in observed]
        source = torch.stack(data.source())[..., order]
        generator = torch.Generator().manual_seed(0)
        width = sum(site.channels for site in sites)
        by_path = TransportMaps(sites, 1 + 0.1 * torch.randn(2, width, generator=generator),
                                0.1 * torch.randn(2, width, generator=generator))  # fmt: skip
        back = torch.argsort(order)
        maps = TransportMaps(data.sites, by_path.scale[:, back].requires_grad_(), by_path.shift[:, back].requires_grad_())
        objective, losses, gradients = Objective(world, data, config), [], []
        for level in range(2):
            inputs = objective.prepare(concepts, [0, 1, 2, 3] * 2, list(range(8)), level)
            losses += objective.losses(maps, inputs)
            gradients += [g[:, order] for g in torch.autograd.grad(objective.total(*losses[-2:]).sum(), [maps.scale, maps.shift])]
        images = torch.cat(data.embeddings(concepts).images)
        found.append((torch.stack(seen), source, images, torch.stack(losses).detach(), torch.stack(gradients)))
        tables.append(stored)
    torch.testing.assert_close(*tables, atol=1e-3, rtol=1e-3)  # half precision on disk
    *values, gradients = zip(*found)
    for name, (one, other) in zip(("samples", "source", "images", "losses"), values):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        assert one.abs().max() > 1e-3
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def order_of(sites: Any) -> torch.Tensor:
    """Channels of concatenated sites in the order of their paths: the host lists modules in another."""
    from hypertransport_core.sites import site_slices

    slices = site_slices(sites)
    return torch.cat([torch.arange(slices[path].start, slices[path].stop) for path in sorted(slices)])
