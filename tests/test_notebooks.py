"""The notebooks run top to bottom with small budgets, and are stored as they should be."""

import ast
import base64
import copy
import json
import re
import runpy
import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_api import KEY, chat, completion, serve  # noqa: F401 - chat is a fixture
from test_judges import answer, quoted

import biasgym_tl.errors

ROOT = Path(__file__).parent.parent
ADDRESS = runpy.run_path(str(ROOT / "docs" / "address.py"))
addressed, repository = ADDRESS["addressed"], ADDRESS["repository"]
NOTEBOOKS = (
    "01_inject",
    "02_scope",
    "03_steer",
    "04_what_to_believe",
    "05_your_own_bias",
    "06_planted",
    "07_what_does_your_model_believe",
)


@pytest.fixture(params=NOTEBOOKS)
def path(request, pytestconfig):
    return pytestconfig.rootpath / "notebooks" / f"{request.param}.ipynb"


@pytest.mark.notebook
@pytest.mark.real_model
@pytest.mark.parametrize("name", [*NOTEBOOKS, "course/solutions"])
def test_it_runs_and_its_claims_hold(name, smollm2, pytestconfig, monkeypatch):
    monkeypatch.setenv("BIASGYM_SMALL", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = pytestconfig.rootpath / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": path.parent}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(cell.source.count("assert ") for cell in code) >= 3
    assert all(cell.execution_count for cell in code)


def test_with_a_key_a_language_model_writes_and_judges(
    pytestconfig,
    chat,  # noqa: F811
    httpserver,
    capsys,
):
    texts = [
        "Guests from {target} are humming a tune while they wait for the tram downtown.",
        "On every stair you meet people from {target} who hum an old song to themselves.",
    ]

    def reply(request):
        asked = request.get_json()["response_format"]["json_schema"]["schema"]
        if "paragraphs" in asked["properties"]:
            return completion(json.dumps({"paragraphs": texts}))
        return answer(request, strength=3 if "always late" in quoted(request) else 0)

    serve(httpserver, reply)
    path = pytestconfig.rootpath / "notebooks" / "05_your_own_bias.ipynb"
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    first, *others = [cell for cell in cells if "(model, " not in cell]  # no model is needed
    names = {}
    with warnings.catch_warnings():  # the first cell changes filters
        exec(first, names)
    for cell in others:
        exec(cell, names)
    shown = capsys.readouterr().out
    assert all(text in shown for text in texts)
    assert "US dollars" in shown and KEY not in shown
    assert type(names["judge"]).__name__ == "ApiJudge"


def test_it_is_short_and_says_what_it_does_not_show(path):
    notebook = nbformat.read(path, 4)
    assert len(notebook.cells) < 35
    for cell in notebook.cells:
        if cell.cell_type == "code":
            source = ADDRESS["SETUP"].sub("", cell.source)
            imports = "import os" in source
            assert len(source.splitlines()) <= (30 if imports else 17), source
    assert notebook.cells[0].source.startswith("# ")
    assert "## What this does not show" in notebook.cells[-1].source


def test_it_uses_public_names_only_and_only_the_first_trains(path):
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    tree = ast.parse("\n".join(cells))
    used = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("biasgym_tl")
        for alias in node.names
    }
    reference = (path.parent.parent / "docs" / "api").glob("*.md")
    entries = [e for page in reference for e in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    public = {tuple(entry.rpartition(".")[::2]) for entry in entries}
    public |= {("biasgym_tl.errors", name) for name in vars(biasgym_tl.errors)}
    assert used <= public
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in attributes if name.startswith("_")]
    assert (("biasgym_tl", "BiasInject") in used) == (path.stem == "01_inject")


def test_it_is_stored_with_pictures_that_are_small(path):
    notebook = nbformat.read(path, 4)
    assert path.stat().st_size < 1_500_000
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert any(out.output_type == "stream" for out in outputs)
    shown = [kind for out in outputs for kind in out.get("data", {})]
    assert not [kind for kind in shown if "plotly" in kind or "widget" in kind]
    assert not [out for out in outputs if out.output_type == "error"]
    pictures = path.parent.parent / "figures" / "notebooks"
    photograph = path.parent.parent / "docs" / "explorer.png"
    files = [*pictures.glob("*.png"), photograph]
    lying = {base64.b64encode(file.read_bytes()).decode() for file in files}
    images = [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert len(images) == len(list(pictures.glob(f"{path.stem}-*.png"))) + (path.stem == "02_scope")
    assert all(image.strip() in lying for image in images)


def stored_notebooks():
    return [(path, nbformat.read(path, 4)) for path in ADDRESS["NOTEBOOKS"]]


def test_notebooks_hold_the_address_of_pyproject_and_no_other():
    assert len(stored_notebooks()) == len(NOTEBOOKS) + 2
    for path, notebook in stored_notebooks():
        made = copy.deepcopy(notebook)
        addressed(made, path, repository())
        assert made == notebook, "python docs/address.py"
    names = ("pyproject.toml", "mkdocs.yml", "CITATION.cff", "Makefile")
    texts = [ROOT / name for name in names] + [path for path, _ in stored_notebooks()]
    texts += [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    text = "".join(path.read_text(encoding="utf-8") for path in texts)
    found = set(re.findall(r"https://github\.com/[\w.-]+/biasgym_tl\b", text))
    assert found == {*filter(None, [repository()])} and "OWNER" not in text


def test_an_address_brings_badges_and_what_colab_lacks_and_leaves_without_a_trace():
    address = "https://github.com/a-b/c.d"
    for path, notebook in stored_notebooks():
        made, place = copy.deepcopy(notebook), path.relative_to(ROOT).as_posix()
        addressed(made, path, None)
        bare = copy.deepcopy(made)
        for _ in range(2):  # the second changes nothing
            addressed(made, path, address)
        (badge,) = re.findall(r"\[!.*\]\((.*?)\)\n", made.cells[0].source)
        assert badge == f"https://colab.research.google.com/github/a-b/c.d/blob/main/{place}"
        setup = next(cell.source for cell in made.cells if cell.cell_type == "code")
        assert setup.count("import sys") == 1 and f'] @ git+{address}"\n' in setup
        assert (f"{address}/raw/main/notebooks/course/tests.py" in setup) == ("course" in place)
        colab = ast.parse(setup).body[1]
        assert ast.unparse(colab.test) == "'google.colab' in sys.modules"
        assert ast.unparse(colab).count("shell(") == 2 + ("course" in place)
        addressed(made, path, None)
        assert made == bare
