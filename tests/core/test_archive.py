"""The archive that users get: what is in it, that nothing it needs is missing, and what the Comfy Registry checks.

`comfy node validate` wants a version in pyproject.toml and runs ruff's S102, S307 and E702 over the tree; `comfy node
pack` takes what git tracks without what .comfyignore names. Both are done over here without a network. Calls are found
in the syntax tree, so `network.eval()` and words in texts are no false alarms; test_package.py searches the text.
"""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import archive
from hypertransport_core.commands.options import IMAGE_ADAPTER_FILE
from hypertransport_core.commands.results import SECOND_CLIP_FILE, SECOND_JUDGE_FILE
from hypertransport_core.toml_files import parse

ROOT = archive.ROOT
MB = 2**20
pytestmark = pytest.mark.skipif(bool(archive.why_no_archive()), reason=f"no archive: {archive.why_no_archive()}")

PACKED = {
    "__init__.py", "nodes", "hypertransport_core", "train_hypernet.py", "weights", "example_workflows", "subgraphs",
    "web", "locales", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE",
}  # fmt: skip
NETWORK = {
    "socket", "ssl", "http", "urllib", "ftplib", "smtplib", "xmlrpc", "requests", "httpx", "urllib3", "aiohttp",
    "websocket", "websockets", "huggingface_hub", "gradio",
}  # fmt: skip
PROCESSES = {"subprocess", "multiprocessing", "pty", "ctypes", "pip"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    "os.environ", "os.getenv", "os.putenv", "os.unsetenv", "os.system", "os.popen", "os.execv", "os.fork", "torch.load",
    "torch.hub", "sys.path",
}  # fmt: skip
HOST_FINDER = "hypertransport_core/backbones/host.py"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4")
LANGUAGES = ("en", "de", "ja", "zh")


def sources(names: tuple[str, ...]) -> dict[str, str]:
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if name.endswith(".py")}


def node_ids() -> list[str]:
    texts = sources(tuple(name for name in archive.archived_files() if name.startswith("nodes/"))).values()
    return sorted({found for text in texts for found in re.findall(r'node_id="(\w+)"', text)})


def findings(text: str) -> Iterator[str]:
    """What the registry's scanner would stop at, and what opens a door, in Python source."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (f"line {node.lineno}: from {name}" for name in dotted if name in ATTRIBUTES)
        else:
            modules = []
        for module in modules:
            if module.split(".")[0] in NETWORK | PROCESSES | UNSAFE:
                yield f"line {node.lineno}: import {module}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield f"line {node.lineno}: {node.func.id}()"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ATTRIBUTES:
                yield f"line {node.lineno}: {name}"


def test_only_what_users_need_is_packed() -> None:
    names = archive.archived_files()
    assert {name.split("/")[0] for name in names} == PACKED
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"tests", "test", ".ci", ".github", "runs", "output"}
    assert not [name for name in names if Path(name).name.startswith((".", "test_", "conftest"))]


def test_size_and_pictures() -> None:
    """Pictures are those of help pages and templates, and small; what only the guides show stays outside."""
    sizes = {name: (ROOT / name).stat().st_size for name in archive.archived_files()}
    pictures = {name: size for name, size in sizes.items() if name.endswith(PICTURES)}
    pages = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in sizes if name.endswith(".md"))
    for name, size in pictures.items():
        assert size <= 100_000, f"{name} has {size} bytes"
        template = name.startswith("example_workflows/") and str(Path(name).with_suffix(".json").as_posix()) in sizes
        assert template or Path(name).name in pages, f"{name} is shown nowhere"
    assert sum(sizes.values()) < 48 * MB, sum(sizes.values()) / MB


def test_everything_that_modules_import_of_the_pack_is_there() -> None:
    names = set(archive.archived_files())
    missing = []
    for name, text in sources(tuple(names)).items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ImportFrom) or not (
                node.level or str(node.module).startswith("hypertransport_core")
            ):
                continue
            base = Path(name).parents[node.level - 1] if node.level else Path()
            target = base.joinpath(*(node.module or "").split("."))
            found = {f"{target.as_posix()}.py", (target / "__init__.py").as_posix()} & names
            below = all(
                {(target / f"{alias.name}.py").as_posix(), (target / alias.name / "__init__.py").as_posix()} & names
                for alias in node.names
            )
            if not (found or below):
                missing.append(f"{name}:{node.lineno}: {'.' * node.level}{node.module}")
    assert not missing, "\n".join(missing)


def test_files_of_every_node_are_there() -> None:
    names = set(archive.archived_files())
    ids = node_ids()
    assert len(ids) > 15
    assert not [node_id for node_id in ids if f"web/docs/{node_id}.md" not in names], "a help page lacks"
    for language in LANGUAGES:
        texts = json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
        assert f"locales/{language}/nodeDefs.json" in names and set(ids) <= set(texts), language
    assert {
        f"weights/{name}"
        for name in ("postcard.safetensors", "postcard_clip.safetensors", "postcard_hypernetwork.safetensors")
    } <= names
    workflows = [name for name in names if name.startswith("example_workflows/") and name.endswith(".json")]
    assert len(workflows) >= 13 and "web/docs" in {str(Path(name).parent.as_posix()) for name in names}


def test_readme_names_every_node() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("### Nodes", 1)[1].split("\n### ", 1)[0]
    assert sorted(re.findall(r"`(HyperTransport\w+)`", table)) == node_ids()
    assert f" {len(node_ids())} nodes" in readme and f"{len(node_ids())} of them" in (ROOT / "CHANGELOG.md").read_text(
        encoding="utf-8"
    )
    workflows = [name for name in archive.archived_files() if re.match(r"example_workflows/.*\.json", name)]
    assert f"{len(workflows)} workflows" in readme


def test_data_files_of_the_core_are_there() -> None:
    """Whatever lies in the core is packed: word lists, settings, and whatever a module reads from beside itself; of the
    weights all but those that nothing but `results` reads."""
    inside = {name for name in archive.tracked_files() if name.startswith(("hypertransport_core/", "weights/", "web/"))}
    only_measure = {f"weights/{name}" for name in (IMAGE_ADAPTER_FILE, SECOND_CLIP_FILE, SECOND_JUDGE_FILE)}
    assert only_measure <= inside and inside - set(archive.archived_files()) == only_measure


def test_nothing_that_the_registry_flags() -> None:
    texts = sources(archive.archived_files())
    host = texts.pop(HOST_FINDER)
    found = [f"{name} {one}" for name, text in texts.items() for one in findings(text)]
    assert not found, "\n".join(found)
    # Commands that a person runs outside of ComfyUI look for it: one variable read, one folder added. Nodes never do.
    assert sorted(one.split(": ")[1] for one in findings(host)) == ["os.environ", "sys.path"]
    assert 'os.environ.get("COMFYUI_PATH")' in host and "sys.path.append(str(host))" in host
    assert not [name for name, text in texts.items() if name.startswith("nodes/") and "make_importable" in text]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import requests", 1), ("from urllib.request import urlopen", 1), ("import http.client as c", 1),
        ("import subprocess, socket", 2), ("import os\nos.environ['A'] = '1'", 1), ("from os import environ", 1),
        ("eval('1')", 1), ("exec(code)", 1), ("import pickle", 1), ("import torch\ntorch.load(p)", 1),
        ("import os\nos.system('ls')", 1),
        ("network.eval()", 0), ("re.compile('x')", 0), ("'import requests; eval(1)'", 0), ("from .http import get", 0),
        ("# os.environ", 0), ("requests = []\nrequests.append(1)", 0), ("import os\nos.replace(a, b)", 0),
    ],
)  # fmt: skip
def test_findings_are_found_and_false_alarms_are_not(source: str, count: int) -> None:
    assert len(list(findings(source))) == count


def semicolons(text: str) -> list[int]:
    """Lines with two statements between which a semicolon stands: ruff's E702 and E703."""
    return [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.OP and token.string == ";"
    ]


def test_what_comfy_node_validate_checks() -> None:
    project = parse((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] and project["project"]["name"] and project["tool"]["comfy"]["PublisherId"]
    found = []
    for name, text in sources(archive.tracked_files()).items():  # the whole tree, tests too, as ruff sees it
        found += [f"{name}:{line}: two statements on a line" for line in semicolons(text)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(f"{name}:{node.lineno}: {node.func.id}()")
    assert not found, "\n".join(found)
    assert semicolons("a = 1; b = 2\nc = 'a;b'  # ;") == [1]


def test_ruff_says_the_same() -> None:
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "check", str(ROOT), "-q", "--select", "S102,S307,E702", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_no_word_lists_of_a_build_machine() -> None:
    """Texts, workflows and locales name no place of the machine they were made on."""
    place = re.compile(r"(?<![\w.~>/])/(?:work|root|farm|tmp|home|Users)/\w|[A-Z]:\\\\?Users")
    ends = (".json", ".md", ".toml", ".txt", ".csv")
    names = [name for name in archive.archived_files() if name.endswith(ends)]
    assert not [name for name in names if place.search((ROOT / name).read_text(encoding="utf-8"))]
