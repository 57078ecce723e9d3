"""Pictures of a running studio for docs/images: python scripts/studio_pictures.py ADDRESS [CHROMIUM]

collectionlora studio nano                               in another terminal
"""

import os
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

OUT = Path(__file__).parents[1] / "docs" / "images"
QUALITY = 80  # of JPEG
SCREENS = {
    "studio": (1440, 900, "light", "Astronaut", "Neon edges"),
    "studio-dark": (1440, 900, "dark", "Cat", "Cyanotype"),
    "studio-phone": (390, 844, "light", "Cat", "Thermal"),
}


def make(page: Page, example: str, effect: str) -> None:
    """An example photo under an effect, and what the page shows then."""
    tiles = page.locator(".effects")
    expect(page.get_by_role("button", name="Generate")).to_be_visible()
    before = tiles.get_by_role("radio").first.evaluate(PICTURE)
    page.get_by_role("button", name=example).click()
    page.wait_for_function(
        f"old => ({PICTURE})(document.querySelector('.effects input')) !== old", arg=before
    )
    for name in ("Pencil sketch", "Technicolor", effect):
        tiles.get_by_role("radio", name=name, exact=True).click()
        expect(page.locator(".compare figcaption")).to_contain_text(name)
    page.mouse.move(0, 0)


# The picture that a tile shows.
PICTURE = "e => getComputedStyle(e.closest('label'), '::before').backgroundImage"


def main() -> None:
    address, *chromium = sys.argv[1:]
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox to root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=next(iter(chromium), None), args=options)
        for name, (width, height, scheme, example, effect) in SCREENS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.goto(address)
            make(page, example, effect)
            page.screenshot(path=OUT / f"{name}.jpg", type="jpeg", quality=QUALITY)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
