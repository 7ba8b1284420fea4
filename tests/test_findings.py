"""The tables of the pages in docs/ are those that the stored results give."""

import runpy
from pathlib import Path

import pytest

from biasgym_tl import load_bias, load_token

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
    assert make_steering["filled"](page) == page
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
