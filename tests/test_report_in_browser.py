"""The report in a real browser: what a reader sees, hovers over and prints.

With COLLECTIONLORA_SCREENSHOTS=DIR it leaves its pictures there, to be looked at.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.axe import AXE_OPTIONS, describe_violations, load_axe
from helpers.browser import BROWSER, NO_BROWSER, launch
from playwright.sync_api import expect, sync_playwright

from collectionlora.effectbench.gallery import Result, Shown
from collectionlora.effectbench.report.page import write_results

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
EFFECTS = ("season", "glow")
METHODS = {"source": 12.0, "teacher": 25.0, "student": 24.0}


def picture(seed, side=64):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def build_result():
    methods = {
        name: {"nfe": 8, "psnr": value, "per_effect": {e: {"psnr": value, "ci95": {}} for e in EFFECTS}}
        for name, value in METHODS.items()
    }
    metrics = {
        "methods": methods,
        "effects": list(EFFECTS),
        "base": {"name": "nano", "dtype": "float32", "quantization": "none", "distilled_on": {}},
        "photos": 3,
        "seeds": [0],
        "seconds": 1.0,
        "settings": {},
        "versions": {},
    }
    right = {"a random truth": picture(8), "the truth nearest to student": picture(9)}
    made = {"teacher": picture(6), "student": picture(7)}
    return Result(metrics, [Shown(e, i, picture(i), right, made) for e in EFFECTS for i in range(3)], {})


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    logs = {}
    for run, first in (("default", 2.0), ("longer", 4.0)):
        logs[run] = folder / f"{run}.jsonl"
        entries = [{"step": i, "seconds": i, "match": first / (1 + i)} for i in range(50)]
        logs[run].write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    write_results(folder, build_result(), logs)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield page
    if folder := os.environ.get("COLLECTIONLORA_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    page.close()
    assert errors == []


def test_the_verdict_comes_first_then_pictures_that_can_be_judged(page):
    verdict = page.locator(".verdict")
    expect(verdict).to_have_text(
        "The student is as good as its teachers on 0 of 2 effects; "
        "season is 1.0 dB below and glow is 1.0 dB below."
    )
    places = [page.locator(part).bounding_box()["y"] for part in (".verdict", "#pictures", "#summary")]
    assert places == sorted(places)
    row = page.locator("#effect-season > .row")
    assert [img.bounding_box()["width"] >= 220 for img in row.locator("img").all()] == [True] * 5
    assert row.locator("figcaption").all_inner_texts()[1:3] == [
        "a random truth",
        "the truth nearest to student",
    ]
    page.set_viewport_size({"width": 390, "height": 844})
    tops = {img.bounding_box()["y"] for img in row.locator("img").all()}
    assert len(tops) == 1, "a row wraps on a phone, so that its pictures cannot be compared"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_chart_names_the_values_of_both_runs_under_the_pointer(page):
    chart = page.locator(".curve svg")
    chart.hover(position={"x": 30, "y": 60})
    output = page.locator(".curve output")
    expect(output).to_contain_text("default: 2 at step 0")
    expect(output).to_contain_text("longer: 4 at step 0")
    page.mouse.move(0, 0)
    expect(output).to_be_empty()


def test_on_paper_everything_is_open(page):
    folded = page.locator("#pictures details").first
    expect(folded.locator(".row").first).to_be_hidden()
    page.emulate_media(media="print")  # without the events of a real print
    expect(folded.locator(".row").first).to_be_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("section details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(folded.locator(".row").first).to_be_hidden()


def test_a_picture_opens_beside_another_one(page):
    page.locator("#effect-glow button").last.scroll_into_view_if_needed()
    page.get_by_role("button", name="glow: student").first.click()
    viewer = page.get_by_role("dialog")
    expect(viewer).to_contain_text("right: student")
    viewer.get_by_role("combobox").select_option("the truth nearest to student")
    assert viewer.locator("img").evaluate_all("all => all.every(one => one.naturalWidth === 64)")


def test_the_page_meets_wcag_2_2_aa(page):
    script = load_axe()
    if script is None:
        pytest.skip("axe-core is not here, and npm cannot fetch it")
    page.evaluate(script)
    assert describe_violations(page.evaluate(f"axe.run({json.dumps(AXE_OPTIONS)})")) == []
