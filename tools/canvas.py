"""The host's canvas in a headless browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from comfy_host import ComfyHost, HostError
from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
]


def browser_path() -> str:
    """Return the path of an installed Chromium or Chrome; raise HostError if there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise HostError(f"there is no browser: none of {', '.join(BROWSERS)} is installed.")


@contextmanager
def headless_browser() -> Iterator[Browser]:
    """A browser without a window; raises HostError if none is installed."""
    path = browser_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Browser, host: ComfyHost) -> Page:
    """A page of its own, with nothing kept from others; `show` opens the canvas in it."""
    # else a dialog with templates covers the canvas at the first visit
    requests.post(f"{host.client.url}/api/settings/Comfy.TutorialCompleted", json=True, timeout=60).raise_for_status()
    return browser.new_page(viewport={"width": 1800, "height": 1000})


def show(page: Page, host: ComfyHost, node_id: str, query: str = "") -> None:
    """Go to the host's canvas, with a URL query such as "?template=…", until the node `node_id` is known to it."""
    page.goto(f"{host.client.url}/{query}")
    page.wait_for_function(
        "node => Boolean(window.app?.extensionManager && window.LiteGraph?.registered_node_types[node])",
        arg=node_id,
        timeout=120_000,
    )


@contextmanager
def canvas(host: ComfyHost, node_id: str) -> Iterator[Page]:
    """A page that shows the host's canvas, ready once the node `node_id` is known to it."""
    with headless_browser() as browser:
        page = new_page(browser, host)
        show(page, host, node_id)
        yield page
