"""Makes example_workflows/*.json and *.jpg and subgraphs/*.json anew.

    python tests/support/make_workflows.py                 # the .json files, from the node definitions of the real server
    python tests/support/make_workflows.py --thumbnails    # and the pictures, by running every workflow: do so after new weights
    python tests/support/make_workflows.py --thumbnails 03 # only of workflows whose names begin so

Needs a ComfyUI (see comfy_boot.py). The .json files are the same as long as the nodes are.
"""
from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import workflows
from comfy_boot import PACK
from comfy_server import Server
from shipped_workflows import SHIPPED
from template_workflows import CARDS, TEMPLATES, blueprint
from workflow_cards import pictures_card, words_card

FOLDER = PACK / "example_workflows"
WITH_PREVIEWS = ("02",)  # their thumbnails show what goes in, too
TWICE = ("09",)  # muted nodes read what the first run writes


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Make the example workflows and the blueprint.")
    parser.add_argument("--thumbnails", nargs="*", metavar="BEGINNING", help="run the workflows, all or those whose names begin so, for their pictures")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        server = Server.start(Path(folder))
        try:
            write_all(server.object_info())
            if options.thumbnails is not None:
                for name in [*SHIPPED, *TEMPLATES]:
                    if name.startswith(tuple(options.thumbnails) or ("",)):
                        make_thumbnail(server, name)
        finally:
            server.stop()
    return 0


def write_all(info: dict[str, Any]) -> None:
    """Every .json file."""
    for name, build in {**SHIPPED, **TEMPLATES}.items():
        graph = build(info)
        if graph.overlaps():
            raise SystemExit(f"{name}: {'; '.join(graph.overlaps())} overlap")
        write(FOLDER / f"{name}.json", graph.workflow())
    write(PACK / "subgraphs" / "Concept steer.json", blueprint(info))


def write(path: Path, content: Any) -> None:
    """One JSON file, readable in a diff."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def make_thumbnail(server: Server, name: str) -> None:
    """Run a workflow and make its card of the pictures it saves, with the titles of the nodes that show them."""
    if name in CARDS:
        data, seconds = words_card(*CARDS[name]), 0.0
    else:
        workflow = workflows.load(FOLDER / f"{name}.json")
        found, seconds = run(server, workflow)
        if name.startswith(TWICE):
            found, _ = run(server, unmuted(workflow))
        shown = [(title, picture) for title, picture, kind in found if kind == "output" or name.startswith(WITH_PREVIEWS)]
        data = pictures_card([picture for _, picture in shown], [title for title, _ in shown])
    (FOLDER / f"{name}.jpg").write_bytes(data)
    print(f"{name}.jpg: {len(data)} bytes, run in {seconds:.1f} s", file=sys.stderr)


def run(server: Server, workflow: dict[str, Any]) -> tuple[list[tuple[str, Any, str]], float]:
    """(title of the node, picture, `output` or `temp`) of every picture a workflow shows, by node; and the seconds."""
    prompt = workflows.to_prompt(workflow, server.object_info())
    result = server.run(prompt, timeout=900)
    if result.status != "success":
        raise SystemExit(result.sentences())
    found = []
    for key, shown in sorted(result.outputs.items(), key=lambda item: int(item[0])):
        found += [(prompt[key]["_meta"]["title"], server.picture(image), image["type"]) for image in shown.get("images", ())]
    return found, result.seconds


def unmuted(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same with every node on."""
    workflow = copy.deepcopy(workflow)
    for node in workflow["nodes"]:
        node["mode"] = 0
    return workflow


if __name__ == "__main__":
    sys.exit(main())
