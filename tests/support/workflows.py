"""Saved workflows (what the page saves: nodes with positions, widget values in order, links) as API prompts, as the page would post them.

tests/browser compares this with the page's own `graphToPrompt` for every shipped workflow.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_boot import PACK

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4
FROM_OUTSIDE, TO_OUTSIDE = -10, -20  # the ends of a subgraph, as its links name them


def shipped(folder: str = "example_workflows") -> list[Path]:
    """The workflows in the pack, by name."""
    return sorted((PACK / folder).glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    """A workflow file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def to_prompt(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The API prompt of a workflow. Muted nodes, notes, reroutes and primitives are gone, bypassed nodes are bridged, subgraphs
    are laid out flat with ids `outer:inner`. Raises ValueError for a node that the host does not have."""
    top = _Graph(workflow, {item["id"]: item for item in workflow.get("definitions", {}).get("subgraphs", ())})
    prompt = {}
    for graph, node in top.everything():
        if node["type"] in NOTES | {"Reroute", "PrimitiveNode"} or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"node {node['id']} is a {node['type']}, which the host does not have")
        info = object_info[node["type"]]
        inputs = widget_values(node, info)
        for slot in node.get("inputs", ()):
            if slot.get("link") is None:
                continue
            source = graph.source(slot["link"])
            if isinstance(source, _Constant):
                inputs[slot["name"]] = source.value
            elif source is not None:
                inputs[slot["name"]] = list(source)
            else:
                inputs.pop(slot["name"], None)
        prompt[graph.prefix + str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node.get("title") or info["display_name"]}}
    return prompt


def widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Widget name -> value of a saved node. Values beyond those saved are the defaults."""
    saved = node.get("widgets_values") or []
    if isinstance(saved, Mapping):
        return {name: saved[name] for name in widget_names(info) if name in saved}
    values = {}
    for index, name in enumerate(widget_names(info)):
        if name is None:
            continue
        if index < len(saved):
            value = saved[index]
        else:
            spec = {**info["input"].get("required", {}), **info["input"].get("optional", {})}[name]
            value = _default(spec)
        values[name] = {"__value__": value} if isinstance(value, list) else value
    return values


def widget_names(info: Mapping[str, Any]) -> list[str | None]:
    """The widgets of a node in the order in which their values are saved; None for those that are not inputs: the choice of what
    happens to a seed after a run, and the upload button."""
    names: list[str | None] = []
    for group in ("required", "optional"):
        upload = False
        for name in info.get("input_order", {}).get(group) or info["input"].get(group, {}):
            spec = info["input"][group][name]
            options = spec[1] if len(spec) > 1 else {}
            if not (isinstance(spec[0], list) or spec[0] in WIDGETS) or options.get("forceInput"):
                continue
            names.append(name)
            if options.get("control_after_generate", spec[0] == "INT" and name in ("seed", "noise_seed")):
                names.append(None)
            upload = upload or any(options.get(kind) for kind in ("image_upload", "video_upload", "animated_image_upload"))
        if upload:
            names.append(None)
    return names


def _default(spec: list[Any]) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options") or [None]
    return options.get("default", {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(str(spec[0]), choices[0]))


@dataclass(frozen=True)
class _Constant:
    value: Any


class _Graph:
    """One level of a workflow: the whole, or one use of a subgraph inside it."""

    def __init__(
        self, data: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str = "", outer: tuple[_Graph, Mapping[str, Any]] | None = None
    ) -> None:
        self.data, self.definitions, self.prefix, self.outer = data, definitions, prefix, outer
        self.nodes = {node["id"]: node for node in data["nodes"]}
        self.links: dict[int, tuple[int, int, int, int, str]] = {}  # id -> (from node, its slot, to node, its slot, type)
        for link in data["links"]:
            if isinstance(link, Mapping):
                self.links[link["id"]] = (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"], link["type"])
            else:
                self.links[link[0]] = tuple(link[1:6])
        self.inner = {
            node["id"]: _Graph(definitions[node["type"]], definitions, f"{prefix}{node['id']}:", (self, node))
            for node in data["nodes"] if node["type"] in definitions and node.get("mode", 0) not in (MUTED, BYPASSED)
        }

    def everything(self) -> Iterator[tuple[_Graph, Mapping[str, Any]]]:
        """Every node with the level it is on, those of subgraphs in place of their use."""
        for node in self.data["nodes"]:
            if node["id"] in self.inner:
                yield from self.inner[node["id"]].everything()
            elif node["type"] not in self.definitions:
                yield self, node

    def source(self, link_id: int | None) -> tuple[str, int] | _Constant | None:
        """Where a link really comes from: (node id in the prompt, output), a primitive's value, or nothing."""
        if link_id is None or link_id not in self.links:
            return None
        node_id, slot, _, _, kind = self.links[link_id]
        if node_id == FROM_OUTSIDE:
            if self.outer is None:
                return None
            graph, use = self.outer
            return graph.source(use["inputs"][slot].get("link"))
        if node_id in self.inner:
            inside = self.inner[node_id]
            ends = [key for key, link in inside.links.items() if link[2] == TO_OUTSIDE and link[3] == slot]
            return inside.source(ends[0]) if ends else None
        node = self.nodes[node_id]
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0].get("link"))
        if node["type"] == "PrimitiveNode":
            return _Constant(node["widgets_values"][0])
        if node.get("mode", 0) == MUTED:
            return None
        if node.get("mode", 0) == BYPASSED:
            inputs = node.get("inputs", [])
            alike = [entry for entry in inputs[slot : slot + 1] + inputs if entry["type"] == kind]
            return self.source(alike[0].get("link")) if alike else None
        return self.prefix + str(node_id), slot
