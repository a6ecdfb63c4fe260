"""Contact sheets of the results page, as JPEG: a gallery of held-out concepts, the best and the worst, and the studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_atomically
from ..sheets import Row, contact_sheet
from .measures import STRENGTHS
from .methods import stratified
from .report import TITLES
from .stored import Shown, Stored
from .studies import BEYOND, REMOVALS, WAYS, best_of, pairs_of

Flat = Mapping[str, Any]

QUALITY = 80  # colours at half resolution are those of the pictures themselves, which sheets show twice as large
ROWS = 12  # of a sheet of the gallery
EXTREME = 10  # best and worst concepts
COLUMNS = (
    ("unsteered", TITLES["unsteered"]),
    ("ours_text 0.5", "ours, from words, strength 0.5"),
    ("ours_text", "ours, from words, strength 1"),
    ("ours_image", "ours, from one picture, strength 1"),
    ("image_adapter", "image-prompt adapter"),
    ("prompting", TITLES["prompting"]),
    ("linear_act", "Linear-AcT"),
    ("lineas_50", "LinEAS, 50 steps"),
    ("lineas_1000", "LinEAS, 1000 steps"),
)
AT_CHOSEN = ("image_adapter", "linear_act", "lineas_50", "lineas_1000")


def draw_all(stored: Stored, folder: Path) -> list[str]:
    """Write all sheets that there are pictures for; returns the files' names. Raises FileError."""
    if stored.pictures is None:
        return []
    flat, pictures = stored.flat, stored.pictures
    names = [name for name in flat["concepts"] if ("unsteered", name) in pictures]
    sheets: dict[str, Tensor | None] = {}
    for number, start in enumerate(range(0, len(names), ROWS), 1):
        title = f"Held-out concepts, sheet {number} of {-(-len(names) // ROWS)}"
        sheets[f"gallery-{number}"] = _sheet(flat, pictures, names[start : start + ROWS], title)
    order = ranked(flat)
    count = min(EXTREME, len(order) // 2)
    sheets["best"] = _sheet(flat, pictures, order[:count], f"The {count} best by measure")
    sheets["worst"] = _sheet(flat, pictures, order[::-1][:count], f"The {count} worst by measure")
    sheets |= {
        "strength": _strengths(flat, pictures),
        "composition": _composition(flat, pictures),
        "removal": _removal(flat, pictures),
    }
    written = []
    for name, sheet in sheets.items():
        if sheet is not None:
            save_jpeg(folder / f"{name}.jpg", sheet)
            written.append(f"{name}.jpg")
    return written


def ranked(flat: Flat) -> list[str]:
    """Held-out concepts, best first: by the judge's share of pictures with the concept and the right subject and
    colour, then by its probability of the concept, from words at strength 1."""
    scores = {name: about["ours_text"] for name, about in flat["concepts"].items() if "ours_text" in about}
    return sorted(scores, key=lambda name: (-(scores[name]["joint"] or 0.0), -scores[name]["probability"], name))


def save_jpeg(path: Path, picture: Tensor) -> None:
    """Write (3, H, W) floats in [0, 1] as JPEG, whole or not at all. Raises FileError."""
    from PIL import Image

    values = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(values)
    write_atomically(
        path, lambda temporary: image.save(temporary, format="JPEG", quality=QUALITY, optimize=True, subsampling=2)
    )


def _sheet(flat: Flat, pictures: Shown, names: Sequence[str], title: str) -> Tensor | None:
    """One row per concept, one column per method that has a picture of any of them."""
    columns = [(key, words) for key, words in COLUMNS if any(_of(pictures, key, name) is not None for name in names)]
    if not names or not columns:
        return None
    rows = []
    for name in names:
        score = flat["concepts"][name].get("ours_text")
        note = flat["concepts"][name]["prompt"] + (f". Named {score['concept']:.0%}" if score else "")
        rows.append(Row([_of(pictures, key, name) for key, _ in columns], name, note))
    footer = (
        f"Every row: one prompt and one seed for all columns, {flat['counts.steps']} steps. Named: share of all this "
        "concept's pictures from words in which the judge names it. Linear-AcT and LinEAS are fitted to the concept, at "
        f"the strength chosen on validation concepts; HyperTransport never saw it. {flat['command']}"
    )
    headings = []
    for key, words in columns:
        strength = flat.get(f"best.{key}.strength")
        headings.append(f"{words}, strength {strength:g}" if key in AT_CHOSEN and strength is not None else words)
    return contact_sheet(rows, headings, title=title, footer=footer, upscale=2)


def _of(pictures: Shown, method: str, name: str) -> Tensor | None:
    """The picture of a method; those that are not ours are shown at their chosen strength."""
    for key in ((best_of(method), name),) * (method in AT_CHOSEN) + ((method, name),):
        if key in pictures:
            return _floats(pictures[key])[0]
    return None


def _floats(pictures: Tensor) -> list[Tensor]:
    return list(pictures.float() / 255)


def _strengths(flat: Flat, pictures: Shown) -> Tensor | None:
    """Concepts from the best to the worst over all strengths."""
    order = ranked(flat)
    last = len(order) - 1
    rows = []
    for name in dict.fromkeys(order[last * part // 5] for part in range(6)) if order else ():
        beyond = _floats(pictures["strength", name]) if ("strength", name) in pictures else [None] * len(BEYOND)
        steps = [_of(pictures, f"ours_text {strength:g}", name) for strength in STRENGTHS]
        if any(picture is not None for picture in (*steps, *beyond)):
            rows.append(Row([*steps, *beyond], name, flat["concepts"][name]["prompt"]))
    if not rows:
        return None
    return contact_sheet(
        rows,
        [f"strength {s:g}" for s in (*STRENGTHS, *BEYOND)],
        title="From off to too strong",
        subtitle="HyperTransport from words; concepts from the best to the worst",
        footer=flat["command"],
        upscale=2,
    )


def _composition(flat: Flat, pictures: Shown) -> Tensor | None:
    """The first pairs, which a hash has chosen."""
    words = {"sum": "sum of maps", "sequence": "one after another", "mix": "mean embedding",
             "prompting": "both in the prompt", "one_only": "the first alone"}
    pairs = pairs_of(list(flat["concepts"]), 10)
    rows = _study(flat, pictures, "composition", [" + ".join(pair) for pair in pairs], len(WAYS))
    headings = [words[way] for way in WAYS]
    title, subtitle = "Two concepts at once", "Strength 1; pairs of held-out concepts, chosen by a hash"
    return contact_sheet(rows, headings, title=title, subtitle=subtitle, footer=flat["command"], upscale=2) if rows else None


def _removal(flat: Flat, pictures: Shown) -> Tensor | None:
    """The first held-out concept of every category."""
    names = stratified(list(flat["concepts"]), 9)
    rows = _study(flat, pictures, "removal", names, len(REMOVALS) + 2)
    headings = ["concept in the prompt", "strength -1, from words", "strength -1, one picture", "inverse maps, strength 1"]
    strength = flat.get("best.mean_act.strength")
    headings += ["inverse Mean-AcT" + ("" if strength is None else f", strength {strength:g}"), "never asked for"]
    return contact_sheet(rows, headings, title="Taken away", footer=flat["command"], upscale=2) if rows else None


def _study(flat: Flat, pictures: Shown, study: str, names: Sequence[str], columns: int) -> list[Row]:
    """A row per concept or pair that a study has all pictures of; the scene is the run's first."""
    found = [(name, pictures.get((study, name))) for name in names]
    return [
        Row(_floats(several), name, flat["scene"])
        for name, several in found
        if several is not None and len(several) == columns
    ]
