"""All numbers of the results page: the comparison of `evaluate` and the studies on top of it, under flat keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..fitting.image_adapter import ImageAdapterFile
from ..pipeline import Pipeline
from ..postcard.clip import PostcardCLIP
from ..postcard.concepts import split
from ..postcard.judge import Judge
from . import studies as study
from .bootstrap import paired_interval, ratio_interval
from .fits import SAMPLES
from .measures import STRENGTHS, mean, rank_correlation
from .methods import DEAR, EVERY, stratified
from .report import MEASURES, MORE_MEASURES, clean, flatten, with_interval
from .runner import EvaluationSettings, Session, fit_cost, speed, total_cost
from .stored import Shown, as_bytes
from .studies import Studies, StudySettings

ALL_MEASURES = (*MEASURES, *MORE_MEASURES)
VARIED = ("ours_text", "ours_image", "image_adapter", "prompting", "lineas_50", "linear_act")
COMPARED = (
    "prompting", "image_adapter", "lineas_1000", "lineas_50", "slider_lora", "linear_act", "iti_c", "mean_act", "ridge",
    "nearest", "mean_map",
)
LOWER_IS_BETTER = ("error",)


@dataclass(frozen=True)
class ResultsSettings:
    """What the results page measures: the comparison and the studies."""

    evaluation: EvaluationSettings = field(
        default_factory=lambda: EvaluationSettings(prompts=8, fit_concepts=3, methods=EVERY)
    )
    studies: StudySettings = field(default_factory=StudySettings)


class ResultsError(RuntimeError):
    """Parts of a run that went wrong while the others were measured; the message is one sentence."""


Keep = Callable[[dict[str, Any], Shown], None]
"""Hears the numbers and the pictures measured so far."""


def measure(
    pipeline: Pipeline,
    judge: Judge,
    settings: ResultsSettings,
    keep: Keep,
    *,
    second: Judge | None = None,
    second_clip: PostcardCLIP | None = None,
    adapter: ImageAdapterFile | None = None,
    yardsticks: Path | None = None,
    quiet: bool = False,
) -> None:
    """Run everything; `keep` gets all that is measured after every part, so a run that is stopped has lost one part.
    second: another judge, for preferences; second_clip: another than the conditioning one, to name concepts with; adapter:
    of the method image_adapter; yardsticks: folder where measurements of other methods are kept. Raises FileError for one
    that was measured otherwise.

    A study that fails does not take the others with it: what it would have measured is missing, and ResultsError says
    so at the end.
    """
    session = Session(
        pipeline, judge, settings.evaluation, second=second, second_clip=second_clip, adapter=adapter,
        yardsticks=yardsticks, quiet=quiet,
    )
    methods, found, more = settings.evaluation.methods, Studies(), settings.studies
    session.progress.total = _cost(settings, session)
    parts: dict[str, Callable[[], object]] = {
        "strength 1": session.compare,
        "strengths on validation concepts": lambda: study.choose_strengths(session, found, more, methods),
        "methods at these strengths": lambda: study.at_best_strength(session, found, methods),
    }
    if "ours_text" in methods:
        parts |= {
            "strengths beyond 1": lambda: study.stronger(session, found),
            "removal": lambda: study.remove(session, found, more),
            "composition": lambda: study.compose(session, found, more),
            "other words": lambda: study.reword(session, found, more),
        }
    varied = [method for method in VARIED if method in methods]
    parts |= {
        "other seeds": lambda: study.vary(session, found, more, varied),
        "seconds": lambda: _speed(session),
    }
    failed: dict[str, Exception] = {}
    for number, (name, part) in enumerate(parts.items(), 1):
        try:
            part()
        except Exception as error:
            if part == session.compare:  # all others build on it
                raise
            failed[name] = error
        session.result.seconds = time.monotonic() - session.started
        session.yardsticks.save()
        missing = [*failed, *list(parts)[number:]]
        keep(numbers(session, found, settings) | {"parts.missing": missing}, shown(session, found))
    session.progress.finish()
    if failed:
        words = ", ".join(f"{name} ({type(error).__name__}: {error})" for name, error in failed.items())
        raise ResultsError(
            f"What was measured is kept and lacks {words}; run it again with --traceback to see where it went wrong."
        ) from next(iter(failed.values()))


def _speed(session: Session) -> None:
    result = session.result
    result.speed = speed(session.methods, result.heldout, session.fitter, bool(result.scores.get("lineas_1000")))


def shown(session: Session, found: Studies) -> Shown:
    """The pictures that sheets are made of."""
    pictures = {key: as_bytes([picture]) for key, picture in session.result.examples.items()}
    return pictures | {key: as_bytes(several) for key, several in found.examples.items()}


def numbers(session: Session, found: Studies, settings: ResultsSettings) -> dict[str, Any]:
    """The keys of `evaluate`, and those of the studies; fractions in [0, 1]; `interval.<key>` beside each mean."""
    flat = flatten(session.result, settings.evaluation)
    flat.update(_best(found))
    flat.update(_versus(found))
    flat.update(_versus(found, "ours_image", ("image_adapter",), "versus_image"))
    flat.update(_curve(session, found))
    flat.update(_parts("removal", found.removal))
    flat.update(_parts("composition", found.composition))
    flat.update(_wordings(found))
    flat.update(_diversity(found))
    flat.update(_distance(session))
    flat.update(_modality(session))
    flat.update(_preferences(session, found))
    flat.update(_agreement(session))
    for key, source in (("removal.gone", "removal.negative.gone"), ("composition.both_present", _SUM)):
        if source in flat:
            flat[key], flat[f"interval.{key}"] = flat[source], flat[f"interval.{source}"]
    flat.update(
        {
            "counts.validation": len(found.chosen_on.get("ours_text", [])),
            "counts.study_scenes": min(settings.studies.scenes, settings.evaluation.prompts),
            "counts.pairs": len(found.composition.get("sum", {})),
            "counts.seeds": settings.studies.seeds,
            "counts.near_top": study.NEAR_TOP,
            "counts.seed": settings.evaluation.seed,
            "counts.fits": len(session.fitter.seconds),
            "counts.fits_cached": len(session.fitter.from_cache),
            "counts.taken_over": session.yardsticks.taken or None,
            "counts.yardsticks": session.yardsticks.taken + session.yardsticks.made,
            "scene": session.scenes.prompts[0],
            "strength_grid": list(study.GRID),
            "ridge.penalty": session.methods.ridge_penalty,
            **_steps(session),
        }
    )
    return clean(flat)


_SUM = "composition.sum.both_present"


def _steps(session: Session) -> dict[str, Any]:
    """How long the hypernetwork and the adapter were trained, as their files say; None where there is none."""
    adapter = session.methods.adapter
    return {
        "steps.hypernetwork": session.pipeline.header.get("training", {}).get("step"),
        "steps.adapter": None if adapter is None else adapter.header.get("training", {}).get("steps"),
    }


def _best(found: Studies) -> dict[str, Any]:
    """Every method at the strength chosen on validation concepts, and what the choice rests on."""
    flat: dict[str, Any] = {}
    for method, tried in found.choice.items():
        flat.update({f"choice.{method}.{strength:g}": share for strength, share in tried.items()})
        flat[f"choice.{method}.concepts"] = found.chosen_on[method]
    for method, per_concept in found.best.items():
        flat[f"best.{method}.strength"] = None if method == "prompting" else found.strength(method)
        flat[f"best.{method}.chosen_on"] = len(found.chosen_on.get(study.CHOSEN_WITH.get(method, method), []))
        for measure_name in ALL_MEASURES:
            values = [score[measure_name] for score in per_concept.values()]
            flat.update(with_interval(f"best.{method}.{measure_name}", values))
    return flat


def _versus(
    found: Studies, own: str = "ours_text", methods: Sequence[str] = EVERY, prefix: str = "versus"
) -> dict[str, Any]:
    """Ours (`own`: from words) minus a method on the same concepts, both at the strengths chosen; verdict: wins, ties,
    loses, by whether the interval excludes 0."""
    flat: dict[str, Any] = {}
    ours = found.best.get(own, {})
    for method in methods:
        theirs = found.best.get(method, {})
        names = [name for name in theirs if name in ours]
        if method == own or not names:
            continue
        flat[f"{prefix}.{method}.concepts"] = len(names)
        for measure_name in ALL_MEASURES:
            pairs = [(ours[name][measure_name], theirs[name][measure_name]) for name in names]
            pairs = [(a, b) for a, b in pairs if a == a and b == b]
            key = f"{prefix}.{method}.{measure_name}"
            flat[key] = mean([a - b for a, b in pairs])
            low, high = paired_interval([a for a, _ in pairs], [b for _, b in pairs])
            flat[f"interval.{key}"] = [low, high]
            if measure_name in LOWER_IS_BETTER:
                low, high = -high, -low
            if pairs:
                flat[f"{key}.verdict"] = "wins" if low > 0 else "loses" if high < 0 else "ties"
    return flat


def _curve(session: Session, found: Studies) -> dict[str, Any]:
    """Ours from words over strength 0 to 2; way: distance from the unsteered picture, in units of that at strength 1;
    bend: how far that departs at most from the strength itself, over 0 to 1."""
    flat: dict[str, Any] = {}
    whole = {
        name: steps | found.beyond.get(name, {}) for name, steps in session.result.strengths.items()
    }
    for strength in (*STRENGTHS, *study.BEYOND):
        steps = [by_strength[strength] for by_strength in whole.values() if strength in by_strength]
        for measure_name in (*ALL_MEASURES, "probability"):
            key = f"curve.ours_text.{measure_name}.{strength:g}"
            if steps:
                flat.update(with_interval(key, [step[measure_name] for step in steps]))
    ways = {
        name: {s: step["moved"] / steps[1.0]["moved"] for s, step in steps.items()}
        for name, steps in whole.items()
        if steps[1.0]["moved"] > 0
    }
    for strength in (*STRENGTHS, *study.BEYOND):
        values = [way[strength] for way in ways.values() if strength in way]
        if values:
            flat.update(with_interval(f"curve.ours_text.way.{strength:g}", values))
    flat.update(
        with_interval("curve.ours_text.bend", [max(abs(way[s] - s) for s in STRENGTHS) for way in ways.values()])
    )
    flat["curve.identical_at_0"] = found.identical
    return flat


def _parts(name: str, parts: Mapping[str, study.PerConcept]) -> dict[str, Any]:
    """`name.part.measure` of per-concept (or per-pair) values."""
    flat: dict[str, Any] = {}
    for part, per_concept in parts.items():
        for measure_name in next(iter(per_concept.values()), {}):
            values = [score[measure_name] for score in per_concept.values()]
            flat.update(with_interval(f"{name}.{part}.{measure_name}", values))
    return flat


def _wordings(found: Studies) -> dict[str, Any]:
    flat = _parts("robust", found.wordings)
    for wording, per_concept in found.wordings.items():
        pairs = [score["concept"] for score in per_concept.values()], [score["name"] for score in per_concept.values()]
        key = f"robust.{wording}.difference"
        flat[key], flat[f"interval.{key}"] = mean([a - b for a, b in zip(*pairs)]), list(paired_interval(*pairs))
        flat[f"counts.robust.{wording}"] = len(per_concept)
    return flat


def _diversity(found: Studies) -> dict[str, Any]:
    """Distances between pictures of other seeds, and their share of the unsteered model's."""
    flat = _parts("diversity", found.diversity)
    plain = [score["distance"] for score in found.diversity.get("unsteered", {}).values()]
    for method, per_concept in found.diversity.items():
        made = [score["distance"] for score in per_concept.values()]
        key = f"diversity.{method}.share"
        flat[key] = mean(made) / mean(plain) if mean(plain) else float("nan")
        flat[f"interval.{key}"] = list(ratio_interval(made, plain, paired=True))
    return flat


def _distance(session: Session) -> dict[str, Any]:
    """How much less often the farthest quarter of concepts is named than the other three, for ours and for prompting:
    1 - farthest / others."""
    flat: dict[str, Any] = {}
    order = sorted(session.result.heldout, key=lambda name: session.result.distances[name])
    cut = len(order) * 3 // 4
    for method in ("ours_text", "ours_image", "prompting"):
        scores = session.result.scores.get(method, {})
        if not scores or not cut:
            continue
        near, far = ([scores[name]["concept"] for name in part] for part in (order[:cut], order[cut:]))
        low, high = ratio_interval(far, near, paired=False)
        key = "distance.farthest_quarter_drop" + ("" if method == "ours_text" else f".{method}")
        flat[key] = 1 - mean(far) / mean(near) if mean(near) else float("nan")
        flat[f"interval.{key}"] = [1 - high, 1 - low]
    return flat


def _modality(session: Session) -> dict[str, Any]:
    """Concept fidelity from pictures as a share of that from words; from words as a share of prompting's."""
    flat: dict[str, Any] = {}
    scores = session.result.scores
    for key, above, below in (
        ("modality.image_share", "ours_image", "ours_text"),
        ("modality.images_4_share", "ours_images_4", "ours_text"),
        ("share_of_prompting", "ours_text", "prompting"),
    ):
        if above in scores and below in scores:
            pair = [[score["concept"] for score in scores[method].values()] for method in (above, below)]
            flat[key] = mean(pair[0]) / mean(pair[1]) if mean(pair[1]) else float("nan")
            flat[f"interval.{key}"] = list(ratio_interval(*pair, paired=True))
    return flat


def _preferences(session: Session, found: Studies) -> dict[str, Any]:
    """preference.METHOD.JUDGE: share of pictures in which ours from words is preferred; times: "k times as often"."""
    flat: dict[str, Any] = {}
    for method in COMPARED:
        for judge, shares in study.preferences(session, found, method).items():
            key = f"preference.{method}.{judge}"
            flat.update(with_interval(key, list(shares.values())))
            flat[f"{key}.times"] = _odds(flat[key])
            flat[f"interval.{key}.times"] = [_odds(bound) for bound in flat[f"interval.{key}"]]
            flat[f"preference.{method}.concepts"] = len(shares)
    return flat


def _agreement(session: Session) -> dict[str, Any]:
    """Whether the judge and the second CLIP find the same concepts hard, for ours from words: rank correlation over
    concepts of the shares named."""
    scores = list(session.result.scores.get("ours_text", {}).values())
    if session.second_clip is None or not scores:
        return {}
    return {"clip_2.agreement": rank_correlation(*([score[name] for score in scores] for name in ("concept", "clip")))}


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else float("inf")


def _cost(settings: ResultsSettings, session: Session) -> float:
    """All work ahead in network rows, roughly, for the progress bar."""
    one, more, heldout = settings.evaluation, settings.studies, session.result.heldout
    chosen_on = stratified(split()["validation"], more.validation)
    rows = total_cost(session)
    for method in one.methods:
        # For about every second method pictures at another strength than 1, and some with other seeds.
        more_pictures = one.prompts // 2 + (more.seeds if method in VARIED else 0)
        rows += sum(session.pictures_ahead(method, name, more_pictures) for name in heldout)
        if method != "prompting" and method not in study.CHOSEN_WITH:
            for name in stratified(chosen_on, more.validation_fits) if method in DEAR else chosen_on:
                rows += session.pictures_ahead(method, name, len(study.GRID) * more.scenes) + session.fit_ahead(method, name)
    if "ridge" in one.methods:
        parts = session.methods.train, session.methods.validation
        rows += sum(SAMPLES * len(part) for part in parts if not session.fitter.has_shifts(part))
    if "ours_text" in one.methods:  # beyond 1, removal, composition, other words
        pictures = len(heldout) * (len(study.BEYOND) * one.prompts + more.scenes * (5 + 3)) + more.pairs * 5 * more.scenes
        rows += pictures * one.steps
        for name in heldout:  # removal inverts Mean-AcT's maps, whatever is known of their pictures
            counted = "mean_act" in one.methods and not session.yardsticks.knows("mean_act", name)
            if not counted and not session.methods.has_fit("mean_act", name):
                rows += fit_cost("mean_act", one)
    return max(1.0, rows)
