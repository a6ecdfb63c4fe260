"""The real ComfyUI server with only this pack, started for tests: a folder of its own, the CPU, no network, its log kept.

    server = Server.start(folder)      # raises NoServer with the reason where this machine cannot run it
    result = server.run(prompt)        # post an API prompt and wait
    result.status, result.outputs, result.node_errors, server.pictures(result)
    server.stop()
"""
from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy_boot

PACK_NAME = "HyperTransport"
NEEDED = {  # import name -> package, what main.py imports before it serves
    "aiohttp": "aiohttp", "comfyui_frontend_package": "comfyui-frontend-package", "sqlalchemy": "SQLAlchemy", "alembic": "alembic",
    "av": "av", "requests": "requests", "torchsde": "torchsde", "torchvision": "torchvision", "einops": "einops", "scipy": "scipy",
    "psutil": "psutil", "yaml": "pyyaml", "pydantic_settings": "pydantic-settings", "PIL": "Pillow",
}
START_SECONDS = 180.0
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy: it is this machine


class NoServer(Exception):
    """This machine cannot run the server; the text says why."""


@dataclass(frozen=True)
class Result:
    """What became of one posted prompt."""

    status: str  # "success", "error" (a node raised), "interrupted", "refused" (not queued; see error and node_errors)
    prompt_id: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)  # node id -> what its ui showed, e.g. {"images": [...]}
    node_errors: Mapping[str, Any] = field(default_factory=dict)  # of validation, node id -> {"errors": [...], "class_type": ...}
    error: str = ""  # the exception's or the refusal's own sentence
    failed: str = ""  # id of the node that raised
    traceback: str = ""
    cached: tuple[str, ...] = ()  # ids of nodes that were not run again
    seconds: float = 0.0  # execution alone, by the server's clock

    def sentences(self) -> str:
        """All that the user is told, validation and execution, one per line."""
        lines = [self.error]
        for problem in self.node_errors.values():
            lines += [f"{error['message']}: {error['details']}" for error in problem["errors"]]
        return "\n".join(line for line in lines if line)


class Server:
    """A running server. `base` is its folder (input, output, models, user, custom_nodes), `url` without a slash at the end."""

    def __init__(self, process: subprocess.Popen[bytes], base: Path, port: int, started: float) -> None:
        self.process, self.base, self.port = process, base, port
        self.url = f"http://127.0.0.1:{port}"
        self.seconds_to_start = started
        self.start_of_use = 0  # length of the log when it was up
        self._object_info: dict[str, Any] | None = None

    # -- start and stop

    @classmethod
    def start(cls, folder: Path, *, arguments: Sequence[str] = (), without: Sequence[str] = (), pack: Path = comfy_boot.PACK) -> Server:
        """Start in `folder`, which may be new or that of a stopped server. `without` names modules that shall look as if not
        installed; `arguments` are more of main.py's. Raises NoServer where the host or its packages lack, RuntimeError with the
        end of the log when it does not come up."""
        host, words = comfy_boot.find_host()
        if host is None:
            raise NoServer(words)
        lacking = sorted(package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None)
        if lacking:
            raise NoServer(f"the ComfyUI server needs {', '.join(lacking)}, not installed here")
        for name in ("custom_nodes", "input", "output", "models", "user"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        _install(pack, folder / "custom_nodes" / PACK_NAME)
        port, begun = _free_port(), time.monotonic()
        command = [sys.executable, str(Path(__file__).with_name("launch_comfy.py")), *(f"--without={name}" for name in without), str(host)]
        command += ["--cpu", "--use-pytorch-cross-attention", "--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_NAME]
        command += ["--disable-api-nodes", "--disable-auto-launch", "--port", str(port), "--base-directory", str(folder)]
        command += ["--database-url", "sqlite:///:memory:", *arguments]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        environment.pop("PYTHONPATH", None)  # what pytest is given must not reach the server: it has to find its things alone
        with open(folder / "log.txt", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=environment)
        server = cls(process, folder, port, 0.0)
        try:
            server._wait_until_up(begun)
        except BaseException:
            server.stop()
            raise
        server.seconds_to_start = time.monotonic() - begun
        server.start_of_use = len(server.log())
        return server

    def _wait_until_up(self, begun: float) -> None:
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"the ComfyUI server ended with {self.process.returncode} while starting:\n{self.log()[-4000:]}")
            if time.monotonic() - begun > START_SECONDS:
                raise RuntimeError(f"the ComfyUI server was not up after {START_SECONDS:.0f} s:\n{self.log()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server; nothing of it is left running."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    # -- what it says

    def log(self) -> str:
        """All it has printed so far."""
        return (self.base / "log.txt").read_text(encoding="utf-8", errors="replace")

    def complaints(self, since: int = 0, until: int | None = None) -> list[str]:
        """Errors, warnings and tracebacks in the log (its characters from `since` to `until`) that name this pack.

        Installed packages do not count, also where their environment lies in a folder with the pack's name."""
        blocks = _blocks(self.log()[since:until].replace(sys.prefix, "environment"))
        return [block for block in blocks if PACK_NAME.lower() in block.lower() and _is_bad(block)]

    def processor_seconds(self) -> float:
        """What all of its threads have used so far: hardly changed by what else the machine does."""
        import psutil

        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def memory(self) -> int:
        """Bytes of memory the server holds (resident set)."""
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)

    def get(self, path: str, timeout: float = 30.0) -> Any:
        """The JSON at `path`."""
        return json.loads(self.get_bytes(path, timeout))

    def get_bytes(self, path: str, timeout: float = 30.0) -> bytes:
        """What is served at `path`; urllib.error.HTTPError where nothing is."""
        with LOCAL.open(self.url + path, timeout=timeout) as answer:
            return bytes(answer.read())

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """(HTTP status, JSON or None) of posting `data` as JSON."""
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with LOCAL.open(request, timeout=60) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, json.loads(body) if body else None

    def object_info(self, *, fresh: bool = False) -> dict[str, Any]:
        """Every node the server knows, by id. Kept after the first call unless `fresh`."""
        if fresh or self._object_info is None:
            self._object_info = self.get("/object_info")
        return self._object_info

    def own_nodes(self, *, fresh: bool = False) -> dict[str, Any]:
        """The nodes of this pack in /object_info."""
        return {key: info for key, info in self.object_info(fresh=fresh).items() if info["python_module"] == f"custom_nodes.{PACK_NAME}"}

    # -- prompts

    def queue(self, prompt: Mapping[str, Any], **more: Any) -> Result | str:
        """Post an API prompt: its id, or the refusal. Where some outputs are valid and others not, the host queues the valid ones;
        that too counts as a refusal here, with the prompt's id in it."""
        status, answer = self.post("/prompt", {"prompt": prompt, **more})
        if status == 200 and not answer["node_errors"]:
            return str(answer["prompt_id"])
        if answer is None:
            return Result("refused", error=f"HTTP {status}")
        error = answer.get("error", {})
        words = error if isinstance(error, str) else ": ".join(filter(None, (error.get("message"), error.get("details"))))
        return Result("refused", prompt_id=str(answer.get("prompt_id", "")), node_errors=answer["node_errors"], error=words)

    def wait(self, prompt_id: str, timeout: float = 120.0) -> Result:
        """The result of a queued prompt; TimeoutError after `timeout` seconds, RuntimeError when the server dies meanwhile."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.history(prompt_id)
            if entry is not None and entry.get("status"):
                return _result(prompt_id, entry)
            if self.process.poll() is not None:
                raise RuntimeError(f"the ComfyUI server died ({self.process.returncode}):\n{self.log()[-4000:]}")
            time.sleep(0.02)
        raise TimeoutError(f"prompt {prompt_id} was not done after {timeout:.0f} s:\n{self.log()[-2000:]}")

    def run(self, prompt: Mapping[str, Any], timeout: float = 120.0) -> Result:
        """Post and wait."""
        queued = self.queue(prompt)
        return queued if isinstance(queued, Result) else self.wait(queued, timeout)

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The host's record of a finished prompt, None before it is finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def interrupt(self) -> None:
        """Stop the running prompt, as the page's button does."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """Unload models and empty the cache, as the page's menu does."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def picture(self, image: Mapping[str, str]) -> Any:
        """A picture named in a result's outputs ({"filename", "subfolder", "type"}), as a loaded PIL image."""
        from PIL import Image

        query = urllib.parse.urlencode({key: image[key] for key in ("filename", "subfolder", "type")})
        picture = Image.open(io.BytesIO(self.get_bytes(f"/view?{query}")))
        picture.load()
        return picture

    def pictures(self, result: Result) -> list[Any]:
        """All pictures of a result, by node id, as PIL images."""
        return [self.picture(image) for _, shown in sorted(result.outputs.items()) for image in shown.get("images", ())]


def _install(pack: Path, place: Path) -> None:
    """The pack in custom_nodes: a link, or a copy where links fail. An existing one is left."""
    if place.exists():
        return
    try:
        place.symlink_to(pack, target_is_directory=True)
    except OSError:
        shutil.copytree(pack, place, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "docs", "runs", "output"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _blocks(log: str) -> Iterator[str]:
    """Lines of a log, a traceback with the lines that belong to it as one."""
    lines = log.splitlines()
    index = 0
    while index < len(lines):
        end = index + 1
        if lines[index].startswith("Traceback"):
            while end < len(lines) and (lines[end].startswith(" ") or not lines[end]):
                end += 1
            end += 1  # the exception itself
        yield "\n".join(lines[index:end])
        index = end


def _is_bad(block: str) -> bool:
    return re.search(r"traceback|error|warning|failed|cannot|unable", block, re.IGNORECASE) is not None


def _result(prompt_id: str, entry: Mapping[str, Any]) -> Result:
    messages = {name: data for name, data in entry["status"]["messages"]}
    end = next((messages[name] for name in ("execution_success", "execution_error", "execution_interrupted") if name in messages), {})
    status = "interrupted" if "execution_interrupted" in messages else str(entry["status"]["status_str"])
    begun = messages.get("execution_start", {}).get("timestamp", 0)
    return Result(
        status=status, prompt_id=prompt_id, outputs=entry["outputs"], error=str(end.get("exception_message", "")).strip(),
        failed=str(end.get("node_id", "")), traceback="".join(end.get("traceback", ())),
        cached=tuple(messages.get("execution_cached", {}).get("nodes", ())), seconds=(end.get("timestamp", begun) - begun) / 1000,
    )
