"""Run the notebooks and store them with what they show, small enough to read on GitHub.

python docs/make_notebooks.py            # all of them
python docs/make_notebooks.py 02_scope   # some

Live figures are stored as pictures, which also lie in figures/notebooks; progress bars and
warnings are left out. The explorer is stored as a photograph of it in JupyterLab, which is
docs/explorer.png.
"""

import base64
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient
from playwright.sync_api import sync_playwright

from biasgym_tl.figures import draw, keep_figure, recipe

ROOT = Path(__file__).resolve().parent.parent
served = runpy.run_path(str(ROOT / "docs" / "jupyterlab.py"))["served"]
NOTEBOOKS, PICTURES = ROOT / "notebooks", ROOT / "figures" / "notebooks"
EXPLORER = ROOT / "docs" / "explorer.png"
PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main():
    names = sys.argv[1:]
    if not names or "02_scope" in names:
        photograph_explorer()
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        if (not names and path.stem != "exercises") or path.stem in names:
            store(path)


def store(path):
    for old in PICTURES.glob(f"{path.stem}-*"):  # their names hold the places of the cells
        old.unlink()
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": path.parent}}).execute()
    notebook.metadata.pop("widgets", None)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            kept = (still(output, f"{path.stem}-{i:02}") for output in cell.outputs)
            cell.outputs = [output for output in kept if output is not None]
    nbformat.write(notebook, path)
    print(path.name, f"{path.stat().st_size / 1000:.0f} kB", flush=True)


def still(output, name):
    """The output without what only a running kernel can show; None: nothing is left."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    data = output.get("data", {})
    if PLOTLY in data:
        figure = go.Figure(data[PLOTLY]["data"], data[PLOTLY]["layout"])
        kept = keep_figure(PICTURES / f"{name}.figure.json", figure)
        remark = draw(PICTURES, {name: recipe("as it was drawn", [kept.name])})
        if remark:
            raise SystemExit(remark)
        output.data = {"image/png": encoded(PICTURES / f"{name}.png"), "text/plain": "Figure"}
    elif WIDGET in data:
        if not data["text/plain"].startswith("HeadScores("):
            return None  # a progress bar
        output.data = {"image/png": encoded(EXPLORER), "text/plain": data["text/plain"]}
    return output


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


LIVE = """
import warnings
warnings.simplefilter("ignore")
from biasgym_tl import HeadScores, BiasToken, explore, load_model

scores, token = HeadScores.load({scores!r}), BiasToken.load({token!r})
explore(scores, load_model(scores.model), token)
"""


def photograph_explorer():
    """A picture of the explorer in JupyterLab, where the strongest head has been steered."""
    demo = ROOT / "figures" / "demo"
    path = next(filter(None, map(shutil.which, BROWSERS)))
    code = LIVE.strip().format(scores=str(demo / "map-direct-0"), token=str(demo / "row-0"))
    with (
        tempfile.TemporaryDirectory() as folder,
        served(code, Path(folder)) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1700, "height": 1300})
        page.set_default_timeout(300_000)
        page.goto(address)
        page.get_by_text("| Idle").first.wait_for()
        page.locator(".jp-Notebook .jp-CodeCell").first.click()
        page.keyboard.press("Shift+Enter")
        page.get_by_role("button", name="Steer").click()
        page.locator("h4:has-text('to the mean')").wait_for()
        page.locator("h4:has-text('to the mean')").scroll_into_view_if_needed()
        shown = page.locator(".jp-OutputArea-output:has(.js-plotly-plot)")
        shown.screenshot(path=EXPLORER)
        browser.close()


if __name__ == "__main__":
    main()
