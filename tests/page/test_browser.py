"""The page of a real run in a real browser: no errors, no requests, sorting, dark mode, a phone."""

import shutil

import pytest

from legato.studies.compare import run
from legato.studies.config import CompareConfig

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no browser: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    config = CompareConfig(
        data="digits",
        objectives=("ce", "comp-sum:1.7", "mae"),
        seeds=2,
        learning_rates=(0.1, 0.3),
        epochs=2,
        label_noise=(0.0, 0.4),
        workers=1,
        out=folder,
    )
    return run(config).page().as_uri()


@pytest.fixture(scope="module")
def browser(address):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    said = []

    def go(width=1000, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda problem: said.append(str(problem)))
        page.on(
            "request",
            lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        page.goto(address)
        return page

    yield go
    assert said == []


def test_plots_are_visible_and_ids_unique(visit):
    page = visit()
    boxes = page.eval_on_selector_all(
        "figure .wide svg", "all => all.map(e => e.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert len(boxes) >= 4
    assert all(width > 300 and height > 80 for width, height in boxes)
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("key", ["click", "Enter"])
def test_a_table_sorts_by_number(visit, key):
    page = visit()
    head = page.locator("table").first.locator("th button", has_text="accuracy %")
    values = "rows => rows.map(r => Number(r.children[2].dataset.value))"
    for order in (-1, 1):
        head.click() if key == "click" else head.press("Enter")
        found = page.locator("table").first.locator("tbody tr").evaluate_all(values)
        assert found == sorted(found, key=lambda v: order * v)


def test_dark_mode_changes_paper_and_ink(visit):
    colours = "getComputedStyle(document.body).backgroundColor + getComputedStyle(document.body).color"
    light, page = visit().evaluate(colours), visit(scheme="dark")
    dark = page.evaluate(colours)
    assert light != dark
    page.locator("#theme").click()
    assert page.evaluate(colours) == light


def test_a_phone_needs_no_sideways_scrolling(visit):
    page = visit(width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("figure .narrow svg").first.bounding_box()["width"] > 250
