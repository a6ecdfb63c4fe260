"""What the studies of the results page are made of: truths, regressions, intervals, choices."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from hypertransport_core.evaluation.bootstrap import ratio_interval
from hypertransport_core.evaluation.measures import fresh_scenes
from hypertransport_core.evaluation.methods import Ridge, reference
from hypertransport_core.evaluation.studies import Studies, pairs_of, typo
from hypertransport_core.evaluation.truths import Renders, scene_truth
from hypertransport_core.postcard.concepts import by_name, split
from hypertransport_core.postcard.coupling import place_of
from hypertransport_core.postcard.render import concept_index, render


def test_unsteered_truth_is_read_from_prompt_and_noise() -> None:
    scenes = fresh_scenes(30)
    noise = torch.stack([torch.randn(48, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in scenes.seeds])
    truth = scene_truth(scenes.prompts, scenes.subject, scenes.colour, noise)
    for index, prompt in enumerate(scenes.prompts):
        assert ("small" in prompt, "large" in prompt) == (truth.size[index] == 0, truth.size[index] == 2)
        if not re.search(" (at|on|in) the ", prompt):
            assert truth.place[index] == place_of(noise)[index]
    assert truth.place[scenes.prompts.index(next(p for p in scenes.prompts if p.endswith("on the left")))] == 3
    number = int(concept_index(["neon"])[0])
    renders = Renders(truth)
    exact = renders.near(renders.in_concept(number), number)
    assert bool(exact.place.all()) and bool(exact.size.all()) and float(exact.error.max()) == 0
    moved = replace(truth, place=(truth.place + 1) % 9, size=(truth.size + 1) % 3)
    wrong = renders.near(render(moved), number)
    assert not bool(wrong.place.any()) and float(wrong.error.min()) > 0
    plain = render(truth)
    assert torch.equal(renders.similarity(plain, plain), torch.ones(30)) and float(renders.similarity(plain, 1 - plain).max()) < 0.9


def test_ridge_finds_a_line_and_shrinks_with_the_penalty() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, dtype=torch.float64, generator=generator)
    y = x @ torch.randn(4, 3, dtype=torch.float64, generator=generator) + 2
    assert torch.allclose(Ridge(x, y, 1e-12).predict(x), y, atol=1e-6)
    assert torch.allclose(Ridge(x, y, 1e9).predict(x), y.mean(0).expand(50, -1), atol=1e-6)


def test_ratio_interval_holds_the_ratio() -> None:
    low, high = ratio_interval([0.4, 0.5, 0.6], [0.8, 1.0, 1.2], paired=True)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5)
    low, high = ratio_interval([0.1, 0.9, 0.4, 0.6], [1.0] * 4, paired=False)
    assert low < 0.5 < high and ratio_interval([], [1.0], paired=False)[0] != ratio_interval([], [1.0], paired=False)[0]


def test_choices_that_no_one_made() -> None:
    pairs = pairs_of(split()["heldout"], 100)
    assert len(set(pairs)) == 100 and all(by_name()[a].category != by_name()[b].category for a, b in pairs)
    assert typo("teal mosaic") == "teal moasic" and typo("a b") == ""
    assert torch.equal(reference("neon"), reference("neon", 0)) and not torch.equal(reference("neon"), reference("neon", 1))
    studies = Studies(choice={"iti_c": {0.5: 0.2, 1.0: 0.2, 1.2: 0.1}, "lineas_1000": {0.5: 0.9, 1.0: 0.8}})
    assert studies.strength("iti_c") == 1.0 and studies.strength("nearest") == 0.5 and studies.strength("ridge") == 1.0
