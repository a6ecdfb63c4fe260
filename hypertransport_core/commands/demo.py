"""Make pictures of a prompt steered by concepts, in words or shown by a picture, at several strengths: one labelled
sheet and the single pictures."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from ..encoders.base import ConceptEmbedding
from ..images import load_picture, save_picture
from ..pipeline import Pipeline, StepMaps, is_picture
from ..sheets import Row, contact_sheet, save_sheet
from . import CommandError
from .options import add_weights_options

PROMPT = "a red house"
CONCEPTS = ("teal mosaic", "azure polka dots", "snowy field at night")  # held out: no hypernetwork was trained on them
REFERENCE = "violet flames"  # held out as well; shown as a picture, never named
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
OUTPUT = Path("output")
MOST_PICTURES = 2000


@dataclass
class Source:
    """One row of the sheet: a concept, where it comes from, and its prompt."""

    label: str
    note: str
    embedding: ConceptEmbedding
    prompt: str
    thumbnail: Tensor | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--prompt", default=PROMPT, help="what the picture shows")
    parser.add_argument(
        "--concept",
        action="append",
        metavar="WORDS|PICTURE",
        help="a concept in words, or the path of a picture that shows it; repeatable (default: held-out concepts, one "
        "of them a picture)",
    )
    parser.add_argument(
        "--mix",
        action="append",
        metavar="A:0.5,B:0.5",
        help="several concepts, words or pictures, with weights, as one; repeatable",
    )
    parser.add_argument(
        "--strength",
        action="append",
        type=float,
        metavar="NUMBER",
        help="how strongly to steer: 0 off, 1 the full concept, -1 taken out of a prompt that names it, others "
        "extrapolate; repeatable (default: 0 0.25 0.5 0.75 1)",
    )
    parser.add_argument(
        "--seed",
        action="append",
        type=int,
        metavar="NUMBER",
        help="seed of the starting noise; repeatable, a row each (default: 7)",
    )
    parser.add_argument(
        "--remove",
        action="store_true",
        help="take the concept away: the prompt then names it and every strength is below 0, 1 being -1; for weights "
        "trained with removal_share, as the shipped ones are (others only lead away from the concept)",
    )
    parser.add_argument("--steps", type=int, default=None, help="sampling steps (default: 4)")
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="FOLDER|FILE.png",
        help="folder for all pictures, or the file of the sheet",
    )
    add_weights_options(parser)
    parser.add_argument("--list", action="store_true", help="list subjects, colours and concepts, and stop")


def run(options: argparse.Namespace) -> int:
    """Make the pictures and the sheet; returns the exit code."""
    if options.list:
        print(catalogue())
        return 0
    started = time.monotonic()
    strengths = _checked_strengths(options.strength, options.remove)
    seeds = options.seed or [7]
    _check(options, strengths, seeds)
    pipeline = Pipeline.load(options.weights, hypernetwork=options.hypernetwork)
    loaded = time.monotonic()
    untaught = pipeline.unknown_words(options.prompt)
    if untaught:  # a concept with such a word is refused; a scene says more than one thing, and the rest is drawn
        from ..postcard.clip import read_over

        print(read_over(untaught), file=sys.stderr)
    sources = gather(pipeline, options)
    asked = time.monotonic()
    maps = [pipeline.maps(source.embedding) for source in sources]
    predicted = time.monotonic() - asked
    pictures = _pictures(pipeline, sources, maps, strengths, seeds, options.steps)
    rows = _rows(sources, pictures, strengths, seeds)
    sheet = contact_sheet(
        rows,
        [_heading(s) for s in strengths],
        title=options.prompt,
        subtitle=_subtitle(options, pipeline),
        footer=f"maps of {len(maps)} concept{'s' * (len(maps) != 1)} predicted in {predicted * 1000:.0f} ms, nothing "
        "fitted",
    )
    path = _save(options, sheet, sources, pictures, strengths, seeds)
    print(
        f"{path}: {len(pictures)} pictures in {time.monotonic() - started:.1f} s (loading {loaded - started:.1f} s, "
        f"predicting the maps of {len(maps)} concepts {predicted * 1000:.0f} ms)"
    )
    return 0


def gather(pipeline: Pipeline, options: argparse.Namespace) -> list[Source]:
    """The rows asked for, or the default ones. Raises an error in one sentence for a concept that cannot be used."""
    concepts, mixes = options.concept or [], options.mix or []
    sources = [_source(pipeline, concept, options) for concept in concepts] + [
        _mixed(pipeline, mix, options) for mix in mixes
    ]
    if sources:
        return sources
    sources = [_source(pipeline, concept, options) for concept in CONCEPTS]
    if not options.remove:  # a picture cannot be named in the prompt from which it is to be removed
        picture = reference_picture(REFERENCE)
        sources.append(
            Source(
                "a picture", f"shows {REFERENCE}", pipeline.embed_image(picture, "a picture"), options.prompt, picture
            )
        )
    return sources


def reference_picture(concept: str, seed: int = 5) -> Tensor:
    """A postcard (3, 64, 64) in [0, 1] that shows a concept; subject, colour and place are as the seed says."""
    from ..postcard.render import concept_index, random_truth, render

    truth = random_truth(1, torch.Generator().manual_seed(seed), generic=0.0)
    truth.concept = concept_index([concept])
    return render(truth)[0]


def parse_mix(text: str) -> list[tuple[str, float]]:
    """Pairs of concept and weight in "a:0.5,b:0.5"; a concept without number has the weight 1. Raises CommandError."""
    pairs = []
    for item in text.split(","):
        found = re.fullmatch(r"\s*(.*?)\s*(?::\s*([-+]?[0-9.]+(?:e[-+]?\d+)?)\s*)?", item)
        concept, weight = (found.group(1), found.group(2)) if found else ("", None)
        try:
            value = 1.0 if weight is None else float(weight)
        except ValueError:
            concept, value = "", 0.0
        if not concept or concept.endswith(":") or not isfinite(value):
            raise CommandError(
                f"The mix '{text}' has the part '{item}', expected concepts with weights such as \"teal "
                "mosaic:0.7,neon:0.3\": correct it."
            )
        pairs.append((concept, value))
    return pairs


def catalogue() -> str:
    """What this world knows: subjects, colours, sizes, places and concepts by category; held-out ones are marked."""
    from ..postcard.concepts import categories, concepts, split
    from ..postcard.render import COLOURS, PLACES, SIZE_NAMES
    from ..postcard.subjects import SUBJECTS

    held = set(split()["heldout"])
    lines = [
        'A prompt is a scene such as "a small red house on the left".',
        f"Subjects: {', '.join(SUBJECTS)}",
        f"Colours: {', '.join(COLOURS)}",
        f"Sizes: {', '.join(SIZE_NAMES)}",
        f"Places: {', '.join(PLACES)}",
        "",
        f"{len(concepts())} concepts; the {len(held)} marked * were held out from training the hypernetwork:",
    ]
    for category in categories():
        names = [concept.name + "*" * (concept.name in held) for concept in concepts() if concept.category == category]
        lines.append(f"  {category} ({len(names)}): {', '.join(names)}")
    return "\n".join(lines)


def _check(options: argparse.Namespace, strengths: Sequence[float], seeds: Sequence[int]) -> None:
    if not options.prompt.strip():
        raise CommandError('The prompt is empty, expected what the picture shows, such as "a red house".')
    if options.steps is not None and not 1 <= options.steps <= 1000:
        raise CommandError(f"--steps is {options.steps}, expected a number from 1 to 1000: 4 is usual.")
    if any(not 0 <= seed < 2**63 for seed in seeds):
        raise CommandError(
            f"--seed is {next(s for s in seeds if not 0 <= s < 2**63)}, expected a whole number from 0 to 2^63 - 1."
        )
    count = len(strengths) * len(seeds) * (len(options.concept or []) + len(options.mix or []) or len(CONCEPTS) + 1)
    if count > MOST_PICTURES:
        raise CommandError(
            f"That would be {count} pictures, expected at most {MOST_PICTURES}: ask for fewer strengths, seeds or "
            "concepts."
        )


def _checked_strengths(asked: Sequence[float] | None, remove: bool) -> list[float]:
    """Every strength once, in the order asked for; to remove, each below 0, with or without a sign."""
    strengths = asked or STRENGTHS
    for strength in strengths:
        if not isfinite(strength) or abs(strength) > 10:
            raise CommandError(
                f"--strength is {strength:g}, expected a number from -10 to 10: 0 is off and 1 the full map."
            )
    return list(dict.fromkeys((-abs(strength) or 0.0) if remove else strength for strength in strengths))


def _embedded(pipeline: Pipeline, concept: str) -> tuple[ConceptEmbedding, Tensor | None]:
    """The embedding of words or of a picture, and the picture."""
    if is_picture(concept):
        picture = load_picture(concept)
        return pipeline.embed_image(picture, Path(concept).name), picture
    unknown = pipeline.unknown_words(concept)
    if concept.strip() and unknown:
        raise CommandError(
            f"The concept '{concept}' has the word '{unknown[0]}', which this small world was never taught, and no "
            "picture file is called so: choose words from `demo --list`, or give the path of a picture."
        )
    return pipeline.embed_text(concept), None


def _source(pipeline: Pipeline, concept: str, options: argparse.Namespace) -> Source:
    from ..postcard.captions import in_concept

    embedding, picture = _embedded(pipeline, concept)
    prompt = in_concept([options.prompt], concept.strip())[0] if options.remove and picture is None else options.prompt
    return Source(
        embedding.source, "a picture" if picture is not None else _category(concept), embedding, prompt, picture
    )


def _mixed(pipeline: Pipeline, mix: str, options: argparse.Namespace) -> Source:
    from ..postcard.captions import in_concept

    pairs = parse_mix(mix)
    parts = [_embedded(pipeline, concept) for concept, _ in pairs]
    embedding = pipeline.mix([part for part, _ in parts], [weight for _, weight in pairs])
    prompt = options.prompt
    if options.remove:
        prompt = in_concept(
            [prompt], ", ".join(concept for (concept, _), (_, picture) in zip(pairs, parts) if picture is None)
        )[0]
    picture = next((picture for _, picture in parts if picture is not None), None)
    return Source(
        " + ".join(f"{weight:g} {part.source}" for (part, _), (_, weight) in zip(parts, pairs)),
        "mixed",
        embedding,
        prompt,
        picture,
    )


def _category(concept: str) -> str:
    from ..postcard.concepts import by_name, split

    known = by_name().get(concept.strip().lower())
    if known is None:
        return "own words"
    return f"{known.category}, held out" if known.name in split()["heldout"] else known.category


def _pictures(
    pipeline: Pipeline,
    sources: Sequence[Source],
    maps: Sequence[StepMaps],
    strengths: Sequence[float],
    seeds: Sequence[int],
    steps: int | None,
) -> dict[tuple[int, int, float], Tensor]:
    """{(source, seed, strength): (3, 64, 64)}, one picture at a time: each is the same whatever else is asked for."""
    plain: dict[tuple[str, int], Tensor] = {}
    pictures = {}
    for number, (source, map_) in enumerate(zip(sources, maps)):
        for seed in seeds:
            for strength in strengths:
                if strength == 0 and (source.prompt, seed) in plain:
                    pictures[number, seed, strength] = plain[source.prompt, seed]
                    continue
                picture = pipeline.generate(source.prompt, seed, map_, strength, steps=steps)[0]
                pictures[number, seed, strength] = picture
                if strength == 0:
                    plain[source.prompt, seed] = picture
    return pictures


def _rows(
    sources: Sequence[Source],
    pictures: dict[tuple[int, int, float], Tensor],
    strengths: Sequence[float],
    seeds: Sequence[int],
) -> list[Row]:
    rows = []
    for number, source in enumerate(sources):
        for index, seed in enumerate(seeds):
            note = source.note + (f", seed {seed}" if len(seeds) > 1 else "")
            rows.append(
                Row(
                    [pictures[number, seed, strength] for strength in strengths],
                    source.label if index == 0 else "",
                    note if index == 0 else f"seed {seed}",
                    source.thumbnail if index == 0 else None,
                    starts_group=len(seeds) > 1 and index == 0,
                )
            )
    return rows


def _heading(strength: float) -> str:
    return "unsteered" if strength == 0 else f"strength {strength:g}"


def _subtitle(options: argparse.Namespace, pipeline: Pipeline) -> str:
    parts = [
        "seed " + ", ".join(str(seed) for seed in options.seed or [7]),
        f"{options.steps or pipeline.steps_default} steps",
    ]
    if options.remove:
        parts.append("concepts named in the prompt and taken away by strengths below 0")
    return " · ".join(parts)


def _save(
    options: argparse.Namespace,
    sheet: Tensor,
    sources: Sequence[Source],
    pictures: dict[tuple[int, int, float], Tensor],
    strengths: Sequence[float],
    seeds: Sequence[int],
) -> Path:
    """Write the single pictures into a folder beside the sheet, then the sheet; returns its path. Raises FileError."""
    is_file = options.output.suffix.lower() == ".png"
    path = options.output if is_file else options.output / f"{'remove' if options.remove else 'demo'}.png"
    texts = {"prompt": options.prompt, "concepts": "; ".join(source.label for source in sources)}
    for (number, seed, strength), picture in pictures.items():
        source = sources[number]
        name = f"{number + 1:02d}_{slug(source.label)}_seed{seed}_strength{strength:g}.png"
        save_picture(
            path.with_suffix("") / name,
            picture,
            {
                "prompt": source.prompt,
                "concept": source.label,
                "seed": str(seed),
                "strength": f"{strength:g}",
                "removed": str(options.remove),
            },
        )
    save_sheet(path, sheet, texts)
    return path


def slug(text: str) -> str:
    """A text as part of a file name: lower-case letters, digits and dashes, at most 40."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "concept"
