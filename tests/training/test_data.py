"""The store of target statistics: right numbers, little read, resumable after a kill, and never mistaken for another."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hypertransport_core.capture import PooledCapture
from hypertransport_core.checkpoints import load_checkpoint, save_checkpoint
from hypertransport_core.concepts import Concept, ConceptSplit
from hypertransport_core.files import FileError
from hypertransport_core.measuring import pooled_samples
from hypertransport_core.sites import Site
from hypertransport_core.training import data as data_module
from hypertransport_core.training.config import ConfigError, TrainingConfig
from hypertransport_core.training.data import DataFolder
from hypertransport_core.training.disk import disk_plan
from hypertransport_core.training.presets import World
from hypertransport_core.wasserstein import block_means
from tests.support.tiny_backbone import TinyBackbone
from tests.training import worlds

CONFIG = TrainingConfig(**{**worlds.SMALL, "blocks": 4})


def world(config: TrainingConfig = CONFIG, **changes: object) -> World:
    return replace(worlds.tiny_world(config), **changes)


CONCEPTS = worlds.concepts().everything[:4]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """Four concepts, never interrupted."""
    torch.set_num_threads(1)
    found = DataFolder(tmp_path_factory.mktemp("data"), world(), CONFIG)
    found.collect(CONCEPTS)
    return found


@pytest.fixture
def copy(collected: DataFolder, tmp_path: Path) -> Path:
    """The same in a folder that a test may damage."""
    return Path(shutil.copytree(collected.folder, tmp_path / "copy"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_numbers_are_those_of_the_untouched_network(collected: DataFolder) -> None:
    backbone, concept = TinyBackbone(), CONCEPTS[1]
    prompts = worlds.tiny_world(CONFIG).prompts(concept, 8)
    samples = pooled_samples(backbone, prompts, collected.seeds(concept), backbone.sites(), steps=2)
    for level in range(2):
        stored = collected.targets(concept, level, 4)
        assert stored.shape == (4, 48) and stored.dtype == torch.float32
        torch.testing.assert_close(stored, block_means(samples[level], 4), rtol=1e-3, atol=1e-3)  # stored as fp16
        assert bool((stored.diff(dim=0) >= 0).all())
        torch.testing.assert_close(collected.targets(concept, level, 2), stored.unflatten(0, (2, 2)).mean(1))
    scenes = pooled_samples(backbone, worlds.SCENES, data_module.seeds_for(8, 0, "collect"), backbone.sites(), steps=2)
    mean, std = collected.source()
    torch.testing.assert_close(mean, scenes.mean(1))
    torch.testing.assert_close(std, scenes.std(1, correction=0))


def test_a_target_is_read_without_the_rest_of_its_file(collected: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_checkpoint(collected.path_of(CONCEPTS[0]))["table"][1].float()
    monkeypatch.setattr(data_module, "load_checkpoint", None)  # reads all tensors of a file
    assert torch.equal(collected.targets(CONCEPTS[0], 1, 4), whole)


def test_a_stopped_collection_goes_on_where_it_was(collected: DataFolder, tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def stop(done: int, of: int, name: str) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        DataFolder(tmp_path, world(), CONFIG).collect(CONCEPTS, stop)
    resumed, seen = DataFolder(tmp_path, world(), CONFIG), []
    resumed.collect(CONCEPTS, lambda done, of, name: seen.append((done, of)))
    assert seen == [(0, 2), (1, 2), (2, 2)] and files(tmp_path) == files(collected.folder)
    calls = resumed.world.backbone.calls
    assert calls == 2 * 2  # concepts, levels; the generic class and the other concepts are not computed again
    resumed.collect(CONCEPTS)
    assert resumed.world.backbone.calls == calls and not resumed.missing(CONCEPTS)


@pytest.mark.parametrize("die_at", ["write:0", "write:3"])
def test_killed_in_the_middle_of_a_file(tmp_path: Path, train: Callable, train_elsewhere: Callable, die_at: str) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    died = train_elsewhere(run, "--stage", "collect", die_at=die_at)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list((run / "data").rglob("*.partial"))) == 1
    assert train(run, "--stage", "collect", "--resume", "latest") == train(whole, "--stage", "collect") == 0
    assert files(run / "data") == files(whole / "data")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"backbone": TinyBackbone(seed=1)}, r'weights = "\w{16}", expected "\w{16}"'),
        ({"scenes": tuple(reversed(worlds.SCENES))}, r'scenes = "\w{16}", expected "\w{16}"'),
        ({"templates": ("{}",)}, r'templates = \["\{\}", "\{\} style"\], expected \["\{\}"\]'),
        ({"sampling_steps": 1, "levels_per_step": 1}, r"levels = \[1.0, 0.5\], expected \[1.0\]"),
        ({"blocks": 8}, "blocks = 4, expected 8"),
        ({"seed": 3}, "seed = 0, expected 3"),
        ({"precision": "bf16"}, 'precision = "fp32", expected "bf16"'),
    ],
)
def test_another_store_is_refused_before_any_work(collected: DataFolder, changes: dict, words: str) -> None:
    parts = {name: value for name, value in changes.items() if name in ("backbone", "scenes", "templates")}
    config = replace(CONFIG, **{name: value for name, value in changes.items() if name not in parts})
    other, before = world(config, **parts), files(collected.folder)
    with pytest.raises(ConfigError, match=words) as refusal:
        DataFolder(collected.folder, other, config)
    sentence = str(refusal.value)
    assert str(collected.folder) in sentence and sentence.count(": ") == 1 and "\n" not in sentence
    assert other.backbone.calls == 0 and files(collected.folder) == before


def test_other_prompts_are_collected_anew(copy: Path) -> None:
    changed = replace(CONCEPTS[2], prompts=("a boat in a storm", "a storm"))
    folder = DataFolder(copy, world(), CONFIG)
    before = files(copy)
    assert folder.missing([*CONCEPTS[:2], changed]) == [changed]
    folder.collect([changed])
    after = files(copy)
    assert [name for name in before if after[name] != before[name]] == [f"concepts/{folder.path_of(changed).name}"]
    assert folder.missing(CONCEPTS) == [CONCEPTS[2]]


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty", "not ours", "flipped"])
def test_a_damaged_concept_is_collected_anew(copy: Path, damage: str) -> None:
    folder = DataFolder(copy, world(), CONFIG)
    before, path = files(copy), folder.path_of(CONCEPTS[3])
    spoil(path, damage)
    if damage in ("cut", "foreign", "empty"):
        with pytest.raises(FileError, match="expected the collected data: run the collect stage again") as refusal:
            folder.targets(CONCEPTS[3], 0, 4)
        assert path.name in str(refusal.value) and "\n" not in str(refusal.value)
    assert folder.missing(CONCEPTS) == [CONCEPTS[3]]
    folder.collect(CONCEPTS)
    assert files(copy) == before


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty", "not ours", "flipped"])
def test_damaged_generic_statistics_are_one_sentence(copy: Path, damage: str) -> None:
    spoil(copy / "source.safetensors", damage)
    with pytest.raises(FileError, match="expected collected data: remove it and run the collect stage again") as refusal:
        DataFolder(copy, world(), CONFIG)
    assert "source.safetensors" in str(refusal.value) and "\n" not in str(refusal.value)


def test_generic_statistics_cut_at_any_length(copy: Path) -> None:
    path = copy / "source.safetensors"
    content = path.read_bytes()
    for part in range(50):
        path.write_bytes(content[: len(content) * part // 50])
        with pytest.raises(FileError, match="collect stage again"):
            DataFolder(copy, world(), CONFIG)


@pytest.mark.parametrize(
    "changes, generic, concept",  # whole passes
    [
        ({}, 1, 2),  # pictures are made of the last level's predictions, and its input of the first one's
        ({"images_per_concept": 0}, 1, 1),
        ({"images_per_concept": 0, "sampling_steps": 3}, 1, 1),
        ({"images_per_concept": 0, "sampling_steps": 3, "inputs": "sampled"}, 2, 2),
        ({"images_per_concept": 0, "sampling_steps": 1, "levels_per_step": 1}, 0, 0),
        ({"images_per_concept": 0, "store_predictions": True}, 1, 2),
    ],
)
def test_a_pass_ends_at_its_last_site_where_nothing_else_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, generic: int, concept: int
) -> None:
    config = replace(CONFIG, image_share=0.0, **changes)

    def collect(folder: Path) -> tuple[int, dict[str, bytes]]:
        one, seen = world(config), []
        one.backbone.network.out.register_forward_hook(lambda *_: seen.append(1))
        DataFolder(folder, one, config).collect_source()
        DataFolder(folder, one, config).collect(CONCEPTS[:1])
        assert one.backbone.calls == 2 * config.sampling_steps
        return len(seen), files(folder)

    ended, found = collect(tmp_path / "early")
    assert ended == generic + concept
    monkeypatch.setattr(data_module, "PooledCapture", lambda *arguments, **_: PooledCapture(*arguments))
    ended, everything = collect(tmp_path / "late")
    assert ended == 2 * config.sampling_steps and found == everything


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says which files are in memory")
def test_embeddings_do_not_keep_the_tables_in_memory(collected: DataFolder) -> None:
    bank = collected.embeddings(CONCEPTS)
    assert len(bank.text) == len(CONCEPTS) and str(collected.folder / "concepts") not in Path("/proc/self/maps").read_text()


def test_the_stored_size_is_the_plan(collected: DataFolder, tmp_path: Path) -> None:
    """SDXL's norm sites, 776 concepts beside the generic class, 8 block means: 3.65 GB, and a file is what is planned."""
    table = load_checkpoint(collected.path_of(CONCEPTS[0]))["table"]
    assert table.numel() * table.element_size() == 2 * 4 * 48 * 2  # levels, blocks, channels, bytes
    widths = {320: 9, 640: 44, 960: 2, 1280: 197, 1920: 2, 2560: 2}
    channels = [width for width, count in widths.items() for _ in range(count)]
    config = replace(CONFIG, blocks=8, sampling_steps=1, levels_per_step=1, images_per_concept=0, image_share=0.0)
    many = ConceptSplit(tuple(Concept(f"concept {number}") for number in range(776)), (), ())
    folder = DataFolder(tmp_path, world(config, concepts=many), config)
    folder.collected_sites = tuple(Site(f"norm.{i}", "norm", width, 1) for i, width in enumerate(channels))
    assert (len(channels), sum(channels)) == (256, 294_080)
    plan = disk_plan(folder.world, folder, config)
    assert plan.statistics == 776 * 8 * 294_080 * 2 + 2 * 294_080 * 4  # tables, mean and deviation of the generic class
    assert round(plan.statistics / 1e9, 2) == 3.65 and plan.predictions == 0


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "not ours":
        save_checkpoint(path, {"step": 3, "weights": torch.zeros(3)})
        return
    if damage == "flipped":
        content[-5] ^= 1
    path.write_bytes({"cut": content[:-8], "foreign": b"PK\3\4" + bytes(60), "empty": b"", "flipped": content}[damage])
