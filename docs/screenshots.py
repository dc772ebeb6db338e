"""Take the pictures of docs/images from a run's report and from the app.

    python docs/screenshots.py --runs runs/demo --song song.wav

Needs what the tests need: `pip install -e '.[dev]'`, and Chromium.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browsing import DESKTOP, PHONE, chromium  # noqa: E402 - found by the line above

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        report(browser, args.runs / "report.html")


def report(browser, path: Path) -> None:
    """The report's first screen, its players while one plays, on a phone, in the dark."""
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
            song = page.locator(".song").first
            page.evaluate("document.querySelector('nav').style.position = 'static'")
            page.set_viewport_size({"width": 1280, "height": 1300})
            song.locator(".track[data-name='Hybrid: drums'] .tile").click()
            page.mouse.move(0, 0)
            page.wait_for_timeout(1200)
            song.screenshot(path=IMAGES / "report_players.png")
        if name == "phone":
            page.locator(".song").first.scroll_into_view_if_needed()
            page.locator("#listen article").first.evaluate("e => e.scrollIntoView()")
            page.screenshot(path=IMAGES / "report_players_phone.png")
        context.close()


if __name__ == "__main__":
    main()
