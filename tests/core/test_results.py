"""The results page: every number has a source, nothing is missing, the same run gives the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from hypertransport_core.commands import main, results
from hypertransport_core.commands.results import settings_of
from hypertransport_core.evaluation import charts, other_runs, other_seeds, page as page_module, stored, studies as studies_module
from hypertransport_core.evaluation.methods import EVERY
from hypertransport_core.evaluation.other_seeds import MEASURES
from hypertransport_core.evaluation.page_tables import TABLES
from hypertransport_core.evaluation.page_text import TEMPLATE
from hypertransport_core.evaluation.report import JUDGES
from hypertransport_core.pipeline import CLIP_FILE, HYPERNETWORK_FILE, Pipeline
from hypertransport_core.postcard.captions import vocabulary
from hypertransport_core.postcard.clip import PostcardCLIP
from hypertransport_core.postcard.concepts import split
from hypertransport_core.postcard.judge import Judge

from small_postcard import write_hypernetwork, write_world

TINY = ["--concepts", "2", "--prompts", "2", "--fit-concepts", "0", "--fit-validation", "0", "--validation", "1"]
TINY += ["--pairs", "1", "--quick", "--quiet", "--methods", "ours_text,ours_image,prompting,linear_act,mean_act"]
TINIEST = [*TINY[:-1], "ours_text"]
CHANGING = ("seconds", "speed.")  # what the clock says


@pytest.fixture(scope="module", autouse=True)
def sooner() -> Iterator[None]:
    """Fewer steps, strengths and pictures of the world itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "QUICK", {**results.QUICK, "world": 0, "renders": 0, "steps": 1, "rise_prompts": 3})
        patch.setattr(studies_module, "GRID", (0.5, 1.0))
        patch.setattr(studies_module, "BEYOND", (1.5,))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(weights, output) of a tiny run; what it measured is kept in the folder `kept` of the weights."""
    pytest.importorskip("matplotlib")
    weights, output = write_world(tmp_path_factory.mktemp("weights")), tmp_path_factory.mktemp("docs")
    Judge((8, 8, 8), "patches").eval().save(weights / results.SECOND_JUDGE_FILE)
    PostcardCLIP(vocabulary(), {"text": 1, "vision": 1}).save(weights / results.SECOND_CLIP_FILE)
    assert main(["results", "--weights", str(weights), "--output", str(output), "--measured", str(weights / "kept"), *TINY]) == 0
    return weights, output


def numbers(output: Path) -> dict:
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def test_the_prose_holds_no_number_of_its_own() -> None:
    prose = re.sub(r"\[\[[^\]]*\]\]|`[^`]*`|\]\([^)]*\)|95 % bootstrap|strength [01]\b|Strength 0|100 %", "", TEMPLATE)
    assert not re.findall(r"[^\n]*\d[^\n]*", prose)


def test_all_promised_keys_are_there(run: tuple[Path, Path]) -> None:
    flat = numbers(run[1])
    wanted = ["composition.both_present", "removal.gone", "distance.farthest_quarter_drop", "heldout.ours_text.monotone"]
    wanted += [f"preference.{method}.{judge}" for method in ("prompting", "linear_act") for judge in JUDGES]
    wanted += [f"best.{method}.joint" for method in ("ours_text", "ours_image", "prompting", "linear_act", "mean_act")]
    wanted += [f"{at}.{method}.clip" for at in ("heldout", "best") for method in ("ours_image", "prompting", "mean_act")]
    wanted += ["versus.prompting.clip", "curve.ours_text.clip.1.5"]
    wanted += ["robust.typo.concept", "diversity.prompting.share", "curve.ours_text.way.0.5", "modality.image_share"]
    for key in wanted:
        assert key in flat and f"interval.{key}" in flat, key
    assert flat["removal.gone"] == flat["removal.negative.gone"] and "removal.negative_image.joint" in flat
    assert flat["counts.rise_prompts"] == 3 and flat["counts.fits"] > 0 == flat["counts.fits_cached"]
    assert flat["curve.identical_at_0"] is True
    assert flat["best.linear_act.strength"] in (0.5, 1.0) and flat["best.prompting.strength"] is None
    assert flat["choice.linear_act.concepts"] and set(flat["choice.linear_act.concepts"]) <= set(split()["validation"])
    assert flat["curve.ours_text.way.0"] in (0, None) and flat["curve.ours_text.way.1"] in (1, None)
    assert "--concepts 2" in flat["command"] and str(run[0]) not in json.dumps(flat)


def test_the_page_is_complete_and_names_only_known_keys(run: tuple[Path, Path]) -> None:
    output, flat = run[1], numbers(run[1])
    text = (output / "results.md").read_text(encoding="utf-8")
    assert "[[" not in text and "]]" not in text and "nan" not in text.lower().split()
    for name in re.findall(r"\]\(results/([\w.-]+)\)", text):
        assert (output / "results" / name).stat().st_size > 1000, name
    files = {path.name for path in (output / "results").iterdir()}
    assert {"strength.png", "categories.png", "distance.png"} <= files  # others: an untrained judge finds nothing right
    assert {"gallery-1.jpg", "best.jpg", "worst.jpg", "strength.jpg", "composition.jpg", "removal.jpg"} <= files
    assert all(f"results/{name}" in text for name in files)
    of_other_methods = ("lineas", "nearest", "slider_lora", "ours_images_4", "modality.images_4", "speed.", "fit.", "clip_2.renders", "again.")
    unknown = [key for key in page_module.keys_of() if key not in flat and not any(w in key for w in of_other_methods)]
    assert not unknown
    assert set(re.findall(r"\[\[table:(\w+)\]\]", TEMPLATE)) == set(TABLES)


def test_where_a_method_has_fewer_concepts_the_page_says_how_to_compare(run: tuple[Path, Path]) -> None:
    flat = numbers(run[1])
    assert "counts.fewer" not in flat and "are few because" not in page_module.page(flat, [])
    text = page_module.page(flat | {"counts.fewer": 1}, [])
    assert "are few because one fit takes\nminutes" in text and "\n\n*LinEAS*: " in text


def test_differences_are_points_and_open_intervals_stay_open(run: tuple[Path, Path]) -> None:
    key, often = "versus.lineas_1000.concept", "preference.prompting.network.times"
    known = {key: -0.09, f"interval.{key}": [-0.16, -0.01], often: 5.0, f"interval.{often}": [2.0, None]}
    text = page_module.page(numbers(run[1]) | known, [])
    assert "| at least 0 points | -9 (-16 to -1) | **no** |" in text and "| 5.00 (2.00 to always) |" in text
    known |= {key: 0.0, f"interval.{often}": [2.0, 9.0]}
    text = page_module.page(numbers(run[1]) | known, [])
    assert "| at least 0 points | +0 (-16 to -1) | yes |" in text and "| 5.00 (2.00 to 9.00) |" in text


def test_without_a_second_clip_the_page_says_how_to_train_one(run: tuple[Path, Path]) -> None:
    flat = numbers(run[1])
    shares = {"heldout.ours_text.clip": 0.42, "best.ours_text.clip": 0.43, "clip_2.renders": 0.44, "clip_2.agreement": 0.45}
    text = page_module.page(flat | shares, [])
    row = next(line for line in text.partition("## By another CLIP")[2].splitlines() if "HyperTransport, words |" in line)
    assert "42 % (" in row and "43 % (" in row and "right on 44 % of fresh ones" in text and "correlation of 0.45" in text
    assert "second CLIP finds their names, among all concepts | 44 %" in text and "train_clip --seed" not in text
    before = {key: value for key, value in flat.items() if "clip" not in key}  # of a run with one CLIP only
    for old in (before, before | {"heldout.ours_text.clip": None}):
        text = page_module.page(old, [])
        assert "train_clip --seed 1 --size small" in text and "second CLIP" not in text and "[[" not in text
        assert "## What becomes of the picture" in text


def test_the_clip_that_reads_the_concepts_does_not_measure(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = shutil.copytree(run[0], tmp_path / "weights")
    shutil.copy(weights / CLIP_FILE, weights / results.SECOND_CLIP_FILE)
    assert main(["results", "--weights", str(weights), "--output", str(tmp_path / "docs"), *TINIEST]) == 2
    said = capsys.readouterr().err
    assert "is the CLIP that reads the concepts" in said and said.count("\n") == 1 and not (tmp_path / "docs").exists()


def test_all_charts_are_drawn_900_pixels_wide(run: tuple[Path, Path], tmp_path: Path) -> None:
    flat = {key: 0.5 if value is None else value for key, value in numbers(run[1]).items()}
    flat |= {key: [0.4, 0.7] for key in flat if key.startswith("interval.")}
    drawn = charts.draw_all(flat, tmp_path)
    assert drawn == ["methods.png", "strength.png", "choice.png", "categories.png", "distance.png", "preference.png"]
    for name in drawn:
        with Image.open(tmp_path / name) as picture:
            assert picture.width == 900 and picture.height < 900


def test_numbers_on_the_page_are_those_of_the_file(run: tuple[Path, Path]) -> None:
    flat = numbers(run[1])
    changed = flat | {"heldout.ours_text.concept": 0.4321, "interval.heldout.ours_text.concept": [0.31, 0.57]}
    assert "43 % (31 to 57)" in page_module.page(changed, []) and "43 % (31 to 57)" not in page_module.page(flat, [])
    assert "not measured" in page_module.page({key: v for key, v in flat.items() if key != "removal.gone"}, [])
    for path in (run[1] / "results.csv",):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0] == "key,value,low,high,command"
        assert any(line.startswith("composition.both_present,") and "python -m" in line for line in lines)


def test_the_same_run_gives_the_same_and_the_page_can_be_written_again(run: tuple[Path, Path], tmp_path: Path) -> None:
    weights, output = run
    again, drawn = tmp_path / "again", tmp_path / "drawn"
    assert main(["results", "--weights", str(weights), "--output", str(again), "--measured", str(tmp_path), *TINY]) == 0
    first, second = (
        {key: value for key, value in numbers(folder).items() if not key.startswith(CHANGING)} for folder in (output, again)
    )
    assert first == second
    assert main(["results", "--output", str(drawn), "--from", str(weights / "kept")]) == 0
    assert _contents(drawn) == _contents(output) and "results/removal.jpg" in _contents(drawn)
    for name, content in _contents(output).items():
        if name.startswith("results/"):
            assert _contents(again)[name] == content, name
    (drawn / "results.md").unlink()
    (drawn / "results" / "gallery-7.jpg").write_bytes(b"of another run")
    assert main(["results", "--output", str(drawn), "--from", str(weights / "kept")]) == 0
    assert _contents(drawn) == _contents(output)
    assert main(["results", "--output", str(drawn), "--from", str(drawn)]) == 0  # numbers only: the sheets stay
    assert _contents(drawn) == _contents(output)


def test_the_page_in_the_repository_is_what_its_numbers_give(tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    if not (docs / "results.md").is_file():
        pytest.skip("The page has not been measured yet.")
    flat = stored.load(docs).flat
    names = [path.name for path in (docs / "results").iterdir()]
    again = "draw it again: python -m hypertransport_core results --output docs --from docs"
    blocks = {key for _, key, _ in page_module.BLOCK.findall(TEMPLATE)}
    at_times = {"again.compared", "counts.fewer"}  # tests of their own look for these
    assert blocks <= flat.keys() | at_times, "a block for a key that no run has would be dropped without a word"
    assert page_module.page(flat, names) == (docs / "results.md").read_text(encoding="utf-8"), again
    page_module.write_csv(tmp_path / "results.csv", flat)
    assert (tmp_path / "results.csv").read_bytes() == (docs / "results.csv").read_bytes(), again


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def test_a_study_that_fails_costs_only_itself_and_the_page_says_so(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(studies_module, "remove", broken)
    monkeypatch.chdir(tmp_path)
    assert main(["results", "--weights", str(run[0]), "--output", "docs", *TINIEST]) == 2
    assert "removal (ZeroDivisionError: by nothing)" in capsys.readouterr().err
    flat, text = numbers(tmp_path / "docs"), (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert flat["parts.missing"] == ["removal"] and "it lacks: removal." in text and "results/removal.jpg" not in text
    assert flat["composition.both_present"] == numbers(run[1])["composition.both_present"] and "removal.gone" not in flat
    assert (tmp_path / "runs" / "results" / stored.PICTURES).is_file() and "not whole" not in page_module.page(numbers(run[1]), [])


def test_what_a_stopped_run_has_measured_makes_a_page(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(studies_module, "choose_strengths", lambda *_: None)
    monkeypatch.setattr(studies_module, "stronger", stopped)
    kept, output = tmp_path / "kept", tmp_path / "docs"
    arguments = ["results", "--weights", str(run[0]), "--output", str(output), "--measured", str(kept), *TINIEST]
    assert main(arguments) == 130 and not output.exists()
    assert main(["results", "--output", str(output), "--from", str(kept)]) == 0
    text = (output / "results.md").read_text(encoding="utf-8")
    assert "it lacks: strengths beyond 1, removal, composition, other words, other seeds, seconds." in text
    assert {"gallery-1.jpg", "strength.jpg"} <= {path.name for path in (output / "results").iterdir()}
    assert "bit-identical to no steering in this run:\nnot measured" in text


def test_other_trainings_get_their_tables_and_curves(run: tuple[Path, Path], tmp_path: Path) -> None:
    flat, reports = numbers(run[1]), {}
    for name, share in (("a", 0.25), ("b", 0.75)):
        reports[name] = tmp_path / f"{name}.json"
        changed = {"heldout.ours_text.concept": share, "interval.heldout.ours_text.concept": [share - 0.1, share + 0.1]}
        changed["hypernetwork.training"] = {"step": 1234}
        reports[name].write_text(json.dumps({key: flat[key] for key in flat if key != "command"} | changed))
    words = ["training concepts/100", "seeds/2", "seeds/1", "training concepts/25", "seeds, whole/3", "seeds, whole/4"]
    others = [part for word, name in zip(words, "bababb") for part in ("--also", f"{word}={reports[name]}")]
    output = tmp_path / "docs"
    assert main(["results", "--output", str(output), "--from", str(run[0] / "kept"), *others]) == 0
    drawn = (output / "results.md").read_text(encoding="utf-8")
    assert main(["results", "--output", str(output), "--from", str(output)]) == 0
    assert (output / "results.md").read_text(encoding="utf-8") == drawn
    text = drawn.partition("## Other trainings")[2]
    assert text.index("| 1 | ") < text.index("| 2 | ") and text.index("| 25 | ") < text.index("| 100 | ")
    assert "| 75 % (65 to 85) |" in text and "| 25 | 1,234 | " in text and "**mean (smallest to largest)** |  |  |  | 50 % (25 to 75) |" in text
    assert "**mean (smallest to largest)** |  |  |  | 75 % (75 to 75) |" in text  # of seeds of another kind
    rows = dict(line.split(",", 1) for line in (output / "results.csv").read_text(encoding="utf-8").splitlines())
    assert rows["also.seeds.1.ours_text.concept"].endswith(f",{other_runs.COMMAND}")
    assert "(results/curve-1.png)" in text and (output / "results" / "curve-1.png").is_file()
    assert not (output / "results" / "curve-2.png").exists()  # seeds are names, not amounts
    for word in ("training concepts/7", "seed/9"):  # a group is replaced as a whole, the others stay
        assert main(["results", "--output", str(output), "--from", str(output), "--also", f"{word}={reports['a']}"]) == 0
    found = {tuple(key.split(".")[1:3]) for key in numbers(output) if key.startswith("also.")}
    whole = {("seeds, whole", "3"), ("seeds, whole", "4")}
    assert found == {("training concepts", "7"), ("seeds", "1"), ("seeds", "2"), ("seed", "9")} | whole
    assert not (output / "results" / "curve-1.png").exists()


def test_another_seed_says_which_conclusions_hold(run: tuple[Path, Path], tmp_path: Path) -> None:
    page = {key: value for key, value in numbers(run[1]).items() if not key.endswith(".verdict")}
    verdicts = {f"versus.{m}.{x}.verdict": "ties" for m in ("prompting", "mean_act") for x in MEASURES}
    kept = tmp_path / "kept"
    stored.save(kept, page | verdicts, stored.load(run[0] / "kept").pictures or {})
    other = tmp_path / "other.json"
    changed = {"command": "results --seed 7", "counts.seed": 7, "heldout.prompting.concept": 0.625, "interval.heldout.prompting.concept": [0.5, 0.75],
               "versus.mean_act.joint.verdict": "wins", "versus.mean_act.joint": 0.25, "interval.versus.mean_act.joint": [0.1, 0.4]}
    other.write_text(json.dumps(page | verdicts | changed))
    output = tmp_path / "docs"
    assert main(["results", "--output", str(output), "--from", str(kept), "--again", str(other)]) == 0
    flat, text = numbers(output), (output / "results.md").read_text(encoding="utf-8")
    assert (flat["again.compared"], flat["again.same"], flat["again.reversed"]) == (12, 11, 0)
    assert flat["again.differ"] == {"mean_act.joint": ["ties", "wins"]}
    part = text.partition("## With another seed")[2].partition("\n## ")[0]
    assert "Mean-AcT, all three (ties / wins)." in part and f"| seed {page['counts.seed']} | seed 7 |" in part
    assert "| 62 % (50 to 75) |" in part and "| **wins** +25 (+10 to +40) |" in part
    assert flat["again.7.heldout.prompting.concept"] == 0.625 and flat["heldout.prompting.concept"] == page["heldout.prompting.concept"]
    assert "Run again: `results --seed 7`." in part and "- **Another seed**" not in text
    assert "\nOf 12 such verdicts, one per method and measure, 11 were" in text
    strength = page["best.ours_text.strength"]
    assert flat["again.7.best.ours_text.strength"] == strength and "strength chosen, where" not in part, "none differs"
    moved = page_module.page(flat | {"again.7.best.ours_text.strength": 0.125}, [])
    assert f"| HyperTransport, words | {strength:g} | 0.125 |" in moved
    rows = dict(line.split(",", 1) for line in (output / "results.csv").read_text(encoding="utf-8").splitlines())
    assert rows["again.7.versus.mean_act.joint"].endswith(",results --seed 7")
    assert page["command"] in rows["heldout.prompting.concept"]
    # Drawn again from the page itself they stay; named anew, only what is named is there.
    assert main(["results", "--output", str(output), "--from", str(output)]) == 0
    assert (output / "results.md").read_text(encoding="utf-8") == text
    third = tmp_path / "third.json"
    third.write_text(json.dumps(page | verdicts | {"counts.seed": 8}))
    fourth = json.dumps(page | dict.fromkeys(verdicts, "wins") | {"counts.seed": 9})
    lost = page | dict.fromkeys(verdicts, "loses")
    assert other_seeds.added(lost, [json.loads(fourth)], [])["again.reversed"] == 12
    assert main(["results", "--output", str(output), "--from", str(output), "--again", str(third)]) == 0
    assert {key.split(".")[1] for key in numbers(output) if key.startswith("again.")} == {"8", "same", "compared", "reversed", "differ"}
    assert numbers(output)["again.differ"] == {} and "page's first:\nnone." in (output / "results.md").read_text(encoding="utf-8")


def test_a_new_measurement_keeps_what_the_page_has_of_other_runs(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output = shutil.copytree(run[0], tmp_path / "weights"), tmp_path / "docs"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(numbers(run[1]) | {"counts.seed": 7}))
    named = ["--also", f"seeds/1={other}", "--again", str(other)]
    assert main(["results", "--output", str(output), "--from", str(run[0] / "kept"), *named]) == 0
    kept = {key: value for key, value in numbers(output).items() if key.startswith(("also.", "interval.also.", "again.7."))}
    assert any(key.startswith("also.") for key in kept) and "again.7.command" in kept
    measure = ["results", "--weights", str(weights), "--output", str(output), "--measured", str(tmp_path / "kept"), *TINIEST]
    assert main(measure) == 0
    assert kept.items() <= numbers(output).items() and "linear_act" not in numbers(output)["concepts"]["teal mosaic"]
    pipeline = Pipeline.load(weights)
    write_hypernetwork(weights / HYPERNETWORK_FILE, pipeline.backbone, pipeline.encoder, effect=0.3)
    capsys.readouterr()
    assert main(measure) == 0 and "hypernetwork.checksum = " in capsys.readouterr().out
    flat = numbers(output)
    assert not other_seeds.seeds(flat) and {key for key in kept if "again" not in key} <= flat.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [({}, "have the seed"), ({"counts.seed": 7, "hypernetwork.sites": 1}, "hypernetwork.sites = 1"),
     ({"counts.seed": 7, "hypernetwork.checksum": "0" * 16}, "hypernetwork.checksum = 0000"), ({"counts.seed": None}, "lacks 'counts.seed'")],
)
def test_a_run_that_differs_in_more_than_its_seed_is_refused(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, words: str
) -> None:
    other, output = tmp_path / "other.json", tmp_path / "docs"
    other.write_text(json.dumps(numbers(run[1]) | change))
    assert main(["results", "--output", str(output), "--from", str(run[0] / "kept"), "--again", str(other)]) == 2
    text = capsys.readouterr().err.strip()
    assert words in text and text.endswith(".") and "\n" not in text and not output.exists()


@pytest.mark.parametrize("words", ["seeds", "seeds=nowhere.json", "seeds/1=nowhere.json", "a.b/1=x.json", "/1=x.json"])
def test_other_trainings_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    pytest.importorskip("matplotlib")
    assert main(["results", "--output", str(tmp_path), "--also", words]) == 2
    text = capsys.readouterr().err.strip()
    assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(
    "arguments", [("--methods", "magic"), ("--concepts", "0"), ("--pairs", "-1"), ("--from", "nowhere"), ("--prompts", "x")]
)
def test_refusals_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["results", "--output", str(tmp_path), *arguments]) == 2
    text = capsys.readouterr().err.strip()
    assert text.endswith(".") and "\n" not in text


def test_a_page_that_cannot_be_read_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "results.json").write_text('{"command": ')
    assert main(["results", "--output", str(tmp_path), *TINIEST]) == 2
    text = capsys.readouterr().err.strip()
    assert "write over it" in text and "\n" not in text and len(list(tmp_path.iterdir())) == 1


def test_quick_leaves_out_what_takes_minutes() -> None:
    class Options:
        quick, cache, methods, seed, concepts, prompts = True, None, None, 3, None, None
        fit_concepts = fit_validation = validation = pairs = None

    quick = settings_of(Options()).evaluation
    assert "lineas_1000" not in quick.methods and quick.seed == 3 and quick.concepts == 12
    Options.quick = False
    assert settings_of(Options()).evaluation.methods == EVERY
