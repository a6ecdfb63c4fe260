"""That training learns, and what its parts promise: exact passes in parts, maps per step, own inputs, other
poolings.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hypertransport_core.capture import MOMENTS
from hypertransport_core.concepts import spread
from hypertransport_core.training import cli, samples
from hypertransport_core.training.batches import draw
from hypertransport_core.training.config import TrainingConfig
from hypertransport_core.training.data import DataFolder, seeds_for
from hypertransport_core.training.loop import Trainer, rate_factor
from hypertransport_core.training.embeddings import EmbeddingBank
from hypertransport_core.training.gradients import backward
from hypertransport_core.training.validation import used_levels
from hypertransport_core.sites import total_channels
from hypertransport_core.transport import TransportMaps
from hypertransport_core.weights_io import load_hypernetwork
from tests.training import worlds

ROOT = Path(__file__).resolve().parents[2]


def trainer(folder: Path, data: Path | None = None, **changes) -> Trainer:
    config = TrainingConfig(**{**worlds.SMALL, "output": str(folder), **changes})
    world = worlds.tiny_world(config)
    store = DataFolder(data or folder / "data", world, config)
    store.collect(world.concepts.everything)
    return Trainer(world, store, config, folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Statistics of all sites with means and spreads, which every run here shares."""
    folder = tmp_path_factory.mktemp("data")
    trainer(folder, folder, collect_site_set="all", pooling="mean_std")
    return folder


def test_it_learns(tmp_path, data, train):
    (tmp_path / "settings.toml").write_text(
        "steps = 60\nvalidate_every = 60\nsave_every = 60\nlearning_rate = 5e-4\nhead_learning_rate = 2e-3\nema = 0.9\n"
    )
    assert train(tmp_path / "run", "--data", data, "--stage", "train", "--config", tmp_path / "settings.toml") == 0
    with open(tmp_path / "run/curves.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    validation, identity, mean_map = (float(last[name]) for name in ("validation", "identity", "mean_map"))
    assert validation < 0.8 * identity
    assert validation < mean_map


def test_it_learns_on_postcard_in_two_minutes(tmp_path):
    """The shipped world and six colours: what is learned of one wording serves another that was not trained on."""
    entries = [{"name": f"{c} wash", "part": "train"} for c in ("azure", "crimson", "golden", "emerald", "charcoal", "violet")]
    entries += [{"name": f"{c} tinted", "part": "validation"} for c in ("crimson", "emerald")]
    (tmp_path / "washes.json").write_text(json.dumps(entries))
    (tmp_path / "settings.toml").write_text(
        "prompts_per_concept = 8\nblocks = 8\nimages_per_concept = 2\nsteps = 40\nconcepts_per_step = 4\nwidth = 256\n"
        "learning_rate = 3e-3\nhead_learning_rate = 1e-2\nwarmup = 5\nema = 0.9\npartial_share = 0.0\n"
        "validate_every = 40\nsave_every = 40\nstrip_concepts = 1\n"
    )
    files = ("--concepts", str(tmp_path / "washes.json"), "--config", str(tmp_path / "settings.toml"))
    assert cli.main(["--preset", "postcard", "--output", str(tmp_path / "run"), "--device", "cpu", *files]) == 0
    with open(tmp_path / "run/curves.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    words, pictures, identity = (float(last[name]) for name in ("validation", "validation_image", "identity"))
    assert words < 0.25 * identity and pictures < 0.25 * identity and words < 0.5 * float(last["mean_map"])
    assert len(load_hypernetwork(tmp_path / "run/hypernetwork.safetensors").hypernetwork.sites) == 45


def test_a_strip_runs_from_the_inverse_side_to_beyond_the_full_map(tmp_path, data):
    one = trainer(tmp_path, data)
    with torch.no_grad():
        one.average.head.bias += 0.3
    concepts = one.world.concepts.validation[:2]
    rows = samples.strip_rows(one.world, one.config, one.average, one.bank.means, concepts)
    assert samples.STRENGTHS == (-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5) and len(samples.HEADINGS) == 7
    assert [row.label for row in rows] == [concept.name for concept in concepts]
    backbone = one.world.backbone
    for number, seed in enumerate(seeds_for(2, one.config.seed, "strip")):
        conditioning, noise = backbone.encode([one.world.scenes[number]]), backbone.noise([seed])
        with torch.no_grad():
            plain = backbone.decode(backbone.sample(conditioning, noise, steps=one.config.sampling_steps))[0]
        torch.testing.assert_close(rows[number].pictures[1], plain)
        distances = [float((picture - plain).norm()) for picture in rows[number].pictures]
        assert distances[1] < 1e-4 < min(distances[0], *distances[2:])


def test_a_fresh_network_scores_like_the_identity(tmp_path, data):
    fresh = trainer(tmp_path, data)
    found = fresh.validate()
    assert found["validation"] == found["identity"] == found["mean_map"] == found["validation_image"]


def gradients(tmp_path: Path, data: Path, **changes) -> list[torch.Tensor]:
    one = trainer(tmp_path, data, **changes)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in one.network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    backward(one.network, one.objective, draw(3, one.bank, 8, 2, one.config), one.train_concepts)
    return [parameter.grad for parameter in one.network.parameters() if parameter.grad is not None]


def test_passes_in_parts_have_the_gradient_of_the_whole(tmp_path, data):
    whole, parts = gradients(tmp_path, data), gradients(tmp_path, data, concepts_per_pass=2)
    assert len(whole) == len(parts) and any(bool(g.abs().sum() > 0) for g in whole)
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"maps_per_step": True},
        {"inputs": "own"},
        {"inputs": "own", "maps_per_step": True},
        {"pooling": "mean_std"},
        {"transport_weight": 0.0},
        {"paired_weight": 0.0},
        {"site_set": "norm"},
        {"hypernetwork": "perceiver"},
        {"channel_weighting": "none", "dropout": 0.2},
        {"image_share": 0.0, "phrase_share": 1.0},
        {"store_predictions": True},
        {"store_predictions": True, "transport_weight": 0.0, "concepts_per_pass": 1},
        {"store_predictions": True, "transport_weight": 0.0, "concepts_per_pass": 1, "partial_share": 1.0},
        {"store_predictions": True, "transport_weight": 0.0, "concepts_per_pass": 1, "removal_share": 1.0},
    ],
)
def test_every_way_of_training_takes_a_step(tmp_path, data, changes):
    one = trainer(tmp_path, data, **changes)
    for _ in range(2):
        found = one.advance()
    assert found["gradient_norm"] > 0
    one.validate()


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "mean_quarters"])
def test_data_of_more_sites_and_moments_serve_a_run_with_fewer(tmp_path, pooling):
    more = "mean_quarters" if pooling == "mean" else pooling
    trainer(tmp_path / "all", tmp_path / "data", collect_site_set="all", pooling=more)
    narrow = trainer(tmp_path / "norm", tmp_path / "data", site_set="norm", pooling=pooling)
    own = trainer(tmp_path / "own", site_set="norm", pooling=pooling)
    concept = own.train_concepts[0]
    table = narrow.data.targets(concept, 0, 4)
    assert table.shape == (4, MOMENTS[pooling] * narrow.network.channels)
    torch.testing.assert_close(table, own.data.targets(concept, 0, 4), rtol=2e-3, atol=2e-3)
    for shared, alone in zip(narrow.data.source(), own.data.source()):
        torch.testing.assert_close(shared, alone)
    assert narrow.advance()["gradient_norm"] > 0


@pytest.mark.parametrize("level", [0, 1])
def test_stored_predictions_are_those_computed_anew(tmp_path, data, level):
    one = trainer(tmp_path, data, store_predictions=True, samples_per_concept=2)
    concepts, scenes = one.train_concepts[3:5], [0, 5, 2, 7]
    seeds = [one.data.seeds(concept)[scene] for concept, part in zip(concepts, (scenes[:2], scenes[2:])) for scene in part]
    assert len(set(seeds)) == 4  # the concepts do not share their noise
    stored, anew = one.objective.recall(concepts, scenes, level), one.objective.prepare(concepts, scenes, seeds, level)
    for name in ("x", "conditioning", "paired", "targets"):
        torch.testing.assert_close(getattr(stored, name), getattr(anew, name), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("level", [0, 1])
def test_a_partial_strength_aims_between_the_predictions(tmp_path, data, level):
    one = trainer(tmp_path, data, store_predictions=True, transport_weight=0.0, samples_per_concept=2)
    concepts, scenes = one.train_concepts[3:5], [0, 5, 2, 7]
    full = one.objective.recall(concepts, scenes, level)
    mixed = one.objective.recall(concepts, scenes, level, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mixed.x[2:], full.x[2:])
    torch.testing.assert_close(mixed.paired[2:], full.paired[2:])
    # at strength 0 the untouched network has nothing left to learn, at 1 all there was
    identity = one.objective.losses(None, mixed)[1], one.objective.losses(None, full)[1]
    assert identity[0][0] < 1e-5 < identity[1][0]
    torch.testing.assert_close(identity[0][1], identity[1][1])
    half = one.objective.recall(concepts, scenes, level, torch.tensor([0.5, 1.0]))
    if level == 0:
        torch.testing.assert_close(half.paired[:2], (mixed.paired[:2] + full.paired[:2]) / 2)
    else:
        assert mixed.x[0].dist(half.x[0]) < mixed.x[0].dist(full.x[0])


@pytest.mark.parametrize("level", [0, 1])
def test_removal_starts_from_named_prompts_and_aims_at_the_plain_prediction(tmp_path, data, level):
    one = trainer(tmp_path, data, store_predictions=True, transport_weight=0.0, samples_per_concept=2)
    concepts, scenes = one.train_concepts[3:5], [0, 5, 2, 7]
    away = one.objective.recall(concepts, scenes, level, torch.tensor([-1.0, 1.0]))
    words = [one.world.scenes[i] for i in scenes]
    named = one.world.backbone.encode(one.world.in_concept(words[:2], concepts[0].name))
    plain = one.world.backbone.encode(words)
    torch.testing.assert_close(away.conditioning, torch.cat([named, plain[2:]]))
    clean = one.world.backbone.denoise(away.x, one.data.levels[level], plain).float()
    torch.testing.assert_close(away.paired[:2], clean[:2], rtol=2e-3, atol=2e-3)
    full = one.objective.recall(concepts, scenes, level)
    torch.testing.assert_close(away.paired[2:], full.paired[2:])
    # without maps the concept is there: something to take away
    assert one.objective.losses(None, away)[1][0] > 1e-5


def test_a_step_of_removal_is_not_a_step_of_the_whole_concept(tmp_path, data):
    changes = {"store_predictions": True, "transport_weight": 0.0, "concepts_per_step": 2}
    whole, removal = (trainer(tmp_path / str(share), data, removal_share=share, **changes) for share in (0.0, 1.0))
    assert whole.advance()["loss"] != removal.advance()["loss"]


def test_maps_are_applied_at_the_strength_drawn(tmp_path, data):
    one = trainer(tmp_path, data, store_predictions=True, transport_weight=0.0, samples_per_concept=2)
    concepts, scenes, level = one.train_concepts[3:5], [0, 5, 2, 7], 0
    maps = TransportMaps(one.data.sites, *(torch.full((2, total_channels(one.data.sites)), v) for v in (1.1, 0.2)))
    strengths = torch.tensor([0.25, 1.0])
    inputs = one.objective.recall(concepts, scenes, level, strengths)
    drawn = one.objective.losses(maps, inputs)[1]
    inputs.strengths = None
    torch.testing.assert_close(drawn, one.objective.losses(maps.interpolate(strengths), inputs)[1])
    assert not torch.allclose(drawn, one.objective.losses(maps, inputs)[1])


def test_data_without_predictions_are_collected_again_when_wanted(tmp_path):
    plain = trainer(tmp_path, store_predictions=False)
    wanting = DataFolder(tmp_path / "data", plain.world, TrainingConfig(**{**worlds.SMALL, "store_predictions": True}))
    assert not plain.data.missing(plain.train_concepts)
    assert wanting.missing(plain.train_concepts) == plain.train_concepts


def test_the_base_model_is_left_as_it_was(tmp_path, data):
    one = trainer(tmp_path, data)
    before = {name: value.clone() for name, value in one.world.backbone.network.state_dict().items()}
    one.advance()
    assert all(torch.equal(before[name], value) for name, value in one.world.backbone.network.state_dict().items())
    assert all(parameter.grad is None for parameter in one.world.backbone.network.parameters())
    assert not any("forward" in module.__dict__ for module in one.world.backbone.network.modules())


def test_partial_strengths_are_drawn_after_their_share_of_the_steps(tmp_path, data):
    changes = {"store_predictions": True, "transport_weight": 0.0, "partial_share": 1.0, "partial_from": 0.5, "steps": 10}
    one = trainer(tmp_path, data, **changes)
    drawn = [draw(step, one.bank, 8, 2, one.config).strengths for step in range(10)]
    assert bool((torch.stack(drawn[:5]) == 1).all()) and bool((torch.stack(drawn[5:]) < 1).all())
    config = one.config.with_values({"partial_share": 0.5, "removal_share": 0.2, "partial_from": 0.0})
    many = torch.cat([draw(step, one.bank, 8, 2, config).strengths for step in range(200)])
    assert float((many == -1).float().mean()) == pytest.approx(0.2, abs=0.05)
    assert float(((many >= 0) & (many < 1)).float().mean()) == pytest.approx(0.5, abs=0.06)


def test_fewer_stored_samples_can_be_trained_on(tmp_path, data):
    one = trainer(tmp_path, data, store_predictions=True, transport_weight=0.0, training_samples=3)
    drawn = {scene for step in range(20) for scene in draw(step, one.bank, 8, 2, one.config).scenes}
    assert drawn == {0, 1, 2}
    every = one.config.with_values({"training_samples": 0})
    assert {scene for step in range(20) for scene in draw(step, one.bank, 8, 2, every).scenes} == set(range(8))


def test_draws_depend_on_the_step_only_and_visit_every_concept(tmp_path, data):
    one = trainer(tmp_path, data)
    a, b = (draw(5, one.bank, 8, 2, one.config) for _ in range(2))
    assert (
        a.seeds == b.seeds
        and torch.equal(a.embeddings, b.embeddings)
        and a.seeds != draw(6, one.bank, 8, 2, one.config).seeds
    )
    seen = [concept for step in range(16) for concept in draw(step, one.bank, 8, 2, one.config).concepts]
    assert {seen.count(concept) for concept in range(16)} == {3}
    assert len(set(a.scenes[:4])) == 4
    torch.testing.assert_close(a.embeddings.norm(dim=1), torch.ones(3))


def test_embeddings_are_centred_by_modality():
    text = [torch.nn.functional.normalize(torch.randn(1, 8) + 3, dim=-1) for _ in range(12)]
    images = [torch.nn.functional.normalize(torch.randn(5, 8) - 3, dim=-1) for _ in range(12)]
    bank = EmbeddingBank(text, images)
    assert bank.all_text().mean(0).norm() < 0.4 and bank.of_images(0).norm() == pytest.approx(1)
    assert not EmbeddingBank(text[:1], images[:1]).means  # the mean of one concept would leave nothing of it


def test_a_reference_is_mostly_one_picture():
    bank = EmbeddingBank([torch.eye(4)[:1], torch.eye(4)[1:2]], [torch.eye(4), torch.eye(4)], means={})
    config = TrainingConfig(image_share=1.0, embedding_noise=0.0)
    generator = torch.Generator().manual_seed(0)
    pictures = [int((bank.draw(0, config, generator) > 0).sum()) for _ in range(400)]
    assert {1, 2, 3, 4} == set(pictures) and 0.5 < pictures.count(1) / 400 < 0.7


def test_validation_concepts_take_turns_over_categories():
    chosen = spread(worlds.concepts().train, 5)
    assert len({c.category for c in chosen}) == 4 and len(chosen) == 5 and len(spread(worlds.concepts().train, 0)) == 16
    assert used_levels(4, 2) == [0, 2] and used_levels(4, 9) == [0, 1, 2, 3] and used_levels(1, 2) == [0]


def test_the_learning_rate_rises_and_falls():
    config = TrainingConfig(steps=100, warmup=10, final_learning_rate=0.1)
    factors = [rate_factor(step, config) for step in range(100)]
    assert (
        factors[0] == pytest.approx(0.1)
        and max(factors) == factors[10] == 1
        and factors[-1] == pytest.approx(0.1, abs=0.01)
    )


def test_it_warns_early(tmp_path, data, caplog):
    one = trainer(tmp_path, data, patience=2)
    one.best, one.since_best, one.step = 0.0, 1, 100
    with caplog.at_level("WARNING", "hypertransport.training"):
        one.validate()
    assert "has not improved for 2 validations" in caplog.text


def test_the_script_runs_from_a_folder_of_any_name(tmp_path):
    """As cloned, and as dropped into custom_nodes under another name, where the package is imported relatively."""
    pack = tmp_path / "custom_nodes" / "Comfy UI-hyper.transport"
    pack.parent.mkdir()
    pack.symlink_to(ROOT)
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "OMP_NUM_THREADS": "1"}
    script = subprocess.run(
        [sys.executable, str(pack / "train_hypernet.py"), "--output", "x", "--steps", "0"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert script.returncode == 1 and "steps is 0, expected 1 to" in script.stderr
    code = (
        "import sys, types; pack = types.ModuleType('pack'); pack.__path__ = [sys.argv[1]]; sys.modules['pack'] = pack;"
        "from pack.hypertransport_core.training import cli; assert 'hypertransport_core' not in sys.modules;"
        "sys.exit(cli.main(['--output', 'x', '--steps', '0']))"
    )
    relative = subprocess.run(
        [sys.executable, "-c", code, str(pack)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert relative.returncode == 1 and "steps is 0" in relative.stderr, relative.stderr
