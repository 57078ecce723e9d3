"""Run every command of docs/tutorial.md in a new folder, and make its pictures.

python scripts/tutorial.py FOLDER

A folder in which the commands ran already is not run again. Needs Chromium for the picture of the report.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PAGE, IMAGES = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "images"
SIDE, GAP, QUALITY = 256, 8, 85
SHEETS = {
    "tutorial-effects": ("me.jpg", "me-thermal.png", "me-season.png"),
    "tutorial-strength": ("me.jpg", "me-half.png", "me-thermal.png"),
}


def find_commands(page: str) -> list[str]:
    """The lines of the page's blocks of code."""
    return re.findall(r"^    (\S.*)$", page, re.MULTILINE)


def run_commands(folder: Path) -> None:
    """Each command as a shell runs it, in a folder that sees the repository's files."""
    folder.mkdir(parents=True)
    for name in ("src", "examples"):
        (folder / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in find_commands(PAGE.read_text()):
        print(f"$ {command}", flush=True)
        subprocess.run(command, shell=True, check=True, cwd=folder, env={**os.environ, "PATH": path})


def draw_row(paths: list[Path]) -> Image.Image:
    """Pictures side by side, each `SIDE` wide and high."""
    sheet = Image.new("RGB", (len(paths) * (SIDE + GAP) - GAP, SIDE), "white")
    for index, path in enumerate(paths):
        sheet.paste(Image.open(path).convert("RGB").resize((SIDE, SIDE)), (index * (SIDE + GAP), 0))
    return sheet


def photograph_report(report: Path, picture: Path) -> None:
    """The top of the report, as a browser shows it."""
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox to root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(report.resolve().as_uri())
        page.screenshot(path=picture, type="jpeg", quality=QUALITY)
        browser.close()


def main(folder: Path) -> None:
    if not folder.exists():
        run_commands(folder)
    for name, files in SHEETS.items():
        draw_row([folder / file for file in files]).save(IMAGES / f"{name}.jpg", quality=QUALITY)
    photograph_report(folder / "mine" / "bench" / "report.html", IMAGES / "tutorial-report.jpg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
