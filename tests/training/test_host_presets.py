"""Presets for real checkpoints: sizes, files that are looked for, and refusals in one sentence. Nothing is downloaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy_boot
import pytest
import torch

from hypertransport_core.backbones.families import family_sites
from hypertransport_core.hypernetworks import build_hypernetwork
from hypertransport_core.sites import total_channels
from hypertransport_core.training import ConfigError, TrainingConfig, cli
from hypertransport_core.training.config import timesteps_of
from hypertransport_core.training.host_recipes import RECIPES
from hypertransport_core.training.presets import preset

ROOT = Path(__file__).resolve().parents[2]
FAMILY = {
    "dmd2": "sdxl", "dmd2-1step": "sdxl", "dmd2-lora": "sdxl", "sdxl": "sdxl", "nitro-pixart": "pixart", "sd15": "sd15",
    "flux-schnell": "flux", "flux-dev": "flux",
}  # fmt: skip
KINDS = ("checkpoints", "diffusion_models", "text_encoders", "clip_vision", "vae", "loras")


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """An empty folder of models, instead of those of the ComfyUI that is tested with."""
    missing = comfy_boot.boot()
    if missing:
        pytest.skip(f"no ComfyUI host: {missing}")
    import folder_paths

    for kind in KINDS:
        (tmp_path / "models" / kind).mkdir(parents=True)
        extensions = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / "models" / kind)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path / "models"


def config_of(name: str, **changes: Any) -> TrainingConfig:
    return TrainingConfig().with_values({**preset(name).settings, "preset": name, **changes})


def test_registered_without_comfyui() -> None:
    code = "import sys; from hypertransport_core.training import PRESETS; print(*PRESETS); assert 'comfy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(RECIPES) <= set(done.stdout.split()) and set(FAMILY) | {"comfyui"} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_settings_fit_together(name: str) -> None:
    config = config_of(name)
    assert config.samples_per_concept * config.concepts_per_step == 32 and config.concepts == "styles-777"
    steps = timesteps_of(config.timesteps)
    assert {"dmd2": (999, 749, 499, 249), "dmd2-lora": (999, 749, 499, 249), "dmd2-1step": (399,),
            "nitro-pixart": (400,)}.get(name, ()) == steps  # fmt: skip
    assert (config.sampler == "lcm") == (name in ("dmd2", "dmd2-lora"))
    assert config.sampling_steps == (1 if "1step" in name or "nitro" in name else 4)
    assert config.site_set == ("attention_mlp" if name in ("flux-schnell", "flux-dev", "comfyui") else "norm")


def test_sizes_of_hypernetworks(models: Path) -> None:
    """SDXL's norms ask for 588,160 numbers: 75 million weights in the head at a bottleneck of 128. And the guide's tables."""
    guide = (ROOT / "docs/training.md").read_text("utf-8")
    written = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([\d.]+) M \|$", guide, re.M))
    gigabytes = {name: sizes for name, *sizes in re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \| (\d+) MB \|", guide, re.M)}
    for name, family in FAMILY.items():
        config = config_of(name)
        sites = family_sites(family, config.site_set)
        with torch.device("meta"):
            network = build_hypernetwork({**config.hypernetwork_options(), "sites": sites, "embedding_dim": 768})
        count = sum(p.numel() for p in network.parameters())
        outputs, width, narrow = 2 * total_channels(sites), 1024, 128
        trunk = 2 * 768 + 769 * width + (width + 1) * width + (width + 1) * narrow
        assert count == trunk + (narrow + 1) * outputs
        if family == "sdxl":
            assert (outputs, narrow * outputs, count) == (588_160, 75_284_480, 77_842_432)
        assert written[name] == f"{count / 1e6:.1f}"
        statistics = 776 * config.sampling_steps * config.blocks * outputs  # channels x 2 bytes are the outputs
        checkpoints = 4 * count * (4 * (config.keep_last + 1) + 1)  # weights, mean, two moments; the best's mean
        assert gigabytes[name] == [f"{statistics / 1e9:.1f}", f"{checkpoints / 1e9:.1f}", f"{2 * count / 1e6:.0f}"]


@pytest.mark.parametrize("text", ["999 749 499 249", "999, 749,499 249", "400", "", "0"])
def test_timesteps(text: str) -> None:
    assert timesteps_of(text) == tuple(int(word) for word in re.findall(r"\d+", text))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timesteps": "249 999"}, "timesteps is '249 999', expected falling whole numbers from 0 to 999"),
        ({"timesteps": "1000"}, "timesteps is '1000', expected falling"),
        ({"timesteps": "999 499"}, "timesteps names 2 steps, expected sampling_steps = 4 of them"),
        ({"resolution": 1000}, "resolution is 1000, expected a multiple of 16: use 992"),
        ({"inputs": "sampled", "store_predictions": True, "paired_weight": 1.0}, 'expected paired_weight above 0 and inputs = "target"'),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        config_of("dmd2", **changes)


def refused(capsys: Any, tmp_path: Path, *arguments: str) -> str:
    assert cli.main(["--device", "cpu", "--output", str(tmp_path / "run"), *arguments]) == 1
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ") and "\n" not in text and text.endswith(".") and "expected" in text, text
    assert not (tmp_path / "run").exists()
    return text


@pytest.mark.parametrize("name", FAMILY)
def test_missing_files_say_what_where_and_from_whom(name: str, models: Path, tmp_path: Path, capsys: Any) -> None:
    text = refused(capsys, tmp_path, "--preset", name)
    assert "encoder_weights is empty and no CLIP ViT-L/14" in text and str(models / "clip_vision") in text
    assert "openai/clip-vit-large-patch14 on Hugging Face" in text
    text = refused(capsys, tmp_path, "--preset", name, "--encoder-weights", "weights/postcard_clip.safetensors")
    recipe = RECIPES[name]
    assert f"weights is '{recipe.weights[0]}'" in text and f"get it from {recipe.source}" in text
    assert str(models / "checkpoints") in text and str(models / "diffusion_models") in text


def test_wrong_files_are_refused(models: Path, tmp_path: Path, capsys: Any) -> None:
    from safetensors.torch import save_file

    clip = ["--encoder-weights", "weights/postcard_clip.safetensors"]
    assert "weights is empty" in refused(capsys, tmp_path, "--preset", "comfyui", *clip)
    text = refused(capsys, tmp_path, "--preset", "comfyui", *clip, "--weights", "gone.safetensors")
    assert "weights is 'gone.safetensors'" in text and "Hugging Face" not in text
    other = models / "checkpoints" / "sub" / "other.safetensors"
    other.parent.mkdir()
    save_file({"something.weight": torch.zeros(3)}, str(other))
    text = refused(capsys, tmp_path, "--preset", "comfyui", *clip, "--weights", "other.safetensors")
    assert f"{other} holds no diffusion model that this ComfyUI knows" in text
    other.write_bytes(b"no tensors at all")
    assert "cannot be read" in refused(capsys, tmp_path, "--preset", "comfyui", *clip, "--weights", str(other))
    text = refused(capsys, tmp_path, "--preset", "sdxl", *clip, "--lora", "x.safetensors", "--weights", str(other))
    assert "lora is 'x.safetensors'" in text and str(models / "loras") in text
    assert "encoder_weights is 'x'" in refused(capsys, tmp_path, "--preset", "sdxl", "--encoder-weights", "x")


def test_text_encoders_and_vae_that_are_missing(models: Path) -> None:
    """A diffusion model without both: the usual files are named, and taken when they are there."""
    from hypertransport_core.backbones.host import HostError
    from hypertransport_core.training.host_worlds import _group

    recipe = RECIPES["flux-schnell"]
    kinds = ("text_encoders", "checkpoints")
    with pytest.raises(HostError, match=r"text_encoders is empty.*clip_l.safetensors with t5xxl_fp16.safetensors; or"):
        _group("text_encoders", "", recipe.text_encoders, kinds, recipe)
    for name in ("clip_l", "t5xxl_fp8_e4m3fn"):
        (models / "text_encoders" / f"{name}.safetensors").touch()
    import folder_paths

    folder_paths.filename_list_cache.clear()
    found = _group("text_encoders", "", recipe.text_encoders, kinds, recipe)
    assert [path.name for path in found] == ["clip_l.safetensors", "t5xxl_fp8_e4m3fn.safetensors"]
    found = _group("text_encoders", "t5xxl_fp8_e4m3fn.safetensors", recipe.text_encoders, kinds, recipe)
    assert [path.stem for path in found] == ["t5xxl_fp8_e4m3fn"]


# -- the concept encoder ----------------------------------------------------------------------------------------------


def small_clip(projected: int) -> dict[str, torch.Tensor]:
    """Both towers of a CLIP with CLIP's own tokens, otherwise small, in the names of transformers."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(projected)
    shared = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
              "projection_dim": projected}  # fmt: skip
    text = {**shared, "vocab_size": 49408, "max_position_embeddings": 77}
    vision = {**shared, "image_size": 32, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projected))
    return {key: value.contiguous() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def clips() -> SimpleNamespace:
    usual, other = small_clip(768), small_clip(512)
    text = {key: value for key, value in usual.items() if key.startswith("text")}
    vision = {key: value for key, value in usual.items() if key.startswith("vis")}
    return SimpleNamespace(usual=usual, other=other, text=text, vision=vision)


def test_the_usual_clip_is_found_whatever_its_name(models: Path, clips: SimpleNamespace) -> None:
    from safetensors.torch import save_file

    from hypertransport_core.training.host_worlds import concept_encoder

    cpu = torch.device("cpu")
    save_file(clips.other, str(models / "clip_vision" / "a.safetensors"))
    save_file(clips.text, str(models / "text_encoders" / "b.safetensors"))
    with pytest.raises(RuntimeError, match="only a tower for words is there"):
        concept_encoder("", cpu)
    save_file(clips.vision, str(models / "clip_vision" / "c.safetensors"))
    refresh()
    halves = concept_encoder("", cpu)
    assert halves.width == 768 and halves.encode_text(["a cat"]).shape == (1, 768)
    save_file(clips.usual, str(models / "clip_vision" / "d.safetensors"))
    refresh()
    whole = concept_encoder("", cpu)
    assert whole.encoder_id == halves.encoder_id
    assert concept_encoder("b.safetensors, c.safetensors", cpu).encoder_id == whole.encoder_id
    assert concept_encoder("a.safetensors", cpu).width == 512  # another one, by name
    assert concept_encoder(str(models / "clip_vision" / "d.safetensors"), cpu).encoder_id == whole.encoder_id


def refresh() -> None:
    import folder_paths

    folder_paths.filename_list_cache.clear()


def test_clip_without_projection_is_refused(models: Path, clips: SimpleNamespace) -> None:
    """As SDXL's own CLIP-L is: its vector is not in the space that words and pictures share."""
    from safetensors.torch import save_file

    from hypertransport_core.training.host_worlds import concept_encoder

    bare = {key: value for key, value in clips.text.items() if "projection" not in key}
    save_file(bare, str(models / "text_encoders" / "clip_l.safetensors"))
    with pytest.raises(RuntimeError, match="holds no CLIP with its projection .the text encoders of SDXL and FLUX"):
        concept_encoder("clip_l.safetensors", torch.device("cpu"))


def test_prompts_of_training_are_those_that_were_collected() -> None:
    """Of the shipped matched list: the i-th prompt of a concept is the i-th scene in its words."""
    from hypertransport_core.concepts import builtin_concepts, generic_scenes, split_concepts
    from hypertransport_core.training.host_worlds import matched_words

    config = config_of("dmd2", prompts_per_concept=8)
    scenes = generic_scenes(8)
    concepts = split_concepts(builtin_concepts("styles-777", 8), 0.21, 0.1)
    in_concept = matched_words(config, scenes, concepts)
    one = concepts.train[5]
    assert in_concept([scenes[3], scenes[0]], one.name) == [one.prompts[3], one.prompts[0]]
    assert in_concept(["a thing"], one.name) == [f"a thing, {one.name}"]
    free = matched_words(config.with_values({"concepts": "styles-777-free"}), scenes, concepts)
    assert free([scenes[0]], one.name) == [f"{scenes[0]}, {one.name}"]
