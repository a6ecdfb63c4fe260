# ruff: noqa: T201 (a command speaks to a person)
"""Draws docs/images/postcard-model.jpg: what the Postcard model makes of prompts that name a concept, in 4 steps and in 1.

    python docs/postcard_sheet.py
"""
from __future__ import annotations

from pathlib import Path

from hypertransport_core.evaluation.gallery import save_jpeg
from hypertransport_core.evaluation.measures import fresh_scenes
from hypertransport_core.pipeline import Pipeline
from hypertransport_core.postcard.captions import in_concept
from hypertransport_core.postcard.concepts import by_name, categories, split
from hypertransport_core.sheets import Row, contact_sheet

SHEET = Path(__file__).resolve().parent / "images" / "postcard-model.jpg"
EACH = 3  # concepts of a category: the first held-out ones, in the order of the split's hash

if __name__ == "__main__":
    pipeline = Pipeline.load(steered=False)
    names = {c: [n for n in split()["heldout"] if by_name()[n].category == c][:EACH] for c in categories()}
    scenes = fresh_scenes(EACH * len(names))
    rows = []
    for number, (category, concepts) in enumerate(names.items()):
        part = slice(EACH * number, EACH * (number + 1))
        prompts = [in_concept([scene], name)[0] for scene, name in zip(scenes.prompts[part], concepts)]
        drawn = [pipeline.generate(prompts, scenes.seeds[part], steps=steps) for steps in (4, 1)]
        pictures = [picture for pair in zip(*drawn) for picture in pair]
        rows.append(Row(pictures, category, "; ".join(concepts)))
    sheet = contact_sheet(
        rows, ["4 steps", "1 step"] * EACH, title="What the model draws", subtitle="Every pair: one prompt, one noise.", upscale=2
    )
    save_jpeg(SHEET, sheet)
    print(SHEET)
