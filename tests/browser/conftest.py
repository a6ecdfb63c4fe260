"""The page in a headless Chromium; skipped, with the reason, where there is none. Screenshots go to $HYPERTRANSPORT_SCREENSHOTS or a temporary folder."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_browser import Browser, ComfyPage, NoBrowser
from comfy_server import Server

NO_BROWSER = "no browser: "  # also read by the summary in tests/conftest.py


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for the session."""
    try:
        with Browser.start() as running:
            yield running
    except NoBrowser as reason:
        pytest.skip(NO_BROWSER + str(reason))


@pytest.fixture(scope="module")
def opened(browser: Browser, server: Server) -> Iterator[ComfyPage]:
    """One page for a file of tests: opening it takes seconds."""
    try:
        page = browser.open(server)
    except NoBrowser as reason:
        pytest.skip(NO_BROWSER + str(reason))
    yield page
    page.close()


@pytest.fixture
def page(opened: ComfyPage) -> ComfyPage:
    """The page with an empty graph, nothing open, nothing said."""
    opened.reset()
    return opened


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    named = os.environ.get("HYPERTRANSPORT_SCREENSHOTS")
    return Path(named) if named else tmp_path_factory.mktemp("screenshots")
