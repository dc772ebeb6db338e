"""A real browser for tests: an installed Chromium or Chrome, driven by Playwright."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


def find_chromium() -> str | None:
    """The installed browser's command; `CHROMIUM` names another."""
    names = (os.environ.get("CHROMIUM"), *COMMANDS)
    return next((path for name in names if name and (path := shutil.which(name))), None)


def free_port() -> int:
    """One that nothing listens on yet."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def chromium() -> Iterator:
    """A running browser. Closed by the module that uses it: while Playwright's loop is there,
    nothing else of the process can run one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    command = find_chromium()
    if command is None:
        reason = "no Chromium here: install one, or name it in CHROMIUM"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=command, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page, and everything it asked for or complained about."""

    def __init__(self, page):
        self.page, self.requests, self.complaints = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: said.type in ("error", "warning") and self.complaints.append(said.text),
        )
