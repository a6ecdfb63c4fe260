"""What a run will take on its device, said before work starts together with the disk's part, and refused when it cannot fit.

Bytes of weights and of the hypernetwork's states follow from shapes. Activations are measured: one sample
and two go through the real network, forward and backward, under a `Meter`; more samples take proportionally more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..capture import MOMENTS
from ..measuring import frozen
from ..objective import leaf
from ..sites import Site, total_channels
from ..transport import TransportMaps
from .batches import network_call
from .config import ConfigError, TrainingConfig
from .data import DataFolder, network_device
from .disk import DiskPlan, check_disk, disk_plan, hypernetwork_of, parameters
from .meter import Meter
from .presets import World
from .progress import log
from .room import GB, disk_room, free_bytes, resident_bytes

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone


@dataclass(frozen=True)
class Growth:
    """Bytes of one call of the base model: `fixed`, and `per_row` for each sample in it."""

    fixed: int
    per_row: int

    def of(self, rows: int) -> int:
        """Bytes of a call with some rows."""
        return self.fixed + rows * self.per_row

    def rows_within(self, limit: float) -> int:
        """How many rows fit; 0 when not even one does."""
        return max(0, int((limit - self.fixed) // max(1, self.per_row)))


@dataclass(frozen=True)
class DevicePlan:
    """Bytes on the device. training: a call with gradients of `rows` rows, none with teachers; outside: one without
    (collecting, validation) of `batch` rows; graph: what a step takes beside that; material: what a step and the
    validation keep between calls; program: the rest of the process, where it shares the memory.
    """

    weights: int
    encoders: int
    program: int
    outside: Growth
    batch: int
    states: int = 0
    graph: int = 0
    material: int = 0
    training: Growth = Growth(0, 0)
    rows: int = 0

    @property
    def resident(self) -> int:
        """What is there already when the plan is made."""
        return self.weights + self.encoders + self.program

    @property
    def lasting(self) -> int:
        """What is there all the time while training."""
        return self.resident + self.states + self.material

    @property
    def peak(self) -> int:
        """The most at once."""
        return self.lasting + max(self.graph + self.training.of(self.rows), self.outside.of(self.batch))

    @property
    def least(self) -> int:
        """The most at once with one sample in every call."""
        return self.lasting + max(self.graph + self.training.of(1), self.outside.of(1))


# -- the device -------------------------------------------------------------------------------------------------------


def hypernetwork_bytes(config: TrainingConfig, sites: Sequence[Site], embedding_dim: int) -> tuple[int, int]:
    """(states, graph): weights, running mean, AdamW's two moments and buffers; and the most that a step's concepts take
    beside that: maps, what autograd keeps, gradients. In fp32, which bounds bf16.
    """
    network = hypernetwork_of(config, sites, embedding_dim)
    size, buffers = 4 * parameters(network), sum(b.numel() * b.element_size() for b in network.buffers())
    with Meter() as meter:
        embeddings = torch.zeros(config.concepts_per_step, embedding_dim, device="meta")
        levels = range(config.levels_per_step if config.maps_per_step else 1)
        maps = [network(embeddings, level if config.maps_per_step else None) for level in levels]
        outputs = [tensor for each in maps for tensor in (each.scale, each.shift)]
        torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
    # AdamW's own temporaries come when the graph is gone: the gradients and two more of the same size at most.
    return 4 * size + 2 * buffers, max(meter.peak, 3 * size)


def measured_call(
    backbone: Backbone,
    config: TrainingConfig,
    sites: Sequence[Site],
    scene: str,
    gradient: bool,
    room: float = math.inf,
) -> Growth:
    """Bytes of a call of the base model, measured with one sample and with two, with backward or without gradient; with
    one alone where two have no room. Raises ConfigError when not even one has.
    """
    try:
        one = _peak(backbone, config, sites, scene, 1, gradient, room)
    except torch.OutOfMemoryError as error:
        without = gradient and not config.gradient_checkpointing
        cure = "set gradient_checkpointing to true" if without else "lower resolution"
        raise ConfigError(
            f"A call of the base model with one sample of shape {tuple(backbone.latent_shape)} ran out of memory, "
            f"expected room for at least that: {cure}, or use a device with more."
        ) from error
    try:
        two = _peak(backbone, config, sites, scene, 2, gradient, room)
    except torch.OutOfMemoryError:
        return Growth(0, one)
    per_row = max(0, two - one)
    return Growth(max(0, one - per_row), per_row)


def _peak(
    backbone: Backbone,
    config: TrainingConfig,
    sites: Sequence[Site],
    scene: str,
    rows: int,
    gradient: bool,
    room: float = math.inf,
) -> int:
    device = next(backbone.network.parameters()).device
    x = backbone.noise(range(rows)).to(device)
    conditioning = backbone.encode([scene] * rows).to(device)
    level = float(backbone.noise_levels(config.sampling_steps)[0])
    ones = torch.ones(max(2, rows), total_channels(sites), device=device)  # never one, which all samples would share
    read = sites if config.transport_weight > 0 or not gradient else ()
    with frozen(backbone.network), torch.set_grad_enabled(gradient), Meter(room) as meter:
        maps = leaf(TransportMaps(tuple(sites), ones, torch.zeros_like(ones))) if gradient else None
        keep = config.paired_weight > 0 or not gradient
        seen, clean = network_call(backbone, config, x, level, conditioning, read, maps, torch.arange(rows), keep)
        if gradient:
            loss = sum(value.float().square().sum() for value in (seen, clean) if value is not None)
            assert isinstance(loss, Tensor)
            loss.backward()
    return meter.peak


def device_plan(
    world: World, data: DataFolder, config: TrainingConfig, train: bool = True, limit: float | None = None
) -> DevicePlan:
    """The plan of a run in this process, of its training too or of collecting alone. limit: bytes that the process may
    take, where known. Raises ConfigError when not even a call with one sample has room.
    """
    device, scene = network_device(world), world.scenes[0]
    weights, encoders, program = resident_bytes(world, device)
    room = math.inf if limit is None else limit - weights - encoders - program
    plan = DevicePlan(
        weights=weights,
        encoders=encoders,
        program=program,
        outside=measured_call(world.backbone, config, data.collected_sites, scene, False, room),
        batch=config.batch,
    )
    if not train:
        return plan
    states, graph = hypernetwork_bytes(config, data.sites, data.width)
    plan = replace(plan, states=states, graph=graph, material=_material(world, data, config, scene))
    if config.teacher_files():
        return _with_teachers(plan, data, config)
    training = measured_call(world.backbone, config, data.sites, scene, True, room)
    return replace(plan, training=training, rows=config.rows_per_pass())


def _with_teachers(plan: DevicePlan, data: DataFolder, config: TrainingConfig) -> DevicePlan:
    """The plan of a run that learns from files: no call of the base model in training, instead the files' weights, a step's
    maps of each, their mean, and the differences that the distance is made of."""
    files = config.teacher_files()
    states = plan.states + sum(2 * Path(name).stat().st_size for name in files if Path(name).is_file())  # fp16 in files
    return replace(plan, states=states, graph=plan.graph + _teaching(data, config))


def _teaching(data: DataFolder, config: TrainingConfig) -> int:
    """Bytes of a step's maps of all teachers, of their sum and of five differences."""
    levels = config.levels_per_step if config.maps_per_step else 1
    return config.concepts_per_step * total_channels(data.sites) * 4 * (2 * len(config.teacher_files()) + 2 + 5 * levels)


def _material(world: World, data: DataFolder, config: TrainingConfig, scene: str) -> int:
    """What validation keeps from one time to the next, and a step while its rows are ranked or run."""
    width = total_channels(data.sites) * MOMENTS[config.pooling] * 4
    conditioning = world.backbone.encode([scene])
    text = conditioning.numel() * conditioning.element_size() if isinstance(conditioning, Tensor) else 0
    row = 2 * 4 * math.prod(world.backbone.latent_shape) + text
    table = width if config.transport_weight > 0 else 0
    n, concepts = config.samples_per_concept, len(world.concepts.validation)
    kept = min(config.validation_concepts or concepts, concepts) * min(config.validation_levels, len(data.levels)) * n
    split = config.transport_weight > 0 and config.rows_per_pass() < n
    step = config.concepts_per_step * n if split else config.rows_per_pass()
    return kept * (row + table) + step * (row + table * (3 if split else 2))


# -- saying it --------------------------------------------------------------------------------------------------------


def check_memory(world: World, data: DataFolder, config: TrainingConfig, stages: Sequence[str]) -> None:
    """Print the plan of a run that collects or trains. Raises ConfigError when it cannot fit."""
    if not {"collect", "train"} & set(stages):
        return
    device, disk = network_device(world), disk_plan(world, data, config)
    check_disk(world, data, config, disk)
    available = free_bytes(device)
    limit: float | None = sum(resident_bytes(world, device)) + available if available is not None else None
    limit = config.memory_limit * GB if config.memory_limit else limit
    plan = device_plan(world, data, config, "train" in stages, limit)
    for line in describe_plan(world, data, config, disk, plan):
        log.info("%s", line)
    if limit is not None:
        _check_device(world, data, config, plan, limit)


def describe_plan(
    world: World, data: DataFolder, config: TrainingConfig, disk: DiskPlan, plan: DevicePlan
) -> list[str]:
    """The lines that are printed, in gigabytes of 10⁹ bytes."""
    device, room = network_device(world), free_bytes(network_device(world))
    free = f"{room / GB:.3g} free" if room else "free memory not known"
    limit = f", memory_limit {config.memory_limit:g}" if config.memory_limit else ""
    tables = (
        f"{len(world.concepts.everything)} concepts x {len(data.levels)} levels x {config.blocks} blocks x "
        f"{total_channels(data.collected_sites):,} channels"
    )
    lasting = "weights, mean, optimiser" + (", teachers" if config.teacher_files() else "")
    training = (
        f" + hypernetwork {(plan.states + plan.graph) / GB:.3g} (of which {lasting} "
        f"{plan.states / GB:.3g}) + kept samples {plan.material / GB:.3g}"
    )
    if plan.rows:
        training += (
            f" + activations {plan.training.of(plan.rows) / GB:.3g} ({plan.rows} samples of "
            f"{plan.training.per_row / 1e6:.3g} MB and {plan.training.fixed / 1e6:.3g} MB, measured)"
        )
    return [
        f"disk, GB: statistics {disk.statistics / GB:.3g} ({tables}) + predictions {disk.predictions / GB:.3g} + "
        f"embeddings {disk.embeddings / GB:.3g} + checkpoints {disk.checkpoints / GB:.3g}; {disk.present / GB:.3g} "
        f"there, {disk_room(data.folder) / GB:.3g} free",
        f"memory of {device}, GB: base model {plan.weights / GB:.3g} + encoders {plan.encoders / GB:.3g} + program "
        f"{plan.program / GB:.3g}{training if plan.states else ''}; without gradient "
        f"{plan.outside.of(plan.batch) / GB:.3g} ({plan.batch} samples); at most {plan.peak / GB:.3g}, {free}{limit}",
    ]


def _check_device(world: World, data: DataFolder, config: TrainingConfig, plan: DevicePlan, limit: float) -> None:
    if plan.peak <= limit:
        return
    room = limit - plan.lasting
    training = plan.training.rows_within(room - plan.graph) if plan.rows else int(room >= plan.graph)
    outside = plan.outside.rows_within(room)
    cures = []
    if training < plan.rows:
        cures.append(f"set samples_per_pass to {training}")
    if outside < plan.batch:
        cures.append(f"set batch to {outside}")
    raise ConfigError(
        f"The run needs {plan.peak / GB:.3g} GB on {network_device(world)} with {plan.rows or plan.batch} samples in a "
        f"call, expected at most {limit / GB:.3g} GB: "
        f"{' and '.join(cures) if training and outside else _last_resort(world, data, config, plan, limit)}."
    )


def _last_resort(world: World, data: DataFolder, config: TrainingConfig, plan: DevicePlan, limit: float) -> str:
    """What to do when not even one sample fits in a call."""
    room = limit - plan.lasting - plan.graph
    if config.teacher_files():
        smaller = config.concepts_per_step // 2
        while smaller:
            fewer = config.with_values({"concepts_per_step": smaller})
            graph = hypernetwork_bytes(fewer, data.sites, data.width)[1] + _teaching(data, fewer)
            if replace(plan, graph=graph).least <= limit:
                batch = plan.outside.rows_within(limit - plan.lasting)
                return f"set concepts_per_step to {smaller}" + (f" and batch to {batch}" if batch < plan.batch else "")
            smaller //= 2
    elif room > 0 and not config.gradient_checkpointing:
        saving = config.with_values({"gradient_checkpointing": True})
        rows = measured_call(world.backbone, saving, data.sites, world.scenes[0], True, room).rows_within(room)
        if rows:
            return f"set gradient_checkpointing to true and samples_per_pass to {min(plan.rows, rows)}"
    bottleneck = config.bottleneck // 2
    while plan.rows and config.hypernetwork == "mlp" and bottleneck >= 16:
        states, graph = hypernetwork_bytes(
            config.with_values({"bottleneck": bottleneck}), data.sites, data.width
        )
        other = replace(plan, states=states, graph=graph)
        if other.least <= limit:
            rows = other.training.rows_within(limit - other.lasting - graph)
            return f"set bottleneck to {bottleneck} and samples_per_pass to {min(plan.rows, rows)}"
        bottleneck //= 2
    if config.memory_limit:
        return f"set memory_limit to at least {math.ceil(plan.least / GB * 10) / 10:g}, or lower resolution"
    return f"lower resolution, or use a device with at least {math.ceil(plan.least / GB)} GB"
