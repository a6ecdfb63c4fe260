"""From measurements to a flat table of numbers (JSON), and to words for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import write_atomically
from ..postcard.concepts import by_name, concepts
from ..sheets import Row, contact_sheet, save_sheet
from .bootstrap import interval, paired_interval
from .measures import FALL_ALLOWED, STRENGTHS, mean, rises
from .methods import EVERY
from .runner import EvaluationSettings, Result

MEASURES = ("concept", "subject", "colour")
MORE_MEASURES = ("joint", "place", "size", "similarity", "error", "moved", "clip")
TITLES = {
    "ours_text": "HyperTransport, words",
    "ours_image": "HyperTransport, picture",
    "ours_images_4": "HyperTransport, four pictures",
    "image_adapter": "image-prompt adapter, picture",
    "prompting": "prompting",
    "lineas_1000": "LinEAS, 1000 steps",
    "lineas_50": "LinEAS, 50 steps",
    "nearest": "nearest concept's LinEAS",
    "slider_lora": "concept-slider LoRA",
    "mean_act": "Mean-AcT",
    "linear_act": "Linear-AcT, incremental",
    "linear_act_once": "Linear-AcT, at once",
    "iti_c": "ITI-c",
    "ridge": "ridge regression of Mean-AcT",
    "mean_map": "our mean map, concept ignored",
    "unsteered": "unsteered",
}

JUDGES = {"network": "judge network", "network_2": "second network", "renderer": "renderer"}


def flatten(result: Result, settings: EvaluationSettings) -> dict[str, Any]:
    """All results under flat keys; fractions in [0, 1], seconds in seconds; None where nothing could be measured."""
    flat: dict[str, Any] = {}
    for method, scores in result.scores.items():
        for measure in (*MEASURES, *MORE_MEASURES, "probability"):
            flat.update(with_interval(f"heldout.{method}.{measure}", [score[measure] for score in scores.values()]))
        flat[f"counts.{method}"] = len(scores)
    fewer = [method for method, scores in result.scores.items() if len(scores) < len(result.heldout)]
    if fewer:  # the page then says how such methods can be compared
        flat["counts.fewer"] = len(fewer)
    for measure, value in result.unsteered.items():
        flat[f"heldout.unsteered.{measure}" + ("" if measure == "error" else "_right")] = value
    flat.update(_monotone(result))
    flat.update(_on_subset(result))
    flat.update(_by_category(result))
    flat.update(_by_quarter(result))
    flat.update(result.speed)
    flat.update(result.world)
    flat.update(
        {
            "counts.concepts": len(concepts()),
            "counts.heldout": len(result.heldout),
            "counts.fitted": len(result.fitted),
            "counts.images": result.images,
            "counts.prompts": settings.prompts,
            "counts.rise_prompts": max(settings.prompts, settings.rise_prompts),
            "counts.steps": settings.steps,
            "seconds": result.seconds,
            "version": __version__,
            "subset.concepts": result.fitted,
            "concepts": {
                name: {
                    "category": by_name()[name].category,
                    "nearest": result.nearest[name],
                    "distance": result.distances[name],
                    "prompt": result.prompts[name],
                    **{method: scores[name] for method, scores in result.scores.items() if name in scores},
                }
                for name in result.heldout
            },
        }
    )
    return clean(flat)


def with_interval(key: str, values: Sequence[float]) -> dict[str, Any]:
    """The mean of per-concept values and its 95 % interval, as two keys."""
    return {key: mean(values), f"interval.{key}": list(interval(values))}


def _monotone(result: Result) -> dict[str, Any]:
    if not result.curves:
        return {}
    flat: dict[str, Any] = {"monotone_tolerant.fall_allowed": FALL_ALLOWED}
    for key, allowed in (("monotone", 0.0), ("monotone_tolerant", FALL_ALLOWED)):
        values = [float(rises(curve, allowed)) for curve in result.curves.values()]
        flat.update(with_interval(f"heldout.ours_text.{key}", values))
    for index, strength in enumerate(STRENGTHS):
        flat[f"curve.ours_text.probability.{strength:g}"] = mean([curve[index] for curve in result.curves.values()])
        flat[f"curve.ours_text.subject.{strength:g}"] = mean([curve[index] for curve in result.subject_curves.values()])
    return flat


def _on_subset(result: Result) -> dict[str, Any]:
    """All methods on the concepts that the dear ones were run on, and ours minus theirs on the concepts both were."""
    flat: dict[str, Any] = {}
    ours = result.scores.get("ours_text", {})
    for method, scores in result.scores.items():
        both = [name for name in result.heldout if name in scores and name in ours]
        for measure in MEASURES + MORE_MEASURES:
            flat[f"subset.{method}.{measure}"] = mean(
                [scores[name][measure] for name in result.fitted if name in scores]
            )
            if method != "ours_text" and both:
                pairs = [ours[name][measure] for name in both], [scores[name][measure] for name in both]
                flat[f"difference.{method}.{measure}"] = mean([a - b for a, b in zip(*pairs)])
                flat[f"interval.difference.{method}.{measure}"] = list(paired_interval(*pairs))
    return flat


def _by_category(result: Result) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for category in sorted({by_name()[name].category for name in result.heldout}):
        for method, scores in result.scores.items():
            for measure in MEASURES:
                values = [score[measure] for name, score in scores.items() if by_name()[name].category == category]
                if values:
                    flat.update(with_interval(f"category.{category}.{method}.{measure}", values))
    return flat


def _by_quarter(result: Result) -> dict[str, Any]:
    """Concepts in quarters by their distance to the nearest training concept; quarter 1 is the nearest."""
    order = sorted(result.heldout, key=lambda name: result.distances[name])
    flat: dict[str, Any] = {"distance.mean": mean(list(result.distances.values()))}
    for quarter in range(4):
        names = order[len(order) * quarter // 4 : len(order) * (quarter + 1) // 4]
        flat[f"quarter.{quarter + 1}.distance"] = mean([result.distances[name] for name in names])
        for method, scores in result.scores.items():
            for measure in MEASURES:
                values = [scores[name][measure] for name in names if name in scores]
                if values:
                    flat.update(with_interval(f"quarter.{quarter + 1}.{method}.{measure}", values))
    return flat


def clean(value: Any) -> Any:
    """The value as plain JSON: numbers rounded to 6 significant digits, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if isfinite(value) else None
    return value


def write_json(path: str | Path, flat: Mapping[str, Any]) -> None:
    """Write the report, whole or not at all. Raises FileError."""
    text = json.dumps(dict(sorted(flat.items())), indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def table(flat: Mapping[str, Any]) -> str:
    """The main numbers as a Markdown table with 95 % intervals, and the bars below it."""
    lines = ["| method | concepts | concept | subject kept | colour kept |", "| --- | --- | --- | --- | --- |"]
    for method in EVERY:
        if f"counts.{method}" in flat:
            cells = [_with_interval(flat, f"heldout.{method}.{measure}") for measure in MEASURES]
            lines.append(f"| {TITLES[method]} | {flat[f'counts.{method}']} | {' | '.join(cells)} |")
    lines.append("")
    for label, key, form in (
        ("probability of the concept rises with strength", "heldout.ours_text.monotone", "{:.0%} of concepts"),
        ("seconds to predict maps", "speed.predict_seconds", "{:.4f}"),
        ("seconds to fit LinEAS", "speed.fit_seconds", "{:.1f}"),
        ("predicting is faster by", "speed.ratio", "{:,.0f} times"),
        ("world: concept named", "postcard.concept", "{:.1%}"),
        ("world: subject right", "postcard.subject", "{:.1%}"),
        ("world: colour right", "postcard.colour", "{:.1%}"),
        ("judge right on renders", "judge.renders", "{:.1%}"),
        ("CLIP retrieval of held-out concepts", "clip.retrieval_heldout", "{:.1%}"),
    ):
        if flat.get(key) is not None:
            lines.append(f"- {label}: {form.format(flat[key])}")
    return "\n".join(lines)


def _with_interval(flat: Mapping[str, Any], key: str) -> str:
    value, bounds = flat.get(key), flat.get(f"interval.{key}") or [None, None]
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({bounds[0]:.2f} to {bounds[1]:.2f})" if None not in bounds else "")


def write_sheet(path: str | Path, result: Result, methods: Sequence[str]) -> None:
    """One picture per concept and method, unsteered first, as a contact sheet. Raises FileError."""
    columns = [method for method in EVERY if method in methods and method in result.scores]
    rows = [
        Row([result.examples["unsteered", name], *(result.examples.get((method, name)) for method in columns)], name, by_name()[name].category)
        for name in result.heldout
    ]
    sheet = contact_sheet(
        rows,
        [TITLES["unsteered"], *(TITLES[method] for method in columns)],
        title="Held-out concepts, strength 1",
        upscale=3,
    )
    save_sheet(path, sheet)
