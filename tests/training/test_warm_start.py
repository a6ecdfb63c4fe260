"""The closed-form start: what it equals, that 0 changes nothing, that it helps, learns on and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hypertransport_core.hypernetworks import MLPHypernetwork
from hypertransport_core.sites import Site
from hypertransport_core.training.config import ConfigError, TrainingConfig
from hypertransport_core.training.data import DataFolder
from hypertransport_core.training.loop import Trainer
from hypertransport_core.training.warm_start import PENALTIES, closed_form, install, ridge
from tests.training import worlds

SITES = (Site("a.attn", "self_attention", 12), Site("a.mlp", "mlp", 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Statistics of the attention and MLP outputs, which every run here shares."""
    folder = tmp_path_factory.mktemp("data")
    trainer(folder, folder)
    return folder


def trainer(folder: Path, data: Path, **changes) -> Trainer:
    faithful = {"paired_weight": 0.0, "output": str(folder)}
    config = TrainingConfig(**{**worlds.SMALL, **faithful, **changes})
    world = worlds.tiny_world(config)
    store = DataFolder(data, world, config)
    store.collect(world.concepts.everything)
    return Trainer(world, store, config, folder)


def fresh(steps: int = 1) -> MLPHypernetwork:
    torch.manual_seed(0)
    network = MLPHypernetwork(SITES, 24, steps=steps, width=256, bottleneck=6)
    network.set_source(torch.randn(steps, 20), torch.rand(steps, 20) + 0.5)
    return network


def toy(concepts: int, rank: int = 4) -> tuple[Tensor, Tensor]:
    """Unit embeddings (concepts, 24) and shifts (concepts, 20) that are linear in them, of a low rank."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(concepts, 24, generator=generator)
    embeddings = torch.nn.functional.normalize(embeddings - embeddings.mean(1, keepdim=True), dim=1)
    one, two = torch.randn(24, rank, generator=generator), torch.randn(rank, 20, generator=generator)
    return embeddings, embeddings @ one @ two + torch.linspace(-1, 1, 20)


def shift_of(network: MLPHypernetwork, embeddings: Tensor, step: int = 0) -> Tensor:
    """Shifts in source deviations."""
    with torch.no_grad():
        maps = network(embeddings, step)
    assert bool((maps.scale == 1).all())
    return maps.shift / network.source_std[step]


def test_a_linear_truth_is_found_for_concepts_left_out():
    embeddings, shifts = toy(400)
    network = fresh()
    share = install(network, embeddings[:300], torch.arange(300), shifts[None, :300], 0.3)
    assert share > 0.98
    error = shift_of(network, embeddings[300:]) - 0.3 * shifts[300:]
    assert error.square().mean() < 0.02 * (0.3 * (shifts - shifts.mean(0))).square().mean()


@pytest.mark.parametrize("steps", [1, 2])
def test_it_predicts_the_ridge_regression_of_the_leading_directions(steps):
    embeddings, shifts = toy(60, rank=12)  # more than the bottleneck of 6 can hold
    stack = torch.stack([shifts * (step + 1) for step in range(steps)])
    network = fresh(steps)
    with torch.no_grad():
        features = torch.cat([network.features(embeddings, step) for step in range(steps)]).double()
    install(network, embeddings, torch.arange(60), stack, 0.2)
    rows = stack.flatten(0, 1).double()
    mean = rows.mean(0)
    _, _, directions = torch.linalg.svd(rows - mean)
    wanted = (rows - mean) @ directions[:6].T @ directions[:6]
    moved = features - features.mean(0)
    covariance = moved.T @ moved / len(moved)
    expected = [
        mean
        + moved
        @ torch.linalg.solve(
            covariance + penalty * covariance.diagonal().mean() * torch.eye(256).double(), moved.T @ wanted / len(moved)
        )
        for penalty in PENALTIES
    ]
    found = torch.cat([shift_of(network, embeddings, step) for step in range(steps)]).double()
    errors = [float((found - 0.2 * one).abs().max()) for one in expected]
    assert min(errors) < 2e-4 < max(errors)


def test_the_penalty_is_chosen_on_concepts_left_out():
    generator = torch.Generator().manual_seed(3)
    features, noise = (torch.randn(100, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    nothing = ridge(features, noise[:, :3], torch.arange(100))
    clear = ridge(features, features[:, :3] * 2 + 1, torch.arange(100))
    assert nothing.share < 0.05 and nothing.weight.norm() < 0.2
    assert clear.share > 0.99
    torch.testing.assert_close(clear.bias, torch.ones(3, dtype=torch.float64), atol=0.05, rtol=0)
    # The same row twice under one concept must not give itself away when that concept is left out.
    doubled = ridge(features.repeat(2, 1), noise[:, :3].repeat(2, 1), torch.arange(100).repeat(2))
    assert doubled.share < 0.05


def test_one_concept_and_equal_concepts_leave_only_the_mean():
    embeddings, shifts = toy(3)
    rounded = shifts[:1] * (1 + torch.tensor([[0.0], [6e-8], [-6e-8]]))  # as some processors' means leave them
    for count, values in ((1, shifts[:1]), (3, shifts[:1].expand(3, -1)), (3, rounded)):
        network = fresh()
        assert install(network, embeddings[:count], torch.arange(count), values[None], 0.5) == 0
        torch.testing.assert_close(shift_of(network, embeddings), 0.5 * shifts[:1].expand(3, -1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("per_step", [False, True])
def test_the_closed_form_is_the_difference_of_means(tmp_path, data, per_step):
    one = trainer(tmp_path, data, maps_per_step=per_step)
    network, concepts = one.network, one.train_concepts[:3]
    shifts = closed_form(network, one.data, concepts)
    assert shifts.shape == (2 if per_step else 1, 3, network.channels)
    tables = torch.stack([torch.stack([one.data.targets(c, level, 8).mean(0) for c in concepts]) for level in (0, 1)])
    difference = tables - one.data.source()[0][:, None]
    difference = difference if per_step else difference.mean(0, keepdim=True)
    torch.testing.assert_close(shifts * network.source_std[:, None], difference, atol=1e-4, rtol=1e-3)


def test_zero_is_the_identity_and_the_network_as_drawn(tmp_path, data):
    plain, started = trainer(tmp_path, data), trainer(tmp_path, data, warm_start=0.3)
    embeddings = plain.bank.all_text()
    assert plain.config.warm_start == 0 and plain.network(embeddings).is_identity()
    assert not started.network(embeddings).is_identity()
    last = ("narrow.weight", "narrow.bias", "head.weight", "head.bias")
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, started.network.state_dict()[name]) == (name not in last), name
        assert torch.equal(started.network.state_dict()[name], started.average.state_dict()[name])


@pytest.mark.parametrize("changes", [{}, {"maps_per_step": True}, {"image_share": 0.0}, {"pooling": "mean_std"}])
def test_the_start_is_better_than_the_identity(tmp_path, data, changes):
    data = tmp_path / "data" if "pooling" in changes else data
    one = trainer(tmp_path, data, warm_start=0.3, **changes)
    found = one.validate()
    assert found["validation"] < 0.95 * found["identity"]


def test_every_parameter_learns_from_the_first_step(tmp_path, data):
    one = trainer(tmp_path, data, warm_start=0.2)
    before = {name: value.detach().clone() for name, value in one.network.named_parameters()}
    one.advance()
    assert not [name for name, value in one.network.named_parameters() if torch.equal(before[name], value)]


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path, data):
    one = trainer(tmp_path, data, warm_start=0.2)
    for _ in range(3):
        one.advance()
    one.save()
    again = trainer(tmp_path, data, warm_start=0.2)
    again.load(again.states.load("latest"))
    for run in (one, again):
        for _ in range(2):
            run.advance()
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


def test_other_networks_are_refused_in_a_sentence(tmp_path, data):
    with pytest.raises(ConfigError, match='warm_start is 0.2 with hypernetwork = "perceiver", expected "mlp"'):
        trainer(tmp_path, data, warm_start=0.2, hypernetwork="perceiver")
    with pytest.raises(ConfigError, match="warm_start is 1.5, expected 0 to 1"):
        TrainingConfig(warm_start=1.5)
