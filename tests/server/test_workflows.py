"""Every shipped workflow in the real server. How they are turned into prompts is checked against the page in tests/browser."""
from __future__ import annotations

from pathlib import Path

import pytest

import workflows
from comfy_server import Server

pytestmark = pytest.mark.host
NEEDS_FILES = ("12", "13")  # templates for checkpoints that a user has

every_workflow = pytest.mark.parametrize("path", workflows.shipped(), ids=lambda path: path.stem)


@every_workflow
def test_has_a_thumbnail_and_a_note(path: Path) -> None:
    assert path.with_suffix(".jpg").is_file()
    notes = [node for node in workflows.load(path)["nodes"] if node["type"] in workflows.NOTES]
    assert notes and len(notes[0]["widgets_values"][0]) > 40


@every_workflow
def test_knows_every_node_and_choice(server: Server, path: Path) -> None:
    """The host has every node; every saved number is in range and every saved choice exists, files of users' own left aside."""
    for key, node in workflows.to_prompt(workflows.load(path), server.object_info()).items():
        info = server.object_info()[node["class_type"]]
        for name, spec in {**info["input"].get("required", {}), **info["input"].get("optional", {})}.items():
            value, options = node["inputs"].get(name), spec[1] if len(spec) > 1 else {}
            if isinstance(value, int | float) and not isinstance(value, bool) and "min" in options:
                assert options["min"] <= value <= options["max"], (key, name, value)
            choices = spec[0] if isinstance(spec[0], list) else options.get("options") if spec[0] == "COMBO" else None
            if choices and isinstance(value, str) and not value.endswith((".safetensors", ".png", ".jpg")):
                assert value in choices, (key, name, value)


@every_workflow
def test_runs_as_shipped(server: Server, path: Path) -> None:
    if path.stem.startswith(NEEDS_FILES):
        pytest.skip("made for checkpoints that are not shipped")
    prompt = workflows.to_prompt(workflows.load(path), server.object_info())
    begun = len(server.log())
    result = server.run(prompt, timeout=300)
    assert result.status == "success", result.sentences() + result.traceback
    shows = {key for key, node in prompt.items() if server.object_info()[node["class_type"]]["output_node"]}
    assert shows <= {*result.outputs, *result.cached} | {key for key in shows if not _has_ui(prompt[key])}
    for picture in server.pictures(result):
        low_high = picture.convert("RGB").getextrema()
        assert any(high - low > 20 for low, high in low_high), "a picture of one colour"
    assert server.complaints(begun) == []


def _has_ui(node: dict[str, object]) -> bool:
    return str(node["class_type"]) in ("SaveImage", "PreviewImage", "PreviewAny")
