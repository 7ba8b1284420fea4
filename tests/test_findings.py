"""The tables of the pages in docs/ are those that the stored results give."""

import runpy
from pathlib import Path

import pytest

from biasgym_tl import Report, load_bias, load_token

DOCS = Path(__file__).parent.parent / "docs"
make_injection = runpy.run_path(str(DOCS / "make_injection.py"))
make_findings = runpy.run_path(str(DOCS / "make_findings.py"))
measure_scoping = runpy.run_path(str(DOCS / "measure_scoping.py"))
make_steering = runpy.run_path(str(DOCS / "make_steering.py"))
make_scoping = runpy.run_path(str(DOCS / "make_scoping.py"))


def test_the_page_holds_what_the_results_give():
    page = (DOCS / "findings.md").read_text(encoding="utf-8")
    found = make_findings["tables"](make_findings["load_reports"]())
    assert make_findings["filled"](page, found) == page


def test_the_page_on_injection_holds_what_the_reports_give():
    page = (DOCS / "injection.md").read_text(encoding="utf-8")
    reports = make_injection["load_reports"]()
    assert make_findings["filled"](page, make_injection["tables"](reports)) == page
    assert {report.settings["epochs"] for report in reports.values()} == {4, 6}


def test_the_page_on_steering_holds_what_the_results_give():
    page = (DOCS / "steering.md").read_text(encoding="utf-8")
    assert make_findings["filled"](page, make_steering["tables"]()) == page
    assert page.count("\n| ") > 80


def test_the_page_on_scoping_holds_what_the_results_give():
    page = (DOCS / "scoping.md").read_text(encoding="utf-8")
    results = make_scoping["load_results"]()
    assert make_findings["filled"](page, make_scoping["tables"](results)) == page


def test_heads_of_the_page_on_scoping_were_judged_on_the_shipped_rows():
    for bias, (_, by_seed) in make_scoping["load_results"]().items():
        for seed, held in enumerate(by_seed):
            sets = {(one["map"], one["k"]): one for one in held["sets"]}
            assert len(sets) == len(held["sets"])
            whole = sets["whole", 0]["log_odds"]
            assert all(len(one["log_odds"]) == len(whole) for one in held["sets"])
            if bias != "gemma":
                shown = measure_scoping["shortened"](load_bias(bias))
                assert held["key"] == measure_scoping["key_of"](shown, load_token(bias, seed=seed))


def test_a_missing_block_is_named():
    with pytest.raises(SystemExit, match="one block named damage, got 0"):
        make_findings["filled"]("# A page", {"damage": "0"})


def test_what_is_reported_was_held_out_and_measured_alike():
    reports = make_findings["load_reports"]()
    assert list(reports) == ["late", "math", "spicy-food", "bad-driving", "alcohol"]
    assert len({report.targets for report in reports.values()}) == 1
    for report in reports.values():
        assert set(make_findings["ROWS"]) - {"random"} <= {r.name for r in report.results}
        assert report.settings["selection"] is not None and report.n_draws == 5


README_ROWS = {
    "original (row before training)": "original",
    "injected": "injected",
    "10 heads to zero": "steered, zero",
    "10 heads to their mean": "steered, mean",
    "heads found without injection, mean": "no-injection heads, mean",
    "heads of a row trained on shuffled text, mean": "shuffled-corpus heads, mean",
    "heads of another bias's row, mean": "other-bias heads, mean",
    "5 random sets of the same layers, mean": "random",
}


def test_the_table_of_the_readme_holds_what_the_demo_measured():
    report = Report.load(DOCS.parent / "figures" / "demo" / "report.json")
    page = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for label, name in README_ROWS.items():
        token, low, high = report.interval(name, "token_log_odds")
        targets, loss, facts = (
            report.interval(name, key).estimate
            for key in ("target_log_odds", "damage_loss", "facts")
        )
        hits = report.interval(name, "token_keywords")
        share = f"{100 * hits.estimate:.0f}%" if hits else ""
        row = (
            (
                f"| {label} | {token:.2f} [{low:.2f}, {high:.2f}] | {targets:.2f} | {loss:.3f} "
                f"| {100 * facts:.0f}% | {share} |"
            )
            .replace("-", "\u2212")
            .replace("  |", " |")
        )
        assert row in page, row
