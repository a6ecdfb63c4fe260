"""The memory plan: exact where it can be, measured where not, and refused with the setting that helps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hypertransport_core.checkpoints import load_checkpoint
from hypertransport_core.training import ConfigError, TrainingConfig, disk, memory
from hypertransport_core.training.data import DataFolder
from hypertransport_core.training.meter import Meter
from hypertransport_core.training.states import States
from tests.support.tiny_backbone import TinyBackbone, TransformerBlock
from tests.training import worlds
from tests.training.test_learning import trainer


def world_of(folder: Path, **changes) -> tuple:
    config = TrainingConfig(**{**worlds.SMALL, "output": str(folder), **changes})
    world = worlds.tiny_world(config)
    return world, DataFolder(folder / "data", world, config), config


def tensor_bytes(tree) -> int:
    if isinstance(tree, torch.Tensor):
        return tree.numel() * tree.element_size()
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(map(tensor_bytes, values))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_meter_counts_what_is_alive(device):
    weight = torch.zeros(100, 100, device=device, requires_grad=True)
    data = torch.zeros(100, 100, device=device)
    with Meter() as meter:
        product = data @ weight
        assert meter.now == 40_000  # what was there before is not counted
        view = product.view(-1)[:50]
        assert meter.now == 40_000  # nor what takes no room
        curve = view.exp()
        assert meter.now == 40_200
        del product, view
        assert meter.now == 200  # nothing needs the product any more
        curve.sum().backward()
        assert meter.peak > 40_000 and weight.grad is not None
        del curve
    assert meter.now == 40_000
    weight.grad = None
    assert meter.now == 0


def test_the_meter_stops_at_its_limit():
    with pytest.raises(torch.OutOfMemoryError, match="expected at most 1000"), Meter(1000.0):
        kept = [torch.zeros(200)]
        kept.append(torch.zeros(200))


def test_where_two_samples_have_no_room_one_is_measured(tmp_path):
    world, data, config = world_of(tmp_path)
    call = (world.backbone, config, data.sites, world.scenes[0], True)
    one = memory.measured_call(*call).of(1)
    assert memory.measured_call(*call, room=one) == memory.Growth(0, one)
    with pytest.raises(ConfigError, match="set gradient_checkpointing to true, or use a device with more"):
        memory.measured_call(*call, room=one - 1)


def test_collecting_alone_is_not_refused_for_what_training_needs(tmp_path):
    world, data, config = world_of(tmp_path)
    plan = memory.device_plan(world, data, config, train=False)
    assert plan.peak == plan.resident + plan.outside.of(config.batch)
    memory._check_device(world, data, config, plan, plan.peak)
    assert f"set batch to {config.batch - 1}." in limited(world, data, config, plan, plan.peak - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"store_predictions": True, "blocks": 4},
        {"pooling": "mean_std", "collect_site_set": "all", "sampling_steps": 3, "images_per_concept": 30},
        {"pooling": "mean_quarters"},
    ],
)
def test_the_disk_plan_is_what_is_written(tmp_path, changes):
    one = trainer(tmp_path, **changes)
    plan = disk.disk_plan(one.world, one.data, one.config)
    files = [*(tmp_path / "data").rglob("*.safetensors")]
    assert len(files) == len(one.world.concepts.everything) + 1
    assert plan.data == sum(tensor_bytes(load_checkpoint(file)) for file in files)
    assert 0 <= plan.present - (plan.data - one.data.source_path.stat().st_size) < 8192 * len(files)
    for _ in range(one.config.keep_last + 2):
        one.advance()
        one.save()
    one.validate()
    assert States(tmp_path, 3).steps()
    written = sum(file.stat().st_size for file in tmp_path.glob("**/*step-*.safetensors"))
    written += one.states.best_path.stat().st_size
    assert 0.5 * plan.checkpoints < written < 1.5 * plan.checkpoints
    assert disk.disk_plan(one.world, one.data, one.config).saved == written


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"transport_weight": 0.0, "store_predictions": True},
        {"samples_per_pass": 2, "gradient_checkpointing": True},
        {"inputs": "own", "maps_per_step": True, "site_set": "norm"},
    ],
)
def test_a_step_stays_within_the_plan(tmp_path, changes):
    one = trainer(tmp_path, **changes, concepts_per_step=8)
    plan = memory.device_plan(one.world, one.data, one.config)
    one.advance()  # the optimiser makes its moments
    size = sum(parameter.numel() for parameter in one.network.parameters()) * 4
    assert 4 * size <= plan.states <= 4 * size + 2 * sum(b.numel() * 4 for b in one.network.buffers())
    one.network.zero_grad(set_to_none=True)
    with Meter() as meter:
        one.advance()
    counted = plan.graph + plan.training.of(plan.rows) + plan.material
    assert 0.4 * counted < meter.peak < 1.1 * counted


class DeepUNet(nn.Module):
    """Many blocks, so that what is inside them outweighs the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        self.blocks = nn.ModuleList(TransformerBlock(16) for _ in range(8))
        for block in self.blocks:
            block.attn, block.cross_attn, block.mlp = block.attn1, block.attn2, block.ff  # names of a known layout

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        tokens = self.enter(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, context)
        return self.leave(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


@pytest.mark.parametrize("weights", [{"transport_weight": 0.0, "paired_weight": 1.0}, {"paired_weight": 0.0}])
def test_checkpointing_takes_less(weights):
    backbone = TinyBackbone()
    backbone.network = DeepUNet().eval()
    backbone.latent_shape = (3, 16, 16)
    config = TrainingConfig(precision="fp32", **weights)
    plain, saving = (
        memory.measured_call(
            backbone, config.with_values({"gradient_checkpointing": on}), backbone.sites("norm"), "a red house", True
        )
        for on in (False, True)
    )
    assert saving.per_row < 0.4 * plain.per_row


def test_more_samples_take_proportionally_more(tmp_path):
    world, data, config = world_of(tmp_path)
    growth = memory.measured_call(world.backbone, config, data.sites, world.scenes[0], True)
    for rows in (1, 5, 16):
        found = memory._peak(world.backbone, config, data.sites, world.scenes[0], rows, True)
        assert growth.of(rows) == pytest.approx(found, rel=0.05)
    assert growth.rows_within(growth.of(7)) == 7 and growth.rows_within(growth.of(7) - 1) == 6
    assert growth.rows_within(0) == 0


def test_measuring_leaves_everything_as_it_was(tmp_path):
    world, data, config = world_of(tmp_path)
    network, state = world.backbone.network, torch.get_rng_state()
    network.train()
    memory.device_plan(world, data, config)
    assert network.training and all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("forward" in module.__dict__ for module in network.modules())


def limited(world, data, config, plan: memory.DevicePlan, limit: float) -> str:
    with pytest.raises(ConfigError) as error:
        memory._check_device(world, data, config, plan, limit)
    return str(error.value)


def test_what_does_not_fit_is_refused_with_a_value_that_does(tmp_path):
    world, data, config = world_of(tmp_path, concepts_per_step=8, batch=64)
    plan = memory.device_plan(world, data, config)
    memory._check_device(world, data, config, plan, plan.peak)
    text = limited(world, data, config, plan, plan.lasting + plan.graph + plan.training.of(5))
    assert text.endswith("with 32 samples in a call, expected at most " + text.split("expected at most ")[1])
    assert "set samples_per_pass to 5" in text and text.endswith(".")
    tight = plan.lasting + max(plan.graph + plan.training.of(2), plan.outside.of(3))
    assert "samples_per_pass" in limited(world, data, config, plan, tight)
    none = plan.lasting + plan.graph + plan.training.of(1) - 1
    saving = config.with_values({"gradient_checkpointing": True})
    less = memory.measured_call(world.backbone, saving, data.sites, world.scenes[0], True)
    assert less.of(1) < plan.training.of(1)
    assert "set gradient_checkpointing to true and samples_per_pass to 1" in limited(world, data, config, plan, none)
    needed = math.ceil(plan.least / 1e9)  # this process included, whatever ran in it before
    assert f"device with at least {needed} GB" in limited(world, data, saving, plan, 1000.0)
    assert "set memory_limit to at least" in limited(
        world, data, saving.with_values({"memory_limit": 1e-6}), plan, 1000.0
    )


def test_a_hypernetwork_too_large_is_refused_with_a_bottleneck_that_fits(tmp_path):
    world, data, config = world_of(tmp_path, bottleneck=4096)
    plan = memory.device_plan(world, data, config)
    text = limited(world, data, config, plan, plan.resident + plan.material + (plan.states + plan.graph) // 3)
    chosen = int(text.split("set bottleneck to ")[1].split()[0])
    states, graph = memory.hypernetwork_bytes(config.with_values({"bottleneck": chosen}), data.sites, 16)
    assert 256 <= chosen <= 2048 and states + graph < (plan.states + plan.graph) / 3


def test_a_full_disk_is_refused_with_a_setting_that_helps(tmp_path, monkeypatch):
    world, data, config = world_of(tmp_path, store_predictions=True)
    plan = disk.disk_plan(world, data, config)

    def refusal(room: int) -> str:
        monkeypatch.setattr(disk, "disk_room", lambda folder: room)
        with pytest.raises(ConfigError) as error:
            disk.check_disk(world, data, config, plan)
        return str(error.value)

    monkeypatch.setattr(disk, "disk_room", lambda folder: plan.data + plan.checkpoints)
    disk.check_disk(world, data, config, plan)
    assert "set keep_last to 1" in refusal(plan.data + plan.checkpoints - 1)
    frugal = disk.disk_plan(world, data, config.with_values({"keep_last": 1}))
    assert "set keep_last to 1 and set blocks to 4, or" in refusal(frugal.data + frugal.checkpoints - 1)
    assert "make room or choose" in refusal(10)
    # Data on another disk are counted apart from checkpoints.
    monkeypatch.setattr(disk, "same_disk", lambda one, other: False)
    monkeypatch.setattr(disk, "disk_room", lambda folder: max(plan.data, plan.checkpoints))
    disk.check_disk(world, data, config, plan)


def test_the_plan_is_printed_before_work_starts(tmp_path, train, caplog):
    with caplog.at_level("INFO", "hypertransport.training"):
        assert train(tmp_path / "run", "--steps", "1") == 0
    lines = [record.message for record in caplog.records]
    starts = ("disk, GB", "memory of cpu", "collecting")
    disk, device, work = (next(i for i, line in enumerate(lines) if line.startswith(start)) for start in starts)
    assert device == disk + 1 < work


def test_a_run_that_cannot_fit_does_not_start(tmp_path, train, capsys):
    for extra in ((), ("--dry-run",)):
        assert train(tmp_path / "run", "--memory-limit", "0.01", *extra) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: A call of the base model with one sample") and text.count("\n") == 1
        assert not (tmp_path / "run/data").exists()
