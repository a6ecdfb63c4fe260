"""Training on what the base model does with the words: kept beside the data, the same in training and use, and of use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hypertransport_core.concepts import Concept, ConceptSplit
from hypertransport_core.encoders.base import centred
from hypertransport_core.encoders.concept import concept_from_text
from hypertransport_core.encoders.response import ResponseEncoder, response_encoder
from hypertransport_core.training.config import ConfigError, TrainingConfig
from hypertransport_core.training.data import DataFolder
from hypertransport_core.training.disk import disk_plan
from hypertransport_core.training.distribution import Group
from hypertransport_core.training.loop import Trainer
from hypertransport_core.training.presets import World
from hypertransport_core.training.responses import Responses, read_sites, with_responses
from hypertransport_core.weights_io import load_hypernetwork
from tests.training import worlds

CONFIG = TrainingConfig(**{**worlds.SMALL, "response": 6})


def collected(folder: Path, config: TrainingConfig = CONFIG) -> tuple[World, DataFolder]:
    world = worlds.tiny_world(config)
    data = DataFolder(folder, world, config)
    data.collect(world.concepts.everything)
    return world, data


def test_training_reads_a_concept_as_the_pipeline_does(tmp_path: Path, train: Callable) -> None:
    run = tmp_path / "run"
    assert train(run, "--response", "6") == 0
    loaded = load_hypernetwork(run / "hypernetwork.safetensors")
    world = worlds.tiny_world(CONFIG)
    assert loaded.reader is not None and loaded.reader.sites == read_sites(loaded.hypernetwork.sites)
    encoder = response_encoder(world.encoder, world.backbone, loaded.reader)
    assert loaded.header["encoder"] == {"id": encoder.encoder_id, "width": 22}
    data = DataFolder(run / "data", world, CONFIG)
    reading = with_responses(world, data, CONFIG, Group())
    bank = data.embeddings(world.concepts.train, loaded.means)
    for number, concept in enumerate(world.concepts.train[:4]):
        used = concept_from_text(encoder, concept.name, world.templates)
        assert used.encoder_id == reading.encoder.encoder_id
        torch.testing.assert_close(bank.of_text(number), centred(used.vector, "text", loaded.means), atol=1e-5, rtol=0)
        phrase = concept_from_text(encoder, concept.phrases[0], world.templates)
        torch.testing.assert_close(bank.text[number][1], phrase.vector, atol=1e-5, rtol=0)
        assert not bool(bank.images[number][:, 16:].any()) and bank.images[number].shape == (4, 22)


def test_a_run_without_responses_is_what_it_was(tmp_path: Path) -> None:
    world, data = collected(tmp_path, replace(CONFIG, response=0))
    assert with_responses(world, data, replace(CONFIG, response=0), Group()) is world and data.responses is None
    assert not (tmp_path / "responses").exists() and data.width == 16


def test_responses_are_measured_once_and_shared(tmp_path: Path, train: Callable) -> None:
    first, second, shared = tmp_path / "first", tmp_path / "second", tmp_path / "data"
    assert train(first, "--response", "6", "--data", shared) == 0
    files = {path: path.stat().st_mtime_ns for path in (shared / "responses").iterdir()}
    assert len(files) == 24 + 1, "every concept's, and the reader"
    assert train(second, "--response", "6", "--data", shared, "--seed", "1", "--collect-seed", "0") == 0
    assert files == {path: path.stat().st_mtime_ns for path in (shared / "responses").iterdir()}
    readers = [load_hypernetwork(run / "hypernetwork.safetensors").reader for run in (first, second)]
    assert readers[0] is not None and readers[1] is not None and torch.equal(readers[0].matrix, readers[1].matrix)
    assert train(tmp_path / "plain", "--data", shared) == 0, "the same data serve runs that read none"
    assert load_hypernetwork(tmp_path / "plain" / "hypernetwork.safetensors").reader is None


def test_other_phrases_and_damaged_files_are_measured_anew(tmp_path: Path) -> None:
    world, data = collected(tmp_path)
    concept, found = world.concepts.train[0], Responses(data)
    measured, calls = found.of(concept), world.backbone.calls
    assert measured.shape == (2, 16) and torch.equal(found.of(concept), measured) and world.backbone.calls == calls
    changed = replace(concept, phrases=("waves in crimson", "bars in crimson"))
    assert found.of(changed).shape == (3, 16) and world.backbone.calls == calls + 3
    path = found.path_of(concept)
    path.write_bytes(path.read_bytes()[:-7])
    assert torch.equal(found.of(concept), measured)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, train: Callable, train_elsewhere: Callable) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole, "--response", "6") == 0
    died = train_elsewhere(run, "--response", "6", die_at="train:7")
    assert died.returncode < 0, died.stderr
    assert train(run, "--response", "6", "--resume", "latest") == 0
    ends = [load_hypernetwork(one / "hypernetwork.safetensors").hypernetwork.state_dict() for one in (whole, run)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_teacher_must_read_the_same_responses(tmp_path: Path, train: Callable, capsys: pytest.CaptureFixture) -> None:
    shared, teacher, plain = tmp_path / "data", tmp_path / "teacher", tmp_path / "plain"
    assert train(teacher, "--response", "6", "--data", shared) == 0
    assert train(plain, "--data", shared) == 0
    asked = ("--response", "6", "--data", shared, "--steps", "3", "--teachers")
    assert train(tmp_path / "student", *asked, teacher / "hypernetwork.safetensors") == 0
    assert load_hypernetwork(tmp_path / "student" / "hypernetwork.safetensors").reader is not None
    capsys.readouterr()
    assert train(tmp_path / "other", *asked, plain / "hypernetwork.safetensors") != 0
    assert "width 16" in capsys.readouterr().err


def test_the_disk_plan_counts_responses(tmp_path: Path) -> None:
    world, data = collected(tmp_path)
    plain = disk_plan(world, data, replace(CONFIG, response=0)).embeddings
    assert disk_plan(world, data, CONFIG).embeddings - plain == 24 * 2 * 16 * 4  # concepts, words, channels, bytes
    before = disk_plan(world, data, CONFIG).present
    responses, concepts = Responses(data), world.concepts.everything
    for concept in concepts:
        responses.of(concept)
    written = sum(responses.path_of(concept).stat().st_size for concept in concepts)
    assert disk_plan(world, data, CONFIG).present - before == written > 24 * 2 * 16 * 4
    assert disk_plan(world, data, replace(CONFIG, response=0)).present == before


@pytest.mark.parametrize("value", [-1, 5000])
def test_numbers_out_of_range_are_refused(value: int) -> None:
    with pytest.raises(ConfigError, match="response"):
        replace(CONFIG, response=value)


def test_words_that_the_encoder_cannot_place_are_known_by_their_response(tmp_path: Path) -> None:
    """Every concept has a word of its own, so an encoder that knows words by their use can say nothing of unseen ones."""
    config = replace(
        CONFIG, steps=150, concepts_per_step=8, image_share=0.0, width=64, bottleneck=32, response=16, validate_every=50,
        paired_weight=0.0, phrase_share=0.0, embedding_noise=0.0, warm_start=0.3, save_every=1000, strip_concepts=0)
    every = [Concept(f"look{number}", "looks") for number in range(60)]
    losses = {}
    for response in (0, config.response):
        chosen = replace(config, response=response)
        world = replace(worlds.tiny_world(chosen), concepts=ConceptSplit(tuple(every[:50]), tuple(every[50:]), ()))
        data = DataFolder(tmp_path / "data", world, chosen)
        data.collect(world.concepts.everything)
        reading = with_responses(world, data, chosen, Group())
        assert isinstance(reading.encoder, ResponseEncoder) == bool(response)
        trainer = Trainer(reading, data, chosen, tmp_path / f"run-{response}")
        for _ in range(config.steps):
            trainer.advance()
        losses[response] = trainer.validate()
    unknown, known = (losses[key]["validation"] / losses[key]["mean_map"] for key in losses)
    assert unknown > 0.97, "no better than one map for all"
    assert known < 0.75
