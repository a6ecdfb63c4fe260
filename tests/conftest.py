"""For all tests: support modules are importable, one ComfyUI server for those that want it, and the summary says what was left untested."""
from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from comfy_boot import mend_torchvision  # noqa: E402
from comfy_server import NoServer, Server  # noqa: E402

# transformers imports an installed torchvision too, so the core tests need the cure as much as the host does.
mend_torchvision()

NO_HOST = "no ComfyUI host: "
NO_BROWSER = "no browser: "


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real ComfyUI server with only this pack, one for the whole session. Where it cannot run, its tests are skipped."""
    try:
        running = Server.start(tmp_path_factory.mktemp("comfy"))
    except NoServer as reason:
        pytest.skip(NO_HOST + str(reason))
    yield running
    running.stop()


def pytest_terminal_summary(terminalreporter) -> None:
    """How many tests were skipped for want of a host or a browser, and why."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        for mark, kind in ((NO_HOST, "host"), (NO_BROWSER, "browser")):
            if mark in text:
                reasons[f"{kind} tests skipped: {text.split(mark, 1)[1]}"] += 1
    for words, count in reasons.items():
        terminalreporter.write_line(f"{count} {words}", yellow=True)
