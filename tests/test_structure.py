"""A module imports only from rooms above it (the order below, top to bottom)."""

import ast
from pathlib import Path

import biasgym_tl

ROOMS = (
    "errors", "slot", "spelling", "heads", "files", "store", "stats", "chance", "toml", "lens",
    "families", "packaged", "prompts", "passages", "model", "contexts", "added_row", "hooks",
    "text", "instructions", "similarity", "endpoint", "replies", "api", "biases", "benchmarks",
    "judges", "elicitation", "injection", "scoping",
    "doctor", "steering", "evaluation", "manifest", "plots", "explorer", "figures", "steps",
    "run", "assessment", "console", "cli", "__init__",
)  # fmt: skip
PACKAGE = Path(biasgym_tl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    """Modules of the package that a file imports, except where a result is drawn."""
    tree = ast.parse(path.read_text())
    late = {
        id(node)
        for plot in ast.walk(tree)
        if isinstance(plot, ast.FunctionDef) and plot.name in ("plot", "to_html")
        for node in ast.walk(plot)
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


def test_every_room_is_listed():
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} == set(ROOMS)


def test_computation_does_not_print():
    for path in FILES:
        if path.name != "cli.py":
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [c for c in calls if getattr(c.func, "id", "") == "print"], path
