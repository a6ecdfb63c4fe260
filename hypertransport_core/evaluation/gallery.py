"""Contact sheets of the results page, as JPEG: a gallery of held-out concepts, the best and the worst, and the studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..files import write_atomically
from ..sheets import Row, contact_sheet
from .report import TITLES
from .results import Measured
from .studies import BEYOND, WAYS, best_of

QUALITY = 80  # colours at half resolution are those of the pictures themselves, which sheets show twice as large
ROWS = 12  # of a sheet of the gallery
EXTREME = 10  # best and worst concepts
COLUMNS = (
    ("unsteered", TITLES["unsteered"]),
    ("ours_text 0.5", "ours, from words, strength 0.5"),
    ("ours_text", "ours, from words, strength 1"),
    ("ours_image", "ours, from one picture, strength 1"),
    ("prompting", TITLES["prompting"]),
    ("linear_act", "Linear-AcT"),
    ("lineas_50", "LinEAS, 50 steps"),
    ("lineas_1000", "LinEAS, 1000 steps"),
)
FITTED = ("linear_act", "lineas_50", "lineas_1000")


def draw_all(measured: Measured, folder: Path) -> list[str]:
    """Write all sheets; returns the files' names. Raises FileError."""
    names = measured.session.result.heldout
    sheets: dict[str, Tensor | None] = {}
    for number, start in enumerate(range(0, len(names), ROWS), 1):
        part = names[start : start + ROWS]
        title = f"Held-out concepts, sheet {number} of {-(-len(names) // ROWS)}"
        sheets[f"gallery-{number}"] = _sheet(measured, part, title)
    order = ranked(measured)
    count = min(EXTREME, len(order) // 2)
    sheets["best"] = _sheet(measured, order[:count], f"The {count} best by measure") if count else None
    sheets["worst"] = _sheet(measured, order[::-1][:count], f"The {count} worst by measure") if count else None
    sheets |= {"strength": _strengths(measured), "composition": _composition(measured), "removal": _removal(measured)}
    written = []
    for name, sheet in sheets.items():
        if sheet is not None:
            save_jpeg(folder / f"{name}.jpg", sheet)
            written.append(f"{name}.jpg")
    return written


def ranked(measured: Measured) -> list[str]:
    """Held-out concepts, best first: by the judge's share of pictures with the concept and the right subject and
    colour, then by its probability of the concept, from words at strength 1."""
    scores = measured.session.result.scores.get("ours_text", {})
    return sorted(scores, key=lambda name: (-_or_zero(scores[name]["joint"]), -scores[name]["probability"], name))


def save_jpeg(path: Path, picture: Tensor) -> None:
    """Write (3, H, W) floats in [0, 1] as JPEG, whole or not at all. Raises FileError."""
    from PIL import Image

    values = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(values)
    write_atomically(
        path, lambda temporary: image.save(temporary, format="JPEG", quality=QUALITY, optimize=True, subsampling=2)
    )


def _sheet(measured: Measured, names: Sequence[str], title: str) -> Tensor | None:
    """One row per concept, one column per method that has a picture of any of them."""
    result = measured.session.result
    columns = [(key, words) for key, words in COLUMNS if any(_key(measured, key, name) for name in names)]
    rows = []
    for name in names:
        score = result.scores.get("ours_text", {}).get(name)
        note = result.prompts[name] + (f". Named {score['concept']:.0%}" if score else "")
        keys = [_key(measured, key, name) for key, _ in columns]
        rows.append(Row([result.examples[key] if key else None for key in keys], name, note))
    if not rows:
        return None
    footer = (
        f"Every row: one prompt and one seed for all columns, {measured.session.settings.steps} steps. Named: share of "
        "all this concept's pictures from words in which the judge names it. Linear-AcT and LinEAS are fitted to the "
        "concept, at the strength chosen on validation concepts; HyperTransport never saw it."
    )
    headings = [
        f"{words}, strength {measured.studies.strength(key):g}" if key in FITTED else words for key, words in columns
    ]
    return contact_sheet(rows, headings, title=title, footer=footer, upscale=2)


def _key(measured: Measured, method: str, name: str) -> tuple[str, str] | None:
    """Where the picture of a method is: per-concept fits are shown at their chosen strength."""
    examples = measured.session.result.examples
    for key in ((best_of(method), name),) * (method in FITTED) + ((method, name),):
        if key in examples:
            return key
    return None


def _strengths(measured: Measured) -> Tensor | None:
    """Concepts from the best to the worst over all strengths."""
    result, studies = measured.session.result, measured.studies
    order = ranked(measured)
    names = [order[len(order) * part // 6] for part in range(6)] if len(order) >= 6 else order
    between = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows = [
        Row(
            [*(result.examples.get((f"ours_text {s:g}", name)) for s in between), *studies.examples["strength", name]],
            name,
            result.prompts[name],
        )
        for name in names
        if ("strength", name) in studies.examples
    ]
    if not rows:
        return None
    headings = [f"strength {s:g}" for s in (*between, *BEYOND)]
    return contact_sheet(
        rows, headings, title="From off to too strong", subtitle="Concepts from the best to the worst", upscale=2
    )


def _composition(measured: Measured) -> Tensor | None:
    """The first pairs, which a hash has chosen."""
    words = {"sum": "sum", "sequence": "one after another", "mix": "mean embedding", "prompting": "both in the prompt",
             "one_only": "the first alone"}
    found = [(pair, seen) for (part, pair), seen in measured.studies.examples.items() if part == "composition"][:10]
    prompt = measured.session.scenes.prompts[0]
    rows = [Row(seen, pair, prompt) for pair, seen in found]
    return contact_sheet(rows, [words[way] for way in WAYS], title="Two concepts at once", upscale=2) if rows else None


def _removal(measured: Measured) -> Tensor | None:
    """The first held-out concept of every category."""
    from .methods import stratified

    names = stratified(measured.session.result.heldout, 9)
    found = [(name, measured.studies.examples.get(("removal", name))) for name in names]
    prompt = measured.session.scenes.prompts[0]
    plain = measured.session.plain.pictures[0]
    rows = [Row([*seen, plain], name, f"{prompt}, {name}") for name, seen in found if seen]
    headings = ["concept in the prompt", "taken out, inverse maps", "strength -1", "inverse Mean-AcT", "never asked for"]
    return contact_sheet(rows, headings, title="Taken away", upscale=2) if rows else None


def _or_zero(value: float) -> float:
    return value if value == value else 0.0
