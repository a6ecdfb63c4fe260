"""What a run will take on the disk and on its device, said before work starts, and refused when it cannot fit.

Bytes on the disk, of weights and of the hypernetwork's states follow from shapes. Activations are measured: one sample
and two go through the real network, forward and backward, under a `Meter`; more samples take proportionally more.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..hypernetworks import build_hypernetwork
from ..measuring import frozen
from ..objective import leaf
from ..sites import Site, total_channels
from ..transport import TransportMaps
from .batches import network_call
from .config import ConfigError, TrainingConfig
from .data import DataFolder, network_device
from .meter import Meter
from .presets import World
from .progress import log

if TYPE_CHECKING:
    from ..backbones.protocol import Backbone

GB = 1e9


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
class DiskPlan:
    """Bytes on the disk of all concepts together, of which `present` were found; checkpoints at their most."""

    statistics: int
    predictions: int
    embeddings: int
    checkpoints: int
    present: int = 0

    @property
    def data(self) -> int:
        """Bytes in the data folder."""
        return self.statistics + self.predictions + self.embeddings


@dataclass(frozen=True)
class DevicePlan:
    """Bytes on the device. training: a call with gradients, outside: one without (collecting, validation), `batch` rows;
    material: what a step and the validation keep between calls; program: the process itself, where it shares the memory.
    """

    weights: int
    encoders: int
    program: int
    states: int
    graph: int
    material: int
    training: Growth
    outside: Growth
    rows: int
    batch: int

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


# -- the disk ---------------------------------------------------------------------------------------------------------


def disk_plan(world: World, data: DataFolder, config: TrainingConfig) -> DiskPlan:
    """Exact up to the few kilobytes of each file's header, and to tables with values too large for half precision."""
    concepts = world.concepts.everything
    width = total_channels(data.collected_sites) * (2 if data.pooling == "mean_std" else 1)
    levels, samples, e = len(data.levels), config.prompts_per_concept * config.samples_per_prompt, world.encoder.width
    statistics = len(concepts) * levels * config.blocks * width * 2 + 2 * levels * width * 4
    predictions = len(concepts) * levels * samples * math.prod(world.backbone.latent_shape) * 2
    pictures = min(config.images_per_concept, samples)
    embeddings = sum(1 + len(concept.phrases) + pictures for concept in concepts) * e * 4
    size = _parameters(hypernetwork_of(config, data.sites, e)) * 4
    present = sum(path.stat().st_size for path in map(data.path_of, concepts) if path.is_file())
    return DiskPlan(
        statistics,
        predictions if config.store_predictions else 0,
        embeddings,
        4 * size * (config.keep_last + 1) + size,  # weights, running mean and two moments; one more while it is written
        present,
    )


def _room_on_disk(folder: Path) -> int:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _check_disk(world: World, data: DataFolder, config: TrainingConfig, plan: DiskPlan, folder: Path) -> None:
    needed, room = plan.data + plan.checkpoints - plan.present, _room_on_disk(folder)
    if needed <= room:
        return
    cure = f"make room or choose a folder with {needed / GB:.3g} GB free"
    frugal: dict[str, Any] = {"keep_last": 1, "blocks": config.samples_per_concept, "store_predictions": False}
    if config.partial_share > 0:
        del frugal["store_predictions"]  # which it needs
    names = [name for name, value in frugal.items() if getattr(config, name) != value]
    for chosen in [*([name] for name in names), *(names[:count] for count in range(2, len(names) + 1))]:
        other = disk_plan(world, data, config.with_values({name: frugal[name] for name in chosen}))
        if other.data + other.checkpoints - plan.present <= room:
            cure = " and ".join(f"set {name} to {str(frugal[name]).lower()}" for name in chosen) + ", or make room"
            break
    raise ConfigError(
        f"The run needs {needed / GB:.3g} GB more on the disk of {folder}, expected at most the {room / GB:.3g} GB that are "
        f"free: {cure}."
    )


# -- the device -------------------------------------------------------------------------------------------------------


def hypernetwork_of(config: TrainingConfig, sites: Sequence[Site], embedding_dim: int) -> nn.Module:
    """The run's hypernetwork on meta tensors: all its shapes, no memory."""
    with torch.device("meta"):
        return build_hypernetwork({**config.hypernetwork_options(), "sites": sites, "embedding_dim": embedding_dim})


def hypernetwork_bytes(config: TrainingConfig, sites: Sequence[Site], embedding_dim: int) -> tuple[int, int]:
    """(states, graph): weights, running mean, AdamW's two moments and buffers; and the most that a step's concepts take
    beside that: maps, what autograd keeps, gradients. In fp32, which bounds bf16.
    """
    network = hypernetwork_of(config, sites, embedding_dim)
    size, buffers = 4 * _parameters(network), sum(b.numel() * b.element_size() for b in network.buffers())
    with Meter() as meter:
        embeddings = torch.zeros(config.concepts_per_step, embedding_dim, device="meta")
        levels = range(config.levels_per_step if config.maps_per_step else 1)
        maps = [network(embeddings, level if config.maps_per_step else None) for level in levels]
        outputs = [tensor for each in maps for tensor in (each.scale, each.shift)]
        torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
    # AdamW's own temporaries come when the graph is gone: the gradients and two more of the same size at most.
    return 4 * size + 2 * buffers, max(meter.peak, 3 * size)


def measured_call(
    backbone: Backbone, config: TrainingConfig, sites: Sequence[Site], scene: str, gradient: bool
) -> Growth:
    """Bytes of a call of the base model, measured with one sample and with two, with backward or without gradient.
    Raises ConfigError when not even these fit.
    """
    found = []
    try:
        for rows in (1, 2):
            found.append(_peak(backbone, config, sites, scene, rows, gradient))
    except torch.OutOfMemoryError as error:
        cure = "set gradient_checkpointing to true" if gradient and not config.gradient_checkpointing else "lower resolution"
        raise ConfigError(
            f"A call of the base model with {len(found) + 1} sample(s) of shape {tuple(backbone.latent_shape)} ran out of "
            f"memory, expected room for at least that: {cure}, or use a device with more."
        ) from error
    per_row = max(0, found[1] - found[0])
    return Growth(max(0, found[0] - per_row), per_row)


def _peak(
    backbone: Backbone, config: TrainingConfig, sites: Sequence[Site], scene: str, rows: int, gradient: bool
) -> int:
    device = next(backbone.network.parameters()).device
    x = backbone.noise(range(rows)).to(device)
    conditioning = backbone.encode([scene] * rows).to(device)
    level = float(backbone.noise_levels(config.sampling_steps)[0])
    ones = torch.ones(max(2, rows), total_channels(sites), device=device)  # never one, which all samples would share
    read = sites if config.transport_weight > 0 or not gradient else ()
    with frozen(backbone.network), torch.set_grad_enabled(gradient), Meter() as meter:
        maps = leaf(TransportMaps(tuple(sites), ones, torch.zeros_like(ones))) if gradient else None
        keep = config.paired_weight > 0 or not gradient
        seen, clean = network_call(
            backbone, config, x, level, conditioning, read, maps, torch.arange(rows), keep
        )
        if gradient:
            loss = sum(value.float().square().sum() for value in (seen, clean) if value is not None)
            assert isinstance(loss, Tensor)
            loss.backward()
    return meter.peak


def device_plan(world: World, data: DataFolder, config: TrainingConfig) -> DevicePlan:
    """The plan of a run in this process. Raises ConfigError when a call with two samples runs out of memory."""
    device = network_device(world)
    weights = _bytes_of([world.backbone.network], device)
    encoders = _bytes_of([*_modules(world.backbone, 2), *_modules(world.encoder, 2)], device) - weights
    program = max(0, _resident() - weights - encoders) if device.type == "cpu" else 0
    states, graph = hypernetwork_bytes(config, data.sites, world.encoder.width)
    scene = world.scenes[0]
    return DevicePlan(
        weights,
        encoders,
        program,
        states,
        graph,
        _material(world, data, config, scene),
        measured_call(world.backbone, config, data.sites, scene, True),
        measured_call(world.backbone, config, data.collected_sites, scene, False),
        config.rows_per_pass(),
        config.batch,
    )


def _material(world: World, data: DataFolder, config: TrainingConfig, scene: str) -> int:
    """What validation keeps from one time to the next, and a step while its rows are ranked or run."""
    width = total_channels(data.sites) * (2 if config.pooling == "mean_std" else 1) * 4
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
    plan = device_plan(world, data, config)
    folder, available = Path(config.output or "."), _free(device)
    for line in describe_plan(world, data, config, disk, plan):
        log.info("%s", line)
    limit = config.memory_limit * GB if config.memory_limit else (plan.resident + available if available else None)
    _check_disk(world, data, config, disk, folder)
    if limit is not None:
        _check_device(world, data, config, plan, limit)


def describe_plan(
    world: World, data: DataFolder, config: TrainingConfig, disk: DiskPlan, plan: DevicePlan
) -> list[str]:
    """The lines that are printed, in gigabytes of 10⁹ bytes."""
    device, room = network_device(world), _free(network_device(world))
    free = f"{room / GB:.3g} free" if room else "free memory not known"
    limit = f", memory_limit {config.memory_limit:g}" if config.memory_limit else ""
    channels = total_channels(data.collected_sites)
    return [
        f"disk, GB: statistics {disk.statistics / GB:.3g} ({len(world.concepts.everything)} concepts x {len(data.levels)} levels x "
        f"{config.blocks} blocks x {channels:,} channels) + predictions {disk.predictions / GB:.3g} + embeddings "
        f"{disk.embeddings / GB:.3g} + checkpoints {disk.checkpoints / GB:.3g}; {disk.present / GB:.3g} there, "
        f"{_room_on_disk(Path(config.output or '.')) / GB:.3g} free",
        f"memory of {device}, GB: base model {plan.weights / GB:.3g} + encoders {plan.encoders / GB:.3g} + program "
        f"{plan.program / GB:.3g} + hypernetwork {(plan.states + plan.graph) / GB:.3g} (of which weights, mean, optimiser "
        f"{plan.states / GB:.3g}) + kept samples {plan.material / GB:.3g} + activations "
        f"{plan.training.of(plan.rows) / GB:.3g} ({plan.rows} samples of {plan.training.per_row / 1e6:.3g} MB and "
        f"{plan.training.fixed / 1e6:.3g} MB, measured; {plan.outside.of(plan.batch) / GB:.3g} for {plan.batch} samples "
        f"without gradient) = {plan.peak / GB:.3g} at most, {free}{limit}",
    ]


def _check_device(world: World, data: DataFolder, config: TrainingConfig, plan: DevicePlan, limit: float) -> None:
    if plan.peak <= limit:
        return
    room = limit - plan.lasting
    training = plan.training.rows_within(room - plan.graph)
    outside = plan.outside.rows_within(room)
    cures = []
    if training < plan.rows:
        cures.append(f"set samples_per_pass to {training}")
    if outside < plan.batch:
        cures.append(f"set batch to {outside}")
    raise ConfigError(
        f"Training needs {plan.peak / GB:.3g} GB on {network_device(world)} with {plan.rows} samples in a call, expected at "
        f"most {limit / GB:.3g} GB: "
        f"{' and '.join(cures) if training and outside else _last_resort(world, data, config, plan, limit)}."
    )


def _last_resort(world: World, data: DataFolder, config: TrainingConfig, plan: DevicePlan, limit: float) -> str:
    """What to do when not even one sample fits in a call."""
    room = limit - plan.lasting - plan.graph
    if room > 0 and not config.gradient_checkpointing:
        saving = config.with_values({"gradient_checkpointing": True})
        rows = measured_call(world.backbone, saving, data.sites, world.scenes[0], True).rows_within(room)
        if rows:
            return f"set gradient_checkpointing to true and samples_per_pass to {min(plan.rows, rows)}"
    bottleneck = config.bottleneck // 2
    while config.hypernetwork == "mlp" and bottleneck >= 16:
        states, graph = hypernetwork_bytes(
            config.with_values({"bottleneck": bottleneck}), data.sites, world.encoder.width
        )
        other = replace(plan, states=states, graph=graph)
        if other.least <= limit:
            rows = other.training.rows_within(limit - other.lasting - graph)
            return f"set bottleneck to {bottleneck} and samples_per_pass to {min(plan.rows, rows)}"
        bottleneck //= 2
    if config.memory_limit:
        return f"set memory_limit to at least {math.ceil(plan.least / GB * 10) / 10:g}, or lower resolution"
    return f"lower resolution, or use a device with at least {math.ceil(plan.least / GB)} GB"


# -- what there is ----------------------------------------------------------------------------------------------------


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _modules(thing: Any, depth: int) -> Iterator[nn.Module]:
    """Networks that an object holds: itself, its attributes, and theirs down to a depth."""
    if isinstance(thing, nn.Module):
        yield thing
    elif depth and hasattr(thing, "__dict__"):
        for value in vars(thing).values():
            yield from _modules(value, depth - 1)


def _bytes_of(modules: Sequence[nn.Module], device: torch.device) -> int:
    """Bytes of all their parameters and buffers on a device, each counted once."""
    sizes = {}
    for module in modules:
        for value in (*module.parameters(), *module.buffers()):
            if value.device == device:
                sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(sizes.values())


def _free(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where nobody says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    fields = _proc("/proc/meminfo")
    return int(fields[fields.index("MemAvailable:") + 1]) * 1024 if "MemAvailable:" in fields else _psutil_available()


def _psutil_available() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _resident() -> int:
    """Bytes of this process in memory, 0 where nobody says."""
    fields = _proc("/proc/self/status")
    return int(fields[fields.index("VmRSS:") + 1]) * 1024 if "VmRSS:" in fields else 0


def _proc(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []
