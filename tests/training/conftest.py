from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hypertransport_core.training import cli
from tests.training import worlds

ROOT = Path(worlds.__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    """Processes that are compared with each other must split their sums alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train() -> Callable[..., int]:
    """The command line on the tiny world, in this process: train(folder, "--steps", "4")."""
    return lambda output, *arguments: cli.main(["--preset", "tiny", "--output", str(output), *map(str, arguments)])


@pytest.fixture
def train_elsewhere() -> Callable[..., subprocess.CompletedProcess]:
    """The same in a process of its own, which dies where `die_at` says."""

    def run(output: Path, *arguments: str, die_at: str = "") -> subprocess.CompletedProcess:
        environment = {**os.environ, "DIE_AT": die_at, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [
            sys.executable,
            str(ROOT / "tests/training/worlds.py"),
            "--preset",
            "tiny",
            "--output",
            str(output),
            *arguments,
        ]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200)

    return run
