"""A headless Chromium for tests of pages, where Playwright's package and a browser are installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "google-chrome", "chromium-browser")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a running browser; skip the test where there is none, saying what is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    executable = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"needs a browser: none of {', '.join(_NAMES)} is on the path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class OpenPage:
    """A page in the browser, with all that it requested and complained about since it was opened."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def wait_until_drawn(page: Any) -> None:
    """Wait for a first frame of a page that has loaded: a busy browser may drop a key that is pressed before."""
    page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def open_page(browser: Any, path: Path, **options: Any) -> OpenPage:
    """Open a file offline and wait until its charts are drawn.

    Args:
        browser: What `chromium` returns.
        path: The page.
        options: Options of Playwright's `new_context`, as `viewport` or `color_scheme`.
    """
    page = browser.new_context(offline=True, **options).new_page()
    opened = OpenPage(page=page)
    page.on("request", lambda request: opened.requests.append(request.url))
    page.on("console", lambda message: opened.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (opened.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(path.as_uri())
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.wait_for_function(
        "theme => [...document.querySelectorAll(`.plot > .${theme}`)].every((plot) => plot.querySelector('svg'))",
        arg=theme,
    )
    wait_until_drawn(page)
    return opened
