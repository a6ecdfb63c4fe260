"""What is packed and published: the top level, the registry's archive, the commands of the README, one version everywhere."""
from __future__ import annotations

import asyncio
import fnmatch
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import hypertransport_core
from hypertransport_core.toml_files import parse

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {"__init__.py", "nodes", "hypertransport_core", "train_hypernet.py", "weights", "example_workflows", "subgraphs", "web", "locales", "tests", "docs",
             "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".ci", ".comfyignore", ".gitignore"}
MB = 2**20

# What the registry's scanner flags, or what opens a door. Written so that this file does not find itself.
FORBIDDEN = {
    "eval(": r"(?<![\w.])eval\(", "exec(": r"(?<![\w.])exec\(", "os.environ": r"\bos\.(?:environ|getenv|putenv)\b", "subprocess": r"\bsubprocess\b",
    "urllib": r"\burllib\b", "requests": r"\b(?:import requests|from requests|requests\.)", "sockets": r"\b(?:import|from) (?:socket|http|ftplib)\b",
    "pickle": r"\bpickle\b", "torch.load": r"\btorch\.load\b", "os.system": r"\bos\.(?:system|popen)\b", "pip at run time": r"\bimport pip\b",
}
MACHINE_PATHS = re.compile(r"(?<![\w.~>])/(?:work|root|farm|tmp|home|Users)/\w")
REGISTRY_HOSTS = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org|download\.pytorch\.org", re.IGNORECASE)


def tracked_files() -> list[str]:
    """Paths of the repository's files: what git tracks, or, in an unpacked archive, what lies there and is not ignored."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
        return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    every = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return [name for name in every if not ignored(name, patterns(".gitignore")) and not name.startswith(".git/")]


def patterns(file: str) -> list[str]:
    lines = (line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def ignored(name: str, rules: list[str]) -> bool:
    """Whether a path falls under rules of the simple kinds used here: `folder/`, `/folder/`, `name`, `*.ending`."""
    parts = name.split("/")
    for rule in rules:
        anchored, wanted = rule.startswith("/"), rule.strip("/")
        candidates = parts[:-1] if rule.endswith("/") else parts
        if any(fnmatch.fnmatch(part, wanted) for part in (candidates[:1] if anchored else candidates)):
            return True
    return False


def archive() -> list[str]:
    """What the Comfy Registry packs: tracked files without those that .comfyignore names."""
    return [name for name in tracked_files() if not ignored(name, patterns(".comfyignore"))]


def texts(names: list[str], *endings: str) -> dict[str, str]:
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if name.endswith(endings)}


def project() -> dict:
    return parse((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def readme_command(which: str) -> str:
    """The first fenced block below the line `<!-- command WHICH -->` of the README."""
    found = re.search(rf"^<!-- command {re.escape(which)} -->\n```\w+\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no command {which}"
    return found.group(1).strip()


def test_top_level_is_exactly_what_was_agreed() -> None:
    assert {name.split("/")[0] for name in tracked_files()} == TOP_LEVEL


def test_archive_holds_the_pack_and_nothing_else() -> None:
    names = archive()
    assert {"__init__.py", "nodes/__init__.py", "hypertransport_core/__init__.py", "pyproject.toml", "README.md", "LICENSE"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "docs/", ".ci/", ".git"))]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_shipped_code_has_nothing_that_the_registry_flags(what: str) -> None:
    found = [f"{name}:{number}: {line.strip()}" for name, text in texts(archive(), ".py", ".js", ".sh").items()
             for number, line in enumerate(text.splitlines(), 1) if re.search(FORBIDDEN[what], line)
             and (name, what) != ("hypertransport_core/backbones/host.py", "os.environ")]  # read only; see test_archive
    assert not found, "\n".join(found)


def test_rules_find_what_they_are_for() -> None:
    samples = {
        "eval(": "x = eval('1')", "exec(": "exec(code)", "os.environ": "os.environ['A'] = '1'", "subprocess": "import subprocess",
        "urllib": "import urllib.request", "requests": "requests.get(url)", "sockets": "from http import client", "pickle": "import pickle",
        "torch.load": "torch.load(path)", "os.system": "os.system('ls')", "pip at run time": "import pip",
    }
    assert samples.keys() == FORBIDDEN.keys()
    assert all(re.search(FORBIDDEN[what], sample) for what, sample in samples.items())
    assert not any(re.search(rule, "network.eval(); requests = 3") for rule in FORBIDDEN.values())
    assert MACHINE_PATHS.search("open('/" + "root/x')") and not MACHINE_PATHS.search("runs/work/x, ~/work/x")


def test_no_shipped_code_prints_to_the_host() -> None:
    speaking = ("hypertransport_core/commands/", "hypertransport_core/training/cli.py", "train_hypernet.py")
    found = [name for name, text in texts(archive(), ".py").items() if not name.startswith(speaking) and re.search(r"^\s*print\(", text, re.MULTILINE)]
    assert not found


def test_no_machine_paths_and_no_registry_hosts() -> None:
    names = [name for name in tracked_files() if name != "tests/core/test_package.py"]
    found = [f"{name}:{number}: {line.strip()[:160]}" for name, text in texts(names, ".py", ".md", ".toml", ".json", ".txt", ".sh", "run").items()
             for number, line in enumerate(text.splitlines(), 1) if MACHINE_PATHS.search(line) or REGISTRY_HOSTS.search(line)]
    assert not found, "\n".join(found)


def test_sizes() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in tracked_files()}
    assert not {name: size for name, size in sizes.items() if size > 40 * MB}
    assert sum(size for name, size in sizes.items() if name.startswith("weights/")) <= 48 * MB
    lines = {name: text.count("\n") for name, text in texts(archive(), ".py").items()}
    assert not {name: count for name, count in lines.items() if count > 430}, "about 400 lines is the most a file should have"
    assert lines["__init__.py"] < 60


def test_one_version_everywhere() -> None:
    version = project()["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert hypertransport_core.__version__ == version
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE).group(1) == version


def test_every_name_of_the_core_is_there_for_programs_and_for_type_checkers() -> None:
    named = hypertransport_core.__all__
    assert {"Steering", "TransportMaps", "Pipeline", "find_sites"} <= set(named) == set(dir(hypertransport_core))
    assert all(getattr(hypertransport_core, name) is not None for name in named)
    shown = re.findall(r"^    from \.\w+ import (\w+) as \1$", (ROOT / "hypertransport_core/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(set(named) - {"__version__"})
    with pytest.raises(AttributeError, match="no attribute 'Steer'"):
        hypertransport_core.Steer  # noqa: B018


def test_dependencies_leave_the_hosts_torch_alone() -> None:
    names = {re.match(r"[\w.-]+", requirement).group().lower() for requirement in project()["project"]["dependencies"]}
    assert not names & {"torch", "torchvision", "torchaudio", "numpy", "comfyui"}
    assert names <= {"safetensors", "transformers", "pillow", "tomli"}, "every one of these must come with ComfyUI"


def test_registry_fields() -> None:
    data, comfy = project()["project"], project()["tool"]["comfy"]
    assert data["name"] == "hypertransport" and data["license"] == {"file": "LICENSE"} and data["requires-python"] == ">=3.10"
    assert data["urls"]["Repository"].startswith("https://") and comfy["PublisherId"] and comfy["DisplayName"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_every_room_is_packed() -> None:
    rooms = {str(Path(name).parent).replace("/", ".") for name in tracked_files() if name.startswith("hypertransport_core/") and name.endswith(".py")}
    assert set(project()["tool"]["setuptools"]["packages"]) == rooms | {"hypertransport_core.weights"}, "correct [tool.setuptools] packages in pyproject.toml"


BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


INSTALLED = """
import sys
import hypertransport_core
from hypertransport_core.commands import main
from hypertransport_core.pipeline import WEIGHTS
assert hypertransport_core.__file__.startswith(sys.argv[1]) and str(WEIGHTS).startswith(sys.argv[1])
sys.exit(main(["demo", "--concept", "neon", "--strength", "1", "--steps", "1", "--output", "here"]))
"""


def runs_from(site: Path, elsewhere: Path) -> None:
    """What lies in a folder for packages makes a picture, from another folder, with the weights it brought along."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", INSTALLED, str(site)], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "here" / "demo.png").is_file()


def test_a_wheel_holds_every_file_of_the_core_and_the_weights(tmp_path: Path) -> None:
    """Built from a copy, without a network: what the project file says is what arrives."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 71:
        pytest.importorskip("wheel")  # later ones have it inside
    source = tmp_path / "source"
    wanted = [name for name in tracked_files() if name.startswith(("hypertransport_core/", "weights/"))]
    for name in [*wanted, "pyproject.toml", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    done = subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extractall(tmp_path / "site")
    runs_from(tmp_path / "site", tmp_path)
    assert packed == {name if name.startswith("hypertransport_core/") else f"hypertransport_core/{name}" for name in wanted}


def test_every_link_of_the_guides_leads_somewhere() -> None:
    missing, guides = [], texts(tracked_files(), ".md")
    for name, text in guides.items():
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
            path, _, heading = target.partition("#")
            place = (ROOT / name).parent.joinpath(path) if path else ROOT / name
            if not target.startswith("http") and (not place.exists() or heading and heading not in anchors(place)):
                missing.append(f"{name}: {target}")
    assert not missing and any("#" in target for target in re.findall(r"\]\(([^)\s]+)", guides["README.md"]))


def anchors(guide: Path) -> set[str]:
    """What links may name behind the # of a guide: its headings in small letters, spaces as dashes, signs left out."""
    text = re.sub(r"^```.*?^```", "", guide.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_readme_commands() -> None:
    for number, extra, last in (("1", "demo", "-m hypertransport_core demo"), ("2", "test", "-m pytest")):
        unix, windows = readme_command(number), readme_command(f"{number}, Windows")
        assert unix == f'python3 -m venv .venv && .venv/bin/python -m pip install -e ".[{extra}]" && .venv/bin/python {last}'
        assert windows.splitlines() == unix.replace("python3 -m", "python -m").replace(".venv/bin/python", r".venv\Scripts\python").split(" && ")
        assert extra in project()["project"]["optional-dependencies"]


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("bash"), reason="no bash on this machine")
@pytest.mark.parametrize("number", ["1", "2"])
def test_ci_runs_what_the_readme_says(number: str) -> None:
    said = subprocess.run(["bash", str(ROOT / ".ci" / "run"), "print", number], capture_output=True, text=True, check=True).stdout
    assert said.strip() == readme_command(number)
    assert "pip install" not in (ROOT / ".ci" / "run").read_text(encoding="utf-8"), "what CI installs stands in the README"


def load_pack(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """The repository imported as the host does it: under a name of its own, from the path of its __init__.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_pack_imports_without_host(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_pack(monkeypatch, "a folder of any name")
    assert asyncio.iscoroutinefunction(module.comfy_entrypoint)
    assert not hasattr(module, "NODE_CLASS_MAPPINGS"), "the host would ignore comfy_entrypoint"


def test_model_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a host: only what nodes/folders.py imports stands in for it. The nodes themselves are the host tests' matter."""
    host = SimpleNamespace(models_dir=str(tmp_path / "models"), folder_names_and_paths={"hypertransport": (["from extra_model_paths.yaml"], set())})
    monkeypatch.setitem(sys.modules, "folder_paths", host)
    name = "hypertransport_pack_under_test"
    load_pack(monkeypatch, name)
    nodes = ModuleType(f"{name}.nodes")
    nodes.__path__ = [str(ROOT / "nodes")]
    monkeypatch.setitem(sys.modules, nodes.__name__, nodes)
    try:
        folders = importlib.import_module(f"{name}.nodes.folders")
        for _ in range(2):  # a host that loads twice must not list anything twice
            folders.register_model_folder()
    finally:
        for loaded in [n for n in sys.modules if n.startswith(f"{name}.") and n != nodes.__name__]:
            del sys.modules[loaded]
    paths, endings = host.folder_names_and_paths["hypertransport"]
    assert paths == ["from extra_model_paths.yaml", str(tmp_path / "models" / "hypertransport"), str(ROOT / "weights")]
    assert endings == {".safetensors"} and (tmp_path / "models" / "hypertransport").is_dir()
