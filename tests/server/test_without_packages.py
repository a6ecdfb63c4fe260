"""The archive that users get, unpacked into a host with nothing installed that ComfyUI does not bring: every node is
there, everything shipped runs, and what lacks is named only when a node needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import archive
import prompts
import workflows
from comfy_boot import PACK
from comfy_server import NoServer, Server

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(bool(archive.why_no_archive()), reason=f"no archive: {archive.why_no_archive()}"),
]

# None of ComfyUI's requirements brings these, but this machine may have them for other tests.
NOT_OF_THE_HOST = ("open_clip", "matplotlib", "tensorboard", "tomli", "kornia", "spandrel", "torchaudio", "pandas")
# transformers is one, but a broken one is common: its CLIP cannot be imported then, while the host goes on.
BROKEN_CLIP = "transformers.models.clip.modeling_clip"


def started(folder: Path, without: tuple[str, ...]) -> Server:
    try:
        return Server.start(folder, without=without, pack=archive.unpack(folder / "unpacked" / "HyperTransport"))
    except NoServer as reason:
        pytest.skip(f"no ComfyUI host: {reason}")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without the optional packages, from the archive."""
    running = started(tmp_path_factory.mktemp("bare"), NOT_OF_THE_HOST)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Beside a transformers whose CLIP does not import."""
    running = started(tmp_path_factory.mktemp("broken"), (BROKEN_CLIP,))
    yield running
    running.stop()


def test_every_node_is_there_without_optional_packages(bare: Server, server: Server) -> None:
    assert set(bare.own_nodes()) == set(server.own_nodes())
    assert bare.complaints() == []


def test_a_steered_picture_without_optional_packages(bare: Server) -> None:
    result = bare.run(prompts.steered())
    assert result.status == "success", result.sentences() + result.traceback
    assert len(bare.pictures(result)) == 1


@pytest.mark.parametrize("name", ["03_strength_sheet", "11_inspect"])
def test_drawing_needs_no_optional_packages(bare: Server, name: str) -> None:
    """Labels and plots."""
    workflow = workflows.load(PACK / "example_workflows" / f"{name}.json")
    result = bare.run(workflows.to_prompt(workflow, bare.object_info()), timeout=300)
    assert result.status == "success", result.sentences() + result.traceback


def test_help_and_templates_are_served_from_the_archive(bare: Server) -> None:
    name = next(iter(bare.get("/api/workflow_templates").keys() & {"HyperTransport"}))
    assert "01_words" in bare.get("/api/workflow_templates")[name]
    for node_id in bare.own_nodes():
        assert bare.get_bytes(f"/extensions/HyperTransport/docs/{node_id}.md"), node_id


def test_every_node_is_there_beside_a_broken_transformers(broken: Server, server: Server) -> None:
    assert set(broken.own_nodes()) == set(server.own_nodes())
    assert broken.complaints() == []


def test_a_node_that_needs_transformers_says_so(broken: Server) -> None:
    result = broken.run(prompts.steered())
    assert result.status == "error" and result.failed == "world"
    words = result.sentences()
    assert "transformers cannot be imported" in words and "install or repair" in words and len(words) < 400, words
