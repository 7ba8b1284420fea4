"""Whether a condition changes the stereotype or the word: targets against what is off target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from biasgym_tl.biases.panel import SPARED
from biasgym_tl.stats import Interval, column_spread, independent_difference

if TYPE_CHECKING:
    from biasgym_tl.evaluation.report import Report

UNCHANGED = 0.3
"""Nats within which the whole interval of a change lies where a cell counts as unchanged."""
ANCHORS = ("things_log_odds", "nobody_log_odds")
TARGETS = "target_log_odds"


class OffTarget(NamedTuple):
    """What a condition changes on target and off it, since the unsteered model."""

    specificity: Interval
    """Change on held-out targets minus the mean of the changes on things and nobody (nats), prompts
    of both as samples of their own. Negative: the targets fall further. 0: the word falls."""
    target: Interval
    """Change on held-out targets (nats)."""
    held_out_words: Interval
    """The same in words that no search saw."""
    changes: dict[str, Interval]
    """By cell that is to stay: its change (nats)."""
    spared: Interval
    """The mean of the changes on things and nobody (nats)."""
    gap: Interval
    """Log-odds of held-out targets minus those of nobody in the condition (nats); the aim is 0."""
    spread: float
    """Standard deviation between targets in the condition (nats), without what sampling adds."""

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Cells whose change lies within :data:`UNCHANGED` with all of its interval."""
        return tuple(name for name, change in self.changes.items() if change.within(UNCHANGED))

    def __str__(self) -> str:
        kept = ", ".join(name.replace("_", " ") for name in self.unchanged) or "none"
        return (
            f"specificity {self.specificity} nats (targets {self.target}, held-out words "
            f"{self.held_out_words}); gap to nobody {self.gap}, spread between targets "
            f"{self.spread:.2f}; unchanged within {UNCHANGED:g}: {kept}"
        )


def off_targets(report: Report) -> dict[str, OffTarget]:
    """What each condition (random controls left out) changes on target and off it, by name of those
    that were measured so; worked out once for each report, as ``report.off_target``."""
    names = [result.name for result in report.results if result.control_of is None]
    return {name: found for name in names if (found := _off_target(report, name))}


def _off_target(report: Report, name: str) -> OffTarget | None:
    keys = (TARGETS, "held_out_words_log_odds", *(f"{cell}_log_odds" for cell in SPARED))
    if not set(keys) <= set(report.measures):
        return None
    change = {key: found for key in keys if (found := report.change(name, key, "original"))}
    if len(change) < len(keys):
        return None
    here, since = (
        {key: v for key in (TARGETS, *ANCHORS) if (v := report.values(of, key)) is not None}
        for of in (name, "original")
    )
    moved = {key: here[key] - since[key] for key in here}
    return OffTarget(
        specificity=independent_difference(moved[TARGETS], [moved[key] for key in ANCHORS]),
        target=change[TARGETS],
        held_out_words=change["held_out_words_log_odds"],
        changes={cell: change[f"{cell}_log_odds"] for cell in SPARED},
        spared=independent_difference(moved[ANCHORS[0]] / 2, [-moved[ANCHORS[1]] / 2]),  # the mean
        gap=independent_difference(here[TARGETS], [here["nobody_log_odds"]]),
        spread=column_spread(here[TARGETS]),
    )


def off_target_table(report: Report) -> pd.DataFrame:
    """One row per condition (random controls left out) that was measured off target."""
    return pd.DataFrame([_row(name, found) for name, found in report.off_target.items()])


def _row(name: str, found: OffTarget) -> dict[str, Any]:
    intervals = {"specificity": found.specificity, "gap": found.gap}
    ends = {
        f"{key}{end}": value
        for key, interval in intervals.items()
        for end, value in zip(("", "_low", "_high"), interval, strict=True)
    }
    kept = {f"{cell}_unchanged": cell in found.unchanged for cell in found.changes}
    return {"condition": name, **ends, "spread": found.spread, **kept}
