"""The notebooks run top to bottom with small budgets, and are stored as they should be."""

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = ("01_inject", "02_scope", "03_steer", "04_what_to_believe", "05_your_own_bias")


@pytest.fixture(params=NOTEBOOKS)
def path(request, pytestconfig):
    return pytestconfig.rootpath / "notebooks" / f"{request.param}.ipynb"


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


def test_it_is_short_and_says_what_it_does_not_show(path):
    notebook = nbformat.read(path, 4)
    assert len(notebook.cells) < 35
    for cell in notebook.cells:
        if cell.cell_type == "code" and "import" not in cell.source:
            assert len(cell.source.splitlines()) <= 15, cell.source
    assert "colab-badge.svg" in notebook.cells[0].source and path.name in notebook.cells[0].source
    assert "pip install" in notebook.cells[1].source
    assert "## What this does not show" in notebook.cells[-1].source


def test_it_is_stored_with_pictures_that_are_small(path):
    notebook = nbformat.read(path, 4)
    assert path.stat().st_size < 1_500_000
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert any(out.output_type == "stream" for out in outputs)
    shown = [kind for out in outputs for kind in out.get("data", {})]
    assert not [kind for kind in shown if "plotly" in kind or "widget" in kind]
    assert not [out for out in outputs if out.output_type == "error"]
