"""Writes workflows in the page's own format, from node names, values by name and links by name, laid out in columns and coloured groups.

    graph = Graph(object_info)
    world = graph.node("HyperTransportPostcard")
    sample = graph.node("KSampler", model=world.out("model"), seed=7, ...)
    graph.group("Model", BLUE, [world], [sample])      # a group to the right of the last, of two columns
    graph.workflow()

Which inputs a node has, in which order and of which kind, comes from the host's /object_info: nothing of it is written down twice.
"""
from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflows import MUTED, NOTES, WIDGETS, _default, widget_names

BLUE, GREEN, ORANGE, PURPLE, GREY = "#5fa8d3", "#7bc47f", "#e0a458", "#b48ad6", "#a0a6ad"
TITLE, SLOT, WIDGET, GAP, PAD = 30, 20, 24, 40, 20  # pixels, as the page draws nodes and groups
OPTIONAL_SHAPE = 7  # a hollow socket


@dataclass(frozen=True)
class Out:
    """One output of a node."""

    node: Node
    slot: int
    kind: str


@dataclass(eq=False)
class Node:
    """A node to be written. `values` are by widget name, `links` by input name."""

    number: int
    type: str
    info: Mapping[str, Any]
    values: dict[str, Any]
    links: dict[str, Out]
    title: str = ""
    mode: int = 0
    width: int = 300
    height: int = 0  # at least; 0 = as its inputs need
    colour: str = ""
    place: list[int] = field(default_factory=lambda: [0, 0])

    def out(self, name: str | int = 0) -> Out:
        """An output by its name or number."""
        names = [str(one).lower() for one in self.info["output_name"]]
        slot = name if isinstance(name, int) else names.index(name.lower())
        return Out(self, slot, _kind(self.info["output"][slot]))

    def inputs(self) -> list[tuple[str, list[Any], bool]]:
        """(name, spec, is optional) in the host's order."""
        found = []
        for group in ("required", "optional"):
            for name in self.info.get("input_order", {}).get(group) or self.info["input"].get(group, {}):
                found.append((name, self.info["input"][group][name], group == "optional"))
        return found

    def is_widget(self, spec: list[Any]) -> bool:
        """Whether the page draws an input as a widget."""
        options = spec[1] if len(spec) > 1 else {}
        return (isinstance(spec[0], list) or spec[0] in WIDGETS) and not options.get("forceInput")

    def folded(self) -> list[str]:
        """Widgets that the page does not show, see web/advanced.js: advanced ones of ours, where none has another value."""
        found = {name: spec for name, spec, _ in self.inputs() if len(spec) > 1 and spec[1].get("advanced") and self.is_widget(spec)}
        used = any(name in self.links or self.values.get(name, _default(spec)) != _default(spec) for name, spec in found.items())
        if used or not self.type.startswith("HyperTransport"):
            return []
        return [*found]

    def size(self) -> list[int]:
        """Width and height as the page would make them at least, or more where asked."""
        if self.type in NOTES:
            return [self.width, self.height]
        slots = sum(not self.is_widget(spec) for _, spec, _ in self.inputs())
        rows = max(slots, len(self.info["output"]), 1)
        texts = sum(bool(len(spec) > 1 and spec[1].get("multiline")) for _, spec, _ in self.inputs())
        widgets = len(widget_names(self.info)) - len(self.folded())
        needed = SLOT * rows + 6 + WIDGET * (widgets - texts) + 80 * texts + (8 if widgets else 0)
        return [self.width, max(self.height, needed)]


def _kind(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else str(kind)


class Graph:
    """A workflow in the making."""

    def __init__(self, object_info: Mapping[str, Any], first: int = 1) -> None:
        self.info, self.first = object_info, first
        self.nodes: list[Node] = []
        self.groups: list[dict[str, Any]] = []
        self.right = 0  # where the next group starts

    def node(
        self, kind: str, *, title: str = "", width: int = 300, height: int = 0, muted: bool = False, colour: str = "", **inputs: Any
    ) -> Node:
        """Add a node. `inputs` are outputs of other nodes or values of widgets; those not named are the defaults; `width_`
        is an input called width. Raises KeyError for an input that the node does not have."""
        node = Node(self.first + len(self.nodes), kind, self.info[kind], {}, {}, title, MUTED if muted else 0, width, height, colour)
        known = {name: spec for name, spec, _ in node.inputs()}
        for name, value in ((name.rstrip("_"), value) for name, value in inputs.items()):
            if name not in known:
                raise KeyError(f"{kind} has no input {name}, it has {', '.join(known)}")
            (node.links if isinstance(value, Out) else node.values)[name] = value
        self.nodes.append(node)
        return node

    def note(self, text: str, *, width: int = 380, height: int = 300, title: str = "What this shows") -> Node:
        """Add a note, in Markdown."""
        info = {"input": {}, "output": [], "output_name": []}
        node = Node(self.first + len(self.nodes), "MarkdownNote", info, {"text": text}, {}, title, 0, width, height, "#432")
        self.nodes.append(node)
        return node

    # -- layout

    def group(self, title: str, colour: str, *columns: Sequence[Node], at: tuple[int, int] | None = None) -> tuple[int, int]:
        """Place nodes in columns, each a stack, inside a coloured frame; without `at` to the right of all before. Returns the frame's
        right and lower edge."""
        left, top = at or (self.right, 0)
        x, low = left + PAD, top
        for column in columns:
            y = top + 2 * TITLE + PAD
            for node in column:
                node.place = [x, y]
                y += node.size()[1] + TITLE + GAP // 2
            low = max(low, y - TITLE - GAP // 2)
            x += max(node.size()[0] for node in column) + GAP
        right, low = x - GAP + PAD, low + PAD
        self.groups.append({
            "id": len(self.groups) + 1, "title": title, "bounding": [left, top, right - left, low - top], "color": colour, "font_size": 24, "flags": {},
        })
        self.right = max(self.right, right + PAD)
        return right, low

    def corner(self, note: Node, title: str, colour: str, column: Sequence[Node]) -> None:
        """The note in the upper left corner and below it, as wide, a group of one column."""
        note.place = [0, TITLE]
        for node in column:
            node.width = note.width - 2 * PAD
        self.group(title, colour, column, at=(0, note.height + 2 * TITLE))

    # -- writing

    def workflow(self) -> dict[str, Any]:
        """What the page saves."""
        links, number = [], 0
        incoming: dict[tuple[int, str], int] = {}
        outgoing: dict[tuple[int, int], list[int]] = {}
        for node in self.nodes:
            for slot, (name, kind, _) in enumerate(slots_of(node)):
                if name in node.links:
                    number += 1
                    source = node.links[name]
                    links.append([number, source.node.number, source.slot, node.number, slot, source.kind])
                    incoming[node.number, name] = number
                    outgoing.setdefault((source.node.number, source.slot), []).append(number)
        order = self._order()
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([node.type for node in self.nodes]))), "revision": 0,
            "last_node_id": self.nodes[-1].number, "last_link_id": number,
            "nodes": [self._saved(node, order[node.number], incoming, outgoing) for node in self.nodes],
            "links": links, "groups": self.groups, "config": {}, "extra": {"ds": self._view()}, "version": 0.4,
        }

    def _view(self) -> dict[str, Any]:
        """Everything in a window of 1600 × 1000, whether the page's bars at the left and above lie beside the graph or over it."""
        if not self.groups:
            return {"scale": 1.0, "offset": [0, 0]}
        right, low = (max(group["bounding"][axis] + group["bounding"][axis + 2] for group in self.groups) for axis in (0, 1))
        scale = round(min(1.0, 1420 / right, 780 / low), 3)
        return {"scale": scale, "offset": [round(85 / scale), round(100 / scale)]}

    def _saved(self, node: Node, order: int, incoming: Mapping[tuple[int, str], int], outgoing: Mapping[tuple[int, int], list[int]]) -> dict[str, Any]:
        saved: dict[str, Any] = {
            "id": node.number, "type": node.type, "pos": node.place, "size": node.size(), "flags": {}, "order": order, "mode": node.mode,
            "inputs": [], "outputs": [], "properties": {"Node name for S&R": node.type}, "widgets_values": self.widget_values(node),
        }
        for name, kind, spec in slots_of(node):
            entry: dict[str, Any] = {"name": name, "type": kind, "link": incoming.get((node.number, name))}
            if node.is_widget(spec):
                entry["widget"] = {"name": name}
            elif any(optional for other, _, optional in node.inputs() if other == name):
                entry["shape"] = OPTIONAL_SHAPE
            saved["inputs"].append(entry)
        for slot, (name, kind) in enumerate(zip(node.info["output_name"], node.info["output"])):
            saved["outputs"].append({"name": name, "type": _kind(kind), "links": outgoing.get((node.number, slot))})
        if node.title:
            saved["title"] = node.title
        if node.colour:
            saved |= {"color": node.colour, "bgcolor": "#653"} if node.type in NOTES else {"color": node.colour}
        return saved

    def widget_values(self, node: Node) -> list[Any]:
        """The values in the order in which the page saves them; what happens to a seed after a run is `fixed`."""
        if node.type in NOTES:
            return [node.values["text"]]
        specs = {name: spec for name, spec, _ in node.inputs()}
        values = [
            "fixed" if name is None else node.values[name] if name in node.values else _default(specs[name]) for name in widget_names(node.info)
        ]
        return [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]  # as the page's language does

    def _order(self) -> dict[int, int]:
        """Node number -> place in the order of execution."""
        done: dict[int, int] = {}

        def visit(node: Node) -> None:
            for source in node.links.values():
                visit(source.node)
            done.setdefault(node.number, len(done))

        for node in self.nodes:
            visit(node)
        return done

    def overlaps(self) -> list[str]:
        """Pairs of nodes that lie over each other."""
        found = []
        for i, one in enumerate(self.nodes):
            for two in self.nodes[i + 1 :]:
                apart = any(
                    first.place[axis] + first.size()[axis] + (TITLE if axis else 0) <= second.place[axis]
                    for axis in (0, 1) for first, second in ((one, two), (two, one))
                )
                if not apart:
                    found.append(f"{one.type} {one.number} and {two.type} {two.number}")
        return found


def slots_of(node: Node) -> list[tuple[str, str, list[Any]]]:
    """(name, kind, spec) of what is saved as inputs: the sockets, and widgets with a link."""
    return [
        (name, _kind(spec[0]), spec) for name, spec, _ in node.inputs() if not node.is_widget(spec) or name in node.links
    ]
