"""What the shipped workflows make: how many pictures, which files, and that a strength of 0 is the picture without steering."""
from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_workflows
import workflows
from comfy_boot import PACK
from comfy_server import Result, Server
from shipped_workflows import SHIPPED
from template_workflows import TEMPLATES, blueprint

pytestmark = pytest.mark.host
FOLDER = PACK / "example_workflows"
SAVED = {  # pictures that each saves
    "01_words": 1, "02_reference_picture": 1, "03_strength_sheet": 1, "04_two_concepts_mixed": 2, "05_removal": 2, "06_region_mask": 1,
    "07_early_or_late_steps": 3, "08_one_concept_per_row": 4, "09_save_load_export_lora": 1, "10_fit_without_hypernetwork": 2, "11_inspect": 1,
}
STEERING = ("HyperTransportSteer", "HyperTransportSteerWithMaps")


def prompt_of(server: Server, name: str, *, unmuted: bool = False) -> dict[str, Any]:
    workflow = workflows.load(FOLDER / f"{name}.json")
    return workflows.to_prompt(make_workflows.unmuted(workflow) if unmuted else workflow, server.object_info())


def saved(server: Server, prompt: Mapping[str, Any], result: Result) -> dict[str, np.ndarray]:
    """"title 0" and so on -> picture, of everything that is saved and not only previewed."""
    assert result.status == "success", result.sentences() + result.traceback
    return {
        f"{prompt[key]['_meta']['title']} {number}": np.asarray(server.picture(image).convert("RGB"))
        for key, shown in result.outputs.items() for number, image in enumerate(shown.get("images", ())) if image["type"] == "output"
    }


def run(server: Server, prompt: dict[str, Any]) -> dict[str, np.ndarray]:
    return saved(server, prompt, server.run(prompt, timeout=600))


def unsteered(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt with every steering node bridged."""
    plain = copy.deepcopy(dict(prompt))
    for node in plain.values():
        while (link := node["inputs"].get("model")) and plain[link[0]]["class_type"] in STEERING:
            node["inputs"]["model"] = plain[link[0]]["inputs"]["model"]
    return plain


def with_strength(prompt: Mapping[str, Any], strength: float) -> dict[str, Any]:
    changed = copy.deepcopy(dict(prompt))
    for node in changed.values():
        if node["class_type"] in STEERING:
            node["inputs"]["strength"] = strength
    return changed


def test_every_workflow_that_runs_is_counted() -> None:
    assert sorted([*SAVED, *TEMPLATES]) == [path.stem for path in workflows.shipped()]


@pytest.mark.parametrize("name", SAVED)
def test_saves_as_many_pictures_as_it_should(server: Server, name: str) -> None:
    pictures = run(server, prompt_of(server, name))
    assert len(pictures) == SAVED[name]
    assert all(min(picture.shape[:2]) >= 400 for picture in pictures.values()), "too small to see anything"


@pytest.mark.parametrize("name", ["01_words", "02_reference_picture", "04_two_concepts_mixed", "06_region_mask", "07_early_or_late_steps"])
def test_strength_0_is_the_picture_without_steering(server: Server, name: str) -> None:
    prompt = prompt_of(server, name)
    full, off, plain = (run(server, one) for one in (prompt, with_strength(prompt, 0.0), unsteered(prompt)))
    for title in full:
        assert (off[title] == plain[title]).all(), title
        assert np.abs(full[title].astype(int) - plain[title]).mean() > 2, f"{title}: nothing is seen of the concept"


def test_a_negative_strength_takes_the_concept_away_and_0_does_not(server: Server) -> None:
    """05: below, the picture is nearer to that of the prompt without the concept than to the one above."""
    prompt = prompt_of(server, "05_removal")
    (steer,) = (node["inputs"] for node in prompt.values() if node["class_type"] in STEERING)
    assert steer["strength"] == -1 and "HyperTransportInvertMaps" not in {node["class_type"] for node in prompt.values()}
    plain = copy.deepcopy(prompt)
    for node in plain.values():
        if node["_meta"]["title"] == "Prompt":
            node["inputs"]["text"] = node["inputs"]["text"].removesuffix(", crimson gingham")
    full, off, never = run(server, prompt), run(server, with_strength(prompt, 0.0)), run(server, plain)
    before, after = "As the prompt says 0", "Without the concept 0"
    assert (off[before] == off[after]).all() and (full[before] == off[before]).all() and (never[before] != off[before]).any()
    left, put_in = (np.abs(one.astype(int) - never[before]).mean() for one in (full[after], full[before]))
    assert left < put_in / 2


def test_the_inverse_is_there_to_compare_and_muted(server: Server) -> None:
    """05, as its note says, with the muted row on."""
    shipped, whole = (prompt_of(server, "05_removal", unmuted=on) for on in (False, True))
    types = [{node["class_type"] for node in one.values()} for one in (shipped, whole)]
    assert ["HyperTransportInvertMaps" in one for one in types] == [False, True]
    pictures = run(server, whole)
    assert set(pictures) == {"As the prompt says 0", "Without the concept 0", "By the inverse 0"}
    assert np.abs(pictures["By the inverse 0"].astype(int) - pictures["As the prompt says 0"]).mean() > 5


def test_sheet_begins_with_the_same_picture_in_every_row(server: Server) -> None:
    prompt = prompt_of(server, "03_strength_sheet")
    decode = next(key for key, node in prompt.items() if node["class_type"] == "VAEDecode")
    prompt["all"] = {"class_type": "SaveImage", "inputs": {"images": [decode, 0], "filename_prefix": "all"}, "_meta": {"title": "all"}}
    pictures = run(server, prompt)
    assert len(pictures) == 16
    assert (pictures["all 0"] == pictures["all 5"]).all() and (pictures["all 0"] == pictures["all 10"]).all()
    assert (pictures["all 4"] != pictures["all 9"]).any()


def test_halves_of_the_mask_differ_from_one_another(server: Server) -> None:
    """Without its left half the picture changes on the left and hardly on the right."""
    prompt = prompt_of(server, "06_region_mask")
    steer = [key for key, node in prompt.items() if node["class_type"] == "HyperTransportSteer"]
    both = run(server, prompt)
    prompt[steer[0]]["inputs"]["strength"] = 0.0
    right_only = run(server, prompt)
    change = np.abs(next(iter(both.values())).astype(int) - next(iter(right_only.values()))).mean((0, 2))
    assert change[:200].mean() > 1.5 * change[-200:].mean()


def test_files_are_saved_and_read_back_as_the_same_picture(server: Server) -> None:
    """09: first as shipped, then, as its note says, with the muted rows on."""
    run(server, prompt_of(server, "09_save_load_export_lora"))
    assert (server.base / "models" / "hypertransport" / "postcard_teal_mosaic_00001.safetensors").is_file()
    assert (server.base / "models" / "loras" / "postcard_teal_mosaic_lora_00001.safetensors").is_file()
    pictures = run(server, prompt_of(server, "09_save_load_export_lora", unmuted=True))
    original = pictures["Steered 0"].astype(int)
    assert (pictures["From the maps file 0"] == original).mean() > 0.98  # the file holds 16 bit numbers
    assert np.abs(pictures["From the LoRA 0"] - original).max() <= 12


def test_what_was_written_is_told(server: Server) -> None:
    prompt = prompt_of(server, "09_save_load_export_lora")
    result = server.run(prompt)
    told = [text for shown in result.outputs.values() for text in shown.get("text", ())] or ["cached"]
    assert "cached" in told or any("postcard_teal_mosaic_lora" in text for text in told)


def test_every_node_is_in_a_workflow(server: Server) -> None:
    used = {node["type"] for path in workflows.shipped() for node in workflows.load(path)["nodes"]}
    assert set(server.own_nodes()) <= used


def test_files_are_what_the_script_makes(server: Server) -> None:
    """After a change of a node or of the script: python tests/support/make_workflows.py"""
    info = server.object_info()
    for name, build in {**SHIPPED, **TEMPLATES}.items():
        graph = build(info)
        assert graph.overlaps() == [], name
        assert json.loads(json.dumps(graph.workflow())) == workflows.load(FOLDER / f"{name}.json"), name
    assert json.loads(json.dumps(blueprint(info))) == workflows.load(PACK / "subgraphs" / "Concept steer.json")


@pytest.mark.parametrize("path", workflows.shipped(), ids=lambda path: path.stem)
def test_thumbnail_is_a_small_picture(path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    file = path.with_suffix(".jpg")
    assert file.stat().st_size < 60_000
    with image.open(file) as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512)


def test_blueprint_is_one_node_that_its_file_defines(server: Server) -> None:
    data = workflows.load(PACK / "subgraphs" / "Concept steer.json")
    (node,), (inside,) = data["nodes"], data["definitions"]["subgraphs"]
    assert node["type"] == inside["id"]
    assert {one["type"] for one in inside["nodes"]} <= set(server.object_info())
    assert [one["name"] for one in node["inputs"]][:2] == ["model", "images"] and [one["type"] for one in node["outputs"]] == ["MODEL"]
