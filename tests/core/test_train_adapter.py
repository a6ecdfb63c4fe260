"""Training the image-prompt adapter on a folder that the hypernetwork's command collected: it learns, from training
concepts alone; stopped and resumed is the uninterrupted course; what cannot be used is one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from small_postcard import write_world

from hypertransport_core.encoders.postcard_clip import PostcardClipEncoder
from hypertransport_core.files import check_fits, load_file
from hypertransport_core.fitting.image_adapter import load_image_adapter
from hypertransport_core.pipeline import CLIP_FILE, MODEL_FILE
from hypertransport_core.postcard import train_adapter
from hypertransport_core.training import presets
from hypertransport_core.training.config import TrainingConfig
from hypertransport_core.training.data import DataFolder

FEW = 4  # training concepts
SMALL = {
    "prompts_per_concept": 4,
    "blocks": 4,
    "images_per_concept": 3,
    "sampling_steps": 2,
    "concepts_per_step": 2,
    "samples_per_concept": 2,
    "site_set": "attention_mlp",
    "warmup": 2,
    "precision": "fp32",
    "device": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The Postcard preset with a few of its concepts and samples, on one thread for equal sums."""
    usual, before = presets.PRESETS["postcard"], torch.get_num_threads()

    def build(config: TrainingConfig) -> presets.World:
        world = usual.build(config)
        return replace(world, concepts=replace(world.concepts, train=world.concepts.train[:FEW]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "postcard", presets.Preset(build, {**usual.settings, **SMALL}))
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and beside them `data`, collected of the training concepts alone."""
    folder = write_world(tmp_path_factory.mktemp("weights"))
    world, data, _ = opened(folder)
    data.collect(world.concepts.train)
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    places = {"--data": folder / "data", "--model": folder / MODEL_FILE, "--clip": folder / CLIP_FILE}
    return [*(str(word) for place in places.items() for word in place), "--save-every", "2", *more]


def opened(folder: Path) -> tuple[presets.World, DataFolder, TrainingConfig]:
    config = TrainingConfig().with_values(
        {**presets.preset("postcard").settings, **train_adapter.ONLY_PICTURES, "weights": str(folder / MODEL_FILE),
         "encoder_weights": str(folder / CLIP_FILE), "collect_seed": 0, "steps": 20}
    )
    world = presets.preset("postcard").build(config)
    return world, DataFolder(folder / "data", world, config), config


def trained(folder: Path, output: Path, *more: str) -> int:
    places = ["--output", str(output / "made.safetensors"), "--state", str(output / "state.safetensors")]
    return train_adapter.main([*arguments(folder, *places), "--steps", "5", *more])


def test_it_learns_the_concept_from_pictures(folder: Path) -> None:
    run = train_adapter.Training(*opened(folder))
    with torch.no_grad():
        untrained = [float(run.losses(step, run.adapter).mean()) for step in range(4)]
        assert untrained == [float(run.losses(step, run.adapter, 0.0).mean()) for step in range(4)]
    for _ in range(20):
        run.advance()
    with torch.no_grad():
        after = [float(run.losses(step, run.average).mean()) for step in range(4)]
    assert sum(after) < 0.8 * sum(untrained)
    assert not any(parameter.grad is not None for parameter in run.network.parameters())


def test_every_row_is_shown_pictures_of_its_own_concept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, data, config = opened(folder)
    run, seen = train_adapter.Training(world, data, config.with_values({"embedding_noise": 0.0})), []
    installed = train_adapter.ImageAdapter.installed
    monkeypatch.setattr(train_adapter.ImageAdapter, "installed",
                        lambda self, network, shown, s: seen.append(shown) or installed(self, network, shown, s))
    run.losses(0, run.adapter)
    assert len(seen[0].unique(dim=0)) == 2
    drawn = train_adapter.draw(0, run.bank, len(world.scenes), len(data.levels), run.config)
    for row, concept in enumerate(c for c in drawn.concepts for _ in range(2)):
        several = [run.bank.of_images(concept, list(chosen)) for n in (1, 2, 3) for chosen in combinations(range(3), n)]
        assert any(torch.allclose(seen[0][row], one, atol=1e-6) for one in several)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert trained(folder, output) == 0
    return output


def test_stopped_and_resumed_is_the_uninterrupted_training(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = train_adapter.draw

    def stopped(step: int, *rest: object) -> object:
        if step == 3:
            raise KeyboardInterrupt
        return draw(step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train_adapter, "draw", stopped)
        assert trained(folder, tmp_path) == 130
    assert load_image_adapter(tmp_path / "made.safetensors").header["training"]["steps"] == 2
    assert trained(folder, tmp_path) == 0
    (made, about), (expected, wanted) = (load_file(path / "made.safetensors") for path in (tmp_path, whole))
    assert about == wanted and made.keys() == expected.keys()
    assert all(torch.equal(made[key], expected[key]) for key in made)
    (tmp_path / "made.safetensors").unlink()
    assert trained(folder, tmp_path) == 0  # nothing is left to train
    assert load_file(tmp_path / "made.safetensors")[1] == wanted


def test_the_file_fits_its_world_and_centres_as_training_did(folder: Path, whole: Path) -> None:
    found = load_image_adapter(whole / "made.safetensors")
    world, data, _ = opened(folder)
    encoder = PostcardClipEncoder.from_file(folder / CLIP_FILE)
    assert check_fits(found.header, found.path, network=world.backbone.network, family="postcard",
                      encoder_id=encoder.encoder_id, encoder_width=encoder.width) == []
    bank = data.embeddings(list(world.concepts.train))
    assert set(found.means) == {"image"} and torch.equal(found.means["image"], bank.means["image"])
    assert found.header["training"]["concepts"] == FEW and (whole / "made.safetensors").stat().st_size < 2.5e6


def test_what_cannot_be_used_is_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*more: str) -> str:
        capsys.readouterr()
        assert trained(folder, tmp_path, *more) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "Traceback" not in said
        return said

    assert "expected all of them" in refused("--data", str(tmp_path / "nowhere"))
    assert "Encoder_weights is" in refused("--clip", "nowhere.safetensors")
    assert "Steps is -1" in refused("--steps", "-1")
    (tmp_path / "state.safetensors").write_bytes(b"PK\3\4" + bytes(60))
    assert "is not a whole checkpoint" in refused()
    (tmp_path / "state.safetensors").unlink()
    assert trained(folder, tmp_path, "--steps", "2") == 0
    assert "with the shape" in refused("--tokens", "2")
    assert "training with the seed 0, expected the seed 1: name another --state" in refused("--seed", "1").replace("\n", " ")
