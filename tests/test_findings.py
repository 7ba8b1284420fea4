"""The tables of docs/findings.md and docs/injection.md are those that the stored results give."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
make_injection = runpy.run_path(str(DOCS / "make_injection.py"))
make_findings = runpy.run_path(str(DOCS / "make_findings.py"))


def test_the_page_holds_what_the_results_give():
    page = (DOCS / "findings.md").read_text(encoding="utf-8")
    found = make_findings["tables"](make_findings["load_reports"]())
    assert make_findings["filled"](page, found) == page


def test_the_page_on_injection_holds_what_the_reports_give():
    page = (DOCS / "injection.md").read_text(encoding="utf-8")
    reports = make_injection["load_reports"]()
    assert make_findings["filled"](page, make_injection["tables"](reports)) == page
    assert {report.settings["epochs"] for report in reports.values()} == {4, 6}


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
