"""Exact ways to save memory: parts of a step down to one sample, blocks that run twice, a hypernetwork in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hypertransport_core.training.batches import draw
from hypertransport_core.training.config import ConfigError, TrainingConfig
from hypertransport_core.training.gradients import backward
from hypertransport_core.training.loop import Trainer
from hypertransport_core.training.recomputation import checkpointed, find_blocks
from tests.training.test_learning import trainer

KINDS: dict[str, dict] = {
    "transport": {"paired_weight": 0.0},
    "paired": {"transport_weight": 0.0},
    "both": {},
    "means and spreads": {"pooling": "mean_std", "channel_weighting": "none"},
    "stored predictions": {"store_predictions": True},
    "partial strengths": {"store_predictions": True, "transport_weight": 0.0, "partial_share": 0.7},
    "removal": {"store_predictions": True, "transport_weight": 0.0, "partial_share": 0.3, "removal_share": 0.5},
    "own inputs": {"inputs": "own"},
    "own inputs, maps per step": {"inputs": "own", "maps_per_step": True},
    "maps per step": {"maps_per_step": True, "levels_per_step": 1},
    "perceiver": {"hypernetwork": "perceiver"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    trainer(folder, folder, collect_site_set="all", pooling="mean_std", store_predictions=True)
    return folder


def moved(folder: Path, data: Path, **changes) -> Trainer:
    """A trainer whose hypernetwork has left the identity, so that concepts and levels differ."""
    one = trainer(folder, data, **changes)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in one.network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return one


def gradients(one: Trainer, **changes) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Losses and gradients of one step, with some settings changed."""
    one.objective.config = one.config.with_values(changes)
    one.network.zero_grad(set_to_none=True)
    found = backward(one.network, one.objective, draw(3, one.bank, 8, 2, one.config), one.train_concepts)
    return found, [parameter.grad for parameter in one.network.parameters() if parameter.grad is not None]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Up to a share of the largest entry of all."""
    assert len(a) == len(b) > 0
    largest = max(float(g.abs().max()) for g in a)
    assert largest > 0
    for whole, other in zip(a, b):
        assert float((whole - other).abs().max()) <= tolerance * largest


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_any_size_have_the_gradient_of_the_whole(tmp_path, data, kind):
    """Three concepts with four samples each: parts of three lie across concepts."""
    one = moved(tmp_path, data, **KINDS[kind])
    sums, expected = gradients(one)
    rows: list[int] = []
    denoise = one.world.backbone.denoise
    one.world.backbone.denoise = lambda x, *rest: rows.append(len(x)) or denoise(x, *rest)
    for size in (1, 3, 4):
        rows.clear()
        found, given = gradients(one, samples_per_pass=size)
        assert_same(expected, given)
        assert found == pytest.approx(sums, rel=1e-5)
        assert max(rows) == size and len(rows) >= 12 / size


def test_parts_keep_whole_concepts_where_they_can():
    config = TrainingConfig(concepts_per_step=4, samples_per_concept=8)
    sizes = {rows: config.with_values({"samples_per_pass": rows}).rows_per_pass() for rows in (0, 7, 8, 12, 31, 99)}
    assert sizes == {0: 32, 7: 7, 8: 8, 12: 8, 31: 24, 99: 32}
    assert config.with_values({"samples_per_pass": 16, "concepts_per_pass": 1}).rows_per_pass() == 8


@pytest.mark.parametrize("kind", ["transport", "paired", "means and spreads", "own inputs, maps per step"])
def test_checkpointing_keeps_the_gradient_in_whole_and_in_parts(tmp_path, data, kind):
    one = moved(tmp_path, data, **KINDS[kind])
    sums, expected = gradients(one)
    for size in (0, 3):
        found, given = gradients(one, gradient_checkpointing=True, samples_per_pass=size)
        assert found == pytest.approx(sums, rel=1e-5)
        assert_same(expected, given)
    assert not any("forward" in module.__dict__ for module in one.world.backbone.network.modules())


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="has no repeated blocks, expected lists of modules: switch it off"):
        find_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))


def test_blocks_are_left_as_they_were_after_an_error(tmp_path, data):
    network = trainer(tmp_path, data).world.backbone.network
    assert set(find_blocks(network)) == {"input_blocks.1.1.transformer_blocks.0", "middle_block.1.transformer_blocks.0"}
    with pytest.raises(RuntimeError), checkpointed(network):
        raise RuntimeError
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_a_hypernetwork_in_bf16_gives_maps_and_keeps_its_weights_in_fp32(tmp_path, data):
    dtypes = set()
    one = moved(tmp_path, data, hypernetwork_precision="bf16")
    one.network.head.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    losses = one.objective.row_losses

    def watched(maps, inputs, aligned=None):
        found = losses(maps, inputs, aligned)
        dtypes.update((maps.scale.dtype, maps.shift.dtype, *(loss.dtype for loss in found), "seen"))
        return found

    one.objective.row_losses = watched
    one.advance()
    assert dtypes == {torch.bfloat16, torch.float32, "seen"}
    state = one.optimiser.state_dict()["state"]
    kept = [*one.network.parameters(), *one.average.parameters(), *(v for s in state.values() for v in s.values())]
    assert {value.dtype for value in kept} == {torch.float32} and len(state) > 0
    exact, rounded = (gradients(one, hypernetwork_precision=precision) for precision in ("fp32", "bf16"))
    assert rounded[0] == pytest.approx(exact[0], rel=2e-2) and rounded[0] != exact[0]
    assert_same(exact[1], rounded[1], 5e-2)
