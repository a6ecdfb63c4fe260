"""The Python of the README and the guides runs as it stands there, with the shipped weights."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.tiny_backbone import TinyBackbone

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:python|py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# In running text: calls of what the blocks above have made.
CALL = re.compile(r"`((?:maps|a|pipeline|TransportMaps|Pipeline)\.\w+\([^`]*\))`")


def blocks(guide: Path) -> list[str]:
    return BLOCK.findall(guide.read_text(encoding="utf-8"))


def surroundings() -> dict[str, Any]:
    """What readers are to have of their own: a network to steer, and its inputs."""
    tiny = TinyBackbone()
    conditioning = tiny.encode(["a cat"])
    return {"network": tiny.network, "x": tiny.noise([1]), "t": torch.tensor([1000.0]), "context": conditioning}


def run(code: str, names: dict[str, Any], name: str) -> dict[str, Any]:
    """What a block leaves behind, as a file of its own, so that an error names the line."""
    path = Path(f"{name}.py")
    path.write_text(code, encoding="utf-8")
    return {key: value for key, value in runpy.run_path(str(path), names).items() if not key.startswith("__")}


@pytest.mark.parametrize("guide", [guide for guide in GUIDES if blocks(guide)], ids=lambda guide: guide.name)
def test_python_in_the_guides_runs(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save("holiday.jpg")
    names = surroundings()
    for number, code in enumerate(blocks(guide)):
        names = run(code, names, f"block_{number}")
    if guide.name == "README.md":
        assert sorted(path.name for path in tmp_path.glob("*.png")) == ["house-7.png", "house-8.png"]
    if "pictures" in names:
        pictures = names["pictures"]
        assert pictures.shape == (2, 3, 64, 64) and 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    calls = CALL.findall(guide.read_text(encoding="utf-8"))
    if calls:
        names.setdefault("a", names["maps"]), names.setdefault("b", names["maps"])
        run("from hypertransport_core import TransportMaps\n" + "\n".join(calls), names, "calls")


def test_there_is_python_to_run() -> None:
    assert {guide.name for guide in GUIDES if blocks(guide)} >= {"README.md", "getting-started.md"}
    assert CALL.findall("`maps.norm()` and `a.then(b)`") == ["maps.norm()", "a.then(b)"]


def test_figures_of_the_readme_are_those_of_the_results() -> None:
    writer = runpy.run_path(str(ROOT / "docs" / "readme_numbers.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert writer["written"](text, json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))) == text
