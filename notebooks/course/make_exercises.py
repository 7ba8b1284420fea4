"""Make exercises.ipynb from solutions.ipynb: python make_exercises.py

In code cells with the tag "solution", what stands between `# your code` and `# end of your code`
becomes a NotImplementedError, and a folded solution follows the cell. Outputs are cleared.

python make_exercises.py biasgym-course.zip    # to hand out: exercises, checks, and no solution
"""

import copy
import io
import re
import sys
import zipfile
from pathlib import Path
from textwrap import dedent

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

FOLDER = Path(__file__).parent
SOLUTION = re.compile(r"^( *)# your code\n(.*?)^ *# end of your code$", re.MULTILINE | re.DOTALL)


def exercises(solutions: NotebookNode, *, folded: bool = True) -> NotebookNode:
    """The notebook for students, with or without the folded solutions."""
    notebook = copy.deepcopy(solutions)
    cells = [_exercise(cell) for cell in notebook.cells]
    notebook.cells = [cell for made in cells for cell in (made if folded else made[:1])]
    return notebook


def archive() -> bytes:
    """A zip file of what students need, the same bytes for the same files."""
    notebook = exercises(nbformat.read(FOLDER / "solutions.ipynb", as_version=4), folded=False)
    texts = {name: (FOLDER / name).read_text(encoding="utf-8") for name in ("START.md", "tests.py")}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in {"exercises.ipynb": nbformat.writes(notebook), **texts}.items():
            file.writestr(zipfile.ZipInfo(f"biasgym-course/{name}"), text, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def _exercise(cell: NotebookNode) -> list[NotebookNode]:
    cell.source = cell.source.replace("course/solutions.ipynb", "course/exercises.ipynb")
    if cell.cell_type != "code":
        return [cell]
    cell.outputs, cell.execution_count = [], None
    if "solution" not in cell.metadata.get("tags", []):
        return [cell]
    code = "\n".join(dedent(found[2]).strip("\n") for found in SOLUTION.finditer(cell.source))
    if not code:
        raise ValueError(f"cell {cell.id} must hold a solution between the two marks, got none.")
    todo = 'raise NotImplementedError("Write your code here first.")'
    gap = rf"\1# your code\n\1{todo}\n\1# end of your code"
    cell.source = SOLUTION.sub(gap, cell.source)
    folded = f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n\n</details>"
    return [cell, new_markdown_cell(folded, id=f"{cell.id}-folded")]


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[1]).write_bytes(archive())
    else:
        made = exercises(nbformat.read(FOLDER / "solutions.ipynb", as_version=4))
        nbformat.write(made, FOLDER / "exercises.ipynb")
