"""Tables and numbers of the results page, from the results file alone."""

from __future__ import annotations

from collections.abc import Callable

from . import other_runs, other_seeds
from .measures import STRENGTHS
from .page_cells import NOT_MEASURED, Flat, decided, formatted, signed, table
from .report import JUDGES, TITLES
from .results import COMPARED, VARIED
from .studies import BEYOND, REMOVALS, WAYS, WIDER, WORDINGS

WORDS = {
    "negative": "strength −1 (`--remove`)",
    "negative_image": "strength −1, maps from one picture",
    "inverse": "inverse maps (Invert Maps)",
    "mean_act_inverse": "inverse Mean-AcT maps",
    "sum": "sum of maps",
    "sequence": "one map after the other",
    "mix": "maps of the mean embedding",
    "prompting": "both named in the prompt",
    "one_only": "control: the first concept alone",
    "phrase": "another phrase",
    "typo": "two letters swapped",
    "unknown_word": "an invented word in front",
}
NEEDS = {
    "ours_text": "one pass",
    "ours_image": "one pass",
    "ours_images_4": "one pass",
    "image_adapter": "one pass",
    "prompting": "the model to know the words",
    "lineas_1000": "optimisation",
    "lineas_50": "optimisation",
    "nearest": "nothing; another concept's optimisation",
    "slider_lora": "optimisation",
    "mean_act": "statistics",
    "linear_act": "statistics",
    "linear_act_once": "statistics",
    "iti_c": "statistics",
    "ridge": "a matrix product",
    "mean_map": "nothing",
}


def _at_one(flat: Flat) -> str:
    rows = [
        [TITLES[m], NEEDS[m], formatted(flat, f"counts.{m}", "n")]
        + [formatted(flat, f"heldout.{m}.{measure}", "%~") for measure in ("concept", "subject", "colour", "joint")]
        for m in NEEDS
        if f"heldout.{m}.concept" in flat
    ]
    return table(["method", "needs, per new concept", "concepts", "concept", "subject", "colour", "all three"], rows)


def _at_best(flat: Flat) -> str:
    rows = [
        [
            TITLES[m],
            "–" if flat.get(f"best.{m}.strength") is None else f"{flat[f'best.{m}.strength']:g}",
            formatted(flat, f"best.{m}.chosen_on", "n"),
            formatted(flat, f"counts.{m}", "n"),
        ]
        + [formatted(flat, f"best.{m}.{measure}", "%~") for measure in ("concept", "subject", "colour", "joint")]
        for m in NEEDS
        if flat.get(f"best.{m}.concept") is not None
    ]
    head = ["method", "strength", "chosen on", "concepts", "concept", "subject", "colour", "all three"]
    return table(head, rows)


def _versus(flat: Flat, prefix: str = "versus", own: str = "words") -> str:
    rows = []
    for m in COMPARED:
        if f"{prefix}.{m}.concepts" not in flat:
            continue
        cells = [decided(flat, f"{prefix}.{m}.{measure}") for measure in other_seeds.MEASURES]
        rows.append([TITLES[m], formatted(flat, f"{prefix}.{m}.concepts", "n"), *cells])
    head = [f"HyperTransport, {own}, against", "concepts", "concept", "subject", "colour", "all three", "place", "error"]
    return table(head, rows)


def _clip(flat: Flat) -> str:
    rows = [
        [TITLES[m]]
        + [formatted(flat, f"{at}.{m}.{measure}", "%~") for at in ("heldout", "best") for measure in ("concept", "clip")]
        + [signed(flat, f"versus.{m}.clip") if f"versus.{m}.clip" in flat else ""]
        for m in NEEDS
        if flat.get(f"heldout.{m}.clip") is not None
    ]
    head = [f"{who}, {at}" for at in ("strength 1", "chosen strength") for who in ("judge", "second CLIP")]
    return table(["method", *head, "words minus it, second CLIP, points"], rows)


def _input(flat: Flat) -> str:
    rows = []
    for m in NEEDS:
        if flat.get(f"best.{m}.concept") is None:
            continue
        rows.append(
            [TITLES[m]]
            + [formatted(flat, f"best.{m}.{measure}", "%~") for measure in ("place", "size", "similarity")]
            + [formatted(flat, f"best.{m}.error", ".3~")]
        )
    return table(["method", "place kept", "size kept", "like the unsteered inside the subject", "error"], rows)


def _curve(flat: Flat) -> str:
    rows = [
        [f"{s:g}"]
        + [
            formatted(flat, f"curve.ours_text.{m}.{s:g}", "%~")
            for m in ("concept", "subject", "colour", "joint", "way")
        ]
        + [formatted(flat, f"curve.ours_text.error.{s:g}", ".3~")]
        for s in (*STRENGTHS, *BEYOND)
        if f"curve.ours_text.concept.{s:g}" in flat
    ]
    return table(["strength", "concept", "subject", "colour", "all three", "distance moved", "error"], rows)


def _removal(flat: Flat) -> str:
    rows = [
        [WORDS[way]]
        + [formatted(flat, f"removal.{way}.{m}", "%~") for m in ("gone", "plain", "subject", "colour", "joint")]
        + [formatted(flat, f"removal.{way}.error", ".3~")]
        for way in REMOVALS
        if f"removal.{way}.gone" in flat
    ]
    return table(["by", "gone", "no concept at all", "subject kept", "colour kept", "all three", "error"], rows)


def _composition(flat: Flat) -> str:
    rows = [
        [WORDS[way]]
        + [
            formatted(flat, f"composition.{way}.{m}", "%~")
            for m in ("both_present", "top_two", *(f"top_{count}" for count in WIDER), "subject", "colour")
        ]
        for way in WAYS
        if f"composition.{way}.both_present" in flat
    ]
    lenient = [f"both in the top {count}" for count in WIDER]
    return table(["by", "both present", "both the top two", *lenient, "subject kept", "colour kept"], rows)


def _wordings(flat: Flat) -> str:
    rows = [
        [
            WORDS[one],
            formatted(flat, f"counts.robust.{one}", "n"),
            formatted(flat, f"robust.{one}.name", "%~"),
            formatted(flat, f"robust.{one}.concept", "%~"),
            signed(flat, f"robust.{one}.difference"),
        ]
        for one in WORDINGS
        if f"robust.{one}.concept" in flat
    ]
    return table(["the words", "concepts", "usual name", "these words", "difference, points"], rows)


def _diversity(flat: Flat) -> str:
    rows = [
        [TITLES[m], formatted(flat, f"diversity.{m}.distance", ".3~"), formatted(flat, f"diversity.{m}.share", "%~")]
        for m in ("unsteered", *VARIED)
        if f"diversity.{m}.distance" in flat
    ]
    return table(["method", "distance between seeds", "of the unsteered model's"], rows)


def _preference(flat: Flat) -> str:
    rows = []
    for m in COMPARED:
        if f"preference.{m}.network" not in flat:
            continue
        row = [TITLES[m], formatted(flat, f"preference.{m}.concepts", "n")]
        judges = [judge for judge in JUDGES if any(f"preference.{one}.{judge}" in flat for one in COMPARED)]
        for judge in judges:
            key = f"preference.{m}.{judge}"
            row += [formatted(flat, key, "%~"), _times(flat, f"{key}.times", key)]
        rows.append(row)
    head = [word for judge in judges for word in (f"by the {JUDGES[judge]}", "times as often")] if rows else []
    return table(["against", "concepts", *head], rows)


def _times(flat: Flat, key: str, share: str) -> str:
    value, (low, high) = flat.get(key), flat.get(f"interval.{key}") or (None, None)
    if value is not None and low is not None and high is None:  # preferred always in some of the samples
        return f"{value:.2f} ({low:.2f} to always)"
    return "always" if value is None and flat.get(share) == 1 else formatted(flat, key, ".2~")


def _distance(flat: Flat) -> str:
    rows = [
        [str(quarter), formatted(flat, f"quarter.{quarter}.distance", ".2")]
        + [formatted(flat, f"quarter.{quarter}.{m}.concept", "%~") for m in ("ours_text", "ours_image", "prompting")]
        for quarter in range(1, 5)
        if flat.get(f"quarter.{quarter}.ours_text.concept") is not None
    ]
    return table(["quarter", "mean distance", "from words", "from one picture", "prompting"], rows)


def _speed(flat: Flat) -> str:
    rows = [
        [words, formatted(flat, key, form)]
        for words, key, form in (
            ("HyperTransport: encode the words, predict, install", "speed.predict_seconds", ".4"),
            ("Mean-AcT, one concept", "speed.mean_act_seconds", ".2"),
            ("LinEAS, the few steps", "speed.fit_short_seconds", ".1"),
            ("concept-slider LoRA", "speed.slider_seconds", ".0"),
            ("LinEAS, the many steps", "speed.fit_seconds", ".0"),
        )
        if flat.get(key) is not None
    ]
    return table(["what", "seconds"], rows)


def _world(flat: Flat) -> str:
    rows = [
        [words, formatted(flat, key, "%")]
        for words, key in (
            ("subject right where the prompt names one of all concepts", "postcard.subject"),
            ("colour right", "postcard.colour"),
            ("concept named", "postcard.concept"),
            ("judge right on fresh renders", "judge.renders"),
            ("second judge right on them", "judge_2.renders"),
            ("CLIP finds held-out concepts' captions, within their category", "clip.retrieval_heldout"),
            ("second CLIP finds their names, among all concepts", "clip_2.renders"),
            ("unsteered pictures at the right place", "heldout.unsteered.place_right"),
            ("unsteered pictures in the right size", "heldout.unsteered.size_right"),
        )
        if flat.get(key) is not None
    ]
    return table(["of the world itself", "share"], rows)


def _summary(flat: Flat) -> str:
    """Against whom ours wins, ties and loses, on the measure that joins all: from the verdicts."""
    found: dict[str, list[str]] = {"wins": [], "ties": [], "loses": []}
    for m in COMPARED:
        verdict = flat.get(f"versus.{m}.joint.verdict")
        if verdict in found:
            few = flat.get(f"versus.{m}.concepts", 0) < flat["counts.heldout"]
            found[verdict].append(TITLES[m] + (f" (on {flat[f'versus.{m}.concepts']} concepts only)" if few else ""))
    words = {"wins": "against", "ties": "with", "loses": "to"}
    lines = [
        f"- **{verdict.capitalize()}** {words[verdict]}: {'; '.join(names) if names else 'none of them'}."
        for verdict, names in found.items()
    ]
    shown = flat.get("versus_image.image_adapter.joint.verdict")
    if shown in words:
        lines.append(f"- From one picture it **{shown}** {words[shown]} the image-prompt adapter that is shown the same one.")
    return "\n".join(lines)


def _extremes(flat: Flat) -> str:
    """The best and the worst categories from words."""
    shares = {
        key.split(".")[1]: value
        for key, value in flat.items()
        if key.startswith("category.") and key.endswith(".ours_text.concept") and value is not None
    }
    order = sorted(shares, key=lambda name: (-shares[name], name))
    rows = [
        [name]
        + [formatted(flat, f"category.{name}.{m}.concept", "%~") for m in ("ours_text", "ours_image", "prompting", "linear_act")]
        for name in order
    ]
    return table(["category", "from words", "from one picture", "prompting", "Linear-AcT at strength 1"], rows)


def _also(flat: Flat) -> str:
    """A table per group of other runs; of seeds the mean and the range too."""
    parts = []
    for group, names in other_runs.groups(flat).items():
        rows = []
        for name in names:
            prefix = f"also.{group}.{name}"
            counts = [formatted(flat, f"{prefix}.{what}", "n") for what in ("steps", "sites", "concepts")]
            rows.append([name, *counts, *(formatted(flat, f"{prefix}.{m}", "%~") for m in other_runs.MEASURES)])
        if other_runs.of_seeds(group) and len(names) > 1:
            rows.append(["**mean (smallest to largest)**", "", "", "", *(_spread(flat, group, m) for m in other_runs.MEASURES)])
        parts.append(f"**{group}**\n\n" + table([group, "steps", "sites", "held-out concepts", *other_runs.MEASURES.values()], rows))
    return "\n\n".join(parts) or NOT_MEASURED[:1].upper() + NOT_MEASURED[1:] + "."


def _again(flat: Flat) -> str:
    """The page's seed beside others: concepts named, differences on all three, strengths that differ, goals."""
    found = [("", flat["counts.seed"]), *((f"again.{seed}.", seed) for seed in other_seeds.seeds(flat))]
    head = [f"seed {seed}" for _, seed in found]
    named = [
        [TITLES[m], *(formatted(flat, f"{at}heldout.{m}.concept", "%~") for at, _ in found)]
        for m in NEEDS
        if any(flat.get(f"{at}heldout.{m}.concept") is not None for at, _ in found[1:])
    ]
    minus = [
        [TITLES[m], *(decided(flat, f"{at}versus.{m}.joint") for at, _ in found)]
        for m in COMPARED
        if any(f"{at}versus.{m}.joint.verdict" in flat for at, _ in found[1:])
    ]
    chosen = {m: [flat.get(f"{at}best.{m}.strength") for at, _ in found] for m in NEEDS}
    strengths = [
        [TITLES[m], *(f"{value:g}" for value in values if value is not None)]
        for m, values in chosen.items()
        if None not in values and len(set(values)) > 1
    ]
    goals = [[words, *(_reached(flat, at + key) for at, _ in found)] for words, key, _, _ in GOALS]
    commands = "; ".join(f"`{flat[f'{at}command']}`" for at, _ in found[1:])
    return "\n\n".join((
        f"Run again: {commands}.",
        table(["concept named, strength 1", *head], named),
        table(["all three right, words minus the method, points", *head], minus),
        *([table(["strength chosen, where it differs", *head], strengths)] if strengths else []),
        table(["goal", *head], goals),
    ))


def _differ(flat: Flat) -> str:
    """The verdicts that another seed changes, in words."""
    names = {"joint": "all three"}
    changed = [
        f"{TITLES[method]}, {names.get(measure, measure)} ({' / '.join(verdicts)})"
        for key, verdicts in (flat.get("again.differ") or {}).items()
        for method, measure in [key.split(".")]
    ]
    return "; ".join(changed) or "none"


def _spread(flat: Flat, group: str, measure: str) -> str:
    found = other_runs.spread_of(flat, group, measure)
    return NOT_MEASURED if found is None else f"{100 * found[0]:.0f} % ({100 * found[1]:.0f} to {100 * found[2]:.0f})"


def _missing(flat: Flat) -> str:
    """A warning on a page whose run was stopped, or had a part that failed."""
    missing = flat.get("parts.missing")
    return f"**This run is not whole**; it lacks: {', '.join(missing)}.\n\n" if missing else ""


# Goals of the project: (words, key, smallest value or None, largest value or None)
GOALS = (
    ("concept from words at strength 1, as a share of prompting's", "share_of_prompting", 0.9, None),
    ("concept from one picture at strength 1, as a share of that from words", "modality.image_share", 1.0, None),
    ("concept named at the strength chosen, minus LinEAS with many steps", "versus.lineas_1000.concept", 0.0, None),
    ("subject kept at the strength chosen, minus LinEAS with many steps", "versus.lineas_1000.subject", 0.0, None),
    ("both concepts present, by the sum of maps", "composition.both_present", 0.6, None),
    ("share of the other quarters' by which the farthest is named less often", "distance.farthest_quarter_drop", None, 0.1),
)


def _goals(flat: Flat) -> str:
    rows = []
    for words, key, least, most in GOALS:
        met = {True: "yes", False: "**no**", None: NOT_MEASURED}[goal_met(flat, key, least, most)]
        bound = f"at least {100 * least:.0f}" if least is not None else f"at most {100 * (most or 0):.0f}"
        rows.append([words, f"{bound} {'points' if _is_difference(key) else '%'}", _reached(flat, key), met])
    return table(["goal", "wanted", "measured", "met"], rows)


def goal_met(flat: Flat, key: str, least: float | None, most: float | None) -> bool | None:
    """Whether a number is within its goal's bounds; None where it was not measured."""
    value = flat.get(key)
    return None if value is None else (least is None or value >= least) and (most is None or value <= most)


def _is_difference(key: str) -> bool:
    return "versus." in key


def _reached(flat: Flat, key: str) -> str:
    return signed(flat, key) if _is_difference(key) else formatted(flat, key, "%~")


TABLES: dict[str, Callable[[Flat], str]] = {
    "missing": _missing,
    "also": _also,
    "again": _again,
    "differ": _differ,
    "at_one": _at_one,
    "at_best": _at_best,
    "versus": _versus,
    "versus_image": lambda flat: _versus(flat, "versus_image", "picture"),
    "clip": _clip,
    "input": _input,
    "curve": _curve,
    "removal": _removal,
    "composition": _composition,
    "wordings": _wordings,
    "diversity": _diversity,
    "preference": _preference,
    "distance": _distance,
    "speed": _speed,
    "world": _world,
    "summary": _summary,
    "categories": _extremes,
    "goals": _goals,
}
