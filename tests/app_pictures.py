"""Pictures of scripts.app for the documents.

PYTHONPATH=. .venv/bin/python tests/app_pictures.py runs/demo/models runs/demo/data docs/images
"""

import socket
import sys
from pathlib import Path

from browsing import DESKTOP, PHONE, chromium
from PIL import Image

from scripts import app

LOOKS = {"desktop": (DESKTOP, "light"), "phone": (PHONE, "dark")}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def take(models: Path, songs: Path, folder: Path) -> None:
    """Separate an example and write FOLDER/app_desktop.png and FOLDER/app_phone.png."""
    args = app.Args(models=models, port=free_port(), examples=(songs,))
    with app.opened(args) as address, chromium() as browser:
        for name, (size, scheme) in LOOKS.items():
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(address)
            page.locator(".gallery-item").first.click()
            page.locator(".file-preview").wait_for()
            page.get_by_role("button", name="Separate").click()
            page.locator(".song audio").nth(2).wait_for(timeout=600_000)
            page.wait_for_function(
                "() => [...document.querySelectorAll('.song audio')].every(x => x.readyState > 1)"
            )
            page.locator("[data-track=drums] .picture").click()  # the line in the middle
            page.mouse.move(0, 0)
            page.wait_for_timeout(500)
            file = folder / f"app_{name}.png"
            page.screenshot(path=file, full_page=True)
            Image.open(file).convert("RGB").quantize(256, kmeans=5).save(file, optimize=True)
            page.close()


if __name__ == "__main__":
    take(*map(Path, sys.argv[1:4]))
