"""The commands that make the Postcard world's networks, a few steps of each: stopped and resumed is the uninterrupted
course, what is written loads, and what cannot be used is refused in one sentence."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from small_postcard import write_world

from hypertransport_core.pipeline import CLIP_FILE
from hypertransport_core.postcard import train_clip, train_generator, train_judge
from hypertransport_core.postcard.clip import PostcardCLIP
from hypertransport_core.postcard.judge import Judge
from hypertransport_core.postcard.model import load_network

TRAINERS = {
    "judge": (train_judge, ("--steps", "4", "--batch", "8"), Judge.load),
    "generator": (train_generator, ("--steps", "4", "--batch", "4", "--channels", "32"), load_network),
    "clip": (train_clip, ("--text-steps", "3", "--vision-steps", "3", "--batch", "8"), PostcardCLIP.load),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """One thread, for equal sums; and fewer pictures where the trainers measure or align what came out."""
    monkeypatch.setattr(train_judge, "accuracy", partial(train_judge.accuracy, count=40))
    monkeypatch.setattr(train_clip, "retrieval", partial(train_clip.retrieval, per_concept=1))
    monkeypatch.setattr(train_clip, "align", partial(train_clip.align, per_concept=1))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("weights")) / CLIP_FILE


def train(name: str, folder: Path, clip: Path, *more: str) -> int:
    module, small, _ = TRAINERS[name]
    clip_of = ("--clip", str(clip)) if name == "generator" else ()
    places = ("--output", str(folder / "made.safetensors"), "--state", str(folder / "state.safetensors"))
    return module.main([*small, *clip_of, *places, "--save-every", "2", *more])


def stop_after(patch: pytest.MonkeyPatch, module: ModuleType, batches: int) -> None:
    """Ctrl-C when the batch after so many is drawn."""
    drawn, draw = [], module.random_truth

    def drawing(*arguments, **options):
        drawn.append(1)
        if len(drawn) > batches:
            raise KeyboardInterrupt
        return draw(*arguments, **options)

    patch.setattr(module, "random_truth", drawing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize(("name", "batches"), [("judge", 3), ("generator", 3), ("clip", 2), ("clip", 5)])
def test_stopped_and_resumed_is_the_uninterrupted_training(
    tmp_path: Path, whole: Path, clip_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, batches: int
) -> None:
    module, _, load = TRAINERS[name]
    if not (whole / name).exists():
        assert train(name, whole / name, clip_file) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, module, batches)
        assert train(name, tmp_path, clip_file) == 130
    assert (tmp_path / "state.safetensors").is_file()
    assert train(name, tmp_path, clip_file) == 0
    made, expected = (load_file(folder / "made.safetensors") for folder in (tmp_path, whole / name))
    assert made.keys() == expected.keys() and all(torch.equal(made[key], expected[key]) for key in made)
    assert {value.dtype for value in made.values() if value.is_floating_point()} == {torch.float16}
    load(tmp_path / "made.safetensors")


@pytest.mark.parametrize("name", TRAINERS)
def test_a_damaged_state_is_one_sentence(
    tmp_path: Path, clip_file: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"PK\3\4" + bytes(60))
    assert train(name, tmp_path, clip_file) == 2
    said = capsys.readouterr().err
    assert "state.safetensors is not a whole checkpoint" in said and "Traceback" not in said
    assert not (tmp_path / "made.safetensors").exists()


def test_a_second_clip_is_smaller_and_of_other_postcards(
    tmp_path: Path, clip_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], train_clip.random_truth

    def drawing(*arguments, **options):
        drawn.append(draw(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(train_clip, "random_truth", drawing)
    steps, seen = ("--text-steps", "1", "--vision-steps", "1", "--batch", "32"), []
    for seed in ("0", "1"):
        drawn.clear()
        folder = tmp_path / seed
        assert train("clip", folder, clip_file, *steps, "--seed", seed, "--size", "small") == 0
        seen += [truth.subject[:32].tolist() for truth in drawn[:3]]  # of the words, the pictures, the alignment
        assert (folder / "made.safetensors").stat().st_size < 7e6
    assert len({tuple(subjects) for subjects in seen}) == 6
    first, other = (load_file(tmp_path / seed / "made.safetensors") for seed in ("0", "1"))
    assert all(not torch.equal(first[key], other[key]) for key in first if first[key].ndim > 1)
    state = ("--state", str(tmp_path / "1" / "state.safetensors"))
    for wrong in (("--seed", "0", "--size", "small"), ("--seed", "1")):
        assert train("clip", tmp_path / "wrong", clip_file, *steps, *wrong, *state) == 2
        said = capsys.readouterr().err
        assert "holds a training with the seed 1 in the size small" in said and said.count("\n") == 1
    assert not (tmp_path / "wrong").exists()


def test_a_missing_clip_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("generator", tmp_path, tmp_path / "nowhere.safetensors") == 2
    said = capsys.readouterr().err
    assert "nowhere.safetensors cannot be read" in said and said.count("\n") == 1
