"""A report as one page of HTML: warnings, table, figures, answers side by side, provenance."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.evaluation.readers import ConditionResult
from biasgym_tl.evaluation.report import Report
from biasgym_tl.evaluation.tables import paired_answers
from biasgym_tl.files import write_text
from biasgym_tl.plots.conditions import plot_conditions
from biasgym_tl.plots.frontier import plot_frontier
from biasgym_tl.plots.html import figures_html, write_library
from biasgym_tl.plots.targets import plot_targets
from biasgym_tl.slot import fill
from biasgym_tl.stats import Interval


class Cell(NamedTuple):
    """A value with its interval, its change with its interval, and items that changed, as text."""

    value: str
    ends: str
    change: str
    moved: str


def report_page(report: Report, *, plotlyjs: str = "inline") -> str:
    """The report as HTML. All text that a model or a user wrote is escaped.

    Args:
        report: What was measured.
        plotlyjs: As in :func:`biasgym_tl.plots.write_html`.
    """
    source = resources.files("biasgym_tl").joinpath("data/report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    plots = [plot_conditions] if report.log_odds in report.measures else []
    plots += [plot_frontier] if "damage_loss" in report.measures else []
    plots += [plot_targets] if "target_log_odds" in report.measures else []
    return page.render(
        report=report,
        warnings=report.warnings(),
        conditions=report.shown,
        rows=_rows(report),
        figures=figures_html([plot(report) for plot in plots], plotlyjs),
        off_target=_off_target(report),
        strengths=_strengths(report),
        answers=_answers(report),
        provenance=json.dumps(
            {"settings": report.settings, "versions": report.versions}, indent=2, ensure_ascii=False
        ),
    )


def write_report(report: Report, path: Path, *, plotlyjs: str = "inline") -> Path:
    """Write :func:`report_page`, and beside it the library of its figures if it is to be there."""
    page = report_page(report, plotlyjs=plotlyjs)
    if plotlyjs == "beside":
        write_library(path.parent)
    return write_text(path, page)


def _rows(report: Report) -> list[dict[str, Any]]:
    rows = []
    for key, measure in report.measures.items():
        cells = [_cell(report, name, measure) for name in report.shown]
        if any(cells):
            informative = not report.not_informative(key)
            rows.append({**measure._asdict(), "cells": cells, "informative": informative})
    return rows


def _cell(report: Report, name: str, measure: Measure) -> Cell | None:
    here = report.interval(name, measure.key)
    if here is None:
        return None
    change, since = None, report.baseline(name, measure.key)
    if name not in ("original", since):
        change = report.change(name, measure.key, since)
    by = "" if change is None else f"{change.estimate:+.{measure.decimals}f}"
    moved = report.moved(name, measure.key)
    n = paired_answers(report, name, measure.key)
    of = f"of {n} answers that count in both" if change and n is not None else ""
    return Cell(
        value=f"{here.estimate:.{measure.decimals}f}",
        ends=_ends(here, f".{measure.decimals}f"),
        change=f"{by} {_ends(change, f'+.{measure.decimals}f')}".strip() if change else "",
        moved=f"{moved.lost} fell, {moved.gained} rose, p = {moved.p:.2g}" if moved else of,
    )


def _ends(interval: Interval, form: str) -> str:
    if math.isnan(interval.low):
        return ""
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def _answers(report: Report) -> list[dict[str, Any]]:
    """Tables of free answers, each with what a judge says of it."""
    tables = []
    for key, asked in report.asked.items():
        shown = [result for result in report.results if result.items.get(key)]
        whose = "held-out targets" if any(asked.targets) else "the BiasToken"
        other = f' for the bias "{asked.bias}"' if asked.bias != report.bias else ""
        requests = (
            fill(prompt, target) if target else prompt
            for prompt, target in zip(asked.prompts, asked.targets, strict=True)
        )
        rows = [
            [(request, ""), *((r.items[key][i], _note(r, key, i)) for r in shown)]
            for i, request in enumerate(requests)
        ]
        title = f"about {whose}{other}"
        names = [result.name for result in shown]
        tables += [{"title": title, "conditions": names, "rows": rows}] if shown else []
    return tables


def _note(result: ConditionResult, key: str, i: int) -> str:
    if not result.verdicts.get(key):
        return ""
    verdict = result.verdicts[key][i]
    if verdict.strength is not None:
        strength = f"strength {verdict.strength:.1f}"
    else:
        strength = ": ".join(part for part in ("not scored", verdict.unscored) if part)
    return ", ".join(part for part in (strength, verdict.degenerate, verdict.reason) if part)


def _off_target(report: Report) -> list[list[str]]:
    """A row a condition: specificity, gap, spread, and the cells that stay as they are."""
    return [
        [name, str(found.specificity), str(found.gap), f"{found.spread:.2f}",
         ", ".join(cell.replace("_", " ") for cell in found.unchanged)]
        for name, found in report.off_target.items()
    ]  # fmt: skip


def _strengths(report: Report) -> dict[str, Any] | None:
    """The judge's mean strength target by target."""
    found = report.by_target("target_strength")
    if found.empty or not len(found.columns):
        return None
    rows = [
        [target, *("" if math.isnan(value) else f"{value:.2f}" for value in values)]
        for target, *values in found.itertuples()
    ]
    return {"conditions": list(found.columns), "rows": rows}
