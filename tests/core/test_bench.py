"""The benchmark on a very small world: every number that it promises is there; how large they are is not asserted."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from hypertransport_core.benchmarks import runner, steering_costs
from hypertransport_core.benchmarks.report import KEYS, draw_growth, meaning_of, table
from hypertransport_core.benchmarks.timing import Clock, interleaved, ratio, spread
from hypertransport_core.commands import main

from small_postcard import write_world

TINY = runner.BenchSettings(
    repeats=2,
    fits=1,
    whole_fit=False,
    concepts=2,
    steps=1,
    rows=(1, 2),
    at_once=(1, 3),
    channels=(1024, 8192),
    training={
        "prompts_per_concept": 4,
        "blocks": 4,
        "images_per_concept": 2,
        "sampling_steps": 1,
        "width": 16,
        "bottleneck": 4,
        "concepts_per_step": 2,
        "samples_per_concept": 2,
        "precision": "fp32",
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def result(folder: Path) -> dict:
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering_costs, "FIT_SAMPLES", 8)
        found = runner.bench(folder, TINY, tell=told.append)
    assert len(told) == 8
    return {**found, "about.quick": True}


def test_every_promised_number_is_there_and_every_number_is_explained(result: dict) -> None:
    assert not [key for key in result if meaning_of(key) is None]
    for key in (key for key in KEYS if "N" not in key.split(".")):
        for name in [f"{key[:-1]}.{part}" for part in ("median", "min", "max")] if key.endswith("*") else [key]:
            assert name in result, name
            if not isinstance(result[name], str) and result[name] is not None:
                assert math.isfinite(result[name]) and result[name] >= 0, name
    grown = {meaning_of(key) for key in result if key.startswith("growth.")}
    assert grown == {meaning for key, meaning in KEYS.items() if key.startswith("growth.")}


def test_smallest_median_and_largest_are_in_order(result: dict) -> None:
    for key in [key for key in result if key.endswith(".median")]:
        stem = key.removesuffix("median")
        assert result[f"{stem}min"] <= result[key] <= result[f"{stem}max"], key


def test_facts_that_do_not_depend_on_the_clock(result: dict) -> None:
    assert result["fit.extrapolated"] is True and result["fit.steps"] == 1000
    assert result["memory.maps_bytes_per_concept"] == 2 * 4 * result["about.channels"]
    assert result["train.paired.rows"] == result["train.faithful.rows"] == 4
    assert result["train.paired.sites"] > result["train.faithful.sites"] == result["about.sites"]
    assert result["growth.channels.8192.parameters"] > 128 * 2 * 8192
    assert (
        result["growth.rows.1.live_row_over_one.median"]
        == result["growth.concepts.1.predict_each_over_one.median"]
        == 1
    )


def test_a_whole_fit_is_really_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering_costs, "FIT_STEPS", 3)
    monkeypatch.setattr(steering_costs, "FIT_SAMPLES", 8)
    made: list[int] = []
    original = steering_costs.lineas

    def counting(*args, **kwargs):
        made.append(kwargs["iterations"])
        return original(*args, **kwargs)

    monkeypatch.setattr(steering_costs, "lineas", counting)
    pipeline = runner.Pipeline.load(folder)
    found = steering_costs.fitting(steering_costs.Subject.of(pipeline, Clock()), 2, whole=True)
    assert made == [1, 3, 3] and found["fit.extrapolated"] is False
    assert found["fit.step_seconds.median"] * 3 == pytest.approx(found["fit.seconds.median"])


def test_maps_per_step_are_measured_live_only(tmp_path: Path) -> None:
    pipeline = runner.Pipeline.load(write_world(tmp_path, steps=2))
    subject = steering_costs.Subject.of(pipeline, Clock())
    found = steering_costs.sampling(subject, 1)
    assert "ratio.live_over_unsteered.median" in found and "ratio.folded_over_unsteered.median" not in found
    assert runner._sizes(subject)["memory.maps_bytes_per_concept"] == 2 * 8 * pipeline.hypernetwork.channels
    assert runner.growth.by_rows(subject, 1, (1,))


def test_folding_again_starts_from_the_plain_weights(folder: Path) -> None:
    pipeline = runner.Pipeline.load(folder)
    subject = steering_costs.Subject.of(pipeline, Clock())
    one, two = (steering_costs._Folded(pipeline.backbone, subject.maps) for _ in range(2))
    one.set(0.5)
    one.set(1.0)
    weights = two.backbone.network.state_dict()
    assert all((value == weights[name]).all() for name, value in one.backbone.network.state_dict().items())
    plain = pipeline.backbone.network.state_dict()
    assert any((value != plain[name]).any() for name, value in weights.items())


def test_rounds_run_all_cases_in_turns() -> None:
    order: list[str] = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 3, Clock(), 0)
    assert order == ["a", "b", "b", "a", "a", "b"] and {len(values) for values in times.values()} == {3}
    order.clear()
    times = interleaved({"quick": lambda: order.append("")}, 1, Clock(processor=True), 1e-3)
    assert len(order) > 4  # a quick thing is done often, and its seconds are those of one time
    assert ratio([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    assert spread("x", [3.0, 1.0, 2.0]) == {"x.median": 2.0, "x.min": 1.0, "x.max": 3.0} and spread("x", []) == {}


def test_the_command_writes_numbers_a_table_and_a_plot(
    folder: Path, tmp_path: Path, result: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "bench", lambda *args, **kwargs: dict(result))
    target = tmp_path / "bench.json"
    assert main(["bench", "--quick", "--json", str(target), "--weights", str(folder), "--quiet"]) == 0
    flat, printed = json.loads(target.read_text()), capsys.readouterr().out
    assert flat.keys() == result.keys()
    assert printed.startswith("| what | median |") and "(extrapolated)" in printed and " MiB" in printed
    assert table({**flat, "fit.extrapolated": False}).count("(extrapolated)") == 0
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert "no plot" in printed
    else:
        from PIL import Image

        with Image.open(tmp_path / "bench.png") as picture:
            assert picture.size == (900, 680)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_growth(tmp_path / "other.png", flat)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fits", "0"], "--fits is 0, expected a whole number"),
        (["--device", "toaster"], "--device is 'toaster', expected cpu"),
        (["--device", "cuda", "--processor-time"], "--processor-time was given with --device cuda"),
        (["--weights", "nowhere"], "holds no postcard.safetensors"),
    ],
)
def test_refusals_are_a_sentence(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--quiet", "--json", str(tmp_path / "x.json"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert main(["bench", "--json", str(tmp_path)]) == 2
    assert "is the folder" in capsys.readouterr().err
