"""SDXL and PixArt at full size, random weights, bf16, on a CPU: from concepts to a steered picture.

    python -m pytest -m slow -s tests/slow/test_full_size.py

prints memory and time of every stage. The base models are the host's own classes with the true dimensions; prompts become
fixed random vectors, one per word, that enter through the host's `extra_conds`, as a T5 or CLIP-G of true size would only
add loading time; nothing is decoded. One of each model's steps and settings is that of its preset.
"""

from __future__ import annotations

import gc
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pack import load_pack, pack_module, run_node
from random_worlds import random_world
from tests.host.test_training_through_host import CONCEPTS, core, loaded_by_the_node  # noqa: F401

# What differs from the preset: enough to run every stage, and learning rates that show in two steps.
SHORT = {
    "device": "cpu", "prompts_per_concept": 2, "blocks": 2, "samples_per_concept": 2, "concepts_per_step": 2,
    "concepts_per_pass": 1, "images_per_concept": 0, "image_share": 0.0, "batch": 2, "steps": 2, "warmup": 0,
    "learning_rate": 1e-3, "head_learning_rate": 3e-3, "validate_every": 2, "validation_concepts": 1,
    "strip_concepts": 0, "tensorboard": False,
}  # fmt: skip
SAMPLING = {"steps": 2, "cfg": 1.0}


class Stages:
    """Time and memory of what is done in turn."""

    def __init__(self, name: str) -> None:
        self.name, self.rows, self.warm = name, [], resident()

    @contextmanager
    def stage(self, words: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.rows.append((words, time.process_time() - processor, time.perf_counter() - wall, resident(), peak()))
        print("| {} | {:.1f} | {:.1f} | {:.2f} | {:.2f} |".format(*self.rows[-1]), flush=True)

    def head(self) -> None:
        print(f"\n{self.name}; {self.warm:.2f} GB before it, {torch.get_num_threads()} thread(s)")
        print("| stage | processor s | wall s | GB after it | peak GB so far |\n| --- | --- | --- | --- | --- |")


def resident() -> float:
    """Gigabytes of this process in memory."""
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) * 1024 / 1e9


def peak() -> float:
    """The most it ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@pytest.fixture(autouse=True)
def tidy():
    """One thread, so that processor time is that of the work; and nothing of one model left for the next."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    gc.collect()


def train(core: SimpleNamespace, world: Any, config: Any, stages: Stages) -> Path:  # noqa: F811
    """What `run_stages` does, stage by stage; returns the exported file."""
    from hypertransport_core.training.export import export
    from hypertransport_core.training.interruption import Interruption
    from hypertransport_core.training.memory import check_memory

    run = Path(config.output)
    data = core.data.DataFolder(run / "data", world, config)
    core.stages.describe(world, data)
    with stages.stage("memory plan"):
        check_memory(world, data, config, ("collect", "train"))
    with Interruption() as interruption:
        with stages.stage(f"collect {len(CONCEPTS)} concepts and the generic class"):
            core.stages.collect(world, data, interruption)
        with stages.stage(f"train {config.steps} steps and validate"):
            core.stages.train(world, data, config, run, interruption)
    with stages.stage("export"):
        export(world, data, config, run)
    return run / "hypernetwork.safetensors"


@pytest.mark.parametrize(
    ("size", "name", "preset", "px"),
    [
        pytest.param("small", "pixart", "nitro-pixart", 272, id="small"),  # so that this very code runs every time
        pytest.param("large", "pixart", "nitro-pixart", 272, id="pixart", marks=pytest.mark.slow),
        pytest.param("large", "sdxl", "dmd2-1step", 256, id="sdxl", marks=pytest.mark.slow),
    ],
)
def test_full_size(
    size: str, name: str, preset: str, px: int, core: SimpleNamespace, tmp_path: Path, monkeypatch, caplog  # noqa: F811
) -> None:
    load_pack()
    import large_hosts

    caplog.set_level(logging.INFO, "hypertransport.training")
    config = core.config.TrainingConfig().with_values(
        {**core.host_recipes.RECIPES[preset].all_settings, **SHORT, "preset": preset, "resolution": px, "output": str(tmp_path)}
        | ({"width": 16, "bottleneck": 8} if size == "small" else {}))  # fmt: skip
    stages = Stages(f"{size} {name}, preset {preset}, {px} px")
    stages.head()
    with stages.stage("build"):
        host = large_hosts.large_host(name, px) if size == "large" else large_hosts.small_host(name)
    parameters = sum(p.numel() for p in host.network.parameters())
    assert size == "small" or parameters == {"pixart": 611_349_152, "sdxl": 2_567_463_684}[name]
    assert next(host.network.parameters()).dtype == torch.bfloat16
    world = random_world(host, config, CONCEPTS[:2], CONCEPTS[2:])
    assert world.backbone.latent_shape == host.family.latent
    path = train(core, world, config, stages)
    print("\n".join(r.getMessage() for r in caplog.records if r.name.startswith("hypertransport")))
    with stages.stage("load in the node"):
        weights = loaded_by_the_node(path, monkeypatch)
    if size == "large":
        assert len(weights.hypernetwork.sites) == {"pixart": 57, "sdxl": 256}[name]
        assert weights.header["backbone"]["family"] == {"pixart": "PixArtAlpha", "sdxl": "SDXL"}[name]
    print(f"{parameters / 1e9:.3f} G parameters, file of {path.stat().st_size / 1e6:.1f} MB")
    steer_and_check(host, weights, stages)


def steer_and_check(host: Any, weights: Any, stages: Stages) -> None:
    """Through the nodes: the concept acts, is finite, and strength 0 is nothing at all, bit for bit."""
    encoder = pack_module("nodes.postcard").postcard_clip_encoder()
    concept = pack_module("hypertransport_core.encoders.concept").concept_from_text(encoder, "teal mosaic")
    steer = pack_module("nodes.steer").HyperTransportSteer
    with stages.stage("sample unsteered, 2 steps"):
        plain = host.sample(**SAMPLING)
    with stages.stage("sample steered, 2 steps"):
        one = run_node(steer, model=host.model, weights=weights, concept=concept, strength=1.0)[0]
        steered = host.sample(one, **SAMPLING)
    off = host.sample(run_node(steer, model=host.model, weights=weights, concept=concept, strength=0.0)[0], **SAMPLING)
    moved = float((steered - plain).float().norm() / plain.float().norm())
    print(f"steered differs from unsteered by {moved:.3g} of its norm")
    assert bool(plain.isfinite().all()) and bool(steered.isfinite().all())
    assert torch.equal(off, plain)
    assert moved > 1e-3 and float(plain.std()) > 1e-3
