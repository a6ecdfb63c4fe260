"""The shipped workflows on ComfyUI's own page: drawn without overlap, run with its button, pictures shown; the blueprint among the nodes."""
from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import workflows
from comfy_boot import PACK
from comfy_browser import Browser, ComfyPage
from comfy_server import Server

pytestmark = [pytest.mark.host, pytest.mark.browser]
NEEDS_FILES = ("12", "13")
RUNNING = [path for path in workflows.shipped() if not path.stem.startswith(NEEDS_FILES)]
BLUEPRINT = PACK / "subgraphs" / "Concept steer.json"


@pytest.mark.parametrize("path", workflows.shipped(), ids=lambda path: path.stem)
def test_is_drawn_without_overlap_inside_its_frames(page: ComfyPage, path: Path) -> None:
    page.load_workflow(workflows.load(path))
    nodes = page.page.evaluate("() => app.graph.nodes.map(n => [n.type + ' ' + n.id, ...n.getBounding()])")
    groups = page.page.evaluate("() => app.graph.groups.map(g => [g.title, ...g.pos, ...g.size])")

    def apart(one: list, two: list) -> bool:
        return one[1] + one[3] <= two[1] or two[1] + two[3] <= one[1] or one[2] + one[4] <= two[2] or two[2] + two[4] <= one[2]

    assert [(one[0], two[0]) for i, one in enumerate(nodes) for two in nodes[i + 1 :] if not apart(one, two)] == []
    assert [(one[0], two[0]) for i, one in enumerate(groups) for two in groups[i + 1 :] if not apart(one, two)] == []
    outside = [
        node[0] for node in nodes if not node[0].startswith("MarkdownNote") and not any(
            group[1] <= node[1] and group[2] <= node[2] and node[1] + node[3] <= group[1] + group[3] and node[2] + node[4] <= group[2] + group[4]
            for group in groups
        )
    ]
    assert outside == []


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: path.stem)
def test_runs_by_the_button_and_shows_its_pictures(page: ComfyPage, path: Path, shots: Path) -> None:
    page.load_workflow(workflows.load(path))
    ran = page.run(timeout=600)
    assert ran["status"] == "success", ran
    _wait_for_every_picture(page)
    page.screenshot(shots / f"ran_{path.stem}.png", settle=1.0)
    assert page.complaints() == []


def _wait_for_every_picture(page: ComfyPage) -> None:
    """The whole graph in view, until every node that shows pictures and is not muted has one."""
    page.fit()
    page.page.wait_for_function(
        """() => app.graph.nodes.filter(n => ['SaveImage', 'PreviewImage', 'MaskPreview'].includes(n.type) && n.mode === 0)
            .every(n => (n.imgs ?? []).some(i => i.complete && i.naturalWidth))"""
    )


def test_muted_rows_run_once_their_files_are_there(page: ComfyPage, shots: Path) -> None:
    """09, as its note says: Run, switch the muted rows on, Run again."""
    page.load_workflow(workflows.load(PACK / "example_workflows" / "09_save_load_export_lora.json"))
    assert page.run()["status"] == "success"
    page.page.evaluate("() => { for (const n of app.graph.nodes) n.mode = 0; app.canvas.setDirty(true, true) }")
    ran = page.run()
    assert ran["status"] == "success", ran
    _wait_for_every_picture(page)
    page.screenshot(shots / "ran_09_unmuted.png", settle=1.0)
    assert page.complaints() == []


def test_nodes_say_under_themselves_what_they_did(page: ComfyPage, shots: Path) -> None:
    """The concept, where files went, and what the small encoder was never taught."""
    page.load_workflow(workflows.load(PACK / "example_workflows" / "09_save_load_export_lora.json"))
    page.set_widget("HyperTransportConceptEncoder", "text", "teal quasarfoobar mosaic")
    assert page.run()["status"] == "success"
    _wait_for_every_picture(page)
    shown = page.page.locator("body").inner_text()
    for words in ("never taught 'quasarfoobar'", "Saved teal quasarfoobar mosaic to", "Load it with Load LoRA"):
        assert words in shown
    page.centre("HyperTransportSaveMaps", scale=1.2)
    page.screenshot(shots / "text_under_nodes.png")
    assert page.complaints() == []


@pytest.fixture
def page_with_blueprint(browser: Browser, server: Server) -> Iterator[ComfyPage]:
    """A page of a user who has copied the blueprint into user/default/subgraphs, as this host wants it; newer ones find the pack's."""
    folder = server.base / "user" / "default" / "subgraphs"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(BLUEPRINT, folder)
    page = browser.open(server)
    yield page
    page.close()
    shutil.rmtree(folder)


def test_blueprint_is_found_and_steers(page_with_blueprint: ComfyPage, server: Server, shots: Path) -> None:
    """The search offers it; in place of the nodes it stands for it makes the same picture, and its strength is a slider of its own."""
    page = page_with_blueprint
    page.load_workflow(workflows.load(PACK / "example_workflows" / "01_words.json"))
    pictures = [_picture(page, server)]
    assert page.search("concept steer")[0] == "Concept steer"
    page.add_searched()
    kinds = page.page.evaluate(
        """() => {
            const find = type => app.graph.nodes.find(n => n.type === type)
            const steer = find('HyperTransportSteer'), world = find('HyperTransportPostcard'), sampler = find('KSampler')
            const added = app.graph.nodes.find(n => n.subgraph)
            added.pos = [...steer.pos]
            for (const type of ['HyperTransportSteer', 'HyperTransportConceptEncoder', 'HyperTransportLoad']) app.graph.remove(find(type))
            world.connect(0, added, 0)
            added.connect(0, sampler, 0)
            app.canvas.deselectAll()
            return Object.fromEntries(added.widgets.map(w => [w.name, w.type]))
        }"""
    )
    assert kinds == {"file": "combo", "text": "customtext", "strength": "slider", "start_percent": "number", "end_percent": "number"}
    pictures.append(_picture(page, server))
    page.wait_for_picture()
    page.screenshot(shots / "blueprint.png")
    page.page.evaluate("() => { app.graph.nodes.find(n => n.subgraph).widgets.find(w => w.name === 'strength').value = 0 }")
    pictures.append(_picture(page, server))
    assert pictures[0] == pictures[1] != pictures[2]
    assert page.complaints() == []


def _picture(page: ComfyPage, server: Server) -> bytes:
    """Run, and the picture that is saved."""
    ran = page.run()
    assert ran["status"] == "success", ran
    (picture,) = server.pictures(server.wait(ran["prompt_id"]))
    return picture.tobytes()
