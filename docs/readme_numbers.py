# ruff: noqa: T201 (a command speaks to a person)
"""Writes the section of README.md that has figures, from docs/results.json.

    python docs/readme_numbers.py

Run it after `python -m hypertransport_core results --output docs`, and read what it says: words like "soberly" stay, the
figures change.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypertransport_core.evaluation.page_tables import GOALS, goal_met

ROOT = Path(__file__).resolve().parents[1]
README, NUMBERS = ROOT / "README.md", ROOT / "docs" / "results.json"
BEGIN, END = "<!-- numbers: written by docs/readme_numbers.py -->\n", "<!-- end of numbers -->"
METHODS = (  # title, what a new concept costs, key
    ("HyperTransport, from words", "one pass", "ours_text"),
    ("HyperTransport, from one picture", "one pass", "ours_image"),
    ("image-prompt adapter, from one picture", "one pass", "image_adapter"),
    ("prompting", "the model to know the words", "prompting"),
    ("LinEAS, 1000 steps", "fitting", "lineas_1000"),
    ("LinEAS, 50 steps", "fitting", "lineas_50"),
    ("concept-slider LoRA", "fitting", "slider_lora"),
    ("nearest training concept's LinEAS map", "fitting", "nearest"),
    ("Linear-AcT", "statistics", "linear_act"),
    ("Mean-AcT", "statistics", "mean_act"),
)


def section(numbers: dict[str, Any]) -> str:
    """What stands between BEGIN and END."""

    def share(key: str) -> str:
        return f"{numbers[key]:.2f}"

    def between(key: str) -> str:
        return "–".join(f"{value:.2f}" for value in numbers[f"interval.{key}"])

    whole = numbers["counts.heldout"]
    rows = ["| method | needs, per new concept | concept | subject | colour |", "| --- | --- | --- | --- | --- |"]
    for title, need, key in METHODS:
        if f"heldout.{key}.concept" not in numbers:
            continue
        count = numbers[f"counts.{key}"]
        title += "" if count == whole else f" ({count} concepts)"
        shares = " | ".join(share(f"heldout.{key}.{what}") for what in ("concept", "subject", "colour"))
        rows.append(f"| {title} | {need} | {shares} |")
    words, picture = "heldout.ours_text.concept", "heldout.ours_image.concept"
    groups = {key.split(".")[1] for key in numbers if key.startswith("category.")}
    by_group = {name: numbers[f"category.{name}.ours_text.concept"] for name in sorted(groups)}
    best, worst = max(by_group, key=by_group.__getitem__), min(by_group, key=by_group.__getitem__)
    reached = [goal_met(numbers, key, least, most) for _, key, least, most in GOALS]
    rising = numbers["heldout.ours_text.monotone"], numbers["heldout.ours_text.monotone_tolerant"]
    fewer = "; methods that take minutes per concept on fewer, as said" if numbers.get("counts.fewer") else ""
    fitted = numbers["counts.lineas_1000"]
    compared = "all of them" if fitted == whole else f"the {fitted} concepts that LinEAS was fitted to with 1000 steps"
    paragraphs = [
        "\n".join(rows),
        f"{whole} held-out concepts, {numbers['counts.prompts']} scenes each{fewer}. "
        f"One run of `results`: **[all tables, charts and pictures](docs/results.md)**, with intervals.\n"
        f"The judge tells {numbers['counts.concepts']} concepts apart. From words the concept is named in "
        f"{numbers[words]:.0%} of the pictures (95 % interval over concepts {between(words)}), "
        f"{numbers[words] / numbers['heldout.prompting.concept']:.2f} × prompting; from one reference picture in "
        f"{numbers[picture]:.0%} ({between(picture)}).\n"
        f"On {compared}, ours names {numbers['subset.ours_text.concept']:.0%} and keeps {numbers['subset.ours_text.subject']:.0%} of the "
        f"subjects, LinEAS with 1000 steps {numbers['subset.lineas_1000.concept']:.0%} and "
        f"{numbers['subset.lineas_1000.subject']:.0%}. Predicting took {numbers['speed.predict_seconds'] * 1000:.1f} ms, "
        f"a LinEAS fit of 1000 steps {numbers['speed.fit_seconds']:.0f} s in the same run "
        f"({numbers['speed.ratio']:,.0f} times as long).",
        f"**Read it soberly.** Best and worst category: {best} {by_group[best]:.2f}, {worst} {by_group[worst]:.2f} "
        f"(prompting {numbers[f'category.{worst}.prompting.concept']:.2f}). The quarter of concepts that lie farthest from "
        f"the training concepts reaches {share('quarter.4.ours_text.concept')}.\nOver strengths 0, ¼, ½, ¾, 1 the judge's "
        f"probability of the concept, a mean of {numbers['counts.rise_prompts']} scenes, rises strictly for {rising[0]:.0%} of "
        f"the concepts, and never falls by more than {numbers['monotone_tolerant.fall_allowed']:g} for {rising[1]:.0%}.\n"
        f"Where the prompt names the concept, strength −1 takes it out of {numbers['removal.negative.gone']:.0%} of the "
        f"pictures that show it, and {numbers['removal.negative.plain']:.0%} then show no concept at all; of those with the "
        f"right subject and colour before, {numbers['removal.negative.joint']:.0%} show none and keep both.\n"
        f"Two held-out concepts at once: both are among the judge's {numbers['counts.near_top']} most probable in "
        f"{numbers['composition.both_present']:.0%} of the pictures by the sum of their maps, and in "
        f"{numbers['composition.prompting.both_present']:.0%} with both in the prompt. Goals of the project that these numbers meet: "
        f"{sum(map(bool, reached))} of {len(GOALS)} ([which](docs/results.md#in-short)).\nThe world itself: prompts that name a "
        f"concept show it in {numbers['postcard.concept']:.0%}, the subject in {numbers['postcard.subject']:.0%}, its "
        f"colour in {numbers['postcard.colour']:.0%} of the pictures; the judge is right on "
        f"{numbers['judge.renders']:.1%} of fresh renders."
        + "".join(
            f"\nMeasured again on other scenes with other noise (seed {seed}): {share(f'again.{seed}.{words}')} from words, "
            f"{share(f'again.{seed}.{picture}')} from one picture."
            for seed in sorted(key.split(".")[1] for key in numbers if key.startswith("again.") and key.endswith(f".{words}"))
        ),
        "![Twelve held-out concepts, every method's picture of the same scene](docs/results/gallery-1.jpg)",
    ]
    return "\n" + "\n\n".join(paragraphs) + "\n\n"


def written(readme: str, numbers: dict[str, Any]) -> str:
    """The README with its section of figures made anew. Raises ValueError where the marks are missing."""
    before, found, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"README.md has no section between '{BEGIN.strip()}' and '{END}': put both lines back.")
    return before + BEGIN + section(numbers) + END + after


if __name__ == "__main__":
    text = written(README.read_text(encoding="utf-8"), json.loads(NUMBERS.read_text(encoding="utf-8")))
    README.write_text(text, encoding="utf-8")
    print(f"{README}: figures from {NUMBERS}")
