"""The studio in a real browser: what a person clicks, sees, and is told.

With COLLECTIONLORA_SCREENSHOTS=DIR every test leaves its last page there as a picture, to be looked at.
"""

import base64
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.axe import AXE_OPTIONS, describe_violations, load_axe
from helpers.browser import BROWSER, NO_BROWSER, launch
from helpers.studio_server import EFFECTS, MANY_STEPS, PASSWORD, USER, serve, write_collection
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from skimage import data

from collectionlora.editing import Editor
from collectionlora.pictures.folders import reads_heic
from collectionlora.pictures.photos import read_photo, resize, to_photos
from collectionlora.studio.stamps import IN_TURN, TOGETHER, Settings, stamp

WAIT = 60_000  # milliseconds; only a failing test waits for so long
pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
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
        browser = launch(playwright)
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
def axe():
    script = load_axe()
    if script is None:
        pytest.skip("axe-core is not here, and npm cannot fetch it")
    return script


@pytest.fixture(scope="module")
def photo(folder):
    path = folder.parent / "me.png"
    Image.fromarray(data.astronaut()[::2, :400:2]).save(path)
    return path


def drop(page, path):
    page.locator(".photo input[type=file]").first.set_input_files(path)
    expect(page.locator(".photo img")).to_be_visible()
    expect(status(page)).to_have_text("Click an effect.")


def status(page):
    return page.locator(".actions .prose.status")


def tile(page, name):
    return page.locator(".effects").get_by_role("radio", name=name, exact=True)


def open_options(page, steps):
    page.get_by_role("button", name="More options").click()
    page.get_by_role("radio", name=str(steps), exact=True).check()


def shown(page):
    """The pixels of the result on the page."""
    address = page.locator(".compare .after").locator("visible=true").get_attribute("src")
    return read_photo_of(base64.b64decode(address.partition(",")[2]))


def read_photo_of(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def download(page):
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Download PNG").click()
    return downloaded.value


def differ(one, other):
    return np.abs(one.astype(int) - np.asarray(other).astype(int))


def choose_second(page, effect):
    box = page.get_by_label("Second effect", exact=True)
    box.fill(effect)
    box.press("Enter")
    expect(box).to_have_value(effect)


def test_a_click_on_an_effect_makes_the_picture_that_python_makes(page, folder, photo):
    drop(page, photo)
    open_options(page, 4)
    page.get_by_label("Seed", exact=True).fill("7")
    tile(page, "Warm").click()
    expect(status(page)).to_have_text("done")
    expected = Editor.load(folder).edit(read_photo(photo), ["warm"], seed=7, steps=4)
    assert differ(shown(page), expected).mean() < 3  # it is a JPEG
    expect(page.locator(".compare figcaption")).to_contain_text(
        "Warm, strength 1, seed 7, 4 steps, made at 56 x 72 and enlarged to 200 x 256"
    )
    saved = download(page)
    assert saved.suggested_filename == "me-warm-s7.png"
    assert differ(read_photo(saved.path()), expected).max() <= 1


def set_strength(page, value):
    box = page.get_by_label("number input for Strength")
    box.fill(str(value))
    box.press("Tab")


@pytest.mark.thorough
def test_strength_is_mixed_at_once_and_then_made_by_the_network(page, folder, photo, tmp_path):
    drop(page, photo)
    tile(page, "Negative").click()
    expect(status(page)).to_have_text("done")
    expect(page.locator(".compare .after")).to_have_count(1)
    set_strength(page, 0.5)
    expect(page.locator(".compare figcaption")).to_contain_text("strength 0.5")
    assert page.locator(".compare .whole").evaluate("e => getComputedStyle(e).opacity") == "0.5"
    expect(page.locator(".compare .exact")).to_be_visible()
    expect(page.locator(".compare .whole")).to_be_hidden()
    seed = int(re.search(r"seed (\d+)", page.locator(".compare figcaption").inner_text())[1])
    expected = Editor.load(folder).edit(read_photo(photo), "negative", seed=seed, strength=0.5)
    assert differ(shown(page), expected).mean() < 3
    saved = tmp_path / "made.png"
    download(page).save_as(saved)
    assert differ(read_photo(saved), expected).max() <= 1
    settings = json.loads(Image.open(saved).text["collectionlora"])
    assert (settings["effects"], settings["strength"]) == (["negative"], 0.5)
    # The next picture is made at the strength that is set.
    tile(page, "Warm").click()
    expect(page.locator(".compare figcaption")).to_contain_text("Warm, strength 0.5")
    expect(page.locator(".compare .exact")).to_be_visible()
    # A download does not wait until the dial has rested: it is of the strength that is set all the same.
    set_strength(page, 0.25)
    download(page).save_as(saved)
    assert json.loads(Image.open(saved).text["collectionlora"])["strength"] == 0.25
    expected = Editor.load(folder).edit(read_photo(photo), "warm", seed=seed, strength=0.25)
    assert differ(read_photo(saved), expected).max() <= 1


def test_a_dropped_result_brings_its_settings_back(page, tmp_path):
    made, settings = (
        tmp_path / "made.png",
        Settings(effects=("warm", "green"), order=IN_TURN, steps=2, seed=5, strength=0.25),
    )
    Image.new("RGB", (64, 64), "teal").save(made, **stamp(settings))
    page.locator(".photo input[type=file]").first.set_input_files(made)
    expect(status(page)).to_have_text("The settings of this picture are back: Warm, then green.")
    expect(tile(page, "Warm")).to_be_checked()
    page.get_by_role("button", name="More options").click()
    expect(page.get_by_label("Second effect", exact=True)).to_have_value("Green")
    for name in (IN_TURN, "2"):
        expect(page.get_by_role("radio", name=name, exact=True)).to_be_checked()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("5")
    expect(page.get_by_label("number input for Strength")).to_have_value("0.25")


@pytest.mark.parametrize("order", [TOGETHER, IN_TURN])
def test_two_effects_in_one_prompt_or_one_after_the_other(page, folder, photo, order):
    drop(page, photo)
    open_options(page, 1)
    choose_second(page, "Negative")
    page.get_by_role("radio", name=order).check()
    tile(page, "Warm").click()
    expect(status(page)).to_have_text("done")
    editor, source = Editor.load(folder), read_photo(photo)
    if order == TOGETHER:
        expected = editor.edit(source, ["warm", "negative"], steps=1)
    else:
        first = editor.sample(editor.fit(source), [editor.prompt(["warm"])], [0], 1)
        second = editor.sample(first, [editor.prompt(["negative"])], [0], 1)
        expected = resize(to_photos(second)[0], source.shape[:2])
    assert differ(read_photo(download(page).path()), expected).max() <= 1


def test_variations_are_kept_with_all_that_was_made(page, photo):
    drop(page, photo)
    open_options(page, 1)
    page.get_by_role("button", name="4 variations").click()
    history = page.locator(".history").get_by_role("radio")
    expect(history).to_have_count(4)
    expect(page.locator(".compare figcaption")).to_contain_text("seed 0")
    page.get_by_label("Seed", exact=True).fill("")
    tile(page, "Warm").click()
    expect(history).to_have_count(5)
    expect(page.locator(".compare figcaption")).not_to_contain_text("seed 0,")  # empty is random
    tile(page, "Warm").click()  # it is chosen already
    expect(history).to_have_count(6)
    history.nth(4).check()
    expect(page.locator(".compare figcaption")).to_contain_text("Green, strength 1, seed 2")
    page.get_by_role("button", name="Random seed").click()
    expect(page.get_by_label("Seed", exact=True)).not_to_have_value("")
    # Another photo's result does not stand beside this one.
    page.get_by_role("button", name="Cat").click()
    expect(page.locator(".compare")).to_have_count(0)
    expect(history).to_have_count(6)


def test_tiles_show_the_visitors_own_photo(page, photo):
    drawn = "e => getComputedStyle(e.closest('label'), '::before').backgroundImage"
    before = tile(page, "Negative").evaluate(drawn)
    assert before.startswith('url("data:image/jpeg')
    drop(page, photo)
    page.wait_for_function(
        "old => getComputedStyle(document.querySelectorAll('.effects label')[2], '::before')"
        ".backgroundImage !== old",
        arg=before,
    )


def test_effects_are_searched_and_chosen_by_keyboard(page, photo):
    drop(page, photo)
    page.get_by_label("Search effects").fill("gre")
    expect(tile(page, "Green")).to_be_visible()
    expect(tile(page, "Warm")).to_be_hidden()
    page.get_by_label("Search effects").fill("")
    page.evaluate("chooseKind(['Warm'])")
    expect(tile(page, "Green")).to_be_hidden()
    expect(tile(page, "Warm")).to_be_visible()
    page.evaluate("chooseKind([])")
    expect(page.get_by_role("radiogroup", name="Effect", exact=True)).to_be_visible()
    tile(page, "Green").focus()
    page.keyboard.press("ArrowRight")
    expect(tile(page, "Warm")).to_be_checked()
    expect(page.locator(".compare figcaption")).to_contain_text("Warm")
    slider = page.get_by_role("slider", name="Compare before and after")
    slider.focus()
    page.keyboard.press("Home")
    assert "inset(0px 0px 0px 0%)" in page.locator(".compare .after").first.evaluate(
        "e => getComputedStyle(e).clipPath"
    )


def test_a_larger_size_is_chosen_and_comes_back_with_the_picture(page, folder, photo, tmp_path):
    drop(page, photo)
    open_options(page, 1)
    page.get_by_label("number input for Size").fill("96")
    page.get_by_label("number input for Size").press("Tab")
    tile(page, "Warm").click()
    expect(page.locator(".compare figcaption")).to_contain_text("made at 88 x 112 and enlarged to 200 x 256")
    seed = int(re.search(r"seed (\d+)", page.locator(".compare figcaption").inner_text())[1])
    expected = Editor.load(folder).edit(read_photo(photo), "warm", seed=seed, steps=1, size=96)
    saved = tmp_path / "made.png"
    download(page).save_as(saved)
    assert differ(read_photo(saved), expected).max() <= 1
    page.reload()
    page.locator(".photo input[type=file]").first.set_input_files(saved)
    expect(status(page)).to_contain_text("The settings of this picture are back")
    page.get_by_role("button", name="More options").click()
    expect(page.get_by_label("number input for Size")).to_have_value("96")


def test_all_effects_make_a_contact_sheet_to_download(page, photo):
    drop(page, photo)
    open_options(page, 1)
    page.get_by_role("tab", name="All effects").click()
    page.get_by_role("button", name="Make the contact sheet").click()
    expect(page.locator(".sheet img")).to_be_visible()
    with page.expect_download() as downloaded:
        page.locator(".sheet").get_by_label("Download").click()
    assert Image.open(downloaded.value.path()).width > 3 * 240
    expect(page.get_by_label("Share")).to_have_count(0)


def test_a_long_work_shows_its_steps_and_is_cancelled(page, photo):
    drop(page, photo)
    cancel = page.locator(".actions").get_by_role("button", name="Cancel")
    expect(cancel).to_be_disabled()
    open_options(page, MANY_STEPS)
    page.get_by_role("button", name="4 variations").click()
    expect(status(page)).to_have_text(
        re.compile(rf"picture 1 of 4, step \d+ of {MANY_STEPS}, (\d+ min )?\d+ s left")
    )
    cancel.click()
    expect(status(page)).to_have_text("cancelled")
    expect(cancel).to_be_disabled()
    page.get_by_role("radio", name="1", exact=True).check()
    page.get_by_role("button", name="Generate").click()
    expect(status(page)).to_have_text("done")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("notes.png", "cannot be read as an image (unknown format); replace or remove it"),
        ("iphone.heic", "cannot be read (HEIC is not read); pip install 'collectionlora[heic]'"),
    ],
)
def test_a_file_that_is_no_photo_is_refused_in_words_when_it_is_dropped(page, tmp_path, name, words):
    if name.endswith("heic") and reads_heic():
        pytest.skip("pillow-heif is installed here: HEIC is read")
    bad = tmp_path / name
    bad.write_text("not a photo")
    page.locator(".photo input[type=file]").first.set_input_files(bad)
    expect(status(page)).to_contain_text(words)
    expect(page.locator(".photo img")).to_have_count(0)


def test_a_format_that_browsers_do_not_show_is_shown(page, tmp_path, photo):
    path = tmp_path / "me.tiff"
    Image.open(photo).save(path)
    drop(page, path)
    shown = "() => document.querySelector('.photo img').naturalWidth"
    page.wait_for_function(f"{shown[6:]} === 200")
    tile(page, "Warm").click()
    expect(status(page)).to_have_text("done")
    assert download(page).suggested_filename.startswith("me-warm-s")


def test_without_a_photo_the_page_asks_for_one(page):
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text("There is no photo yet: drop one first.")).to_be_visible()


def test_the_collection_page_shows_triggers_and_the_report(page):
    page.get_by_role("tab", name="Collection").click()
    for prompt in EFFECTS.values():
        expect(page.get_by_text(prompt).locator("visible=true").first).to_be_visible()
    expect(page.frame_locator("iframe.report").get_by_text("Report of the tests")).to_be_visible()


BOTTOM = "e => Math.round(e.getBoundingClientRect().bottom)"


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_photo_effects_button_and_result_are_seen_without_scrolling(page, photo, width, height):
    page.set_viewport_size({"width": width, "height": height})
    drop(page, photo)
    tile(page, "Warm").click()
    expect(status(page)).to_have_text("done")
    assert page.evaluate("scrollY") == 0
    actions = page.locator(".actions").evaluate("e => Math.round(e.getBoundingClientRect().top)")
    for place in (".photo img", ".effects", ".compare .frame"):
        assert page.locator(place).first.evaluate(BOTTOM) <= (height if width > 900 else actions), place
    assert page.get_by_role("button", name="Generate").evaluate(BOTTOM) <= height


def test_a_phone_shows_everything_in_one_column(page, photo):
    page.set_viewport_size({"width": 390, "height": 844})
    drop(page, photo)
    page.get_by_role("button", name="Generate").click()
    expect(status(page)).to_have_text("done")
    open_options(page, 1)  # which the actions at the foot do not hide
    # Tiles lie in strips of their own that scroll sideways.
    wide = "[...document.querySelectorAll('button, img, input')].filter(e => e.offsetParent && "
    wide += "!e.closest('.tiles') && "
    wide += "e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"
    assert page.evaluate(wide) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_phone_cuts_no_words_off(page, photo):
    page.set_viewport_size({"width": 390, "height": 844})
    cut = "e => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight + 1"
    assert not page.locator(".photo .prompt").first.evaluate(cut)
    drop(page, photo)
    open_options(page, 1)
    page.get_by_role("tab", name="All effects").click()
    page.get_by_role("button", name="Make the contact sheet").click()
    expect(page.locator(".sheet img")).to_be_visible()
    # The sheet is wider than the page, so that the names on it can be read, and starts at the left edge.
    place = page.locator(".sheet img").bounding_box()
    assert place["width"] > 390
    assert 0 <= place["x"] < 30
    page.get_by_role("tab", name="Collection").click()
    assert page.locator(".prompts td").evaluate_all(f"all => all.filter({cut}).length") == 0
    assert page.locator(".prompts table").evaluate("e => e.getBoundingClientRect().right") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_meets_wcag_2_2_aa(page, photo, axe, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.reload()
    drop(page, photo)
    open_options(page, 1)
    tile(page, "Warm").click()
    expect(status(page)).to_have_text("done")
    page.evaluate(axe)
    for tab in ("Studio", "All effects", "Collection"):
        page.get_by_role("tab", name=tab).click()
        found = page.evaluate(f"axe.run({json.dumps(AXE_OPTIONS)})")
        assert describe_violations(found) == [], tab
