"""For all tests: support modules are importable, and the summary says how much of the host was left untested."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

from comfy_boot import mend_torchvision  # noqa: E402

# transformers imports an installed torchvision too, so the core tests need the cure as much as the host does.
mend_torchvision()

NO_HOST = "no ComfyUI host: "


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if NO_HOST in str(r.longrepr)]
    if skipped:
        reason = str(skipped[0].longrepr[2] if isinstance(skipped[0].longrepr, tuple) else skipped[0].longrepr)
        terminalreporter.write_line(f"{len(skipped)} host tests skipped: {reason.split(NO_HOST, 1)[1]}", yellow=True)
