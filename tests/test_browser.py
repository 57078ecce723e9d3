"""The studio in a real browser: what a person clicks, sees, and is told.

With COLLECTIONLORA_SCREENSHOTS=DIR every test leaves its last page there as a picture, to be looked at.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.studio_server import EFFECTS, MANY_STEPS, PASSWORD, USER, serve, write_collection
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from skimage import data

from collectionlora.editing import Editor
from collectionlora.pictures.photos import read_photo

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
WAIT = 60_000  # milliseconds; only a failing test waits for so long
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="no Chromium on this machine: apt-get install chromium, then run the tests again",
)
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "mine"
    folder.mkdir()
    return write_collection(folder, steps=MANY_STEPS)


@pytest.fixture(scope="module")
def context(folder):
    """A browser that is logged in; it reaches the studio and nothing else."""
    with serve(folder) as address, sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, as which containers run.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options)
        context = browser.new_context(base_url=address)
        context.set_default_timeout(WAIT)
        foreign = []
        context.on("request", lambda r: foreign.append(r.url) if elsewhere(r.url, address) else None)
        page = context.new_page()
        page.goto("/")
        page.get_by_label("username").fill(USER)
        page.get_by_label("password").fill(PASSWORD)
        page.get_by_role("button", name="Login").click()
        expect(page.get_by_role("button", name="Generate")).to_be_visible()
        page.close()
        yield context
        browser.close()
        assert foreign == [], "the page asked other machines"


def elsewhere(url, address):
    return not url.startswith((address, "data:", "blob:"))


@pytest.fixture
def page(context, request):
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto("/")
    expect(page.get_by_role("button", name="Generate")).to_be_visible()
    yield page
    if folder := os.environ.get("COLLECTIONLORA_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    page.close()
    assert errors == []


@pytest.fixture(scope="module")
def photo(folder):
    path = folder.parent / "me.png"
    Image.fromarray(data.astronaut()[::2, :400:2]).save(path)
    return path


def drop(page, path):
    page.locator(".photo input[type=file]").set_input_files(path)
    expect(page.locator(".photo img")).to_be_visible()


def choose_steps(page, steps):
    page.get_by_role("radio", name=str(steps), exact=True).check()


def saved(page, where, tmp_path):
    """The pixels of the last picture in a part of the page."""
    address = page.locator(f"{where} img").last.get_attribute("src")
    path = tmp_path / "saved.png"
    path.write_bytes(page.request.get(address).body())
    return read_photo(path)


def choose(page, label, effect):
    box = page.get_by_label(label, exact=True)
    box.fill(effect)
    box.press("Enter")
    expect(box).to_have_value(effect)


def test_drop_pick_and_generate_give_the_picture_that_python_gives(page, folder, photo, tmp_path):
    drop(page, photo)
    page.locator(".effects button").nth(1).click()
    expect(page.get_by_label("Effect", exact=True)).to_have_value("warm")
    choose_steps(page, 4)
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".block.status")).to_have_text("done")
    made = saved(page, ".result", tmp_path)
    expected = Editor.load(folder).edit(read_photo(photo), ["warm"], seed=7, steps=4)
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_two_effects_are_composed_at_half_strength(page, folder, photo, tmp_path):
    drop(page, photo)
    choose(page, "Effect", "green")
    choose(page, "Then", "negative")
    choose_steps(page, 1)
    page.get_by_label("number input for Strength").fill("0.5")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".block.status")).to_have_text("done")
    made = saved(page, ".result", tmp_path)
    editor = Editor.load(folder)
    expected = editor.edit(read_photo(photo), ["green", "negative"], steps=1, strength=0.5)
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_all_effects_make_a_contact_sheet_to_download(page, photo):
    drop(page, photo)
    choose_steps(page, 1)
    page.get_by_role("button", name="All effects").click()
    expect(page.locator(".block.status")).to_have_text("done")
    expect(page.locator(".sheet img")).to_be_visible()
    expect(page.locator(".pictures button.thumbnail-lg")).to_have_count(len(EFFECTS))
    with page.expect_download() as download:
        page.locator(".sheet").get_by_label("Download").click()
    assert Image.open(download.value.path()).width > 3 * 240


def test_a_long_work_shows_its_steps_and_is_cancelled(page, photo):
    drop(page, photo)
    choose_steps(page, MANY_STEPS)
    page.get_by_role("button", name="All effects").click()
    expect(page.locator(".block.status")).to_have_text(
        re.compile(rf"picture 1 of 3, step \d+ of {MANY_STEPS}")
    )
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".block.status")).to_have_text("cancelled")
    choose_steps(page, 1)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".block.status")).to_have_text("done")


def test_a_file_that_is_no_photo_is_refused_in_words(page, tmp_path):
    bad = tmp_path / "notes.png"
    bad.write_text("not a photo")
    page.locator(".photo input[type=file]").set_input_files(bad)
    expect(page.locator(".photo img")).to_have_count(1)
    page.get_by_role("button", name="Generate").click()
    expect(
        page.get_by_text("cannot be read as an image (unknown format); replace or remove it")
    ).to_be_visible()


def test_without_a_photo_the_page_asks_for_one(page):
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text("There is no photo yet: drop one first.")).to_be_visible()


def test_the_collection_page_shows_triggers_and_the_report(page):
    page.get_by_role("tab", name="Collection").click()
    for prompt in EFFECTS.values():
        expect(page.get_by_text(prompt).locator("visible=true").first).to_be_visible()
    expect(page.frame_locator("iframe.report").get_by_text("Report of the tests")).to_be_visible()


def test_a_phone_shows_everything_in_one_column(page, photo):
    page.set_viewport_size({"width": 390, "height": 844})
    drop(page, photo)
    choose_steps(page, 1)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".block.status")).to_have_text("done")
    wide = "[...document.querySelectorAll('button, img, input')].filter(e => e.offsetParent && "
    wide += "e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"
    assert page.evaluate(wide) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
