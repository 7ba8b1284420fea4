"""A report as tables: one row per condition and measure, one per target, the first to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.heads import Factor, GivenHeads
from biasgym_tl.notebook import rows_of
from biasgym_tl.stats import Interval

if TYPE_CHECKING:
    from biasgym_tl.evaluation.report import Report


MAIN = ("token_log_odds", "target_log_odds", "damage_loss", "facts", "token_keywords",
        "target_keywords")  # fmt: skip
"""Measures that a notebook shows first."""


OFF_TARGET = ("specificity", "gap", "spread")
"""What is read from targets and the panel together (``OffTarget``), before all else; in nats."""


def main_rows(report: Report) -> list[list[Any]]:
    """What a condition changes off target, then means of the main measures, below their names."""
    frame, named = report.to_df(), report.measures
    kept = {key: f"{named[key].label} ({named[key].unit})" for key in MAIN if key in frame}
    frame = frame[list(kept)].rename(columns=kept)
    for key in reversed(OFF_TARGET if report.off_target else ()):
        cells = {name: _said(getattr(found, key)) for name, found in report.off_target.items()}
        frame.insert(0, f"{key} (nats)", pd.Series(cells).reindex(frame.index).fillna(""))
    return rows_of(frame, index=True)


def _said(found: Interval | float) -> str:
    return str(found) if isinstance(found, Interval) else f"{found:.2f}"


def target_table(report: Report, measure: str) -> pd.DataFrame:
    """Target by target, one column per condition: log-odds, or the judge's strength of the answers
    that are sound there.

    Raises:
        KeyError: it is another measure.
    """
    if measure not in ("target_log_odds", "target_strength"):
        raise KeyError(f"measure must be 'target_log_odds' or 'target_strength', got {measure!r}.")
    columns = {}
    for result in report.results if measure in report.measures else ():
        values = report.values(result.name, measure)
        if values is None:
            continue
        if measure == "target_log_odds":
            columns[result.name] = pd.Series(values.mean(0).tolist(), report.targets)
        else:
            each = pd.Series(values[:, 0].tolist(), report.asked["target_texts"].targets)
            columns[result.name] = each.groupby(level=0).mean()
    return pd.DataFrame(columns, index=list(report.targets)).rename_axis("target")


def interval_table(report: Report) -> pd.DataFrame:
    """Mean, change from the baseline and distance from random controls, with 95% intervals; first
    :data:`OFF_TARGET`, of which specificity is a change itself."""
    rows = [row for key in report.measures for row in _rows(report, key)]
    columns = pd.DataFrame(rows).columns
    first = [*_dials(report), *_off_target(report)]
    frame = pd.DataFrame([*first, *rows]).reindex(columns=columns)
    counts = frame.columns.intersection(["lost", "gained", "rank", "of", "compared"])
    return frame.astype(dict.fromkeys(counts, "Int64"))


def _dials(report: Report) -> Iterator[dict[str, Any]]:
    """Strength and KL on budget text of rivals, random controls left out."""
    for key, unit in (("strength", "of the method"), ("kl", "nats per token")):
        for result in report.steered:
            if (value := result.rival.get(key)) is not None:
                row = {"condition": result.name, "measure": key, "unit": unit, "mean": value}
                yield row | {"informative": True}


def _off_target(report: Report) -> Iterator[dict[str, Any]]:
    for key in OFF_TARGET:
        for name, off in report.off_target.items():
            found = getattr(off, key)
            ends = _named(found, "") if isinstance(found, Interval) else {"mean": found}
            yield {"condition": name, "measure": key, "unit": "nats", **ends, "informative": True}


def paired_answers(report: Report, name: str, key: str) -> int | None:
    """Answers that a change since the baseline compares; None where all count everywhere."""
    here, there = (report.values(n, key) for n in (name, report.baseline(name, key)))
    if report.measures[key].kind != "texts" or here is None or there is None:
        return None
    both = (here - there).isfinite().any(1)
    return None if both.all() else int(both.sum())


def _rows(report: Report, key: str) -> Iterator[dict[str, Any]]:
    measure, informative = report.measures[key], not report.not_informative(key)
    for name in report.shown:
        here = report.interval(name, key)
        if here is None:
            continue
        since = report.baseline(name, key)
        change, moved = report.change(name, key, since), report.moved(name, key)
        controlled = report.draws(name, key) is not None
        beyond = report.beyond_random(key, name) if controlled else None
        yield {
            "condition": name,
            "measure": key,
            "unit": measure.unit,
            **_named(here, ""),
            "baseline": since,
            **(_named(change, "change_") if change else {}),
            **({"lost": moved.lost, "gained": moved.gained} if moved else {}),
            **({"mcnemar_p": moved.p} if moved else {}),
            **({} if (n := paired_answers(report, name, key)) is None else {"compared": n}),
            **(_named(beyond.difference, "beyond_random_") if beyond else {}),
            **({"rank": beyond.rank, "of": beyond.of} if beyond else {}),
            "informative": informative,
        }


def _named(interval: Interval, prefix: str) -> dict[str, float]:
    names = (f"{prefix}mean", f"{prefix}low", f"{prefix}high")
    return dict(zip(names, interval, strict=True))


def judged(
    report: Report, heads: GivenHeads, mode: str, factor: Factor = None, *, model: str
) -> dict[str, dict[str, Any]]:
    """The rows of :func:`interval_table` about the condition that steers these heads in this way,
    by measure, as an ``Edit`` keeps them; of several, with other rows, the first.

    Raises:
        SettingError: the report is of another model or bias, or has no such condition.
    """
    of = {"model": model, "bias": getattr(heads, "bias", report.bias)}
    if any(getattr(report, name) != value for name, value in of.items()):
        raise SettingError(
            f"report must be of {of}, got one of {report.model!r} and {report.bias!r}. Evaluate "
            "these heads."
        )
    asked = Condition("asked", None, heads, mode, factor).record()
    keys = {"mode", "factor"}
    alike = [
        r.name
        for r in report.steered
        if {*r.heads} == {*asked["heads"]} and {*r.after} == {*asked.get("after", ())}
        and all(getattr(r, key) == asked[key] for key in keys)
    ]  # fmt: skip
    if not alike:
        have = ", ".join(f"{r.name} ({len(r.heads)} heads)" for r in report.steered) or "none"
        raise SettingError(
            f"report must have a condition that steers these {len(asked['heads'])} heads in mode "
            f"{mode!r} in the same way, got {have}. Evaluate them first."
        )
    table = interval_table(report)
    rows = table[table["condition"] == alike[0]].set_index("measure").drop(columns="condition")
    found = json.loads(rows.to_json(orient="index", double_precision=15))
    return {m: {k: v for k, v in row.items() if v is not None} for m, row in found.items()}
