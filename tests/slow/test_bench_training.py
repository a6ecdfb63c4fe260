"""The script that measures training on a GPU runs, with very small models, on a CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "bench_training.py"


@pytest.mark.slow
def test_every_line_of_the_table_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--small", "--device", "cpu", "--steps", "2", "--json", str(tmp_path / "a.json")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 17 and not [row for row in rows if row[2].strip() == "–"]
    assert found["memory.least_bytes"] < found["memory.train_bytes"] and found["ratio.fit_over_predict.median"] > 1
    assert not [key for key in found if key.startswith("no_room")]
