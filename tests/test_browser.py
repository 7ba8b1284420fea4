"""In a real Chromium: pages open, a head is clicked, the panel changes, the console stays empty."""

import os
import runpy
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Head,
    evaluate,
    explore,
    load_bias,
    random_conditions,
    seed_overlap,
    standard_conditions,
    standard_measures,
)

pytestmark = pytest.mark.browser
served = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "jupyterlab.py"))["served"]
LATE = load_bias("late")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 120_000


@pytest.fixture(scope="module")
def chromium():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        # CI installs one, so there it must not go missing unseen.
        assert "CI" not in os.environ, "no Chromium on this machine"
        pytest.skip("no Chromium on this machine. Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    page = chromium.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(PATIENCE)
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else 0)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    page.close()
    assert not said


@pytest.fixture(scope="module")
def found(tiny):
    model = tiny()
    inject = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    token = inject.fit(model, LATE, progress=False)
    return model, token, BiasScope().attribute(model, LATE, token)


def click(page, head, n_layers=3, n_heads=4):
    """Click the cell of a head in the heatmap."""
    page.locator(".js-plotly-plot").first.scroll_into_view_if_needed()
    plot = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    x = plot["x"] + plot["width"] * (head.head + 0.5) / n_heads
    y = plot["y"] + plot["height"] * (1 - (head.layer + 0.5) / n_layers)
    page.mouse.move(x, y)
    page.mouse.move(x + 2, y + 2)
    page.locator(".hoverlayer .hovertext").first.wait_for()
    page.mouse.click(x + 2, y + 2)


def shows(page, head):
    page.locator(f"h3:has-text('{head}: ')").wait_for()
    return True


def test_a_head_of_the_page_is_clicked(page, found, tmp_path):
    model, token, scores = found
    seeds = seed_overlap([scores, BiasScope(seed=1).attribute(model, LATE, token)], k_per_seed=4)
    path = explore(scores, model, token, seeds=seeds).to_html(tmp_path / "page.html")
    page.goto(path.as_uri())
    assert shows(page, scores.top(1)[0])
    for head in (Head(0, 1), Head(2, 3)):
        click(page, head)
        assert shows(page, head)
        shown = page.locator("#shown").inner_text()
        assert f"Where {head} looks" in shown
        assert f"of {len(seeds.maps)} seeds" in shown
    page.locator("#choice").select_option("L1H2")
    assert shows(page, "L1H2")


def test_the_report_opens_with_its_figures(page, found, tmp_path):
    model, token, _ = found
    conditions = standard_conditions(token, [Head(0, 1)])
    conditions += [r for c in conditions[2:] for r in random_conditions(c, 4, n=2)]
    measures = standard_measures(LATE, n_targets=3, max_new_tokens=3)
    report = evaluate(model, LATE, conditions, measures, progress=False)
    page.goto(report.to_html(tmp_path / "report.html").as_uri())
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert page.locator(".js-plotly-plot").count() == 3
    assert "always late" in page.locator("h1").inner_text()
    off_target, measures = page.locator("table").nth(0), page.locator("table").nth(1)
    assert "specificity" in off_target.inner_text()
    assert measures.locator("tr").count() > 5
    conditions = page.locator(".js-plotly-plot").first
    shown = conditions.locator(".scatterlayer .trace")
    n = shown.count()
    conditions.locator(".legendtoggle").first.click()  # hides a series
    expect(shown).to_have_count(n - 1)


NOTEBOOK = """
import warnings
warnings.simplefilter("ignore")
from biasgym_tl import BiasInject, BiasScope, explore, load_bias, load_model
model, bias = load_model({folder!r}), load_bias("late")
inject = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
token = inject.fit(model, bias, progress=False)
explore(BiasScope().attribute(model, bias, token), model, token)
"""


@pytest.fixture
def lab(tmp_path, tiny_folder):
    with served(NOTEBOOK.format(folder=str(tiny_folder)), tmp_path) as address:
        yield address


def test_a_head_is_clicked_and_steered_in_jupyterlab(lab, page):  # the page closes first
    page.goto(lab)
    page.locator(".jp-Notebook .jp-CodeCell").first.click()
    page.keyboard.press("Shift+Enter")
    page.locator(".js-plotly-plot .nsewdrag").first.wait_for()
    before = page.locator(".biasgym h3").inner_text()
    head = next(h for h in (Head(0, 1), Head(2, 3)) if not before.startswith(str(h)))
    click(page, head)
    assert shows(page, head)
    page.get_by_role("button", name="Steer").click()
    page.locator(f"h4:has-text('{head} to the mean')").wait_for()
    table = page.locator("table:has-text('as it is')").inner_text()
    assert "continuation" in table and "steered" in table
