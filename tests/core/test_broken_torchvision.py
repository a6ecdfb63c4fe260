"""A torchvision made for another torch, or none at all, does not keep the demo from running."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from small_postcard import write_world

ROOT = Path(__file__).resolve().parents[2]
# What stands where torchvision should be: as the real one fails beside a torch that it does not fit, or in other ways.
FAKES = {
    "operator torchvision::nms does not exist": "import torchvision.extension\nraise RuntimeError('operator torchvision::nms does not exist')\n",
    "libcudart.so.13: no such file": "raise OSError('libcudart.so.13: no such file')\n",
    "No module named 'nothing_like_this'": "import nothing_like_this\n",
}
BROKEN = """
import importlib.util, sys
from hypertransport_core import broken_torchvision

with broken_torchvision.set_aside():
    assert importlib.util.find_spec("torchvision") is None
assert not [name for name in sys.modules if name.split(".")[0] == "torchvision"]
try:
    import torchvision
except (RuntimeError, OSError, ModuleNotFoundError) as error:
    assert str(error) == sys.argv[1], error
else:
    raise AssertionError("those who ask for it shall still hear what is wrong")
"""
DEMO = """
import sys
from hypertransport_core.commands import main

sys.exit(main(sys.argv[1:]))
"""
WORKING = """
import sys
from hypertransport_core import broken_torchvision

with broken_torchvision.set_aside():
    import torchvision
assert torchvision.works and sys.modules["torchvision"] is torchvision
"""
MISSING = """
import importlib.util, sys
sys.modules["torchvision"] = None
from hypertransport_core import broken_torchvision

with broken_torchvision.set_aside():
    assert importlib.util.find_spec("torchvision") is None
"""


def python(script: str, *arguments: str, first: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(first), str(ROOT)))}
    return subprocess.run([sys.executable, "-c", script, *arguments], env=environment, cwd=first, capture_output=True, text=True, timeout=300)


def fake(folder: Path, content: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(content)
    (folder / "torchvision" / "extension.py").write_text("")


def test_the_demo_runs_beside_a_broken_torchvision(tmp_path: Path) -> None:
    fake(tmp_path, FAKES["operator torchvision::nms does not exist"])
    world, sheet = write_world(tmp_path / "weights"), tmp_path / "sheet.png"
    options = ("--weights", str(world), "--output", str(sheet), "--steps", "1", "--strength", "1", "--concept", "neon")
    done = python(DEMO, "demo", *options, first=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sheet.is_file()


@pytest.mark.parametrize("words", FAKES)
def test_a_broken_torchvision_is_out_of_sight_for_a_while(words: str, tmp_path: Path) -> None:
    fake(tmp_path, FAKES[words])
    done = python(BROKEN, words, first=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", [WORKING, MISSING])
def test_a_torchvision_that_works_or_lacks_is_left_alone(script: str, tmp_path: Path) -> None:
    fake(tmp_path, "works = True\n")
    done = python(script, first=tmp_path)
    assert done.returncode == 0, done.stderr
