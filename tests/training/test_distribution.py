"""Several processes: the same numbers as one, no work done twice, and no process left waiting for one that is gone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hypertransport_core.training import claims, cli
from hypertransport_core.training.claims import claimed, clear_claims
from hypertransport_core.training.distribution import Group
from hypertransport_core.training.states import States
from tests.training import worlds
from tests.training.test_run import curves

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes and file locks of POSIX")
ROOT = Path(worlds.__file__).resolve().parents[2]
# Dropped units must not depend on the number of processes; K = 3 concepts do not divide by two or four of them.
SETTINGS = ("--dropout", "0.2")


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command and all that it starts; what hangs is ended, and fails the test."""
    values = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(
        command, env=values, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.terminate()  # a launcher ends its own, whose sessions are others
            raise
        finally:
            if process.poll() is None:
                process.wait(60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def launch(count: int, *arguments: object, **environment: str) -> tuple[list[int], str]:
    """Exit statuses of `count` processes, and what they said to stderr."""
    pytest.importorskip("accelerate")
    found = run([sys.executable, str(ROOT / "tests/training/launched.py"), str(count), *map(str, arguments)], **environment)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr
    return json.loads(found.stdout.splitlines()[-1]), found.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing befell."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["--preset", "tiny", "--output", str(path), *SETTINGS]) == 0
    return path


def assert_same_course(found: Path, other: Path) -> None:
    """Same data bit for bit; same curves, weights and evaluation to 1e-5."""
    data = sorted(path.relative_to(other) for path in (other / "data").rglob("*") if path.is_file())
    assert data == sorted(path.relative_to(found) for path in (found / "data").rglob("*") if path.is_file())
    for name in data:
        assert (found / name).read_bytes() == (other / name).read_bytes(), name
    mine, theirs = curves(found), curves(other)
    assert len(mine) == len(theirs) == 4
    for row, wanted in zip(mine, theirs):
        assert {name for name in row if row[name]} == {name for name in wanted if wanted[name]}
        for name in (name for name in wanted if wanted[name]):
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-5, abs=1e-5), (row["step"], name)
    for file in ("hypernetwork.safetensors", "checkpoints/step-00000012.safetensors"):
        tensors, wanted_tensors = load_file(found / file), load_file(other / file)
        assert tensors.keys() == wanted_tensors.keys()
        for key, value in tensors.items():
            torch.testing.assert_close(value, wanted_tensors[key], rtol=1e-5, atol=1e-5, msg=lambda text: f"{key}: {text}")
    assert not list(found.rglob("*.claim")) and not list(found.rglob("*.partial"))


def test_two_processes_started_as_documented_are_one(tmp_path: Path, whole: Path) -> None:
    pytest.importorskip("accelerate")
    path = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "tests/training/worlds.py"), "--preset", "tiny", "--output", str(path), "--device", "cpu"]
    found = run([*command, *script, *SETTINGS])
    assert found.returncode == 0, found.stderr
    assert_same_course(path, whole)
    assert "2 processes work together" in found.stdout
    assert found.stdout.count("step 12/12") == 1  # one process speaks


def test_two_processes_read_the_models_responses_as_one(tmp_path: Path) -> None:
    alone, path, settings = tmp_path / "alone", tmp_path / "run", (*SETTINGS, "--response", "6")
    assert cli.main(["--preset", "tiny", "--output", str(alone), *settings]) == 0
    statuses, said = launch(2, "--output", path, *settings)
    assert statuses == [0, 0], said
    assert len(list((path / "data" / "responses").iterdir())) == 24 + 1
    assert_same_course(path, alone)


def test_stopped_in_every_way_and_resumed_by_any_number_is_the_same_course(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "run"
    statuses, said = launch(2, "--output", path, *SETTINGS, MISHAPS="kill:collect:3:1")
    assert statuses == [1, -signal.SIGKILL]
    assert "is gone without a word" in said and said.count("error: ") == 1
    resumed = ("--output", path, "--resume", "latest")
    statuses, said = launch(2, *resumed, MISHAPS="full:save:8:0")
    assert statuses == [1, 1] and said.count("error: ") == 1 and "the disk is full" in said
    assert States(path).steps() == [4]
    statuses, said = launch(4, *resumed, MISHAPS="interrupt:train:9:2")
    assert statuses == [130] * 4 and said.count("Stopped at step 10 of 12") == 1
    assert States(path).steps() == [4, 8, 10]
    assert cli.main(["--preset", "tiny", *map(str, resumed)]) == 0
    assert_same_course(path, whole)


def test_one_refusal_is_said_once(tmp_path: Path) -> None:
    statuses, said = launch(2, "--output", tmp_path / "run", "--steps", "many")
    assert statuses == [1, 1] and said.strip().startswith("error: steps is 'many'") and said.count("error") == 1
    assert not (tmp_path / "run").exists()


def test_independent_processes_share_a_folder(tmp_path: Path, whole: Path) -> None:
    lines = tmp_path / "lines"
    statuses, said = launch(
        3,
        "--stage",
        "collect",
        "--data",
        tmp_path / "data",
        APART=str(tmp_path),
        MISHAPS="kill:collect:2:1",
        RECORD=str(lines),
    )
    assert statuses == [0, -signal.SIGKILL, 0], said
    collected = [line.split(" ", 1) for line in lines.read_text().splitlines()]
    assert len(collected) == 24 == len({name for _, name in collected})  # the one that was cut off was done by another
    by_process = Counter(process for process, _ in collected)
    assert len(by_process) == 3 and min(by_process.values()) == 2
    files = {path.name: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert files == {path.name: path.read_bytes() for path in (whole / "data").rglob("*") if path.is_file()}


def test_processes_with_other_settings_are_refused(tmp_path: Path) -> None:
    statuses, said = launch(2, "--output", tmp_path / "run", OTHER_SEED_IN="1")
    assert statuses == [1, 1] and said.count("error: ") == 1 and "The 2 processes differ in the settings" in said


def test_a_launcher_without_accelerate_is_one_sentence(
    tmp_path: Path, train: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert train(tmp_path / "run") == 1
    text = capsys.readouterr().err.strip()
    assert "The package accelerate cannot be imported" in text and "pip install accelerate" in text and "\n" not in text


@pytest.mark.parametrize("items", [0, 1, 3, 8, 777])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_the_whole(items: int, count: int) -> None:
    shares = []
    for index in range(count):
        group = Group()
        group.index, group.count = index, count
        shares.append(range(items)[group.share(items)])
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_claim_is_for_one_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "work" / "a.safetensors"
    with claimed(file) as first, claimed(file) as second, claimed(file.with_name("b")) as other:
        assert (first, second, other) == (True, False, True)
        clear_claims(file.parent)
        assert len(list(file.parent.iterdir())) == 2  # both are held
    assert not list(file.parent.iterdir())
    with pytest.raises(KeyError), claimed(file):
        raise KeyError
    (file.parent / ".a.safetensors.claim").touch()  # of a process that was killed
    with claimed(file) as free:
        assert free
    (file.parent / ".a.safetensors.claim").touch()
    clear_claims(file.parent)
    assert not list(file.parent.iterdir())

    def none(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(claims.fcntl, "flock", none)
    with claimed(file) as first, claimed(file) as second:
        assert first and second  # twice the work, the same result
