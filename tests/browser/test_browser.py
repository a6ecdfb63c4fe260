"""What a person sees and does on ComfyUI's own page, with the pack in its server."""
from __future__ import annotations

from pathlib import Path

import pytest

import prompts
import workflows
from comfy_boot import PACK
from comfy_browser import ComfyPage, differences
from comfy_server import PACK_NAME, Server

pytestmark = [pytest.mark.host, pytest.mark.browser]
every_workflow = pytest.mark.parametrize("path", workflows.shipped(), ids=lambda path: path.stem)
HELP = sorted(path.name.removesuffix(".md") for path in (PACK / "web" / "docs").glob("HyperTransport*"))


def test_page_opens_without_complaint(page: ComfyPage, shots: Path) -> None:
    page.screenshot(shots / "empty.png")
    assert page.complaints(of_all=True) == []


def test_every_node_is_found_by_its_name(page: ComfyPage, server: Server) -> None:
    offered = {info["display_name"]: page.search(info["display_name"]) for info in server.own_nodes().values()}
    assert [name for name, found in offered.items() if name not in found] == []
    assert page.complaints() == []


def test_a_node_is_added_by_searching(page: ComfyPage, shots: Path) -> None:
    found = page.search("hypertransport")
    page.screenshot(shots / "search.png")
    assert "HyperTransport Steer" in found
    page.search("hypertransport steer")
    page.add_searched()
    assert [node["type"] for node in page.nodes()] == ["HyperTransportSteer"]
    page.centre("HyperTransportSteer", scale=1.5)
    page.screenshot(shots / "steer.png")
    assert page.complaints() == []


def test_templates_dialog_lists_every_workflow_with_its_picture(page: ComfyPage, shots: Path) -> None:
    listed = page.open_templates()
    page.screenshot(shots / "templates.png")
    broken = page.broken_pictures("[data-testid='template-workflows-content']")
    page.leave_templates()
    assert sorted(listed) == [path.stem for path in workflows.shipped()]  # the host lists them in the order of its file system
    assert listed and broken == []
    assert page.complaints() == []


@every_workflow
def test_workflow_opens_whole_and_means_what_the_server_tests_post(page: ComfyPage, server: Server, path: Path, shots: Path) -> None:
    workflow = workflows.load(path)
    page.load_workflow(workflow)
    page.screenshot(shots / f"workflow_{path.stem}.png")
    assert page.missing_types() == []
    assert differences(page.prompt(), workflows.to_prompt(workflow, server.object_info()), ignore=("upload", "preview")) == []
    assert page.complaints() == []


@pytest.mark.parametrize("node_id", HELP)
def test_help_page_opens_with_its_pictures(page: ComfyPage, server: Server, node_id: str, shots: Path) -> None:
    page.add(node_id)
    words = page.open_help(node_id)
    page.screenshot(shots / f"help_{node_id}.png")
    assert len(words) > 200, words
    assert page.broken_pictures(".node-help-content") == []
    assert page.complaints() == []


def test_first_minutes_of_a_user(page: ComfyPage, server: Server, shots: Path) -> None:
    """Templates, the first workflow, Run, a picture; the slider, Run again, another picture."""
    page.open_template(workflows.shipped()[0].stem)
    first = page.run()
    assert first["status"] == "success", first
    assert page.wait_for_picture()
    page.screenshot(shots / "first_run.png")
    wanted = 0.0 if page.widget("HyperTransportSteer", "strength") else 1.0
    assert page.drag_slider("HyperTransportSteer", "strength", wanted) == pytest.approx(wanted, abs=0.06)
    second = page.run()
    assert second["status"] == "success", second
    page.wait_for_picture()
    page.screenshot(shots / "second_run.png")
    pictures = [[picture.tobytes() for picture in server.pictures(server.wait(ran["prompt_id"]))] for ran in (first, second)]
    assert pictures[0] and pictures[0] != pictures[1]
    assert page.complaints() == []


def test_slider_steers(page: ComfyPage, server: Server, shots: Path) -> None:
    """A graph with the Steer node: Run, move its slider with the mouse, Run; the picture changes, and back at the same place it is the same."""
    page.load_prompt(prompts.steered(strength=1.0))
    page.set_widget("KSampler", "control_after_generate", "fixed")  # otherwise the page draws another seed after each run
    page.screenshot(shots / "graph.png")
    pictures = []
    for strength in (1.0, 0.0, 1.0):
        assert page.drag_slider("HyperTransportSteer", "strength", strength) == pytest.approx(strength, abs=0.06)
        page.set_widget("HyperTransportSteer", "strength", strength)  # exactly: a slider two hundred pixels wide is not exact
        ran = page.run()
        assert ran["status"] == "success", ran
        page.wait_for_picture()
        page.screenshot(shots / f"strength_{strength:g}.png")
        pictures.append([picture.tobytes() for picture in server.pictures(server.wait(ran["prompt_id"]))])
    assert pictures[0] != pictures[1] and pictures[0] == pictures[2]
    assert page.complaints() == []


def _shown(page: ComfyPage) -> tuple[list[str], float]:
    """The widgets of the only node that can be seen, and its height."""
    page.page.wait_for_timeout(300)
    return page.page.evaluate("() => { const [n] = app.graph.nodes; return [n.widgets.filter(w => n.isWidgetVisible(w)).map(w => w.name), n.size[1]] }")


def test_advanced_inputs_are_folded_away_until_asked_for(page: ComfyPage, shots: Path) -> None:
    """web/advanced.js: few inputs at first, all after "Show Advanced" in the node's menu, and at once where one is in use."""
    page.add("HyperTransportSteer")
    few, height = _shown(page)
    assert few == ["strength", "start_percent", "end_percent", "layers"] and height < 220
    page.centre("HyperTransportSteer", scale=1.4)
    place = page.page.evaluate(
        """() => {
            const [node] = app.graph.nodes, box = app.canvas.canvas.getBoundingClientRect()
            const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 15])
            return [x + box.left, y + box.top]
        }"""
    )
    page.page.mouse.click(*place, button="right")
    page.page.get_by_text("Show Advanced", exact=True).first.click()
    every, tall = _shown(page)
    page.screenshot(shots / "advanced.png")
    assert len(every) == 16 and every[:4] == few and tall > height + 200
    graph = page.page.evaluate("() => app.graph.serialize()")
    values = graph["nodes"][0]["widgets_values"]
    for changed, expected in ((values, few), ([*values[:-1], "auto"], every)):
        page.load_workflow({**graph, "nodes": [{**graph["nodes"][0], "showAdvanced": None, "widgets_values": changed}]})
        assert _shown(page)[0] == expected
    assert page.complaints() == []


def test_node_error_is_shown_in_our_words(page: ComfyPage, shots: Path) -> None:
    page.load_prompt(prompts.steered(concept=" "))
    ran = page.run()
    page.screenshot(shots / "error.png", settle=1.0)
    assert ran["status"] == "error" and "expected words" in ran["message"], ran
    assert "expected words" in page.page.locator("body").inner_text()


def test_converter_agrees_with_the_page_on_hard_cases(page: ComfyPage, server: Server) -> None:
    """A bypassed node, a muted one, a reroute, a primitive, a seed's extra widget, an upload button, a note: core nodes only."""
    page.load_workflow(HARD)
    assert differences(page.prompt(), workflows.to_prompt(HARD, server.object_info()), ignore=("upload",)) == []


def test_run_shows_a_picture(page: ComfyPage, shots: Path) -> None:
    """The harness itself, with core nodes: Run, and a picture appears."""
    page.load_workflow(HARD)
    ran = page.run()
    assert ran["status"] == "success", ran
    assert ("SaveImage", 48, 32) in page.wait_for_picture()
    page.screenshot(shots / "run.png")


def _node(
    number: int, kind: str, values: list[object], inputs: dict[str, int | None], outputs: dict[str, list[int]], mode: int = 0,
    widgets: tuple[str, ...] = (),
) -> dict:
    """A saved node; `inputs` are name -> link id, `outputs` type -> link ids, `widgets` the inputs that are widgets too."""
    kinds = {"image": "IMAGE", "images": "IMAGE", "width": "INT", "": "*"}
    column, row = (number - 1) % 4, (number - 1) // 4
    slots: list[dict] = [{"name": name, "type": kinds[name], "link": link} for name, link in inputs.items()]
    for slot in slots:
        if slot["name"] in widgets:
            slot["widget"] = {"name": slot["name"]}
    ends: list[dict] = [{"name": name, "type": name, "links": links} for name, links in outputs.items()]
    if kind == "PrimitiveNode":
        ends[0]["widget"] = {"name": "width"}
    return {
        "id": number, "type": kind, "pos": [30 + 330 * column, 30 + 300 * row], "size": [300, 200], "flags": {}, "order": number, "mode": mode,
        "inputs": slots, "outputs": ends, "properties": {}, "widgets_values": values,
    }


HARD = {
    "last_node_id": 8, "last_link_id": 7, "groups": [], "config": {}, "extra": {}, "version": 0.4,
    "nodes": [
        _node(1, "PrimitiveNode", [48, "fixed"], {}, {"INT": [1]}),
        _node(2, "EmptyImage", [512, 32, 1, 8421504], {"width": 1}, {"IMAGE": [2, 6]}, widgets=("width",)),
        _node(3, "ImageInvert", [], {"image": 2}, {"IMAGE": [3]}, mode=workflows.BYPASSED),
        _node(4, "Reroute", [], {"": 3}, {"IMAGE": [4]}),
        _node(5, "SaveImage", [PACK_NAME], {"images": 4}, {}),
        _node(6, "SaveImage", ["muted"], {"images": 6}, {}, mode=workflows.MUTED),
        _node(7, "MarkdownNote", ["A note."], {}, {}),
        _node(8, "RandomNoise", [7, "fixed"], {}, {"NOISE": []}),
    ],
    "links": [[1, 1, 0, 2, 0, "INT"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"], [4, 4, 0, 5, 0, "IMAGE"], [6, 2, 0, 6, 0, "IMAGE"]],
}
