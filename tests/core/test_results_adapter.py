"""The image-prompt adapter on the results page: it takes part where the weights folder has one, and the page says how
to get one where not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_postcard import write_world

from hypertransport_core.commands import evaluate, main, results
from hypertransport_core.commands.options import IMAGE_ADAPTER_FILE
from hypertransport_core.evaluation import charts, page_tables, methods as methods_module, studies as studies_module
from hypertransport_core.evaluation.results import _versus
from hypertransport_core.evaluation.studies import Studies
from hypertransport_core.fitting.image_adapter import ImageAdapter
from hypertransport_core.pipeline import Pipeline

TINY = ["--concepts", "1", "--prompts", "2", "--validation", "1", "--quick", "--quiet"]
ONE = ["--concepts", "1", "--prompts", "1", "--steps", "1", "--quick", "--quiet"]
BULLET = "- **A decoupled image-prompt adapter** as a baseline"


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods are all there are, with fewer steps and strengths."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(results, "QUICK", {**results.QUICK, "world": 0, "renders": 0, "steps": 1, "rise_prompts": 2})
    monkeypatch.setattr(results, "QUICK_STUDIES", {**results.QUICK_STUDIES, "seeds": 2})
    monkeypatch.setattr(studies_module, "GRID", (0.5, 1.0))
    monkeypatch.setattr(methods_module, "EVERY", ("ours_image", "image_adapter"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("weights"))
    pipeline = Pipeline.load(folder)
    adapter = ImageAdapter.beside(pipeline.backbone.network, pipeline.encoder.width)
    for layer in adapter.values:
        torch.nn.init.normal_(layer.weight)
    save(adapter, folder, pipeline.encoder.encoder_id)
    return folder


def save(adapter: ImageAdapter, folder: Path, encoder_id: str) -> None:
    backbone = Pipeline.load(folder).backbone
    adapter.save(folder / IMAGE_ADAPTER_FILE, family=backbone.family, fingerprint=backbone.fingerprint(adapter.sites),
                 encoder_id=encoder_id, means={"image": torch.zeros(adapter.embedding_dim)}, training={"steps": 1234})


def measured(weights: Path, output: Path) -> tuple[dict, str]:
    folders = ["--weights", str(weights), "--output", str(output), "--measured", str(output / "kept")]
    assert main(["results", *folders, *TINY]) == 0
    return json.loads((output / "results.json").read_text()), (output / "results.md").read_text()


def test_it_takes_part_where_there_is_one(weights: Path, tmp_path: Path) -> None:
    flat, text = measured(weights, tmp_path)
    for key in ("heldout.image_adapter.concept", "best.image_adapter.joint", "versus_image.image_adapter.subject",
                "diversity.image_adapter.distance"):
        assert key in flat and f"interval.{key}" in flat, key
    assert flat["best.image_adapter.strength"] in (0.5, 1.0) and flat["choice.image_adapter.concepts"]
    (about,) = flat["concepts"].values()
    assert about["image_adapter"]["moved"] > 0 and about["image_adapter"] != about["ours_image"]
    assert BULLET not in text and "| image-prompt adapter, picture | one pass | 1 |" in text
    assert "\n1,234 steps (the hypernetwork, from words" in text
    tied = {**flat, "versus_image.image_adapter.joint.verdict": "ties"}  # one concept is too few for a verdict
    assert page_tables._summary(tied).endswith("\n- From one picture it **ties** with the image-prompt adapter that is shown the same one.")
    assert "From one picture it" not in text and "\n- **Loses** to: none of them.\n" in text
    assert "| HyperTransport, picture, against |" in text and "(https://arxiv.org/abs/2308.06721)" in text
    drawn = charts.draw_all({key: 0.5 if value is None else value for key, value in flat.items()}, tmp_path)
    assert {"methods.png", "choice.png"} <= set(drawn)


def test_without_one_the_page_says_how_to_train_it(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "weights"
    shutil.copytree(weights, bare)
    (bare / IMAGE_ADAPTER_FILE).unlink()
    flat, text = measured(bare, tmp_path / "docs")
    assert "heldout.ours_image.concept" in flat and not [key for key in flat if "image_adapter" in key]
    assert BULLET in text and "hypertransport_core.postcard.train_adapter" in text and "2308.06721" not in text
    for command in (["results", "--output", str(tmp_path / "docs")], ["evaluate", "--json", str(tmp_path / "r.json")]):
        assert main([*command, "--weights", str(bare), "--methods", "image_adapter", "--quiet"]) == 2
        said = capsys.readouterr().err
        assert "train_adapter" in said and said.count("\n") == 1


def test_one_for_another_encoder_is_refused_before_any_work(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "weights"
    shutil.copytree(weights, other)
    pipeline = Pipeline.load(other)
    save(ImageAdapter.beside(pipeline.backbone.network, pipeline.encoder.width), other, "another-clip")
    assert main(["results", "--weights", str(other), "--output", str(tmp_path / "docs"), *TINY]) == 2
    said = capsys.readouterr().err
    assert "another-clip" in said and said.count("\n") == 1 and not (tmp_path / "docs").exists()
    report = ["evaluate", "--weights", str(other), "--json", str(tmp_path / "r.json")]
    assert main([*report, *ONE, "--methods", "image_adapter"]) == 2
    monkeypatch.setattr(evaluate, "QUICK", {"world": 0, "renders": 0})
    assert main([*report, *ONE, "--methods", "ours_image"]) == 0  # which does without it


def test_evaluate_measures_it_by_name(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "QUICK", {"world": 0, "renders": 0})
    report = ["--weights", str(weights), "--json", str(tmp_path / "r.json")]
    assert main(["evaluate", *report, *ONE, "--methods", "image_adapter"]) == 0
    assert "heldout.image_adapter.concept" in json.loads((tmp_path / "r.json").read_text())


def test_ours_from_the_picture_minus_it() -> None:
    scores = {"ours_image": 0.75, "ours_text": 1.0, "image_adapter": 0.5}
    measures = ("concept", "subject", "colour", "joint", "place", "size", "similarity", "error", "moved", "clip")
    found = Studies(best={m: {n: dict.fromkeys(measures, v) for n in ("neon", "sepia")} for m, v in scores.items()})
    picture, words = _versus(found, "ours_image", ("image_adapter",), "versus_image"), _versus(found)
    assert picture["versus_image.image_adapter.joint"] == 0.25 and words["versus.image_adapter.joint"] == 0.5
    assert picture["versus_image.image_adapter.joint.verdict"] == "wins" == words["versus.ours_image.joint.verdict"]
    assert picture["versus_image.image_adapter.error.verdict"] == "loses"
    assert all(key.removeprefix("interval.").startswith("versus_image.image_adapter.") for key in picture)
