"""Chromium for the tests of pages, as the system's packages install it."""

import os
import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
NO_BROWSER = "no Chromium on this machine: apt-get install chromium, then run the tests again"


def launch(playwright):
    """A browser without a window."""
    # Chromium refuses its sandbox to root, as which containers run.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=BROWSER, args=options)
