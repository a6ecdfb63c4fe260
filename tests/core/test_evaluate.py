from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from hypertransport_core.commands import main
from hypertransport_core.evaluation import methods as methods_module, runner
from hypertransport_core.evaluation.bootstrap import interval, paired_interval
from hypertransport_core.evaluation.measures import concept_number, fresh_scenes, kept, mean, rank_correlation, rises, truth_of
from hypertransport_core.evaluation.fits import Fitter, FitSettings
from hypertransport_core.evaluation.methods import METHODS, reference, stratified
from hypertransport_core.evaluation.report import clean, flatten, table
from hypertransport_core.evaluation.runner import EvaluationSettings, evaluate
from hypertransport_core.evaluation.second_clip import SecondClip
from hypertransport_core.files import FileError, load_file, read_header, save_file
from hypertransport_core.fitting import LowRank
from hypertransport_core.fitting.image_adapter import ImageAdapter, ImageAdapterFile, ImagePrompt
from hypertransport_core.pipeline import JUDGE_FILE, Pipeline
from hypertransport_core.postcard import train_judge
from hypertransport_core.postcard.captions import scene_prompts
from hypertransport_core.postcard.clip import PostcardCLIP
from hypertransport_core.postcard.concepts import by_name, categories, concepts, split
from hypertransport_core.postcard.judge import Judge
from hypertransport_core.postcard.render import COLOURS
from hypertransport_core.postcard.subjects import SUBJECTS

from small_postcard import write_world

SMALL = EvaluationSettings(
    concepts=2,
    prompts=2,
    rise_prompts=3,
    steps=1,
    methods=(*METHODS, "slider_lora"),
    fit_concepts=1,
    world=3,
    renders=20,
    fit=FitSettings(batch=4, iterations=(3, 2), slider_iterations=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def flat(folder: Path) -> dict:
    result = evaluate(Pipeline.load(folder), Judge.load(folder / JUDGE_FILE), SMALL, quiet=True)
    return flatten(result, SMALL)


def test_all_promised_keys_are_there(flat: dict) -> None:
    wanted = [f"heldout.{method}.{measure}" for method in METHODS for measure in ("concept", "subject", "colour")]
    wanted += [
        "heldout.slider_lora.joint",
        "speed.slider_seconds",
        "heldout.ours_text.monotone",
        "speed.fit_seconds",
        "speed.predict_seconds",
        "postcard.subject",
        "postcard.colour",
        "postcard.concept",
        "judge.renders",
        "counts.concepts",
        "counts.heldout",
        "counts.images",
    ]
    assert not [key for key in wanted if key not in flat]
    for key in wanted:
        if key.startswith(("heldout", "postcard", "judge")):
            assert flat[key] is None or 0 <= flat[key] <= 1, key
    assert (
        flat["counts.concepts"] == len(concepts())
        and flat["counts.heldout"] == 2
        and flat["counts.fitted"] == 1 == flat["counts.lineas_1000"] == flat["counts.nearest"]
        and flat["counts.fewer"] == 3  # the dear ones
    )
    # plain 3 + world 3 + two concepts x two prompts x (5 cheap methods + 3 strengths) and a third one at 4 strengths
    # + one concept x two prompts x 3 dear ones
    assert flat["counts.images"] == 3 + 3 + 2 * 2 * 8 + 2 * 4 + 2 * 3 and flat["counts.rise_prompts"] == 3
    assert flat["speed.fit_seconds"] > 0 < flat["speed.predict_seconds"]
    assert (
        len(flat["interval.heldout.ours_text.concept"]) == 2
        and "interval.quarter.4.ours_text.concept" in flat
        and "subset.lineas_1000.concept" in flat
    )
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat
    assert "HyperTransport, words | 2" in table(flat)


def test_the_rise_over_strength_is_a_mean_over_more_scenes(folder: Path) -> None:
    pipeline, judge = Pipeline.load(folder), Judge.load(folder / JUDGE_FILE)
    settings = EvaluationSettings(
        concepts=1, prompts=2, rise_prompts=5, steps=1, methods=("ours_text",), world=0, renders=0
    )
    session = runner.Session(pipeline, judge, settings, quiet=True)
    (name,) = session.compare().heldout
    number, maps = concept_number(name), session.methods.maps("ours_text", name)
    for place, strength in ((0, 0.0), (2, 0.5), (4, 1.0)):
        chosen = maps if strength else None
        shares = [
            judge.verdict(pipeline.generate(scenes.prompts, scenes.seeds, chosen, strength, steps=1)).concept[:, number]
            for scenes in (session.scenes, session.more_scenes)
        ]
        assert len(torch.cat(shares)) == 5
        assert session.result.curves[name][place] == pytest.approx(float(torch.cat(shares).mean()), rel=1e-4)
    assert not set(session.scenes.seeds) & set(session.more_scenes.seeds)


class _KnowsPlaces(PostcardCLIP):
    """A CLIP for which the words of concept k are direction k, and so is a picture whose red is k / 306 everywhere."""

    def encode_text(self, texts):
        number = {concept.name: index for index, concept in enumerate(concepts())}
        named = [max((n for n in number if n in text), key=len) for text in texts]
        return torch.eye(len(number))[[number[name] for name in named]]

    def encode_images(self, images):
        return torch.eye(len(concepts()))[(images[:, 0].mean((1, 2)) * len(concepts())).round().long()]


def test_a_second_clip_names_concepts_by_the_nearest_words_of_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = _KnowsPlaces(["cat"], {"text": 0, "vision": 0})
    known = SecondClip(clip)
    asked = torch.tensor([0, 7, len(concepts()) - 1])
    assert known.nearest((asked / len(concepts()))[:, None, None, None].expand(3, 3, 8, 8)).equal(asked)
    pipeline, judge = Pipeline.load(folder), Judge.load(folder / JUDGE_FILE)
    settings = EvaluationSettings(
        concepts=1, prompts=4, rise_prompts=4, steps=1, methods=("ours_text", "prompting"), world=0, renders=0
    )
    session = runner.Session(pipeline, judge, settings, second_clip=clip, quiet=True)
    number = concept_number(session.result.heldout[0])
    painted = torch.tensor([number, number, number, 3 if number != 3 else 4]) / len(concepts())
    monkeypatch.setattr(session, "generate", lambda *_: painted[:, None, None, None].expand(4, 3, 64, 64))
    result = session.compare()
    flat = flatten(result, settings)
    assert flat["heldout.ours_text.clip"] == flat["heldout.prompting.clip"] == 0.75
    assert flat["interval.heldout.ours_text.clip"] == [0.75, 0.75]
    (steps,) = result.strengths.values()
    assert steps[0.5]["clip"] == 0.75 and steps[0.0]["clip"] < 0.75  # the unsteered ones were made before


def test_without_a_second_clip_nothing_is_said_of_one(flat: dict) -> None:
    assert flat["heldout.ours_text.clip"] is None and "clip_2.renders" not in flat


def test_a_second_clip_is_asked_about_fresh_renders_of_heldout_concepts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, judge = Pipeline.load(folder), Judge.load(folder / JUDGE_FILE)
    settings = EvaluationSettings(concepts=1, prompts=1, rise_prompts=1, steps=1, methods=("mean_map",), world=0, renders=20)
    session = runner.Session(pipeline, judge, settings, second_clip=_KnowsPlaces(["cat"], {"text": 0, "vision": 0}), quiet=True)
    heldout = {concept_number(name) for name in split()["heldout"]}
    monkeypatch.setattr("hypertransport_core.postcard.train_clip.retrieval", lambda *_: 0.0)
    monkeypatch.setattr(
        "hypertransport_core.evaluation.second_clip.render",
        lambda truth: (truth.concept.clamp(max=max(heldout) - 1) / len(concepts()))[:, None, None, None].expand(-1, 3, 8, 8),
    )
    runner._world(session)
    assert session.result.world["clip_2.renders"] == pytest.approx(1 - 1 / len(heldout))


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 25, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, -9]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486833)  # ties share the rank 2.5
    assert math.isnan(rank_correlation([1, 1], [1, 2])) and math.isnan(rank_correlation([1], [2]))


def test_more_methods_have_maps_for_the_same_sites(folder: Path) -> None:
    pipeline = Pipeline.load(folder)
    settings = FitSettings(batch=4, slider_iterations=1)
    fitter = Fitter(pipeline, pipeline.hypernetwork.sites, settings)
    adapter = ImageAdapter.beside(pipeline.backbone.network, pipeline.encoder.width)
    methods = methods_module.Methods(pipeline, fitter, ImageAdapterFile(adapter, {}, {}, Path()))
    methods.train, methods.validation = methods.train[:5], methods.validation[:2]
    found = {method: methods.maps(method, "neon") for method in methods_module.MORE}
    assert isinstance(found.pop("slider_lora"), LowRank)
    shown = found.pop("image_adapter")
    assert isinstance(shown, ImagePrompt) and torch.equal(shown.embeddings[0], pipeline.embed_image(reference("neon")).vector)
    assert all(maps.sites == pipeline.hypernetwork.sites and maps.rows == 1 for maps in found.values())
    assert all(bool(maps.scale.isfinite().all() and maps.shift.isfinite().all()) for maps in found.values())
    assert found["mean_map"].allclose(methods.maps("mean_map", "sepia"))
    assert not found["ridge"].allclose(methods.maps("ridge", "sepia")) and methods.ridge_penalty is not None
    assert not found["linear_act"].allclose(found["linear_act_once"])
    rows = fitter.mean_shifts(["neon", "sepia"])
    assert torch.allclose(rows.shift[0], fitter.quick("mean_act", "neon").shift[0], atol=1e-5)
    with pytest.raises(ValueError, match="magic"):
        methods.maps("magic", "neon")
    with pytest.raises(ValueError, match="needs an adapter"):
        methods_module.Methods(pipeline, fitter).maps("image_adapter", "neon")
    for method in ("prompting", "slider_lora", "image_adapter"):
        with pytest.raises(ValueError, match=method):
            methods.steering(method, "neon")


def test_the_command_writes_its_report(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--concepts",
        "1",
        "--prompts",
        "1",
        "--steps",
        "1",
        "--rise-prompts",
        "2",
        "--methods",
        "ours_text,prompting",
        "--quick",
        "--quiet",
    ]
    path, sheet = tmp_path / "deep" / "results.json", tmp_path / "sheet.png"
    assert main(["evaluate", "--weights", str(folder), "--json", str(path), "--sheet", str(sheet), *arguments]) == 0
    report = json.loads(path.read_text())
    assert (
        report["counts.heldout"] == 1
        and report["counts.rise_prompts"] == 2
        and report["quick"] is True
        and "heldout.lineas_50.concept" not in report
        and sheet.is_file()
    )
    assert "| prompting | 1 |" in capsys.readouterr().out and report["judge.renders"] is not None
    assert main(["evaluate", "--weights", str(folder), "--json", str(path), "--no-world", *arguments]) == 0
    without = json.loads(path.read_text())
    assert without.get("judge.renders") is None and without.get("postcard.subject") is None
    assert without["heldout.ours_text.concept"] == report["heldout.ours_text.concept"]


def test_what_was_measured_can_go_into_the_weights(folder: Path, tmp_path: Path) -> None:
    weights, before = tmp_path / "own.safetensors", folder / "postcard_hypernetwork.safetensors"
    shutil.copy(before, weights)
    arguments = ["--concepts", "2", "--prompts", "1", "--steps", "1", "--rise-prompts", "1", "--methods", "ours_text,prompting"]
    run = ["evaluate", "--weights", str(folder), "--hypernetwork", str(weights), "--json", str(tmp_path / "r.json"), "--quiet"]
    assert main([*run, *arguments, "--no-world"]) == 0 and weights.read_bytes() == before.read_bytes()
    for seed in (5, 6):  # the second takes the place of the first
        assert main([*run, *arguments, "--no-world", "--record", "--seed", str(seed)]) == 0
    (tensors, old), (now, header) = load_file(before), load_file(weights)
    report, measured = json.loads((tmp_path / "r.json").read_text()), header.pop("measured")
    assert header == old and all(torch.equal(now[name], tensor) for name, tensor in tensors.items()) and len(now) == len(tensors)
    first, second = ({key: value for key, value in read_header(file)[1].items() if key != "hypertransport"} for file in (before, weights))
    assert first == second and measured["seed"] == 6 and measured["counts.heldout"] == 2
    assert measured["heldout.ours_text.concept"] == report["heldout.ours_text.concept"]
    assert {key: report[key] for key in measured if key != "seed"} == {key: value for key, value in measured.items() if key != "seed"}
    assert "interval.heldout.prompting.concept" in measured and None not in measured.values()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--methods", "magic"),
        ("--concepts", "0"),
        ("--fit-batch", "5"),
        ("--fit-levels", "0"),
        ("--steps", "-1"),
        ("--prompts", "x"),
        ("--rise-prompts", "0"),
    ],
)
def test_refusals_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert main(["evaluate", "--json", str(tmp_path / "r.json"), *arguments]) == 2
    text = capsys.readouterr().err.strip()
    assert text.endswith(".") and "\n" not in text
    for wrong in (
        ["evaluate"],
        ["evaluate", "--json", str(tmp_path)],
        ["evaluate", "--json", str(tmp_path / "r.json"), "--weights", str(tmp_path)],
    ):
        assert main(wrong) == 2 and "\n" not in capsys.readouterr().err.strip()


def test_scenes_are_fresh_and_their_truth_is_read_right() -> None:
    scenes = fresh_scenes(40)
    assert len(scenes) == 40 and not set(scenes.prompts) & set(scene_prompts(128, 0)) and len(set(scenes.seeds)) == 40
    for prompt, subject, colour in zip(scenes.prompts, scenes.subject.tolist(), scenes.colour.tolist()):
        assert f"{COLOURS[colour]} {SUBJECTS[subject]}" in prompt
    assert truth_of(["a red house on the left, copper woodcut"])[1].tolist() == [COLOURS.index("red")]
    with pytest.raises(ValueError):
        truth_of(["a nice day"])


def test_kept_counts_only_what_was_right_before() -> None:
    before, after = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    assert kept(before, after) == 0.5 and math.isnan(kept(torch.zeros(3).bool(), torch.ones(3).bool()))
    assert mean([1.0, float("nan"), 0.0]) == 0.5 and math.isnan(mean([]))


def test_rising() -> None:
    assert rises([0, 0.1, 0.5, 0.995, 0.99], 0.01) and not rises([0, 0.1, 0.5, 0.995, 0.99])
    assert not rises([0.2, 0.2, 0.2]) and not rises([0, 0.5, 0.3, 1])


def test_bootstrap_covers_the_truth_about_as_often_as_promised() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for trial in range(100):
        low, high = interval(torch.rand(40, generator=generator).tolist(), seed=trial, resamples=300)
        inside += low <= 0.5 <= high
    assert 85 <= inside <= 100
    low, high = interval([0.5] * 5)
    assert low == high == 0.5 and math.isnan(interval([])[0]) and interval([1, float("nan")])[0] == 1
    ours, theirs = [0.9, 0.8, 0.7], [0.4, 0.3, 0.2]
    assert paired_interval(ours, theirs)[0] == pytest.approx(0.5)
    with pytest.raises(ValueError):
        paired_interval([1], [1, 2])


def test_stratified_subsets_nest_and_cover_categories() -> None:
    names = split()["heldout"]
    nine, twelve = stratified(names, 9), stratified(names, 12)
    assert (
        {by_name()[name].category for name in nine} == set(categories())
        and set(nine) <= set(twelve)
        and len(twelve) == 12
    )
    assert stratified(names, 1000) == list(names)


def test_references_show_their_concept_and_differ() -> None:
    assert torch.equal(reference("neon"), reference("neon")) and not torch.equal(reference("neon"), reference("sepia"))
    assert concepts()[concept_number("neon")].name == "neon"


def test_report_has_no_nan() -> None:
    assert clean({"a": float("nan"), "b": [1.23456789, math.inf], "c": True, "d": 3}) == {
        "a": None,
        "b": [1.23457, None],
        "c": True,
        "d": 3,
    }


def test_judges_of_both_kinds_are_the_same_from_a_file(tmp_path: Path) -> None:
    for architecture, widths in (("blocks", (8, 8, 8, 8)), ("patches", (8, 8, 8))):
        judge, pictures = Judge(widths, architecture).eval(), torch.rand(3, 3, 64, 64)
        judge.save(tmp_path / "judge.safetensors")
        again = Judge.load(tmp_path / "judge.safetensors")
        assert again.architecture == architecture and not again.training
        one, two = judge.verdict(pictures), again.verdict(pictures)
        assert one.concept.shape == (3, len(concepts()) + 1) and torch.allclose(one.concept, two.concept, atol=1e-2)
    tensors, header = load_file(tmp_path / "judge.safetensors")
    save_file(tmp_path / "judge.safetensors", tensors, "postcard_judge", header | {"architecture": "magic"})
    with pytest.raises(FileError, match="cannot be built"):
        Judge.load(tmp_path / "judge.safetensors")


def test_a_second_judge_is_trained_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_judge, "accuracy", lambda judge: {"concept": 0.0})
    places = ["--output", str(tmp_path / "judge_2.safetensors"), "--state", str(tmp_path / "state.safetensors")]
    assert train_judge.main(["--architecture", "patches", "--steps", "1", "--batch", "2", "--seed", "7", *places]) == 0
    assert Judge.load(tmp_path / "judge_2.safetensors").architecture == "patches"
