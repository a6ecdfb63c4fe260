"""As for the host tests: without a ComfyUI these are skipped and counted."""

from __future__ import annotations

import comfy_boot
import pytest

NO_HOST = "no ComfyUI host: "  # also read by the summary in tests/conftest.py


@pytest.fixture(scope="session", autouse=True)
def host() -> None:
    """ComfyUI is importable."""
    missing = comfy_boot.boot()
    if missing:
        pytest.skip(NO_HOST + missing)
