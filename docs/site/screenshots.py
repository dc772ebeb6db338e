"""Take the screenshots in docs/images from a finished run: its report, and the app.

    python docs/site/screenshots.py --runs runs/demo

Needs the `dev` extra and an installed Chromium.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browsing import DESKTOP, PHONE, chromium, free_port  # noqa: E402 - needs the path set above

from scripts import app  # noqa: E402

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    """Write the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"))
    runs = parser.parse_args().runs
    IMAGES.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        report(browser, runs / "report.html")
        separate(browser, runs)
    for path in IMAGES.glob("*.png"):
        Image.open(path).convert("RGB").quantize(256, kmeans=5).save(path, optimize=True)
        print(path)


def report(browser, path: Path) -> None:
    """Take the report: light, dark and on a phone, and its players while one plays."""
    for name, viewport, scheme in (
        ("desktop", DESKTOP, "light"),
        ("dark", DESKTOP, "dark"),
        ("phone", PHONE, "light"),
    ):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        page = context.new_page()
        page.goto(path.resolve().as_uri())
        page.screenshot(path=IMAGES / f"report_{name}.png")
        if name == "desktop":
            page.evaluate("document.querySelector('nav').style.position = 'static'")
            page.set_viewport_size({"width": 1280, "height": 1300})
            song = page.locator(".song").first
            song.locator(".track[data-name='Hybrid: drums'] .tile").click()
            page.mouse.move(0, 0)
            page.wait_for_timeout(1200)
            song.screenshot(path=IMAGES / "report_players.png")
        if name == "phone":
            page.locator(".song").first.evaluate("song => song.scrollIntoView()")
            page.screenshot(path=IMAGES / "report_players_phone.png")
        context.close()


def separate(browser, runs: Path) -> None:
    """Take the app after it separated an example: light on a desktop, dark on a phone."""
    args = app.Args(models=runs / "models", port=free_port(), examples=(runs / "data",))
    with app.opened(args) as address:
        for name, size, scheme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "dark")):
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
            page.screenshot(path=IMAGES / f"app_{name}.png", full_page=True)
            page.close()


if __name__ == "__main__":
    main()
