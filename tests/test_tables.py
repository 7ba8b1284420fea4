"""The tables of the pages are those that the stored results of protocol runs give."""

import json
import runpy
import shutil
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from biasgym_tl.protocol.protocol import load_protocol

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"
make_tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
STORED = {
    **{f"study/{bias}-table.csv": "study" for bias in make_tables["FIVE"]},
    **{f"maps/{bias}-table.csv": "maps" for bias in load_protocol("maps").biases},
    "gemma/table.csv": str(ROOT / "docs" / "gemma.toml"),
    "demo/table.csv": "demo",
}


@pytest.mark.parametrize("name", make_tables["PAGES"])
def test_a_page_holds_what_the_results_give(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    found = make_tables["PAGES"][name]()
    assert make_tables["filled"](page, found) == page
    assert all(table.count("\n") > 2 or name == "docs/injection.md" for table in found.values())


def test_a_missing_block_is_named():
    with pytest.raises(SystemExit, match="one block named damage, got 0"):
        make_tables["filled"]("# A page", {"damage": "0"})


def test_what_is_stored_was_measured_in_the_conditions_of_its_protocol():
    for path, protocol in STORED.items():
        if (FIGURES / path).exists():
            stored = pd.read_csv(FIGURES / path).condition
            wanted = {c.label for c in load_protocol(protocol).conditions}
            assert {"original", "injected", *wanted} <= set(stored), path


@pytest.mark.parametrize("bias", ["late", "alcohol"])
def test_tables_do_without_a_bias_that_was_not_run(bias, tmp_path, monkeypatch):
    shutil.copytree(FIGURES, tmp_path / "figures", ignore=shutil.ignore_patterns("*.png", "*.html"))
    (tmp_path / f"figures/study/{bias}-table.csv").unlink()
    steering_tables = make_tables["steering_tables"]
    monkeypatch.setitem(steering_tables.__globals__, "FIGURES", tmp_path / "figures")
    found = steering_tables()
    assert f"| {bias} |" not in found["bar"] and "| math |" in found["bar"]


def test_cells_by_hand():
    rows = [
        ("injected", "token_log_odds", 4.0, "injected", 0.0, 0.0, 0.0),
        ("steered, mean", "token_log_odds", -0.5, "injected", -4.5, -5.0, -4.04),
        ("steered, mean, seed 1", "token_log_odds", -1.0, "injected", -5.0, float("nan"), 0.0),
        ("steered, mean", "facts", 0.5, "injected", -0.021, float("nan"), float("nan")),
    ]
    columns = [
        "condition",
        "measure",
        "mean",
        "baseline",
        "change_mean",
        "change_low",
        "change_high",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    found = {(row.condition, row.measure): row for _, row in frame.iterrows()}

    def shown(cell, name="steered, mean"):
        return cell(found, name).replace("\u2212", "-")

    column, each_seed = make_tables["column"], make_tables["each_seed"]
    assert shown(column("token_log_odds")) == "-4.5 [-5.0, -4.0]"
    assert shown(column("facts", scale=100)) == "-2.1"
    assert shown(column("blimp")) == ""
    assert shown(make_tables["since"]("token_log_odds")) == "+4.0, -4.5 [-5.0, -4.0]"
    assert shown(make_tables["levels"]("token_log_odds")) == "4.00 → -0.50"
    assert shown(make_tables["changes"]("token_log_odds")) == "-4.5 [-5.0, -4.0]; -5.0"
    assert shown(each_seed) == "+4.0 → -0.5; +4.0 → -1.0"


def test_other_biases_are_the_unit_of_their_interval():
    values = {"math": -1.0, "alcohol": 0.0, "spicy-food": -0.5, "bad-driving": -0.3}
    found = {
        ("steered, mean", f"{b}_log_odds"): pd.Series({"change_mean": v}) for b, v in values.items()
    }
    low, high = stats.ttest_1samp(list(values.values()), 0).confidence_interval(0.95)
    expected = f"-0.5 [{low:+.1f}, {high:+.1f}]; -1.0 to +0.0"
    cell = make_tables["other_biases"]
    assert cell(found, "steered, mean").replace("\u2212", "-") == expected
    assert cell(found, "original") == ""


def test_what_comes_back_is_a_difference_to_the_same_training_alone():
    columns = ("mean", "baseline", "change_mean", "change_low", "change_high")
    again = "re-injected, mean"

    def cell(baseline):
        row = pd.Series(dict(zip(columns, (1.0, baseline, -2.0, -3.0, -1.0), strict=True)))
        return make_tables["difference"]({(again, "token_log_odds"): row}, again)

    assert cell("injected") == "" and cell(f"{again}: unsteered").startswith("\u22122.0 [")


def test_no_report_that_can_be_made_again_is_stored():
    """But the demo's, which a notebook reads."""
    assert not [path for path in FIGURES.rglob("*.json") if path.stat().st_size > 300_000]


def test_heads_of_the_study_were_chosen_on_fitting_data():
    for path in FIGURES.glob("study/*-heads-*.json"):
        chosen = json.loads(path.read_text(encoding="utf-8"))
        assert chosen["kind"] == "Selection" and path.name.startswith(chosen["bias"])
        assert chosen["data"]["prompts"] and chosen["heads"]
