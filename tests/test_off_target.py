"""A fall that spares things and nobody is of the stereotype; one that does not is of the word."""

import dataclasses

import pytest
import torch

from biasgym_tl import (
    BiasInject,
    Head,
    Report,
    evaluate,
    load_bias,
    standard_conditions,
    standard_measures,
    steer,
)
from biasgym_tl.console import summary_lines
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import BiasFileError, SettingError, StoreError
from biasgym_tl.evaluation.off_target import off_target_log_odds
from biasgym_tl.evaluation.specificity import off_target_table
from biasgym_tl.evaluation.standard import target_log_odds, token_log_odds
from biasgym_tl.evaluation.tables import main_rows
from biasgym_tl.plots import plot_off_target, plot_specificity
from biasgym_tl.plots.page import report_page
from biasgym_tl.stats import column_spread

LATE = load_bias("late")
TARGETS = ("Italy", "Peru", "Kenya")
HEADS = (Head(0, 1), Head(2, 0))
STEERED = "steered, mean"
CELLS = ("nobody", "things", "rightful", "rightful_target")


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    made = [make(LATE, TARGETS) for make in (target_log_odds, off_target_log_odds)]
    conditions = standard_conditions(token, HEADS, modes=("mean",))
    return model, evaluate(model, LATE, conditions, [token_log_odds(LATE), *made], progress=False)


def moved(report, by, *, times=1.0):
    """The report, in which steering adds ``by[cell]`` (nats) to what the unsteered model shows."""
    since, results = report["original"].items, []
    for result in report.results:
        items = dict(result.items)
        for name, shift in by.items() if result.name == STEERED else ():
            key = f"{name}_log_odds"
            items[key] = [[times * x + shift for x in row] for row in since[key]]
        results.append(dataclasses.replace(result, items=items))
    return dataclasses.replace(report, results=tuple(results))


def test_items_are_the_log_odds_of_the_held_out_half(setup):
    model, report = setup
    panel = LATE.panel
    for name, cell in panel.half("held-out").items():
        expected = bias_log_odds(model, LATE, cell.prompts, cell.fillers).log_odds
        assert report["original"].items[f"{name}_log_odds"] == expected.tolist()
        assert not {*cell.prompts} & {*panel.half("fitting")[name].prompts}
    with steer(model, HEADS, "mean"):
        prompts = panel.rightful.held_out.prompts
        expected = bias_log_odds(model, LATE, prompts, TARGETS).log_odds
    assert report[STEERED].items["rightful_target_log_odds"] == expected.tolist()
    right = report.to_df().loc[STEERED, "rightful_target_right"]
    nobody = torch.tensor(report[STEERED].items["nobody_log_odds"])
    assert right == (expected.mean(1) > nobody.mean()).double().mean().item()


def test_rightful_uses_are_right_whatever_the_lists_of_words_are(tiny, setup):
    """A likely neutral word lowers the log-odds everywhere alike; 0 is no bound to be above."""
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(tiny(), LATE, progress=False)
    more = dataclasses.replace(LATE, neutral_words=(*LATE.neutral_words, "the", "of"))
    conditions = standard_conditions(token)
    report = evaluate(
        setup[0], more, conditions, [off_target_log_odds(more, TARGETS)], progress=False
    )
    values = torch.tensor(report["original"].items["rightful_log_odds"])
    share = report.to_df().loc["original", "rightful_right"]
    assert (values.mean(1) > 0).double().mean() < 0.2 < share


def test_held_out_words_are_words_of_the_panel_on_targets(setup):
    model, report = setup
    words = dataclasses.replace(
        LATE, attribute_words=LATE.panel.attribute_words, panel=None,
        neutral_words=LATE.panel.neutral_words,
    )  # fmt: skip
    expected = bias_log_odds(model, words, LATE.evaluation_prompts, TARGETS).log_odds
    assert report["original"].items["held_out_words_log_odds"] == expected.tolist()
    seen = report["original"].items["target_log_odds"]
    assert seen != report["original"].items["held_out_words_log_odds"]


def test_specificity_is_the_change_on_targets_beyond_that_off_target(setup):
    report = moved(setup[1], {"target": -1.5, "things": -0.4, "nobody": 0.2, "rightful": 0.1})
    found = report.off_target[STEERED]
    assert found.specificity.estimate == pytest.approx(-1.5 + (0.4 - 0.2) / 2)
    assert found.specificity.high < 0 and found.target.estimate == pytest.approx(-1.5)
    assert found.target == report.change(STEERED, "target_log_odds", "original")
    assert {"nobody", "rightful"} <= {*found.unchanged} and "things" not in found.unchanged
    assert not any("lowers the word" in warning for warning in report.warnings())


def test_what_is_spared_is_the_mean_of_things_and_nobody(setup):
    report = moved(setup[1], {"target": -1.5, "things": -0.4, "nobody": 0.2})
    found = report.off_target[STEERED]
    assert found.spared.estimate == pytest.approx(-0.1)
    assert found.spared.estimate == pytest.approx(
        found.target.estimate - found.specificity.estimate
    )
    figure = plot_off_target({"late": report, "again": report})
    marks = next(trace for trace in figure.data if trace.name == STEERED)
    assert marks.x == (found.spared.estimate,) * 2 and marks.y == (found.target.estimate,) * 2
    assert not {"original", "injected"} & {trace.name for trace in figure.data}
    rows = plot_specificity({"late": report, "again": report})
    left, right = (trace for trace in rows.data if trace.name == "again")
    assert left.x == (found.target.estimate,) and right.x == (found.specificity.estimate,)
    assert rows.layout.yaxis.ticktext == (STEERED,) and abs(left.y[0]) < 0.5
    for plot in (plot_off_target, plot_specificity):
        with pytest.raises(SettingError, match="must hold a steered condition that was measured"):
            plot({})


def test_one_far_mark_does_not_hide_the_others(setup):
    report = moved(setup[1], {"target": -1.5, "things": -0.4, "nobody": 0.2})
    far = moved(setup[1], dict.fromkeys(("target", "held_out_words", *CELLS), -2000.0))
    reports = {"a": report, "b": report, "far": far}
    figure = plot_off_target(reports)
    assert "1 far beyond the edges" in figure.layout.title.subtitle.text
    assert -9 < figure.layout.xaxis.range[0] < figure.layout.xaxis.range[1] < 9
    rows = plot_specificity(reports)
    assert "1 far beyond the edges" in rows.layout.title.subtitle.text
    assert [trace.x for trace in rows.data if trace.name == "far"] == [(), ()]
    small = moved(setup[1], {"target": -0.02, "things": 0.0, "nobody": 0.0})
    alone = plot_off_target({"small": small, "a": report})
    assert "beyond" not in alone.layout.title.subtitle.text and alone.layout.xaxis.range is None
    many = plot_specificity({str(i): report for i in range(8)})
    assert len(many.data) == 16


def test_a_constant_taken_from_the_words_is_not_specific(setup):
    """A logit shift: every log-odds falls by the same."""
    report = moved(setup[1], dict.fromkeys(("target", "held_out_words", *CELLS), -2.0))
    found, before = report.off_target[STEERED], report.off_target["original"]
    assert found.specificity.estimate == pytest.approx(0, abs=1e-9)
    assert found.gap.estimate == pytest.approx(before.gap.estimate)
    assert found.spread == pytest.approx(before.spread)
    assert found.unchanged == () and before.unchanged == CELLS
    (warning,) = [w for w in report.warnings() if "lowers the word, not the stereotype" in w]
    assert warning.startswith(f"Specificity not shown in {STEERED!r}") and "-2.00" in warning


def test_the_gap_is_that_of_targets_to_nobody_and_the_spread_that_between_targets(setup):
    report = setup[1]
    found = report.off_target[STEERED]
    means = report.to_df().loc[STEERED]
    gap = means["target_log_odds"] - means["nobody_log_odds"]
    assert found.gap.estimate == pytest.approx(gap) and found.gap.excludes(found.gap.low - 1)
    values = torch.tensor(report[STEERED].items["target_log_odds"], dtype=torch.float64)
    assert found.spread == column_spread(values)
    halved = moved(report, {"target": 0.0}, times=0.5).off_target[STEERED]
    assert halved.spread == pytest.approx(report.off_target["original"].spread / 2)


def test_a_page_a_table_and_the_console_show_it(setup):
    report = moved(setup[1], {"target": -1.5, "things": -0.4, "nobody": 0.2})
    table = off_target_table(report).set_index("condition")
    found = report.off_target[STEERED]
    assert list(table.index) == ["original", "injected", STEERED]
    assert table.loc[STEERED, "specificity"] == found.specificity.estimate
    assert bool(table.loc[STEERED, "nobody_unchanged"]) is ("nobody" in found.unchanged)
    first = report.intervals().iloc[: 3 * len(table)]
    assert list(first.measure) == [m for m in ("specificity", "gap", "spread") for _ in table.index]
    steered = first[first.condition == STEERED].set_index("measure")
    assert tuple(steered.loc["specificity", ["mean", "low", "high"]]) == found.specificity
    assert steered.loc["spread", "mean"] == found.spread
    heading, *rows = main_rows(report)
    assert heading[1:4] == ["specificity (nats)", "gap (nats)", "spread (nats)"]
    assert rows[2][:3] == [STEERED, str(found.specificity), str(found.gap)]
    assert report.off_target is report.off_target
    page = report_page(report, plotlyjs="cdn")
    assert f"<td>{found.specificity}</td><td>{found.gap}</td>" in page
    assert "The stereotype or the word" in page
    assert any(line == f"  off target: {found}." for line in summary_lines(report))


def test_a_report_is_read_back_whole(setup, tmp_path):
    report = setup[1]
    assert Report.load(report.save(tmp_path / "report.json")) == report
    first, *rest = report.results
    short = [row[:-1] for row in first.items["things_log_odds"]]
    first = dataclasses.replace(first, items={**first.items, "things_log_odds": short})
    wrong = dataclasses.replace(report, results=(first, *rest))
    with pytest.raises(StoreError, match="things_log_odds of 'original' must have 4 targets"):
        Report.load(wrong.save(tmp_path / "wrong.json"))


def test_a_bias_without_a_panel_is_measured_as_before():
    without = dataclasses.replace(LATE, panel=None)
    names = [[m.name for m in standard_measures(bias)] for bias in (LATE, without)]
    assert set(names[0]) - set(names[1]) == {"off-target log-odds"}
    with pytest.raises(BiasFileError, match="must have panel for measures off target"):
        off_target_log_odds(without, TARGETS)


def test_words_of_the_panel_that_a_search_could_see_are_refused():
    bias = dataclasses.replace(LATE, attribute_words=(*LATE.attribute_words, "overdue"))
    with pytest.raises(BiasFileError, match=r"must not be among its own, got \['overdue'\]. Give"):
        off_target_log_odds(bias, TARGETS)


def test_what_was_not_measured_off_target_says_nothing(setup):
    report = setup[1]
    alone = dataclasses.replace(
        report, measured=tuple(m for m in report.measured if m.key != "things_log_odds")
    )
    assert alone.off_target == {} and off_target_table(alone).empty
    assert "The stereotype or the word" not in report_page(alone, plotlyjs="cdn")
