"""ComfyUI's own page in a headless Chromium: what a person does with the mouse, and what the page then shows.

    with Browser.start() as browser:       # raises NoBrowser with the reason where there is none
        page = browser.open(server)        # the graph is ready, empty, without greetings
        page.open_template("01_words")
        page.drag_slider("HyperTransportSteer", "strength", 1.5)
        page.run()
        page.screenshot(path)
        assert page.complaints() == []
"""
from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_server import PACK_NAME, Server

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
# No sandbox: it needs rights that a container lacks, and the only page shown is this machine's own. The rest keeps it off the network.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]
# What a person has clicked away before working: the tutorial, the news, the menu's first-time hints.
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False,
    "Comfy.EnableTooltips": True, "Comfy.Workflow.ShowMissingNodesWarning": True, "Comfy.Workflow.ShowMissingModelsWarning": True,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,  # a whole graph in a screenshot keeps its words
}
MARGIN = 15  # of a widget inside its node, as the page draws it


class NoBrowser(Exception):
    """This machine cannot show the page; the text says why."""


class Browser:
    """A running Chromium. Every page it opens has fresh cookies and its own list of what the console said."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[Browser]:
        """A headless Chromium of this machine. Raises NoBrowser."""
        if importlib.util.find_spec("playwright") is None:
            raise NoBrowser("the Python package playwright is not installed")
        program = next(filter(None, map(shutil.which, CHROMIUMS)), None)
        if program is None:
            raise NoBrowser(f"none of {', '.join(CHROMIUMS)} is on the path")
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
            try:
                yield cls(chromium)
            finally:
                chromium.close()

    def open(self, server: Server, *, width: int = 1600, height: int = 1000, locale: str = "en") -> ComfyPage:
        """ComfyUI's page with an empty graph, in the language `locale` (en, zh, ja ...). Raises NoBrowser for a host that lacks
        spandrel: this page cannot draw its own loaders of checkpoints and LoRAs then."""
        if "UpscaleModelLoader" not in server.object_info():
            raise NoBrowser("the Python package spandrel is not installed, which this host's page cannot do without")
        server.post("/settings", {**SETTINGS, "Comfy.Locale": locale})
        context = self.chromium.new_context(viewport={"width": width, "height": height}, locale="en-US")
        context.set_default_timeout(60_000)  # a busy machine is slow, not broken
        page = ComfyPage(context.new_page(), server)
        page.load()
        return page


@dataclass
class Said:
    """One line of the browser's console, an uncaught error, or a request that failed."""

    kind: str  # "error", "warning", "uncaught", "http"
    text: str
    where: str = ""


@dataclass
class ComfyPage:
    """The page of one server. `page` is Playwright's, for what is not here."""

    page: Any
    server: Server
    said: list[Said] = field(default_factory=list)
    read: int = 0

    # -- the page itself

    def load(self) -> None:
        """Open the page and wait until the graph and every node type are there. Only the server itself can be reached."""
        page = self.page
        page.context.route("**/*", self._local_only)
        page.on("console", lambda message: self._note(message.type, message.text, message.location.get("url", "")))
        page.on("pageerror", lambda error: self._note("uncaught", f"{error}\n{error.stack or ''}"))
        page.on("response", lambda answer: self._note("http", str(answer.status), answer.url) if answer.status >= 400 else None)
        page.goto(self.server.url, timeout=180_000)
        count = len(self.server.object_info())
        ready = "n => window.app?.graph && app.extensionManager && Object.keys(LiteGraph.registered_node_types).length >= n"
        page.wait_for_function(ready, arg=count, timeout=180_000)
        page.wait_for_function("() => !document.querySelector('#splash-loader, .p-progressspinner, .p-blockui-mask')")
        self.new_graph()

    def _local_only(self, route: Any) -> None:
        url = route.request.url
        if not url.startswith((self.server.url, "data:", "blob:")):
            route.abort()
        elif "/templates/index" in url and importlib.util.find_spec("comfyui_workflow_templates") is None:
            route.fulfill(json=[])  # core's own templates are 85 MB and not needed; without any list the page shows nobody's
        else:
            route.continue_()

    def _note(self, kind: str, text: str, where: str = "") -> None:
        if kind in ("error", "warning", "uncaught", "http"):
            self.said.append(Said(kind, text, where))

    def complaints(self, *, of_all: bool = False) -> list[Said]:
        """What the console said against this pack since the last reset, or ever: anything that names it, and any uncaught error
        that an empty page does not have."""
        known = ("reading 'id'",)  # the page's own, before any graph is loaded: a setting is changed before it is defined
        return [
            said for said in self.said[0 if of_all else self.read :]
            if PACK_NAME.lower() in (said.text + said.where).lower() or (said.kind == "uncaught" and not any(words in said.text for words in known))
        ]

    def screenshot(self, path: Path, *, settle: float = 0.5) -> Path:
        """The whole page as a picture."""
        self.page.wait_for_timeout(1000 * settle)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)
        return path

    def reset(self) -> None:
        """An empty graph in a page with nothing open; what was said before is no longer told by `complaints`."""
        for _ in range(2):
            self.page.keyboard.press("Escape")
        if self.page.locator(".side-bar-button-selected").count():
            self.page.locator(".side-bar-button-selected").first.click()
        self.new_graph()
        self.page.wait_for_timeout(100)
        self.read = len(self.said)

    def close(self) -> None:
        """Close the page and its context."""
        self.page.context.close()

    # -- graphs

    def new_graph(self) -> None:
        """An empty graph, without asking."""
        self.page.evaluate("() => { app.graph.clear(); app.canvas.draw(true, true) }")

    def load_workflow(self, workflow: Mapping[str, Any]) -> None:
        """Open a workflow as dropping its file on the page would, and fit it into view."""
        self.page.evaluate("w => app.loadGraphData(w)", workflow)
        self.fit()

    def load_prompt(self, prompt: Mapping[str, Any], name: str = "prompt") -> None:
        """Open an API prompt as a graph, as dropping its file on the page would."""
        self.page.evaluate("([prompt, name]) => app.loadApiJson(prompt, name)", [prompt, name])
        self.fit()

    def add(self, node_type: str) -> None:
        """Put a new node into the graph."""
        self.page.evaluate("type => { app.graph.add(LiteGraph.createNode(type)); app.canvas.draw(true, true) }", node_type)

    def fit(self) -> None:
        """The whole graph in view."""
        self.page.evaluate("() => { app.canvas.fitViewToSelectionAnimated?.({duration: 1}); app.canvas.setDirty(true, true) }")
        self.page.wait_for_timeout(300)

    def prompt(self) -> dict[str, Any]:
        """The graph in API form, as the page itself would post it."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def nodes(self) -> list[dict[str, Any]]:
        """Id, type, title and widget values of every node of the graph."""
        return self.page.evaluate(
            """() => app.graph.nodes.map(n => ({
                id: n.id, type: n.type, title: n.title, widgets: Object.fromEntries((n.widgets ?? []).map(w => [w.name, w.value]))
            }))"""
        )

    def missing_types(self) -> list[str]:
        """Node types of the graph that the page does not know."""
        return self.page.evaluate("() => app.graph.nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type]).map(n => n.type)")

    def search(self, words: str) -> list[str]:
        """Display names that the search box (a double click on the empty canvas) offers for these words. The box stays open."""
        box = self.page.locator(".comfy-vue-node-search-container input").first
        canvas = self.page.locator("#graph-canvas").bounding_box()
        for _ in range(10):
            if box.is_visible():
                break
            self.page.mouse.dblclick(canvas["x"] + canvas["width"] * 0.7, canvas["y"] + canvas["height"] * 0.85)
            self.page.wait_for_timeout(500)  # on a busy machine two clicks may come too far apart for the page
        box.fill(words)
        self.page.wait_for_timeout(500)
        found = self.page.locator(".p-autocomplete-overlay .p-autocomplete-option")
        return [text.replace("\xa0", "").split("\n")[0].strip() for text in found.all_inner_texts()]

    def add_searched(self) -> None:
        """Take the first of what `search` offered."""
        self.page.keyboard.press("Enter")
        self.page.wait_for_timeout(300)

    def leave_search(self) -> None:
        """Close the search box."""
        self.page.keyboard.press("Escape")
        self.page.wait_for_timeout(200)

    # -- widgets

    def set_widget(self, node_type: str, widget: str, value: Any, *, index: int = 0) -> None:
        """Set a widget of the index-th node of a type as its own callback would."""
        self.page.evaluate(
            """([type, name, value, index]) => {
                const node = app.graph.nodes.filter(n => n.type === type)[index]
                const widget = node.widgets.find(w => w.name === name)
                widget.value = value
                widget.callback?.(value, app.canvas, node)
                app.canvas.setDirty(true, true)
            }""",
            [node_type, widget, value, index],
        )

    def widget(self, node_type: str, widget: str, *, index: int = 0) -> Any:
        """The value of a widget of the index-th node of a type."""
        return [node for node in self.nodes() if node["type"] == node_type][index]["widgets"][widget]

    def drag_slider(self, node_type: str, widget: str, to: float, *, index: int = 0) -> float:
        """Drag a slider with the mouse to a value; returns the value it then has. The node is brought into view first."""
        self.centre(node_type, index=index)
        place = self.page.evaluate(
            """([type, name, index]) => {
                const node = app.graph.nodes.filter(n => n.type === type)[index]
                const w = node.widgets.find(w => w.name === name)
                const box = app.canvas.canvas.getBoundingClientRect()
                const at = (x, y) => { const p = app.canvas.ds.convertOffsetToCanvas([x, y]); return [p[0] + box.left, p[1] + box.top] }
                const y = node.pos[1] + (w.last_y ?? w.y) + (w.computedHeight ?? LiteGraph.NODE_WIDGET_HEIGHT) / 2
                const width = w.width ?? node.size[0]
                return {
                    type: w.type, min: w.options.min, max: w.options.max, value: w.value,
                    left: at(node.pos[0], y), right: at(node.pos[0] + width, y), scale: app.canvas.ds.scale
                }
            }""",
            [node_type, widget, index],
        )
        if place["type"] != "slider":
            raise AssertionError(f"{node_type}.{widget} is drawn as {place['type']}, not as a slider")

        def x_of(value: float) -> float:
            share = (value - place["min"]) / (place["max"] - place["min"])
            margin = MARGIN * place["scale"]
            return place["left"][0] + margin + share * (place["right"][0] - place["left"][0] - 2 * margin)

        mouse, y = self.page.mouse, place["left"][1]
        mouse.move(x_of(place["value"]), y)
        mouse.down()
        mouse.move((x_of(place["value"]) + x_of(to)) / 2, y, steps=3)
        mouse.move(x_of(to), y, steps=3)
        mouse.up()
        self.page.wait_for_timeout(200)
        return float(self.widget(node_type, widget, index=index))

    def centre(self, node_type: str, *, index: int = 0, scale: float = 1.0) -> None:
        """Bring a node into the middle of the view at a readable size."""
        self.page.evaluate(
            """([type, index, scale]) => {
                const node = app.graph.nodes.filter(n => n.type === type)[index]
                app.canvas.ds.scale = scale
                app.canvas.centerOnNode(node)
                app.canvas.draw(true, true)
            }""",
            [node_type, index, scale],
        )
        self.page.wait_for_timeout(200)

    # -- running

    def run(self, timeout: float = 120.0) -> dict[str, Any]:
        """Press Run and wait. Returns {"prompt_id", "status": "success" | "error" | "refused", "message"}."""
        self.page.evaluate(
            """() => {
                const seen = window.__seen = {status: null}
                const done = (status, message) => e => {
                    if (!seen.status) Object.assign(seen, {status, prompt_id: e.detail?.prompt_id, message: message(e.detail)})
                }
                const on = (name, status, message) => app.api.addEventListener(name, done(status, message), {once: true})
                on('execution_success', 'success', () => '')
                on('execution_error', 'error', d => d.exception_message)
                on('execution_interrupted', 'error', () => 'interrupted')
                if (!app.__queue) {
                    app.__queue = app.api.queuePrompt.bind(app.api)
                    app.api.queuePrompt = async (...a) => {
                        try { return await app.__queue(...a) }
                        catch (e) { Object.assign(window.__seen, {status: 'refused', message: String(e.message ?? e), response: e.response}); throw e }
                    }
                }
            }"""
        )
        self.page.locator("[data-testid='queue-button'] button").first.click()
        self.page.wait_for_function("() => window.__seen.status", timeout=1000 * timeout)
        return self.page.evaluate("() => ({...window.__seen})")

    def pictures(self) -> list[tuple[str, int, int]]:
        """(node type, width, height) of every picture that the graph's nodes show, once they are loaded."""
        self.page.wait_for_function("() => app.graph.nodes.every(n => (n.imgs ?? []).every(i => i.complete))")
        shown = "() => app.graph.nodes.flatMap(n => (n.imgs ?? []).map(i => [n.type, i.naturalWidth, i.naturalHeight]))"
        return [tuple(found) for found in self.page.evaluate(shown)]

    def wait_for_picture(self, timeout: float = 30.0) -> list[tuple[str, int, int]]:
        """As `pictures`, but waits until there is one. Brings the whole graph into view: the page loads pictures of visible nodes only."""
        self.fit()
        self.page.wait_for_function("() => app.graph.nodes.some(n => (n.imgs ?? []).some(i => i.complete && i.naturalWidth))", timeout=1000 * timeout)
        return self.pictures()

    # -- help and templates

    def open_help(self, node_type: str, *, index: int = 0) -> str:
        """Select a node, press the ? of its toolbox; returns the text of the help page that opens."""
        self.centre(node_type, index=index)
        self.page.evaluate(
            "([type, index]) => { app.canvas.selectNode(app.graph.nodes.filter(n => n.type === type)[index]); app.canvas.setDirty(true, true) }",
            [node_type, index],
        )
        self.page.locator("[data-testid='info-button']").first.click()
        help_page = self.page.locator(".node-help-content")
        help_page.first.wait_for()
        self.page.wait_for_timeout(800)
        return help_page.first.inner_text()

    def broken_pictures(self, inside: str = "body") -> list[str]:
        """Addresses of the pictures on the page that did not load; those that the page has not asked for yet have none."""
        return self.page.locator(f"{inside} img").evaluate_all("found => found.filter(i => i.src && (!i.complete || !i.naturalWidth)).map(i => i.src)")

    def open_templates(self) -> list[str]:
        """Open the Templates dialog at this pack; returns the titles it lists. Pictures have loaded or failed."""
        self.page.locator(".comfyui-body-left .templates-tab-button, .side-bar-button.templates-tab-button").first.click()
        self.page.locator("[data-testid='template-workflows-content']").wait_for()
        self.page.get_by_text(PACK_NAME, exact=True).first.click()
        self.page.wait_for_timeout(1000)
        cards = self.page.locator("[data-testid^='template-workflow-']:not([data-testid='template-workflows-content'])")
        shown = 0
        while cards.count() > shown:  # the dialog adds the next dozen when the last comes into view
            for index in range(shown, shown := cards.count()):
                cards.nth(index).scroll_into_view_if_needed()
                self.page.wait_for_timeout(150)  # pictures load when their card is in view
            cards.last.hover()
            for _ in range(4):
                self.page.mouse.wheel(0, 2000)
                self.page.wait_for_timeout(400)
        return cards.evaluate_all("found => found.map(e => e.dataset.testid.replace('template-workflow-', ''))")

    def open_template(self, name: str) -> None:
        """Open one of the pack's templates by a click on it, from the page as it is."""
        if name not in self.open_templates():
            raise AssertionError(f"the Templates dialog does not list {name}")
        self.page.locator(f"[data-testid='template-workflow-{name}']").click()
        self._templates_gone()
        self.page.wait_for_function("() => app.graph.nodes.length > 0")
        self.page.wait_for_timeout(500)

    def leave_templates(self) -> None:
        """Close the Templates dialog."""
        self.page.keyboard.press("Escape")
        self._templates_gone()

    def _templates_gone(self) -> None:
        self.page.locator("[data-testid='template-workflows-content']").wait_for(state="detached")


def differences(first: Mapping[str, Any], second: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    """How two API prompts differ, in words: nodes, class types and inputs; titles and the like are not compared."""
    found = [f"node {key} is only in the {'first' if key in first else 'second'}" for key in sorted({*first} ^ {*second})]
    for key in sorted({*first} & {*second}):
        one, two = first[key], second[key]
        if one["class_type"] != two["class_type"]:
            found.append(f"node {key}: {one['class_type']} and {two['class_type']}")
        for name in sorted({*one["inputs"]} | {*two["inputs"]}):
            left, right = one["inputs"].get(name, "absent"), two["inputs"].get(name, "absent")
            if name not in ignore and json.dumps(left) != json.dumps(right):
                found.append(f"node {key} ({one['class_type']}) input {name}: {left!r} and {right!r}")
    return found
