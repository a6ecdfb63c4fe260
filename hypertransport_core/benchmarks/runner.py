"""A whole benchmark: all parts one after the other, into one flat table of numbers."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..pipeline import Pipeline
from ..transport import TransportMaps
from . import growth
from .steering_costs import Subject, fitting, predicting, sampling
from .timing import Clock
from .training_costs import training


@dataclass(frozen=True)
class BenchSettings:
    """How much is measured.

    repeats: rounds of quick things; fits: of a whole fit (or of its extrapolation); whole_fit: 1000 steps instead of a
    few; concepts, steps: collected and trained; rows, at_once, channels: rows of a call, concepts predicted in one go
    and channels of a hypernetwork, from the fewest on, for the curves of growth; training: settings changed in the
    short training, for tests.
    """

    repeats: int = 15
    fits: int = 3
    whole_fit: bool = True
    concepts: int = 6
    steps: int = 10
    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    at_once: tuple[int, ...] = (1, 4, 16, 64)
    channels: tuple[int, ...] = (2_048, 8_192, 32_768, 65_664, 131_072, 294_080)  # norms of PixArt, last of SDXL
    training: dict[str, Any] = field(default_factory=dict)


QUICK = BenchSettings(
    repeats=5,
    fits=3,
    whole_fit=False,
    concepts=2,
    steps=2,
    rows=(1, 4, 16),
    at_once=(1, 4, 16),
    channels=(2_048, 8_192, 32_768, 131_072),
)


def bench(
    folder: Path,
    settings: BenchSettings,
    *,
    hypernetwork: str | None = None,
    device: torch.device | str = "cpu",
    processor_time: bool = False,
    tell: Callable[[str], None] = lambda part: None,
) -> dict[str, Any]:
    """Measure the Postcard world of a weights folder; flat keys, see `report.KEYS`. processor_time:
    see `timing.Clock`; tell: hears what is measured next.

    Raises FileError for weights that are missing or do not fit.
    """
    started, device = time.monotonic(), torch.device(device)
    pipeline = Pipeline.load(folder, hypernetwork=hypernetwork, device=device)
    clock = Clock(device, processor_time)
    subject, repeats = Subject.of(pipeline, clock), settings.repeats
    found = {**_about(pipeline, clock, settings), **_sizes(subject)}
    parts: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("predicting", lambda: predicting(subject, repeats)),
        ("sampling", lambda: sampling(subject, repeats)),
        ("growth with sites", lambda: growth.by_sites(subject, repeats)),
        ("growth with rows", lambda: growth.by_rows(subject, repeats, settings.rows)),
        ("growth with concepts", lambda: growth.by_concepts(subject, repeats, settings.at_once)),
        ("growth with channels", lambda: growth.by_channels(subject, repeats, settings.channels)),
        ("fitting", lambda: fitting(subject, settings.fits, settings.whole_fit)),
        (
            "collecting and training",
            lambda: training(folder, clock, settings.concepts, settings.steps, **settings.training),
        ),
    ]
    for name, part in parts:
        tell(name)
        if name == "fitting":
            found["memory.steering_peak_bytes"] = peak_memory(device)
        found |= part()
    found["memory.peak_bytes"] = peak_memory(device)
    found["seconds"] = time.monotonic() - started
    return found


def _about(pipeline: Pipeline, clock: Clock, settings: BenchSettings) -> dict[str, Any]:
    assert pipeline.hypernetwork is not None
    device = clock.device
    return {
        "about.version": __version__,
        "about.torch": torch.__version__,
        "about.python": platform.python_version(),
        "about.system": f"{platform.system()} {platform.machine()}",
        "about.device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "about.clock": "processor time" if clock.processor else "wall clock",
        "about.threads": torch.get_num_threads(),
        "about.repeats": settings.repeats,
        "about.sites": len(pipeline.hypernetwork.sites),
        "about.channels": pipeline.hypernetwork.channels,
    }


def _sizes(subject: Subject) -> dict[str, Any]:
    pipeline = subject.pipeline
    assert pipeline.hypernetwork is not None
    steps = [subject.maps] if isinstance(subject.maps, TransportMaps) else list(subject.maps)
    maps = sum(tensor.numel() * 4 for one in steps for tensor in (one.scale, one.shift))
    model = _bytes(pipeline.backbone.network)
    return {
        "memory.maps_bytes_per_concept": maps,
        "memory.hypernetwork_bytes": _bytes(pipeline.hypernetwork),
        "memory.model_bytes": model,
        "ratio.maps_over_model_bytes": maps / model,
    }


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def peak_memory(device: torch.device) -> int | None:
    """Most memory so far in bytes: of the device, or of this process on the CPU; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)
