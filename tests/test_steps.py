"""A kept step is what was kept, or it is made again: whatever happened to its file."""

import json
import random

import pytest

from biasgym_tl import Head, Selection, load_token
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.steps import Steps

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
        return steps.tensors("step", BiasToken, made), made.times
    if isinstance(value, Selection):
        return steps.selection("step", made), made.times
    return steps.measured("step", made), made.times


@pytest.mark.parametrize("value", [NUMBERS, [], 0.5, SELECTION, load_token("late")], ids=repr)
def test_a_step_is_read_back_or_made_again(tmp_path, value):
    steps, rng = Steps(tmp_path), random.Random(0)
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
    steps = Steps(tmp_path)
    kept(steps, NUMBERS)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    record["value"][part] = record["value"][part][:1]
    path.write_text(json.dumps(record))
    assert kept(steps, NUMBERS) == (NUMBERS, 1)


def test_steps_of_other_names_are_not_mistaken_for_one_another(tmp_path):
    steps = Steps(tmp_path)
    for name in ("a b", "a, b", "../a", "..", "a/b", "x" * 300, "x" * 301):
        made = Made(name)
        assert steps.measured(name, made) == name and made.times == 1
        assert steps.measured(name, made) == name and made.times == 1
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}
    assert steps.measured("steered, mean: token", Made(1)) == 1
    assert (tmp_path / "steered-mean-token.json").is_file()


def test_a_fresh_step_is_made_again(tmp_path):
    kept(Steps(tmp_path), NUMBERS)
    assert kept(Steps(tmp_path, fresh=True), NUMBERS)[1] == 1


def test_a_step_without_its_checksum_or_that_is_a_folder_is_made_again(tmp_path):
    import json

    steps = Steps(tmp_path)
    assert steps.measured("part", lambda: [1, 2]) == [1, 2]
    (path,) = tmp_path.glob("*.json")
    values = json.loads(path.read_text())
    del values["digest"]
    path.write_text(json.dumps({**values, "value": [3]}))
    assert steps.measured("part", lambda: [1, 2]) == [1, 2]
    path.unlink()
    (path / "inside").mkdir(parents=True)
    assert steps.measured("part", lambda: [1, 2]) == [1, 2] and path.is_file()
