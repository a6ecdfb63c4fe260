"""Host tests run inside a real ComfyUI, as a library, on the CPU; without one they are skipped and counted."""
from __future__ import annotations

import pytest

import comfy_boot

NO_HOST = "no ComfyUI host: "  # also read by the summary in tests/conftest.py


@pytest.fixture(scope="session", autouse=True)
def host() -> None:
    """ComfyUI is importable. Import it inside tests and fixtures only, never at the top of a host test file."""
    missing = comfy_boot.boot()
    if missing:
        pytest.skip(NO_HOST + missing)
