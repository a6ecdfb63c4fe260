"""The store of target statistics: right numbers, resumable after a kill, refusals that name both sides."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hypertransport_core.measuring import MeasureError, pooled_samples
from hypertransport_core.statistics import StatisticsError, TargetStatistics, collect
from hypertransport_core.wasserstein import block_means
from tests.support.tiny_backbone import TinyBackbone

CONCEPTS = {"generic": ["a boat", "a cat", "a house"], "night, at sea": ["a boat at night", "a cat at night"],
            "Night at sea": ["dark water"], "ünïcode": ["snow"]}
SEEDS = list(range(8))


def gather(directory: str | Path, backbone: TinyBackbone | None = None, **changes) -> TargetStatistics:
    backbone = backbone or TinyBackbone()
    arguments = dict(concepts=CONCEPTS, seeds=SEEDS, sites=backbone.sites(), steps=2, blocks=4, pooling="mean",
                     directory=directory, batch=4)
    return collect(backbone, **{**arguments, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TargetStatistics:
    return gather(tmp_path_factory.mktemp("statistics"), dtype="float32")


def test_numbers_are_those_of_the_untouched_network(store: TargetStatistics) -> None:
    backbone = TinyBackbone()
    samples = pooled_samples(backbone, CONCEPTS["ünïcode"], SEEDS, backbone.sites(), steps=2)
    assert store.concepts == tuple(sorted(CONCEPTS)) and store.sites == backbone.sites()
    assert (store.steps, store.n_blocks, store.samples, store.levels) == (2, 4, 8, [1.0, 0.5])
    for step in range(2):
        torch.testing.assert_close(store.blocks("ünïcode", step), block_means(samples[step], 4))
        torch.testing.assert_close(store.blocks("ünïcode", step, blocks=2), block_means(samples[step], 2))
    torch.testing.assert_close(store.mean("ünïcode"), samples.mean(1))
    torch.testing.assert_close(store.std("ünïcode"), samples.std(1, correction=0))
    torch.testing.assert_close(store.source_mean, store.mean("generic"))
    assert store.source_std.shape == (2, 48) and not torch.equal(store.source_std, store.std("ünïcode"))


def test_batches_are_targets_of_the_loss(store: TargetStatistics) -> None:
    batch = store.batch(["Night at sea", "night, at sea"], steps=[1], blocks=2)
    assert batch.shape == (2, 1, 2, 48) and batch.dtype == torch.float32
    torch.testing.assert_close(batch[1, 0], store.blocks("night, at sea", 1, 2))


def test_samples_take_prompts_in_turn_with_their_own_seed() -> None:
    backbone = TinyBackbone()
    both = pooled_samples(backbone, ["a boat", "a cat"], [3, 4, 5], backbone.sites(), batch=2)
    alone = pooled_samples(backbone, ["a boat"], [5], backbone.sites())
    assert both.shape == (1, 3, 48)
    torch.testing.assert_close(both[:, 2:], alone)


def test_half_precision_and_two_moments(tmp_path: Path) -> None:
    store = gather(tmp_path, pooling="mean_std", steps=1)
    assert store.blocks("generic").shape == (4, 96) and store.key["dtype"] == "float16"
    exact = pooled_samples(TinyBackbone(), CONCEPTS["generic"], SEEDS, store.sites, pooling="mean_std")[0]
    torch.testing.assert_close(store.blocks("generic"), block_means(exact, 4), rtol=1e-3, atol=1e-3)


def test_a_stopped_collection_goes_on_where_it_was(tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise Cancelled

    seen: list[tuple[int, int, str]] = []
    with pytest.raises(Cancelled):
        gather(tmp_path, progress=stop)
    assert len(TargetStatistics(tmp_path)) == 2
    backbone = TinyBackbone()
    resumed = gather(tmp_path, backbone, progress=lambda *now: seen.append(now))
    assert [now[:2] for now in seen] == [(2, 4), (3, 4),
                                         (4, 4)] and backbone.calls == 2 * 2 * 2  # concepts, batches, steps
    whole = gather(tmp_path / "whole")
    assert torch.equal(resumed.batch(resumed.concepts), whole.batch(whole.concepts))
    before = backbone.calls
    gather(tmp_path, backbone)
    assert backbone.calls == before
    gather(tmp_path, backbone, concepts={**CONCEPTS, "more": ["a moon"]})
    assert "more" in TargetStatistics(tmp_path)


KILLED = """
import sys, time
from tests.core.test_statistics import gather
gather(sys.argv[1], progress=lambda done, total, name: (print(done, flush=True), time.sleep(60 if done == 2 else 0)))
"""


def test_a_killed_collection_leaves_whole_files_only(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, stdout=subprocess.PIPE,
                               text=True,
                               env={**os.environ, "PYTHONPATH": str(root)})
    for line in process.stdout:
        if line.strip() == "2":
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (tmp_path / ".concept-torn.safetensors.abc.part").write_bytes(b"half a fi")  # what a kill during a write leaves
    assert len(TargetStatistics(tmp_path)) == 2
    resumed, whole = gather(tmp_path), gather(tmp_path / "whole")
    assert torch.equal(resumed.batch(resumed.concepts), whole.batch(whole.concepts))


@pytest.mark.parametrize("changes, words", [
    ({"backbone": TinyBackbone(seed=1)}, r"the fingerprint \w+, but this run has the fingerprint \w+: choose"),
    ({"steps": 1}, r"noise levels \[1.0, 0.5\], but this run has the noise levels \[1.0\]"),
    ({"blocks": 2}, "the blocks 4, but this run has the blocks 2"),
    ({"pooling": "mean_std"}, "the pooling mean, but this run has the pooling mean_std"),
    ({"seeds": list(range(16))}, r"8 seeds \(\w+\), but this run has 16 seeds"),
    ({"sites": TinyBackbone().sites("mlp")}, r"6 sites \(\w+\), but this run has 2 sites"),
    ({"dtype": "float32"}, "the dtype float16, but this run has the dtype float32"),
    ({"concepts": {**CONCEPTS, "ünïcode": ["ice"]}}, r"'ünïcode' for prompts \w+, but this run has prompts \w+"),
])
def test_another_store_is_refused_before_any_work(tmp_path_factory, changes: dict, words: str) -> None:
    directory = tmp_path_factory.getbasetemp() / "fixed"
    if not directory.exists():
        gather(directory)
    backbone = changes.get("backbone", TinyBackbone())
    with pytest.raises(StatisticsError, match=words) as refusal:
        gather(directory, **{**changes, "backbone": backbone})
    assert backbone.calls == 0 and "\n" not in str(refusal.value) and str(refusal.value).count(": ") == 1


def test_check_fits(store: TargetStatistics) -> None:
    backbone = TinyBackbone()
    store.check_fits(backbone, backbone.sites(), "mean")
    with pytest.raises(StatisticsError, match="fingerprint"):
        store.check_fits(TinyBackbone(seed=2))
    with pytest.raises(StatisticsError, match="2 sites"):
        store.check_fits(backbone, backbone.sites("mlp"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    gather(tmp_path)
    path = next(tmp_path.glob("concept-generic-*"))
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    path.write_bytes({"cut": content[:-8], "flipped": content, "foreign": b"PK\3\4" + bytes(60)}[damage])
    with pytest.raises(StatisticsError, match="collect again"):
        TargetStatistics(tmp_path).source_mean


@pytest.mark.parametrize("changes, words", [
    ({"concepts": {"snow": ["snow"]}}, "no 'generic'"),
    ({"blocks": 3}, "divides 8"),
    ({"dtype": "float8"}, "float16 or float32"),
])
def test_refusals_say_what_to_do(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(StatisticsError, match=words):
        gather(tmp_path, **changes)
    with pytest.raises(StatisticsError, match="holds no statistics"):
        TargetStatistics(tmp_path)


def test_prompts_that_do_not_fit_the_seeds(tmp_path: Path, store: TargetStatistics) -> None:
    for prompts, words in ((["x"] * 9, "9 prompts"), ([], "0 prompts"), ("a text", "single text")):
        with pytest.raises(MeasureError, match=words):
            gather(tmp_path, concepts={"generic": prompts})
    with pytest.raises(StatisticsError, match="no statistics of 'fire'"):
        store.blocks("fire")
    with pytest.raises(StatisticsError, match="no step 2"):
        store.blocks("generic", 2)
