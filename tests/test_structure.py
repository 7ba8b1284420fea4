"""The house: rooms in order, files and functions of a size that is read in one sitting."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib import util
from pathlib import Path

import pytest

import biasgym_tl

LONGEST_FILE, LONGEST_FUNCTION, MOST_NAMES = 350, 60, 50

# A module imports only from rooms above it, top to bottom.
ROOMS = (
    "errors", "warned", "allowed", "notebook", "progress", "slot", "spelling", "heads", "files",
    "hub", "store", "locks", "stats", "chance", "toml", "precision", "families", "edits", "engines",
    "lens", "identities", "packaged", "origin", "checkpoint", "templates", "prompts", "passages",
    "model", "contexts", "added_row", "gate", "hooks", "weights", "batches", "text", "instructions",
    "similarity", "endpoint", "replies", "api", "biases", "corpus_diversity", "benchmarks",
    "judges", "elicitation", "injection", "scoping", "doctor", "steering", "rivals", "evaluation",
    "manifest", "plots", "explorer", "figures", "steps", "protocol", "planting", "console", "cli",
    "__init__",
)  # fmt: skip
PACKAGE = Path(biasgym_tl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    """Modules of the package that a file imports when it runs, except where a result is drawn."""
    tree = ast.parse(path.read_text())
    late = {
        id(node)
        for part in ast.walk(tree)
        if (isinstance(part, ast.FunctionDef) and part.name in ("plot", "to_html"))
        or (isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING")
        for node in ast.walk(part)
    }
    return [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and id(node) not in late
        if node.module and node.module.startswith("biasgym_tl")
    ]


def test_imports_go_one_way():
    edges = 0
    for path in FILES:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for module in imports(path):
            edges += 1
            assert ROOMS.index(room(module)) <= ROOMS.index(own), f"{path.name} imports {module}"
            assert ROOMS.index(room(module)) < ROOMS.index(own) or (PACKAGE / own).is_dir()
    assert edges > 50


def test_no_file_imports_itself_by_way_of_others():
    names = {".".join(("biasgym_tl", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in FILES}
    names = {name.removesuffix(".__init__") for name in names}
    graph = {
        ".".join(("biasgym_tl", *path.relative_to(PACKAGE).with_suffix("").parts)): {
            module for module in imports(path) if module in names
        }
        for path in FILES
        if path.name != "__init__.py"
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_plotly_is_imported_when_a_figure_is_drawn():
    rooms = ("scoping", "steering", "evaluation")
    files = [path for room in rooms for path in (PACKAGE / room).glob("*.py")]
    if util.find_spec("inspect_ai") is None:  # which is in no extra that tests have
        files.remove(PACKAGE / "evaluation" / "inspected.py")
    modules = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in files]
    code = "import sys, " + ", ".join(f"biasgym_tl.{module}" for module in modules)
    code += "; assert 'plotly' not in sys.modules, 'plotly'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_room_is_listed():
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} == set(ROOMS)


def test_computation_does_not_print():
    for path in FILES:
        if "cli" not in path.parts:
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [c for c in calls if getattr(c.func, "id", "") == "print"], path


def test_no_file_is_too_long():
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in FILES
    }
    assert not [name for name, n in lengths.items() if n > LONGEST_FILE]


def test_no_function_is_too_long():
    """Docstring and decorators included."""
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}:{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno - min(n.lineno for n in (node, *node.decorator_list)) >= LONGEST_FUNCTION
    }
    assert not found


def test_public_names_are_few():
    assert len(biasgym_tl.__all__) <= MOST_NAMES
