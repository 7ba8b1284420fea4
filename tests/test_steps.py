"""A kept step is what was kept, or it is made again: whatever happened to its file."""

import ast
import json
import random
import shutil
import warnings

import pytest

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Head,
    LocalJudge,
    Selection,
    load_token,
    slot,
    standard_measures,
    steer,
    steps,
)
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.steps import Steps
from biasgym_tl.warned import warn

NUMBERS = {"log_odds": [[0.1, -2.5], [1e-300, 3.0]], "texts": ["é", ""], "nothing": None}
SELECTION = Selection(
    heads=(Head(0, 1), Head(2, 3)), method="direct", token="late, seed 0", k=2, mode="mean",
    reference="", model="tiny", bias="late", data={"prompts": ("a",)}, settings={}, versions={},
    factors=(0.5, 0.25),
)  # fmt: skip


class Made:
    """Makes something and counts how often."""

    def __init__(self, value):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return self.value


def same(one, other):
    if isinstance(one, BiasToken):
        assert (one.epoch_rows == other.epoch_rows).all() and (one.row == other.row).all()
        return one.losses == other.losses and one.label == other.label
    return one == other


def kept(steps, value):
    """Keep a value or read it back; it, and how often it was made."""
    made = Made(value)
    if isinstance(value, BiasToken):
        return steps.kept("step", [], BiasToken, made, slot), made.times
    if isinstance(value, Selection):
        return steps.kept("step", [], Selection, made, slot), made.times
    return steps.measured("step", [], made, slot), made.times


def test_what_was_warned_of_is_warned_of_again(tmp_path):
    def inner():
        warn("one")
        warn("one")
        return 1

    def outer(steps):
        found = steps.measured("inner", [], inner, slot)
        warn("two")
        return found

    def made(steps, asked=("one", "two")):
        with pytest.warns(UserWarning) as found:
            assert steps.measured("outer", [], lambda: outer(steps), slot) == 1
        texts = dict.fromkeys(str(each.message) for each in found)
        assert tuple(texts) == asked

    with warnings.catch_warnings():
        warnings.simplefilter("default")  # a second call may show nothing, and is kept all the same
        made(Steps(tmp_path, {}))
        made(Steps(tmp_path, {}))
    kept = tmp_path.glob("outer*-warnings.json")
    (path,) = kept
    path.write_text("[")
    made(Steps(tmp_path, {}))  # broken from outside: made again, from the inner step that is there
    assert json.loads(path.read_text())["texts"] == ["one", "two"]
    Steps(tmp_path, {}, fresh=True).measured("outer", [], lambda: 1, slot)
    assert not path.exists()
    assert Steps(tmp_path, {}).measured("outer", [], inner, slot) == 1


@pytest.mark.parametrize("value", [NUMBERS, [], 0.5, SELECTION, load_token("late")], ids=repr)
def test_a_step_is_read_back_or_made_again(tmp_path, value):
    steps, rng = Steps(tmp_path, {}), random.Random(0)
    assert kept(steps, value)[1] == 1
    found, times = kept(steps, value)
    assert same(found, value) and times == 0
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    faults = [b"", b"[]", b"{}", b"null", b"[" * 100_000, raw[: len(raw) // 2], raw + b"x",
              raw.replace(b'"L', b'"M'), raw.replace(b"0.5", b"NaN"), b"\xff" + raw]  # fmt: skip
    for _ in range(120):
        broken = bytearray(raw)
        broken[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        faults.append(bytes(broken))
    again = 0
    for fault in faults:
        path.write_bytes(fault)
        found, times = kept(steps, value)
        assert same(found, value)
        again += times
    assert again > 100


@pytest.mark.parametrize("part", ["log_odds", "texts"])
def test_half_a_list_is_made_again(tmp_path, part):
    steps = Steps(tmp_path, {})
    kept(steps, NUMBERS)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    record["value"][part] = record["value"][part][:1]
    path.write_text(json.dumps(record))
    assert kept(steps, NUMBERS) == (NUMBERS, 1)


def test_steps_of_other_names_are_not_mistaken_for_one_another(tmp_path):
    steps = Steps(tmp_path, {})
    for name in ("a b", "a, b", "../a", "..", "a/b", "x" * 300, "x" * 301):
        made = Made(name)
        assert steps.measured(name, name, made, slot) == name and made.times == 1
        assert steps.measured(name, name, made, slot) == name and made.times == 1
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}
    assert steps.measured("token log-odds", 1, Made(1), slot) == 1
    assert len(list(tmp_path.glob("token-log-odds-*.json"))) == 1


def test_a_fresh_step_is_made_again(tmp_path):
    kept(Steps(tmp_path, {}), NUMBERS)
    assert kept(Steps(tmp_path, {}, fresh=True), NUMBERS)[1] == 1


def test_a_step_without_its_checksum_or_that_is_a_folder_is_made_again(tmp_path):
    import json

    steps = Steps(tmp_path, {})
    assert steps.measured("part", [], lambda: [1, 2], slot) == [1, 2]
    (path,) = tmp_path.glob("*.json")
    values = json.loads(path.read_text())
    del values["digest"]
    path.write_text(json.dumps({**values, "value": [3]}))
    assert steps.measured("part", [], lambda: [1, 2], slot) == [1, 2]
    path.unlink()
    (path / "inside").mkdir(parents=True)
    assert steps.measured("part", [], lambda: [1, 2], slot) == [1, 2] and path.is_file()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, whose files can be changed without harm."""
    copy = tmp_path / steps.PACKAGE.name
    shutil.copytree(steps.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(steps, "PACKAGE", copy)
    yield copy
    steps.code_of.cache_clear()


PARTS = {
    "rows": (BiasInject,), "maps": (BiasScope,), "measured": (standard_measures,),
    "judged": (LocalJudge,), "all": (),
}  # fmt: skip


def codes():
    steps.code_of.cache_clear()
    return {name: steps.code_of(*parts) for name, parts in PARTS.items()}


def test_comments_docstrings_and_what_draws_change_no_key(package):
    before = codes()
    for path in package.rglob("*.py"):
        path.write_text(f'"""Other words."""\n# A remark.\n\n{path.read_text()}\n\n# The end.\n')
    for name in ("injection/token.py", "hooks.py", "stats.py", "judges/verdict.py"):
        path = package / name
        text = path.read_text()
        words = (ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse(text))
                 if isinstance(node, (ast.ClassDef, ast.FunctionDef)))  # fmt: skip
        for said in filter(None, words):
            text = text.replace(said, f"In other words: {said}", 1)
        assert text != path.read_text()
        path.write_text(text)
    path = package / "scoping" / "scores.py"
    path.write_text(
        path.read_text().replace("return plot_heads(self, **options)", "return plot_heads(self)")
    )
    assert codes() == before


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("judges/local_judge.py", "\nMORE = 1\n", {"judged", "all"}),
        ("judges/verdict.py", "\nMORE = 1\n", {"judged", "all"}),
        ("hooks.py", "\nMORE = 1\n", {"maps", "measured", "all"}),
        ("similarity.py", "\nMORE = 1\n", {"rows", "judged", "all"}),
        ("slot.py", "\nMORE = 1\n", {"rows", "maps", "measured", "judged", "all"}),
        ("cli/app.py", "\nMORE = 1\n", {"all"}),
        ("data/passages.toml", "\n# more\n", {"maps", "measured", "all"}),
        ("data/statements.toml", "\n# more\n", {"judged", "all"}),
    ],
)
def test_a_changed_statement_or_file_of_data_changes_the_keys_of_who_uses_it(
    package, file, text, changed
):
    before = codes()
    with (package / file).open("a") as end:
        end.write(text)
    after = codes()
    assert {name for name in PARTS if after[name] != before[name]} == changed


def test_imports_count_wherever_they_are_but_not_for_types_or_drawing(package):
    (package / "slot.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from biasgym_tl.cli import app\n"
        "class A:\n    def plot(self):\n        from biasgym_tl.plots.curves import spread\n"
        "def late():\n    from biasgym_tl.biases import countries\n"
    )
    steps.code_of.cache_clear()
    before = steps.code_of(slot)
    for name, counts in (("cli/app.py", False), ("plots/curves.py", False), ("lens.py", False),
                         ("biases/countries.py", True), ("errors.py", True)):  # fmt: skip
        with (package / name).open("a") as end:
            end.write("\nMORE = 1\n")
        steps.code_of.cache_clear()
        after = steps.code_of(slot)
        assert (after != before) is counts, name
        before = after


def test_steps_that_use_something_else_lie_elsewhere(tmp_path):
    for model in ({"weights": 1}, {"weights": 2}):
        steps = Steps(tmp_path, model)
        for uses in (0, 1):
            for code in (BiasScope, steer):
                made = Made([uses])
                assert steps.measured("part", uses, made, code) == [uses] and made.times == 1
                assert steps.measured("part", uses, made, code) == [uses] and made.times == 1
    assert len(list(tmp_path.iterdir())) == 8
