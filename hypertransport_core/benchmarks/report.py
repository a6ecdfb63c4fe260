"""What the numbers of a benchmark mean, as a table for people and as curves of growth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import FileError

# Every key, or its pattern: N stands for a number. Those marked * have .median, .min and .max over the repeats.
KEYS: dict[str, str] = {
    "ratio.fit_over_predict*": "fitting LinEAS with 1000 steps ÷ predicting: encode, hypernetwork, install",
    "ratio.encode_over_picture*": "encoding a concept in words ÷ one unsteered picture",
    "ratio.install_over_picture*": "installing maps on the network once ÷ one unsteered picture",
    "ratio.slider_live_over_picture*": "installing again at another strength ÷ one unsteered picture",
    "ratio.slider_folded_over_picture*": "folding again at another strength ÷ one unsteered picture",
    "ratio.live_over_unsteered*": "a picture steered live ÷ one unsteered",
    "ratio.folded_over_unsteered*": "a picture from weights with the maps folded in ÷ one unsteered",
    "ratio.collect_over_calls*": "collecting a concept ÷ the calls of the untouched network in it",
    "ratio.train_paired_over_calls*": "a training step, paired recipe ÷ a call of the untouched network on its rows",
    "ratio.train_faithful_over_calls*": "a training step, faithful recipe ÷ a call of the untouched network on its rows",
    "ratio.maps_over_model_bytes": "maps of one concept ÷ weights of the model, in memory",
    "predict.seconds*": "words to installed maps",
    "predict.encode_text_seconds*": "encoding a concept in words",
    "predict.encode_image_seconds*": "encoding a concept shown by a picture",
    "predict.hypernetwork_seconds*": "one pass of the hypernetwork",
    "predict.install_seconds*": "installing maps on the network and taking them away",
    "fit.seconds*": "a LinEAS fit of one concept",
    "fit.step_seconds*": "one step of a LinEAS fit",
    "fit.steps": "steps of a LinEAS fit",
    "fit.extrapolated": "whether its seconds were extrapolated from a few steps",
    "picture.seconds*": "one unsteered picture, sampled and decoded",
    "collect.concept_seconds*": "collecting one concept",
    "collect.concepts_per_second*": "concepts collected",
    "train.paired.steps_per_second*": "training steps, paired recipe",
    "train.paired.rows": "rows of a training step, paired recipe: concepts times samples",
    "train.paired.sites": "sites that the paired recipe steers",
    "train.faithful.steps_per_second*": "training steps, faithful recipe",
    "train.faithful.rows": "rows of a training step, faithful recipe",
    "train.faithful.sites": "sites that the faithful recipe steers",
    "memory.maps_bytes_per_concept": "maps of one concept, bytes in memory",
    "memory.hypernetwork_bytes": "weights of the hypernetwork, bytes in memory",
    "memory.model_bytes": "weights of the model, bytes in memory",
    "memory.collected_bytes_per_concept": "collected data of one concept, bytes on disk",
    "memory.steering_peak_bytes": "most memory until steering was measured, bytes (process, or GPU)",
    "memory.peak_bytes": "most memory of all, bytes, which training needs",
    "growth.sites.N.live_over_unsteered*": "a network call steered at N sites ÷ unsteered",
    "growth.rows.N.live_over_unsteered*": "a call of N rows, each with its own maps ÷ unsteered",
    "growth.rows.N.live_row_over_one*": "seconds per row of such a call ÷ those of one row alone",
    "growth.channels.N.predict_seconds*": "a pass of a hypernetwork of the default widths for N channels",
    "growth.channels.N.predict_over_fewest*": "such a pass ÷ that for the fewest channels",
    "growth.channels.N.parameters": "parameters of that hypernetwork",
    "growth.concepts.N.predict_each_over_one*": "encoding and predicting N concepts in one go, per concept ÷ one alone",
    "growth.concepts.N.hypernetwork_each_over_one*": "the hypernetwork alone, per concept ÷ one alone",
    "about.version": "of this package",
    "about.torch": "version",
    "about.python": "version",
    "about.system": "system and processor",
    "about.device": "where it was measured",
    "about.clock": "wall clock, or processor time of this process",
    "about.threads": "threads of torch",
    "about.repeats": "rounds of each measurement; fits, concepts and steps have fewer",
    "about.sites": "sites of the hypernetwork",
    "about.channels": "channels of the hypernetwork",
    "about.quick": "whether --quick was given",
    "seconds": "the whole benchmark took",
}
COLOURS = ("#0072b2", "#d55e00")  # Okabe and Ito's blue and vermilion, with a marker each
PANELS = (
    ("sites", "sites steered", "live ÷ unsteered call", (("live_over_unsteered", "live"),)),
    (
        "rows",
        "rows in a call, each with its own maps",
        "ratio",
        (("live_over_unsteered", "live ÷ unsteered"), ("live_row_over_one", "live, per row ÷ one row alone")),
    ),
    ("channels", "channels of all sites", "one pass of the hypernetwork, ms", (("predict_seconds", "predict"),)),
    (
        "concepts",
        "concepts in one go",
        "seconds per concept ÷ one alone",
        (("predict_each_over_one", "encode and predict"), ("hypernetwork_each_over_one", "hypernetwork only")),
    ),
)


def meaning_of(key: str) -> str | None:
    """What a key of the result means; None for a key that is not documented."""
    pattern = re.sub(r"(?<=\.)\d+(?=\.)", "N", key)
    stem = re.sub(r"\.(median|min|max)$", "", pattern)
    return KEYS.get(pattern) or KEYS.get(f"{stem}*")


def table(flat: Mapping[str, Any]) -> str:
    """The main numbers as a Markdown table: median, smallest and largest."""
    lines = ["| what | median | smallest | largest |", "| --- | --- | --- | --- |"]
    for key, meaning in KEYS.items():
        name = key.removesuffix("*")
        if "N" in key.split(".") or name.startswith("about") or name in ("seconds", "fit.extrapolated"):
            continue
        values = (
            [flat.get(f"{name}.{part}") for part in ("median", "min", "max")] if key.endswith("*") else [flat.get(name)]
        )
        if values[0] is None:
            continue
        note = (
            " (extrapolated)"
            if flat.get("fit.extrapolated") and name in ("fit.seconds", "ratio.fit_over_predict")
            else ""
        )
        cells = [_written(name, value) for value in values]
        lines.append(f"| {meaning}{note} | {' | '.join(cells + [''] * (3 - len(cells)))} |")
    return "\n".join(lines)


def _written(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if "bytes" in name and not name.startswith("ratio"):
        return f"{value / 2**20:.2f} MiB"
    if "per_second" in name:
        return f"{value:.3g} /s"
    if name.endswith("seconds"):
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:,.0f}" if value >= 1000 or float(value).is_integer() else f"{value:.3g}"


def draw_growth(path: Path, flat: Mapping[str, Any]) -> bool:
    """Four panels of growth as a PNG, 900 x 680 pixels; False where matplotlib is not installed. Raises FileError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 6.8), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    for axes, (what, across, up, series) in zip(figure.subplots(2, 2).flat, PANELS):
        factor = 1000 if up.endswith("ms") else 1
        for (measure, label), colour, marker in zip(series, COLOURS, "os"):
            points = _points(flat, what, measure)
            values = {
                part: [factor * flat[f"growth.{what}.{n}.{measure}.{part}"] for n in points]
                for part in ("median", "min", "max")
            }
            bars = [
                [m - low for m, low in zip(values["median"], values["min"])],
                [high - m for m, high in zip(values["median"], values["max"])],
            ]
            axes.errorbar(points, values["median"], bars, color=colour, marker=marker, capsize=3, label=label)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(color="#dddddd")
        axes.set_axisbelow(True)
        if what != "sites":
            axes.set_xscale("log", base=2)
        axes.set_xticks(points, [f"{n:,}" if n < 10000 else f"{n / 1000:.0f} k" for n in points])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Growth of costs: median, smallest and largest of {flat['about.repeats']} rounds "
        f"({flat['about.device']}, {flat['about.threads']} thread{'s' * (flat['about.threads'] != 1)}, "
        f"{flat['about.clock']})",
        fontsize=11,
    )
    try:
        figure.savefig(path)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written ({error.strerror}), expected a place for the plot: choose another --json"
        ) from error
    return True


def _points(flat: Mapping[str, Any], what: str, measure: str) -> list[int]:
    found = (re.fullmatch(rf"growth\.{what}\.(\d+)\.{measure}\.median", key) for key in flat)
    return sorted(int(match[1]) for match in found if match)
