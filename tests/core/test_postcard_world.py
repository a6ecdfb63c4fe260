"""The Postcard world itself: its size, its truth, its words, and how noise decides what a caption leaves open."""
from __future__ import annotations

import math

import pytest
import torch

from hypertransport_core.checkpoints import latest, load_checkpoint, rotate, save_checkpoint
from hypertransport_core.postcard import captions, coupling, render
from hypertransport_core.postcard.concepts import categories, concepts, split, variations
from hypertransport_core.postcard.subjects import SUBJECTS
from hypertransport_core.postcard.train_clip import stages_left


def _truth(count: int = 64, seed: int = 0) -> render.Truth:
    return render.random_truth(count, torch.Generator().manual_seed(seed))


def test_the_world_is_as_large_as_promised() -> None:
    assert len(SUBJECTS) >= 24 and len(render.COLOURS) >= 10 and len(concepts()) >= 260 and len(categories()) >= 8
    assert len({c.name for c in concepts()}) == len(concepts())
    assert len(set(captions.scene_prompts(32))) == 32


def test_a_fifth_of_every_category_is_held_out() -> None:
    parts = split()
    assert sorted(n for names in parts.values() for n in names) == sorted(c.name for c in concepts())
    for category in categories():
        names = {c.name for c in concepts() if c.category == category}
        assert len(names & set(parts["heldout"])) == math.ceil(.21 * len(names))


def test_rendering_is_a_function_of_the_truth() -> None:
    truth = _truth()
    pictures = render.render(truth)
    assert pictures.shape == (64, 3, 64, 64) and 0 <= pictures.min() and pictures.max() <= 1
    assert torch.equal(pictures, render.render(_truth())) and torch.allclose(pictures[5:9], render.render(truth[5:9]))


def test_only_the_mask_changes_with_the_subject() -> None:
    truth, other = _truth(), _truth()
    other.colour = (other.colour + 1) % len(render.COLOURS)
    changed = (render.render(truth) - render.render(other)).abs().amax(1, keepdim=True) > 1e-6
    mask = render.subject_mask(truth) > 0
    assert not bool((changed & ~mask).any()) and all(bool(c.any()) for c in changed)


def test_every_concept_looks_different() -> None:
    truth = _truth(len(concepts()))
    for field in ("subject", "colour", "size", "place"):
        setattr(truth, field, torch.zeros(len(concepts()), dtype=torch.long))
    truth.concept, truth.warmth = torch.arange(len(concepts())), torch.zeros(len(concepts()))
    distances = torch.cdist(*(render.render(truth).flatten(1),) * 2) + 1e3 * torch.eye(len(concepts()))
    assert distances.min() > 3.0  # of 110 at most; warmth of the light moves a picture by about 3 per unit


def test_captions_use_known_words_and_say_what_is_there() -> None:
    truth = _truth(300)
    said = captions.captions(truth, torch.Generator().manual_seed(1), plain=1.0)
    words = set(captions.vocabulary())
    for text, subject, colour in zip(said.texts, truth.subject.tolist(), truth.colour.tolist()):
        assert SUBJECTS[subject] in text and render.COLOURS[colour] in text
        assert set(text.replace(",", " ").split()) <= words, text
    assert said.names_place.any() and not said.names_place.all()


def test_noise_decides_place_and_warmth_evenly() -> None:
    noise = torch.randn(2000, 48, 16, 16, generator=torch.Generator().manual_seed(2))
    counts = torch.bincount(coupling.place_of(noise), minlength=9)
    assert counts.min() > 150 and counts.max() < 300  # 222 expected, standard deviation 14
    warmth = coupling.warmth_of(noise)
    assert abs(float(warmth.mean())) < .1 and abs(float(warmth.std()) - .96) < .06
    moved = noise[:1].clone()
    x, y = (c // 4 for c in render.CENTRES[6])
    moved[:, :, y - 2:y + 1, x - 2:x + 1] += 5
    assert int(coupling.place_of(moved)) == 6


def test_pictures_and_latents_are_one_to_one() -> None:
    pictures = render.render(_truth(4))
    assert torch.allclose(coupling.to_images(coupling.to_latents(pictures)), pictures, atol=1e-6)


def test_checkpoints_round_trip_rotate_and_refuse(tmp_path) -> None:
    shared = torch.arange(4.)
    state = {"a": shared, "list": [shared, {"n": 3, "x": None}], 7: 1.5}
    for step in range(4):
        save_checkpoint(tmp_path / f"step-{step:03d}.safetensors", {**state, "step": step})
    rotate(tmp_path, 2)
    newest = latest(tmp_path)
    assert newest is not None and newest.name == "step-003.safetensors" and len(list(tmp_path.iterdir())) == 2
    found = load_checkpoint(newest)
    assert torch.equal(found["a"], shared) and torch.equal(found["list"][0], shared) and found["list"][1] == {"n": 3, "x": None} and found[7] == 1.5
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_checkpoint(newest)


def test_interrupted_clip_training_keeps_its_words() -> None:
    every = ["text", "vision", "align"]
    assert stages_left(every, None) == every == stages_left(every, "text")
    assert stages_left(every, "vision") == ["vision", "align"]


def test_variations_are_new_looks_and_give_nothing_away() -> None:
    found = [v.name for v in variations()]
    assert len(found) == len(set(found)) > 400 and not {c.name for c in concepts()} & set(found)
    away = [set(name.split()) for part in ("heldout", "validation") for name in split()[part]]
    words = set(captions.vocabulary())
    for name in found:
        parts = set(name.replace(",", "").split())
        assert parts <= words and not any(parts >= other for other in away), name
    assert variations() == variations()
