"""Whole runs on the tiny world: what they leave behind, what they learn, and that stopping them anywhere changes
nothing.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from hypertransport_core import checkpoints
from hypertransport_core.training import cli, loop, progress, states
from hypertransport_core.training.config import TrainingConfig
from hypertransport_core.training.states import States, TrainingError
from hypertransport_core.weights_io import load_hypernetwork
from tests.training import worlds


def curves(run: Path) -> list[dict[str, str]]:
    with open(run / "curves.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in csv.DictReader(file)]


def assert_same(run: Path, other: Path) -> None:
    """Same weights file, learning curves, data, evaluation and last checkpoint."""
    pairs = [
        ("hypernetwork.safetensors",) * 2,
        *((f"data/concepts/{p.name}",) * 2 for p in (other / "data/concepts").iterdir()),
    ]
    last = f"checkpoints/{max(p.name for p in (other / 'checkpoints').glob('step-*'))}"
    for name, _ in [*pairs, (last, last)]:
        mine, theirs = load_file(run / name), load_file(other / name)
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key]), (name, key)
    assert len(list((run / "data/concepts").iterdir())) == 24
    assert curves(run) == curves(other)
    assert (run / "evaluation.json").read_text() == (other / "evaluation.json").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never interrupted."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["--preset", "tiny", "--output", str(run)]) == 0
    return run


def test_what_a_run_leaves_behind(whole):
    from PIL import Image

    names = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert names == [
        "best.safetensors",
        "step-00000004.safetensors",
        "step-00000008.safetensors",
        "step-00000012.safetensors",
    ]
    rows = curves(whole)
    assert (
        [row["step"] for row in rows] == ["3", "6", "9", "12"]
        and rows[1]["validation"]
        and rows[1]["identity"]
        and rows[1]["mean_map"]
    )
    assert sorted(p.name for p in (whole / "strips").iterdir()) == [f"step-{s:08d}.png" for s in (4, 8, 12)]
    with Image.open(whole / "strips/step-00000012.png") as strip:
        assert 7 * 128 < strip.width < 7 * 128 + 500 and 2 * 128 < strip.height < 2 * 128 + 300
    report = json.loads((whole / "evaluation.json").read_text())
    assert (
        set(report["heldout"]) == {"identity", "mean_map", "text", "image"}
        and report["concepts"] == 4
        and set(report["categories"]) == set(worlds.LOOKS)
    )
    saved = cli.resolved(cli.parser().parse_args(["--output", str(whole), "--resume", "latest"]))
    assert saved == TrainingConfig(**{**worlds.SMALL, "output": str(whole)})


def test_the_weights_file_predicts_for_new_concepts(whole):
    loaded = load_hypernetwork(whole / "hypernetwork.safetensors")
    assert loaded.header["encoder"] == {"id": "words-16", "width": 16} and set(loaded.means) == {"text", "image"}
    assert (
        loaded.header["training"]["concepts"] == {"train": 16, "validation": 4, "heldout": 4}
        and "heldout" in loaded.header["training"]
    )
    maps = loaded.hypernetwork(torch.nn.functional.normalize(torch.randn(2, 16), dim=-1))
    assert maps.rows == 2 and not maps.is_identity()


@pytest.mark.parametrize("die_at", ["collect:3", "train:7", "save:8"])
def test_killed_anywhere_and_resumed_is_the_uninterrupted_run(tmp_path, whole, train, train_elsewhere, die_at):
    run = tmp_path / "run"
    died = train_elsewhere(run, die_at=die_at)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (run / "hypernetwork.safetensors").exists()
    assert train(run, "--resume", "latest") == 0
    assert_same(run, whole)
    assert not list(run.rglob("*.partial"))


def test_ctrl_c_saves_and_stops(tmp_path, whole, train, monkeypatch, capsys):
    run, advance, before = tmp_path / "run", loop.Trainer.advance, signal.getsignal(signal.SIGINT)

    def interrupted(self):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "advance", interrupted)
        assert train(run) == 130
    assert "Stopped at step 5 of 12" in capsys.readouterr().err and States(run).steps() == [4, 5]
    assert signal.getsignal(signal.SIGINT) is before
    assert train(run, "--resume", "latest") == 0
    assert_same(run, whole)


def test_ctrl_c_while_collecting(tmp_path, train, monkeypatch, capsys):
    from hypertransport_core.training import data

    original = data.DataFolder._collect_concept
    with monkeypatch.context() as patch:
        patch.setattr(
            data.DataFolder,
            "_collect_concept",
            lambda self, concept: (original(self, concept), os.kill(os.getpid(), signal.SIGINT)),
        )
        assert train(tmp_path / "run", "--stage", "collect") == 130
    assert "Stopped after 1 of 24 concepts" in capsys.readouterr().err


def test_stages_one_by_one_are_the_whole_run(tmp_path, whole, train, capsys):
    run = tmp_path / "run"
    assert train(run, "--stage", "train") == 1 and "run --stage collect first" in capsys.readouterr().err
    for stage in ("collect", "train", "evaluate", "export"):
        assert train(run, "--stage", stage) == 0
    assert_same(run, whole)
    assert train(run, "--stage", "train") == 1 and "holds a run already" in capsys.readouterr().err
    assert train(run, "--stage", "export", "--export-from", "best", "--export", tmp_path / "best.safetensors") == 0
    assert load_hypernetwork(tmp_path / "best.safetensors").header["training"]["step"] in (6, 12)


def test_a_run_is_not_overwritten(whole, train, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    for stage in ("all", "collect", "train"):
        assert train(whole, "--stage", stage) == 1
        assert "holds a run already, expected a new folder" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}


def test_nothing_to_resume(tmp_path, train, capsys):
    assert train(tmp_path / "none", "--resume", "latest") == 1
    assert "is not there, expected a run to resume" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file") == 1 and "which is a file" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path, whole, train, monkeypatch, capsys):
    run, write = tmp_path / "run", checkpoints._write

    def full(tensors, path, metadata):
        if "step-00000008" in path:
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", path)
        write(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write", full)
        assert train(run) == 1
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the disk is full" in text and "--resume latest" in text
    assert States(run).steps() == [4] and not list(run.rglob("*.partial"))
    assert train(run, "--resume", "latest") == 0
    assert_same(run, whole)


@pytest.mark.parametrize("where", ["the generic class", "a concept", "the curves", "the weights file"])
def test_a_disk_that_fills_up_anywhere_costs_nothing(tmp_path, whole, train, monkeypatch, capsys, where):
    run, write = tmp_path / "run", checkpoints._write
    part = {"the generic class": "source", "a concept": "teal_mosaic", "the curves": "", "the weights file": ""}[where]

    def refuse(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def states_only(tensors, path, metadata):
        refuse(path) if part and part in path else write(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write", states_only)
        if where == "the curves":
            patch.setattr(progress.Curves, "add", lambda self, step, values: refuse(self.path))
        elif where == "the weights file":
            patch.setattr(safetensors.torch, "save_file", lambda tensors, path, metadata=None: refuse(path))
        assert train(run) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and "the disk is full" in said and "expected" in said and "space" in said
    assert not (run / "hypernetwork.safetensors").exists() and not [p for p in run.rglob("*.part*") if p.is_file()]
    assert train(run, "--resume", "latest") == 0
    assert_same(run, whole)


def test_it_says_how_fast_it_goes_and_how_long_it_takes(tmp_path, train, caplog):
    with caplog.at_level("INFO", "hypertransport.training"):
        assert train(tmp_path / "run", "--steps", 3, "--strip-concepts", 0) == 0
    assert re.search(r"collected 20/24, [\d.]+ concepts/s, \d+ s left", caplog.text)
    assert re.search(r"step 3/3 loss [\d.]+ .* [\d.]+ steps/s, 0 s left", caplog.text)
    said = [progress.duration(seconds) for seconds in (0.4, 89, 95, 3540, 7500)]
    assert said == ["0 s", "89 s", "2 min", "59 min", "2 h 05 min"]


def test_tensorboard_shows_curves_and_strips(tmp_path, whole, train):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path / "run", "--data", whole / "data", "--stage", "train", "--tensorboard") == 0
    board = EventAccumulator(str(tmp_path / "run/tensorboard"))
    board.Reload()
    assert {"loss", "validation", "identity", "learning_rate"} <= set(board.Tags()["scalars"])
    assert board.Tags()["images"] == ["strip"] and [picture.step for picture in board.Images("strip")] == [4, 8, 12]
    shown = {event.step: event.value for event in board.Scalars("loss")}
    assert shown == pytest.approx({int(row["step"]): float(row["loss"]) for row in curves(whole)}, rel=1e-4)


def test_a_damaged_latest_checkpoint_gives_way_to_the_one_before(tmp_path):
    store = States(tmp_path, 3)
    for step in (1, 2):
        store.save(step, {"step": step})
    store.path(2).write_bytes(store.path(2).read_bytes()[:20])
    assert store.load()["step"] == 1
    with pytest.raises(TrainingError, match="not a whole checkpoint"):
        store.load("2")
    with pytest.raises(TrainingError, match="no checkpoint '7'.*1, 2"):
        store.load("7")
    store.path(1).write_bytes(b"")
    with pytest.raises(TrainingError, match="None of the 2 checkpoints"):
        store.load()
    with pytest.raises(TrainingError, match="holds 0 checkpoints"):
        States(tmp_path / "empty").load()


def test_rotation_keeps_the_newest(tmp_path):
    store = States(tmp_path, 2)
    for step in (1, 5, 10, 100):
        store.save(step, {"step": step})
    assert store.steps() == [10, 100]
    assert states.disk_is_full(OSError(errno.ENOSPC, "x")) and states.disk_is_full(
        RuntimeError("No space left on device (os error 28)")
    )


def test_another_architecture_is_not_resumed(tmp_path, whole, train, capsys):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert train(run, "--stage", "train", "--resume", "latest", "--width", "48") == 1
    assert "has width = 32, expected 48" in capsys.readouterr().err


def test_data_are_shared_and_never_mistaken(tmp_path, whole, train, capsys):
    data = str(whole / "data")
    assert (
        train(
            tmp_path / "a",
            "--stage",
            "train",
            "--data",
            data,
            "--steps",
            2,
            "--pattern",
            "attn1",
            "--strip-concepts",
            0,
        )
        == 0
    )
    assert States(tmp_path / "a").steps() == [2]
    assert train(tmp_path / "b", "--data", data, "--seed", 5) == 1
    assert "were collected with seed = 0, expected 5" in capsys.readouterr().err
    assert train(tmp_path / "c", "--data", data, "--site-set", "norm") == 1
    assert "lack the site" in capsys.readouterr().err
    for pooling in ("mean_std", "mean_quarters"):
        assert train(tmp_path / "d", "--data", data, "--pooling", pooling) == 1
        assert f"were pooled as 'mean', expected '{pooling}'" in capsys.readouterr().err


def test_an_encoder_of_another_width_is_refused(tmp_path, whole, train, monkeypatch, capsys):
    monkeypatch.setattr(worlds.WordEncoder, "width", 24)
    assert train(tmp_path / "a", "--stage", "train", "--data", whole / "data") == 1
    assert "have the width 16, expected 24" in capsys.readouterr().err
    assert train(tmp_path / "b") == 1
    assert "vectors of width 16, expected 24" in capsys.readouterr().err


def test_concepts_and_scenes_from_files(tmp_path, train, capsys):
    (tmp_path / "concepts.json").write_text(
        json.dumps([{"name": f"{c} wash", "prompts": [f"a {c} cat", f"a {c} boat"]} for c in worlds.COLOURS])
    )
    (tmp_path / "scenes.txt").write_text("\n".join(f"a tree {i}" for i in range(8)))
    files = ("--concepts", tmp_path / "concepts.json", "--scenes", tmp_path / "scenes.txt")
    assert train(tmp_path / "run", *files, "--steps", 2, "--strip-concepts", 1) == 0
    (tmp_path / "scenes.txt").write_text("a tree\na tree\n")
    assert train(tmp_path / "other", *files) == 1
    assert "holds 1 different prompts, expected prompts_per_concept = 8" in capsys.readouterr().err
    (tmp_path / "concepts.json").write_text('["fog", "fog"]')
    assert train(tmp_path / "other", "--concepts", tmp_path / "concepts.json") == 1
    assert "twice" in capsys.readouterr().err


def test_several_seeds_share_what_was_collected(tmp_path, whole, train, capsys):
    shared = ("--data", whole / "data", "--steps", 2)
    assert train(tmp_path / "refused", *shared, "--seed", 1) == 1
    assert "were collected with seed = 0, expected 1 as the settings say: set collect_seed to 0, " in capsys.readouterr().err
    assert train(tmp_path / "run", *shared, "--seed", 1, "--collect-seed", 0) == 0
    same, other = (load_hypernetwork(run / "hypernetwork.safetensors").hypernetwork for run in (whole, tmp_path / "run"))
    assert torch.equal(same.source_mean, other.source_mean) and not torch.equal(same.inlet.weight, other.inlet.weight)


def test_shifts_can_be_left_in_plain_units(tmp_path, whole, train, capsys):
    plain = ("--data", whole / "data", "--steps", 2, "--standardise", "false")
    assert train(tmp_path / "run", *plain) == 0
    network = load_hypernetwork(tmp_path / "run" / "hypernetwork.safetensors").hypernetwork
    assert not network.source_mean.any() and bool((network.source_std == 1).all())
    assert train(tmp_path / "other", *plain, "--warm-start", 0.3) == 1
    assert "warm_start is 0.3 with standardise = false, expected standardise = true" in capsys.readouterr().err


def test_dry_run_writes_nothing(tmp_path, train):
    assert train(tmp_path / "run", "--dry-run") == 0
    assert not (tmp_path / "run").exists()


def test_concepts_in_words_that_were_never_taught_are_named(tmp_path, caplog):
    entries = [{"name": "azure wash", "part": "train"}, {"name": "quasarfoobar wash", "part": "train"}]
    (tmp_path / "list.json").write_text(json.dumps(entries + [{"name": "neon", "part": "validation"}]))
    arguments = ["--preset", "postcard", "--output", tmp_path / "run", "--concepts", tmp_path / "list.json", "--dry-run"]
    with caplog.at_level("INFO", "hypertransport.training"):
        assert cli.main(list(map(str, arguments))) == 0
    assert "was never taught: 1, such as 'quasarfoobar' in 'quasarfoobar wash'; " in caplog.text


def test_fewer_concepts_can_be_trained_on(tmp_path, train, caplog):
    with caplog.at_level("INFO", "hypertransport.training"):
        assert train(tmp_path / "run", "--dry-run", "--training-concepts", 5) == 0
    assert "concepts: 5 train" in caplog.text


def test_the_strengths_a_file_recommends_are_those_it_was_trained_at(tmp_path, whole, train):
    def recommended(run: Path) -> tuple[float, float]:
        return load_hypernetwork(run / "hypernetwork.safetensors").strength_range

    paired = ("--store-predictions", "true", "--transport-weight", 0, "--paired-weight", 1)
    assert train(tmp_path / "run", *paired, "--removal-share", 0.5, "--steps", 2) == 0
    assert recommended(tmp_path / "run") == (-1.0, 1.0) and recommended(whole) == (0.0, 1.0)
