"""Make exercises.ipynb from solutions.ipynb: python make_exercises.py

In code cells with the tag "solution", what stands between `# your code` and `# end of your code`
becomes a NotImplementedError, and a folded solution follows the cell. Outputs are cleared.
"""

import copy
import re
from pathlib import Path
from textwrap import dedent

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

FOLDER = Path(__file__).parent
SOLUTION = re.compile(r"^( *)# your code\n(.*?)^ *# end of your code$", re.MULTILINE | re.DOTALL)


def exercises(solutions: NotebookNode) -> NotebookNode:
    """The notebook for students."""
    notebook = copy.deepcopy(solutions)
    notebook.cells = [made for cell in notebook.cells for made in _exercise(cell)]
    return notebook


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
    made = exercises(nbformat.read(FOLDER / "solutions.ipynb", as_version=4))
    nbformat.write(made, FOLDER / "exercises.ipynb")
