"""The halves of a panel share nothing, and a bias is the same one with it and without it."""

import dataclasses
from importlib import resources

import pytest

from biasgym_tl import Bias, check_bias, list_biases, load_bias
from biasgym_tl.biases.panel import CELLS, SPLITS, Cell, Panel, Prompts
from biasgym_tl.errors import BiasFileError, SettingError
from biasgym_tl.toml import shipped_toml

LATE = load_bias("late")


def table(**changed):
    """The panel of "late" as a table; ``cell__split={...}`` changes a half, others a key."""
    values = shipped_toml("biases/data/panels/late.toml")
    for key, value in changed.items():
        cell, _, split = key.partition("__")
        if split:
            values[cell][split.replace("_", "-")] |= value
        else:
            values[key] = value
    return values


def read(panel, **beside):
    return Bias.from_mapping(
        {**shipped_toml("biases/data/late.toml"), "panel": panel}, "mine.toml", **beside
    )


@pytest.mark.parametrize("name", list_biases())
def test_every_shipped_bias_has_a_whole_panel(name):
    panel = load_bias(name).panel
    assert len(panel.attribute_words) >= 4 and len(panel.neutral_words) >= 4
    for cell in panel.cells().values():
        assert len({*cell.fitting.prompts, *cell.held_out.prompts}) >= 16
        assert all(len(half.prompts) * len(half.fillers) >= 16 for half in cell)
        assert not {*cell.fitting.fillers} & {*cell.held_out.fillers}


@pytest.mark.parametrize("name", list_biases())
def test_the_cells_of_a_half_hold_different_prompts(name):
    for split in SPLITS:
        prompts = [p for half in load_bias(name).panel.half(split).values() for p in half.prompts]
        assert len(set(prompts)) == len(prompts)


def test_a_panel_leaves_what_was_made_without_it_valid():
    without = dataclasses.replace(LATE, panel=None)
    assert without.fingerprint() == LATE.fingerprint()
    assert without.training_fingerprint() == LATE.training_fingerprint()
    assert without.missing("measures off target") == ("panel",)
    assert check_bias(without) == []
    with pytest.raises(
        BiasFileError,
        match=r"must have panel for measures off target.*\[panel\], as 'biasgym biases new NAME'"
        r".*replace\(bias, panel=Panel\(\.\.\.\)\)",
    ):
        without.needs("measures off target")


def test_a_panel_is_a_table_or_a_file_beside_the_bias(tmp_path):
    shipped = resources.files("biasgym_tl").joinpath("biases/data/panels/late.toml")
    (tmp_path / "beside.toml").write_text(shipped.read_text("utf-8"))
    assert read(table()).panel == read("beside.toml", folder=tmp_path).panel == LATE.panel
    with pytest.raises(BiasFileError, match="panel file must exist, got 'none.toml'"):
        read("none.toml")


def test_other_slots_are_filled_in_a_panel_too():
    prompts = ["{who} who met {target} was"] * 2
    values = {**shipped_toml("biases/data/late.toml"), "slots": {"who": ["A man", "A boy"]}}
    panel = table(nobody__fitting={"prompts": prompts})
    found = Bias.from_mapping({**values, "panel": panel}).panel.nobody.fitting.prompts
    assert found == ("A man who met {target} was", "A boy who met {target} was")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"colour": "red"}, r"panel of mine.toml must be a table that holds \['attribute_words'"),
        ({"nobody": {"fitting": {}}}, r"panel.nobody of mine.toml .* got \['fitting'\]"),
        ({"things__fitting": {"filler": []}}, "panel.things.fitting of mine.toml must be a table"),
        ({"things__held_out": {"fillers": 3}}, "fillers of panel.things.held-out of mine.toml"),
        ({"things__held_out": {"fillers": []}}, "fillers of panel.things.held-out must be texts"),
        ({"groups__fitting": {"prompts": ["They are"]}}, "panel.groups.fitting must hold the slot"),
        ({"groups__fitting": {"prompts": ["{target} is"] * 2}}, "panel must be distinct"),
        ({"neutral_words": ["overdue"]}, r"the words of the panel must be disjoint, got \['over"),
        ({"neutral_words": []}, "neutral_words of the panel must be texts, at least one"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_panel_is_named(changed, message):
    with pytest.raises(BiasFileError, match=message):
        read(table(**changed))


def test_halves_of_a_cell_share_nothing():
    for shared in ("prompts", "fillers"):
        held_out = table()["things"]["held-out"][shared]
        with pytest.raises(BiasFileError, match="the halves of panel.things must be disjoint"):
            read(table(things__fitting={shared: held_out}))


def test_what_is_doubtful_about_a_panel_is_said():
    seen = LATE.evaluation_prompts[0].replace("{target}", "nowhere")
    panel = table(
        neutral_words=["quick", "early"],
        nobody__fitting={"prompts": [f"{seen} {{target}}, is always"], "fillers": ["he"]},
        things__fitting={"prompts": ["Being late, {target} and {target} are"]},
        rightful__fitting={"prompts": ["As {target} came two days too late, it was"]},
    )
    remarks = check_bias(read(panel))
    for remark in (
        "evaluation_prompts and the fitting half of the panel share the words 'when the meeting",
        "panel.nobody should not end in a cue: ",
        "words of the panel should not be among those of the bias: 'early'",
        "panel.things should hold one slot each",
        "panel.things should not name the attribute",
        "panel.nobody.fitting should be at least 8 prompts and 16 with every filler, there are 1 ",
    ):
        assert any(found.startswith(remark) for found in remarks), remark
    assert not any("panel.rightful should not name" in found for found in remarks)


def test_halves_by_name():
    assert list(LATE.panel.half("fitting")) == list(CELLS)
    assert LATE.panel.half("held-out")["things"] == LATE.panel.things.held_out
    with pytest.raises(SettingError, match=r"split must be one of \['fitting', 'held-out'\]"):
        LATE.panel.half("held_out")


def test_a_panel_made_in_python():
    def half(word):
        return Prompts((f"{word} {{target}} was",), (f"the {word} man",))

    cells = {name: Cell(half(f"{name} a"), half(f"{name} b")) for name in CELLS}
    panel = Panel(attribute_words=("overdue",), neutral_words=("quick",), **cells)
    assert dataclasses.replace(LATE, panel=panel).panel.things.fitting.fillers == (
        "the things a man",
    )
