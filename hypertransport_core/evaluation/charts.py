"""Charts of the results page, from its numbers alone: matplotlib, 900 pixels wide, Okabe and Ito's colours and a shape
of its own for every series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..files import FileError, write_atomically
from . import other_runs
from .measures import STRENGTHS
from .report import JUDGES, TITLES
from .results import COMPARED
from .studies import BEYOND, GRID

DPI, WIDTH = 100, 9.0  # 900 pixels
INK, FAINT, GRID_COLOUR, PAPER = "#26262c", "#6f6d69", "#e7e4dc", "#faf8f3"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#26262c", "#8a8781")
WIDE = 8  # times the least number, beyond which a curve's axis is logarithmic
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")
Flat = Mapping[str, Any]


class ChartError(ValueError):
    """Charts that cannot be drawn; the message is one sentence with the cure."""


def draw_all(flat: Flat, folder: Path) -> list[str]:
    """Write every chart that the numbers have something for; returns the files' names. Raises ChartError without
    matplotlib, FileError."""
    drawn = []
    charts: list[tuple[str, Callable[[Flat], Any]]] = [
        ("methods", _methods),
        ("strength", _strength),
        ("choice", _choice),
        ("categories", _categories),
        ("distance", _distance),
        ("preference", _preference),
    ]
    curves = [group for group, names in other_runs.groups(flat).items() if other_runs.makes_curve(group, names)]
    charts += [(f"curve-{number}", partial(_grown, group=group)) for number, group in enumerate(curves, 1)]
    for name, draw in charts:
        figure = draw(flat)
        if figure is not None:
            command = other_runs.COMMAND if name.startswith("curve-") else flat["command"]
            figure.text(0.995, 0.004, command, ha="right", va="bottom", fontsize=8, color=FAINT)
            figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))
            _save(figure, folder / f"{name}.png")
            drawn.append(f"{name}.png")
    return drawn


def check() -> None:
    """Raises ChartError where matplotlib is missing, before any work."""
    _figure(1.0)


def _figure(height: float) -> tuple[Any, Any]:
    """A figure and its axes, without pyplot, which would keep state and look for a screen."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ChartError(f"The charts need matplotlib, which cannot be imported ({error}); install it: python -m pip "
                         "install matplotlib.") from error
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=11)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error}), expected a folder for charts: choose another") from error


def _errors(flat: Flat, keys: Sequence[str]) -> list[list[float]]:
    """How far the intervals reach below and above the values, in percent."""
    sides: list[list[float]] = [[], []]
    for key in keys:
        for side, bound, sign in zip(sides, flat.get(f"interval.{key}") or (None, None), (-1, 1)):
            side.append(0.0 if bound is None else 100 * max(sign * (bound - flat[key]), 0.0))
    return sides


def _labels(axes: Any, across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=12, color=INK)
    axes.set_ylabel(up, fontsize=12, color=INK)


def _methods(flat: Flat) -> Any:
    """Concept against content kept, every method at the strength chosen."""
    both = ("concept", "subject")
    methods = [name for name in TITLES if all(flat.get(f"best.{name}.{one}") is not None for one in both)]
    if not methods:
        return None
    figure, axes = _figure(5.6)
    for number, name in enumerate(methods):
        x, y = f"best.{name}.subject", f"best.{name}.concept"
        axes.errorbar(
            100 * flat[x],
            100 * flat[y],
            xerr=_errors(flat, [x]),
            yerr=_errors(flat, [y]),
            fmt=SHAPES[number % len(SHAPES)],
            color=COLOURS[number % len(COLOURS)],
            mfc=COLOURS[number % len(COLOURS)] if number < len(SHAPES) else PAPER,
            markersize=9,
            elinewidth=1,
            label=TITLES[name],
        )
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    _labels(axes, "subject kept (% of pictures)", "concept named by the judge (% of pictures)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    return figure


def _strength(flat: Flat) -> Any:
    """Ours from words over strength."""
    strengths = [s for s in (*STRENGTHS, *BEYOND) if flat.get(f"curve.ours_text.concept.{s:g}") is not None]
    if len(strengths) < 2:
        return None
    figure, axes = _figure(4.6)
    axes.axvspan(1, max(1.0, strengths[-1]), color=GRID_COLOUR, alpha=0.6, lw=0)
    for number, (name, words) in enumerate(
        (
            ("concept", "concept named"),
            ("subject", "subject kept"),
            ("colour", "colour kept"),
            ("joint", "all three"),
            ("way", "distance moved, of that at 1"),
        )
    ):
        points = [s for s in strengths if flat.get(f"curve.ours_text.{name}.{s:g}") is not None]
        keys = [f"curve.ours_text.{name}.{s:g}" for s in points]
        axes.errorbar(
            points,
            [100 * flat[key] for key in keys],
            yerr=_errors(flat, keys),
            fmt=SHAPES[number] + ("--" if name == "way" else "-"),
            color=COLOURS[number],
            markersize=6,
            linewidth=1.8,
            elinewidth=1,
            label=words,
        )
    _labels(axes, "strength (beyond 1, shaded: extrapolation)", "% of pictures; distance in %")
    axes.set_ylim(bottom=-3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    return figure


def _choice(flat: Flat) -> Any:
    """What the strengths were chosen by."""
    methods = [name for name in TITLES if flat.get(f"choice.{name}.1") is not None]
    if not methods:
        return None
    figure, axes = _figure(4.8)
    for number, name in enumerate(methods):
        points = [s for s in GRID if flat.get(f"choice.{name}.{s:g}") is not None]
        axes.plot(
            points,
            [100 * flat[f"choice.{name}.{s:g}"] for s in points],
            SHAPES[number % len(SHAPES)] + ("-" if number < len(SHAPES) else "--"),
            color=COLOURS[number % len(COLOURS)],
            mfc=COLOURS[number % len(COLOURS)] if number < len(SHAPES) else PAPER,
            markersize=6,
            linewidth=1.6,
            label=TITLES[name],
        )
    _labels(axes, "strength", "concept, subject and colour right\n(% of pictures of validation concepts)")
    axes.set_ylim(-3, 103)
    figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    return figure


def _categories(flat: Flat) -> Any:
    """Concept named per category."""
    found = sorted({key.split(".")[1] for key in flat if key.startswith("category.") and key.endswith(".concept")})
    methods = [m for m in ("ours_text", "ours_image", "prompting", "linear_act", "lineas_50") if _any(flat, found, m)]
    if not found or not methods:
        return None
    figure, axes = _figure(0.9 + 0.62 * len(found))
    height = 0.8 / len(methods)
    for number, method in enumerate(methods):
        values = [flat.get(f"category.{name}.{method}.concept", 0.0) for name in found]
        rows = [row for row, name in enumerate(found) if f"category.{name}.{method}.concept" in flat]
        axes.barh(
            [row + number * height for row in rows],
            [100 * values[row] for row in rows],
            height * 0.9,
            xerr=_errors(flat, [f"category.{found[row]}.{method}.concept" for row in rows]),
            error_kw={"elinewidth": 0.8, "ecolor": INK},
            color=COLOURS[number],
            hatch=("", "//", "", "xx", "..")[number],
            edgecolor=PAPER,
            linewidth=0,
            label=TITLES[method],
        )
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(found))], found)
    axes.invert_yaxis()
    axes.set_xlim(0, 103)
    axes.set_xlabel("concept named by the judge (% of pictures)", fontsize=12, color=INK)
    figure.legend(loc="outside upper left", frameon=False, fontsize=10, ncols=3)
    return figure


def _any(flat: Flat, categories: Sequence[str], method: str) -> bool:
    return any(f"category.{name}.{method}.concept" in flat for name in categories)


def _distance(flat: Flat) -> Any:
    """Every held-out concept by its distance to the nearest training concept, and the means of the quarters."""
    points = [(one["distance"], one["ours_text"]["concept"]) for one in flat["concepts"].values() if "ours_text" in one]
    if not points:
        return None
    figure, axes = _figure(4.4)
    axes.plot(
        [x for x, _ in points], [100 * y for _, y in points], "o", color=COLOURS[0], alpha=0.45, markersize=7,
        label="one concept", mec="none",
    )
    for number, method in enumerate(("ours_text", "prompting")):
        quarters = [q for q in range(1, 5) if flat.get(f"quarter.{q}.{method}.concept") is not None]
        keys = [f"quarter.{q}.{method}.concept" for q in quarters]
        axes.errorbar(
            [flat[f"quarter.{q}.distance"] for q in quarters],
            [100 * flat[key] for key in keys],
            yerr=_errors(flat, keys),
            fmt=("D-", "s--")[number],
            elinewidth=1,
            color=(COLOURS[5], COLOURS[6])[number],
            markersize=8,
            linewidth=2,
            label=f"{TITLES[method]}: quarters",
        )
    axes.set_ylim(-3, 103)
    _labels(axes, "distance to the nearest training concept (1 - cosine of CLIP embeddings)", "concept named (%)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    return figure


def _preference(flat: Flat) -> Any:
    """How often ours is preferred to each method, by every judge."""
    methods = [m for m in COMPARED if any(flat.get(f"preference.{m}.{judge}") is not None for judge in JUDGES)]
    if not methods:
        return None
    figure, axes = _figure(1.3 + 0.42 * len(methods))
    axes.axvline(50, color=FAINT, linewidth=1.2, linestyle="--")
    for number, (judge, words) in enumerate(JUDGES.items()):
        keys = [f"preference.{m}.{judge}" for m in methods]
        rows = [row for row, key in enumerate(keys) if flat.get(key) is not None]
        if not rows:
            continue
        axes.errorbar(
            [100 * flat[keys[row]] for row in rows],
            [row + 0.22 * (number - 1) for row in rows],
            xerr=_errors(flat, [keys[row] for row in rows]),
            fmt=SHAPES[number],
            color=COLOURS[number],
            markersize=7,
            elinewidth=1.2,
            label=words,
        )
    axes.set_yticks(range(len(methods)), [TITLES[m] for m in methods])
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel("HyperTransport, words, preferred to it (% of pictures; dashed: a tie)", fontsize=12, color=INK)
    figure.legend(loc="outside upper left", frameon=False, fontsize=10, ncols=3)
    return figure


def _grown(flat: Flat, group: str) -> Any:
    """A group of other runs whose names are numbers, as a curve."""
    names = other_runs.groups(flat)[group]
    figure, axes = _figure(4.4)
    for number, (measure, words) in enumerate(other_runs.MEASURES.items()):
        points = [name for name in names if flat.get(f"also.{group}.{name}.{measure}") is not None]
        keys = [f"also.{group}.{name}.{measure}" for name in points]
        if not keys:
            continue
        axes.errorbar(
            [int(name) for name in points],
            [100 * flat[key] for key in keys],
            yerr=_errors(flat, keys),
            fmt=SHAPES[number] + "-",
            color=COLOURS[number],
            markersize=7,
            elinewidth=1,
            label=words,
        )
    axes.set_ylim(-3, 103)
    numbers = [int(name) for name in names]
    if min(numbers) > 0 and max(numbers) > WIDE * min(numbers):
        axes.set_xscale("log")
    axes.set_xticks(numbers, names)
    axes.set_xticks([], minor=True)
    _labels(axes, group, "% of pictures of held-out concepts")
    figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    return figure
