"""What lies in weights/: half precision, loadable, made for one another, and trained on nothing that is held out."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from hypertransport_core.commands.options import IMAGE_ADAPTER_FILE
from hypertransport_core.commands.results import SECOND_CLIP_FILE, SECOND_JUDGE_FILE
from hypertransport_core.encoders.postcard_clip import PostcardClipEncoder
from hypertransport_core.encoders.response import plain_id
from hypertransport_core.evaluation.measures import fresh_scenes, judged
from hypertransport_core.files import check_fits, weights_agreement
from hypertransport_core.fitting.image_adapter import load_image_adapter
from hypertransport_core.pipeline import CLIP_FILE, HYPERNETWORK_FILE, JUDGE_FILE, MODEL_FILE, WEIGHTS, Pipeline, load_postcard
from hypertransport_core.postcard.captions import in_concept
from hypertransport_core.postcard.concepts import concepts, split
from hypertransport_core.postcard.judge import Judge
from hypertransport_core.postcard.train_judge import accuracy
from hypertransport_core.training.config import TrainingConfig
from hypertransport_core.training.presets import preset
from hypertransport_core.weights_io import load_hypernetwork

# Statistics, not weights: half precision would round them away.
IN_SINGLE = ("network.source_mean", "network.source_std", "response.mean")


ONLY_MEASURE = [IMAGE_ADAPTER_FILE, SECOND_CLIP_FILE, SECOND_JUDGE_FILE]


@pytest.mark.parametrize("name", [MODEL_FILE, CLIP_FILE, JUDGE_FILE, HYPERNETWORK_FILE, *ONLY_MEASURE])
def test_weights_are_in_half_precision(name: str) -> None:
    with safe_open(str(WEIGHTS / name), "pt") as file:
        dtypes = {key: file.get_tensor(key).dtype for key in file.keys()}
    for key, dtype in dtypes.items():
        if dtype.is_floating_point and key not in IN_SINGLE and not key.startswith("mean."):
            assert dtype == torch.float16, key


def test_the_files_belong_together() -> None:
    backbone, encoder = load_postcard(WEIGHTS)
    loaded = load_hypernetwork(WEIGHTS / HYPERNETWORK_FILE)
    fits = {"network": backbone.network, "family": backbone.family}
    reading = Pipeline.load().encoder  # the CLIP, and the model's response where the hypernetwork reads it
    assert check_fits(loaded.header, loaded.path, **fits, encoder_id=reading.encoder_id, encoder_width=reading.width) == []
    assert plain_id(reading.encoder_id) == encoder.encoder_id
    assert weights_agreement(loaded.header["backbone"]["fingerprint"], backbone.network) == 1.0
    training = loaded.header["training"]["concepts"]
    shown = load_image_adapter(WEIGHTS / IMAGE_ADAPTER_FILE)
    assert check_fits(shown.header, shown.path, **fits, encoder_id=encoder.encoder_id, encoder_width=encoder.width) == []
    assert PostcardClipEncoder.from_file(WEIGHTS / SECOND_CLIP_FILE).encoder_id != encoder.encoder_id
    assert training["heldout"] == len(split()["heldout"]) and training["validation"] == len(split()["validation"])


@pytest.mark.parametrize("name", [JUDGE_FILE, SECOND_JUDGE_FILE])
def test_the_judges_are_right_on_fresh_renders(name: str) -> None:
    rates = accuracy(Judge.load(WEIGHTS / name), 200, seed=123_456)
    assert min(rates.values()) >= 0.97  # the bar is .98 on many; the report measures it


def test_the_preset_trains_on_nothing_that_is_held_out() -> None:
    world = preset("postcard").build(TrainingConfig(device="cpu"))
    parts = {name: {concept.name for concept in getattr(world.concepts, name)} for name in ("train", "validation", "heldout")}
    assert parts["heldout"] == set(split()["heldout"]) and parts["validation"] == set(split()["validation"])
    assert not parts["train"] & (parts["validation"] | parts["heldout"])
    prompts = {prompt for concept in world.concepts.train for prompt in world.prompts(concept, 32)}
    assert len(world.scenes) == 32 and len(prompts) == 32 * len(world.concepts.train)
    for name in parts["heldout"] | parts["validation"]:
        assert not any(prompt.endswith(f", {name}") for prompt in prompts), name
    assert {len(set(world.prompts(concept, 32))) for concept in world.concepts.everything} == {32}
    assert len(concepts()) == len(parts["heldout"]) + len(parts["validation"]) + len(split()["train"])


def test_a_strength_of_minus_one_takes_concepts_away() -> None:
    """Validation concepts that prompts name: no concept is left in most pictures and the subject stays. Weights that never
    learned it leave none in half of them; the report measures held-out ones."""
    pipeline, judge, scenes = Pipeline.load(), Judge.load(WEIGHTS / JUDGE_FILE), fresh_scenes(4)
    plain, subject = [], []
    for name in split()["validation"][::2]:
        prompts = in_concept(scenes.prompts, name)
        pictures = pipeline.generate(prompts, scenes.seeds, pipeline.maps(pipeline.embed_text(name)), -1.0)
        verdict = judged(judge, pictures, scenes.subject, scenes.colour)
        plain.append(verdict.concept.argmax(1) == verdict.concept.shape[1] - 1)
        subject.append(verdict.subject)
    assert float(torch.cat(plain).float().mean()) > 0.75 and float(torch.cat(subject).float().mean()) > 0.85
