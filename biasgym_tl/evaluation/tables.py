"""A report as a long table: one row per condition and measure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from biasgym_tl.notebook import rows_of
from biasgym_tl.stats import Interval

if TYPE_CHECKING:
    from biasgym_tl.evaluation.report import Report


MAIN = ("token_log_odds", "target_log_odds", "damage_loss", "facts", "token_keywords",
        "target_keywords")  # fmt: skip
"""Measures that a notebook shows first."""


def main_rows(report: Report) -> list[list[Any]]:
    """Means of the main measures, one row per condition, below their names."""
    frame, named = report.to_df(), report.measures
    kept = {key: f"{named[key].label} ({named[key].unit})" for key in MAIN if key in frame}
    return rows_of(frame[list(kept)].rename(columns=kept), index=True)


def interval_table(report: Report) -> pd.DataFrame:
    """Mean, change from the baseline and distance from random controls, with 95% intervals."""
    frame = pd.DataFrame([row for key in report.measures for row in _rows(report, key)])
    counts = frame.columns.intersection(["lost", "gained", "rank", "of"])
    return frame.astype(dict.fromkeys(counts, "Int64"))


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
            **(_named(beyond.difference, "beyond_random_") if beyond else {}),
            **({"rank": beyond.rank, "of": beyond.of} if beyond else {}),
            "informative": informative,
        }


def _named(interval: Interval, prefix: str) -> dict[str, float]:
    names = (f"{prefix}mean", f"{prefix}low", f"{prefix}high")
    return dict(zip(names, interval, strict=True))
