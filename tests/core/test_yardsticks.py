"""Measurements of other methods kept between runs: taken over they are what they were, and nothing stale is taken over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_postcard import write_hypernetwork, write_world

from hypertransport_core.commands import main, results
from hypertransport_core.evaluation import methods as methods_module, runner, studies as studies_module, yardsticks
from hypertransport_core.evaluation.yardsticks import Measured, Yardsticks
from hypertransport_core.files import FileError
from hypertransport_core.pipeline import HYPERNETWORK_FILE, Pipeline
from hypertransport_core.postcard.judge import Judge

TINY = ["--concepts", "2", "--prompts", "2", "--fit-concepts", "1", "--fit-validation", "0", "--validation", "1"]
TINY += ["--pairs", "1", "--quick", "--quiet", "--methods", "ours_text,ours_image,prompting,linear_act,mean_act,slider_lora"]
OTHERS = ("prompting", "linear_act", "mean_act", "slider_lora")
CHANGING = ("seconds", "speed.", "counts.taken_over", "counts.yardsticks", "counts.fits")


@pytest.fixture(scope="module", autouse=True)
def sooner() -> Iterator[None]:
    """Fewer steps, strengths and pictures of the world itself."""
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "QUICK", {**results.QUICK, "world": 0, "renders": 0, "steps": 1, "rise_prompts": 2})
        patch.setattr(studies_module, "GRID", (0.5, 1.0))
        patch.setattr(studies_module, "BEYOND", (1.5,))
        patch.setattr("hypertransport_core.evaluation.fits.FitSettings.slider_iterations", 2)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("weights"))
    Judge((8, 8, 8), "patches").eval().save(folder / results.SECOND_JUDGE_FILE)
    return folder


@pytest.fixture(scope="module")
def first(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(output, yardsticks) of a run that kept its measurements."""
    output = tmp_path_factory.mktemp("docs")
    run(weights, output, output / "kept")
    return output, output / "kept"


def run(weights: Path, output: Path, kept: Path | None, *more: str) -> int:
    folders = ["--weights", str(weights), "--output", str(output), "--measured", str(output / "measured")]
    return main(["results", *folders, *TINY, *(["--yardsticks", str(kept)] if kept else []), *more])


def numbers(output: Path) -> dict:
    flat = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return {key: value for key, value in flat.items() if not key.startswith(CHANGING)}


def counts(output: Path) -> tuple[int | None, int]:
    flat = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return flat["counts.taken_over"], flat["counts.yardsticks"]


def pictures(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "results").iterdir()}


def test_what_is_taken_over_is_what_would_be_measured(
    weights: Path, first: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "alone"
    assert run(weights, alone, None) == 0 and numbers(alone) == numbers(first[0]) and pictures(alone) == pictures(first[0])
    assert counts(alone) == (None, 0) and counts(first[0])[0] is None and counts(first[0])[1] > 10
    assert "taken over" not in (first[0] / "results.md").read_text(encoding="utf-8")

    maps = methods_module.Methods.maps
    asked = []
    monkeypatch.setattr(methods_module.Methods, "maps", lambda self, method, name: asked.append(method) or maps(self, method, name))
    again, before = tmp_path / "again", {path.name: path.read_bytes() for path in first[1].iterdir()}
    assert run(weights, again, first[1]) == 0
    assert numbers(again) == numbers(first[0]) and pictures(again) == pictures(first[0])
    taken, of = counts(again)
    assert taken == of == counts(first[0])[1] and f"Of {of} measurements" in (again / "results.md").read_text(encoding="utf-8")
    # Mean-AcT's inverse is tried on removal, which is not kept: its maps are asked for there only.
    assert "prompting" not in asked and "linear_act" not in asked and "slider_lora" not in asked
    assert {path.name: path.read_bytes() for path in first[1].iterdir()} == before


def test_other_weights_measure_only_what_is_theirs(weights: Path, first: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(weights, tmp_path / "weights")
    pipeline = Pipeline.load(weights)
    torch.manual_seed(5)
    write_hypernetwork(other / HYPERNETWORK_FILE, pipeline.backbone, pipeline.encoder, effect=0.4)
    output = tmp_path / "docs"
    assert run(other, output, first[1]) == 0
    ours, theirs = numbers(output), numbers(first[0])
    assert counts(output)[0] == counts(output)[1] > 10
    for method in OTHERS:
        assert all(ours[key] == theirs[key] for key in theirs if key.startswith(f"heldout.{method}.")), method
    assert ours["heldout.ours_text.error"] != theirs["heldout.ours_text.error"]
    assert ours["heldout.ours_image.error"] != theirs["heldout.ours_image.error"]


def test_more_concepts_are_added_to_those_there(weights: Path, first: tuple[Path, Path], tmp_path: Path) -> None:
    kept, output = shutil.copytree(first[1], tmp_path / "kept"), tmp_path / "docs"
    assert run(weights, output, kept, "--fit-concepts", "2") == 0
    taken, of = counts(output)
    assert taken == counts(first[0])[1] and of == taken + 1  # the slider on one more concept, at 1 and nowhere else
    before, after = (json.loads((folder / yardsticks.NUMBERS).read_text())["measured"] for folder in (first[1], kept))
    assert before.items() < after.items() and len(after) == of


@pytest.mark.parametrize(("change", "words"), [("--seed", "seed = 90000, expected 3"), ("--prompts", "prompts = 2, expected 3")])
def test_measurements_made_otherwise_are_refused(
    weights: Path, first: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, words: str
) -> None:
    assert run(weights, tmp_path / "docs", first[1], change, "3") == 2
    said = capsys.readouterr().err.strip()
    assert words in said and said.endswith(".") and "\n" not in said and "--yardsticks" in said
    assert not (tmp_path / "docs").exists()


def test_digests_are_told_in_words(first: tuple[Path, Path]) -> None:
    facts = json.loads((first[1] / yardsticks.NUMBERS).read_text())["facts"]
    for key, words in yardsticks.DIGESTS.items():
        with pytest.raises(FileError) as caught:
            Yardsticks(first[1], facts | {key: "0123456789abcdef"})
        said = str(caught.value)
        assert words in said and "0123456789abcdef" not in said and str(facts[key]) not in said
    assert all(len(str(value)) < 16 or key in yardsticks.DIGESTS or key == "encoder" for key, value in facts.items())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"facts": 1, "measured": {}}', '{"facts": {}, "measured": {"a": 1}}'])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / yardsticks.NUMBERS).write_text(content)
    with pytest.raises(FileError, match="cannot be read as measurements") as caught:
        Yardsticks(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_in_the_folders_place_is_refused_before_anything_is_measured(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("mine")
    assert run(weights, tmp_path / "docs", tmp_path / "kept") == 2
    assert "--yardsticks is the file" in capsys.readouterr().err and (tmp_path / "kept").read_text() == "mine"
    assert not (tmp_path / "docs").exists()


def test_numbers_come_back_to_the_last_bit_and_so_do_pictures(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    one = Measured(
        {"a": 1 / 3, "b": float("nan")}, {"j": torch.rand(50, generator=generator) * 1e-5}, torch.rand(3, 4, 4), 7
    )
    kept = Yardsticks(tmp_path, {"steps": 4})
    assert kept.recall("lineas_50", "x", "strength 1", lambda: one) == (one, False)
    assert kept.recall("ours_text", "x", "strength 1", lambda: one) == (one, False) and kept.made == 1
    kept.save()
    other = Yardsticks(tmp_path, {"steps": 4})
    found, known = other.recall("lineas_50", "x", "strength 1", lambda: pytest.fail("measured again"))
    assert known and found.scores["a"] == 1 / 3 and found.scores["b"] != found.scores["b"] and found.images == 7
    assert torch.equal(found.merits["j"], one.merits["j"])
    assert found.picture is not None and one.picture is not None
    assert torch.equal((found.picture * 255).round(), (one.picture * 255).round())
    with pytest.raises(BaseException, match="measured again"):  # ours is nobody's yardstick
        other.recall("ours_text", "x", "strength 1", lambda: pytest.fail("measured again"))


def test_of_a_method_the_picture_at_the_strength_chosen_is_kept(tmp_path: Path) -> None:
    picture = torch.zeros(3, 4, 4)
    kept = Yardsticks(tmp_path)
    for method in ("linear_act", "mean_act"):  # the second stands on no sheet
        for what in ("strength 1", "strength 0.7"):
            kept.recall(method, "x", what, lambda: Measured({"a": 1.0}, {}, picture))
    kept.save()
    again = Yardsticks(tmp_path)
    found = {
        (method, what): again.recall(method, "x", what, lambda: pytest.fail("measured again"))[0].picture is not None
        for method in ("linear_act", "mean_act")
        for what in ("strength 1", "strength 0.7")
    }
    assert [key for key, there in found.items() if there] == [("linear_act", "strength 0.7")]
    # Chosen otherwise, the picture is made again.
    made, known = again.recall("linear_act", "x", "strength 1", lambda: Measured({"a": 2.0}, {}, picture), pictured=True)
    assert not known and made.scores == {"a": 2.0}


def test_a_stopped_run_has_kept_what_it_measured(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yardsticks, "SAVE_EVERY", 0.0)
    one = runner.Session.one

    def stopped(self: runner.Session, method: str, name: str) -> None:
        if method == "slider_lora":
            raise KeyboardInterrupt
        one(self, method, name)

    monkeypatch.setattr(runner.Session, "one", stopped)
    assert run(weights, tmp_path / "docs", tmp_path / "kept") == 130
    there = json.loads((tmp_path / "kept" / yardsticks.NUMBERS).read_text())["measured"]
    assert len(there) == 2 * len(OTHERS[:3])


def test_what_is_known_is_not_counted_as_work_ahead(
    weights: Path, first: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[tuple[float, float]] = []
    monkeypatch.setattr(runner.Progress, "finish", lambda self: ends.append((self.done, self.total)))
    cache = ["--cache", str(tmp_path / "cache")]
    for name, kept, more in ("whole", None, cache), ("cached", None, cache), ("taken over", first[1], []):
        assert run(weights, tmp_path / name, kept, *more) == 0
    whole, cached, taken = (done for done, _ in ends)
    assert cached < 0.5 * whole and taken < 0.5 * whole
    for done, total in ends:
        assert 0.8 * total < done < 1.25 * total
