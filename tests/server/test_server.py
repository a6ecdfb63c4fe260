"""The pack in the real server: it loads without a word of complaint, every node is described in full, mistakes are answered in words."""
from __future__ import annotations

import re
from typing import Any

import pytest

from comfy_boot import PACK
from comfy_server import PACK_NAME, Server

pytestmark = pytest.mark.host

# Read from the source, so that a node that is written but not registered is missed, and none needs to be named here.
NODE_IDS = sorted({found for file in (PACK / "nodes").glob("*.py") for found in re.findall(r'node_id="(\w+)"', file.read_text(encoding="utf-8"))})
each_node = pytest.mark.parametrize("node_id", NODE_IDS)

CORE_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def inputs_of(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Input name -> (type, options), required and optional."""
    found = {}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            found[name] = (spec[0], spec[1] if len(spec) > 1 else {})
    return found


def test_pack_loads_without_complaint(server: Server) -> None:
    log = server.log()[: server.start_of_use]
    assert f"custom_nodes/{PACK_NAME}" in log.replace("\\", "/"), log[-2000:]
    assert "(IMPORT FAILED): " not in log
    assert server.complaints(until=server.start_of_use) == []


def test_every_written_node_is_registered(server: Server) -> None:
    assert sorted(server.own_nodes()) == NODE_IDS


def test_model_folder_lists_shipped_files(server: Server) -> None:
    shipped = {file.name for file in (PACK / "weights").glob("*.safetensors")}
    assert shipped <= set(server.get("/models/hypertransport"))


@each_node
class TestNode:
    def test_name_and_place(self, server: Server, node_id: str) -> None:
        info = server.own_nodes()[node_id]
        assert re.fullmatch(r"HyperTransport[A-Z]\w+", node_id)
        assert info["category"].split("/")[0] == "HyperTransport"
        assert info["display_name"] and info["display_name"] != node_id

    def test_description(self, server: Server, node_id: str) -> None:
        words = server.own_nodes()[node_id]["description"]
        assert len(words) > 40 and words.rstrip().endswith("."), words

    def test_every_input_has_a_tooltip(self, server: Server, node_id: str) -> None:
        without = [name for name, (_, options) in inputs_of(server.own_nodes()[node_id]).items() if not options.get("tooltip", "").strip()]
        assert without == []

    def test_every_output_has_a_tooltip_and_a_name(self, server: Server, node_id: str) -> None:
        info = server.own_nodes()[node_id]
        tooltips = info.get("output_tooltips") or []
        assert len(tooltips) == len(info["output"]) and all(tooltips), tooltips
        assert len(info["output_name"]) == len(info["output"]) and all(info["output_name"])

    def test_numbers_are_bounded_and_default_inside(self, server: Server, node_id: str) -> None:
        for name, (kind, options) in inputs_of(server.own_nodes()[node_id]).items():
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], name
                assert options["max"] < 1e6 or "seed" in name, f"{name} has no bound that means anything"

    def test_sliders_have_tight_bounds_and_a_step(self, server: Server, node_id: str) -> None:
        for name, (_, options) in inputs_of(server.own_nodes()[node_id]).items():
            if options.get("display") == "slider":
                assert options["max"] - options["min"] <= 100 * max(options["step"], 0.05), name

    def test_own_sockets_are_upper_case(self, server: Server, node_id: str) -> None:
        info = server.own_nodes()[node_id]
        kinds = [kind for kind, _ in inputs_of(info).values() if isinstance(kind, str)] + [kind for kind in info["output"] if isinstance(kind, str)]
        assert [kind for kind in kinds if kind != kind.upper()] == []

    def test_default_of_a_choice_is_among_them(self, server: Server, node_id: str) -> None:
        for name, (kind, options) in inputs_of(server.own_nodes()[node_id]).items():
            choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
            if choices and "default" in options:
                assert options["default"] in choices, name

    def test_left_unconnected_it_is_refused_before_running(self, server: Server, node_id: str) -> None:
        """A required socket without a link is named in node_errors, and nothing is queued."""
        info = server.own_nodes()[node_id]
        sockets = [name for name, spec in info["input"].get("required", {}).items() if isinstance(spec[0], str) and spec[0] not in CORE_TYPES]
        if not sockets:
            return
        prompt: dict[str, Any] = {"1": {"class_type": node_id, "inputs": {}}}
        if not info["output_node"]:
            prompt["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
        result = server.run(prompt)
        assert result.status == "refused"
        named = {error["extra_info"].get("input_name") for error in result.node_errors["1"]["errors"]}
        assert set(sockets) <= named
