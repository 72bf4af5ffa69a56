"""A browser to open reports in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("LAYERSTATS_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} (apt-get install chromium)")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        # Without a sandbox of its own: Chromium refuses to start one as root, as in a container.
        chromium = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-quic", "--no-first-run", *quiet]
        )
        yield chromium
        chromium.close()
