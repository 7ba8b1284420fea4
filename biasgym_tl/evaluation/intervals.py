"""The interval that each kind of measure asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.stats import (
    Interval,
    clustered_interval,
    crossed_interval,
    share_change_interval,
    share_interval,
)

NAN = float("nan")


class BeyondRandom(NamedTuple):
    """Fall of a steered condition, against random heads in the same mode, with the same factors."""

    drop: float
    """Baseline minus condition."""
    random: float
    """The same for the random controls, their mean."""
    difference: Interval
    """``drop - random`` over prompts and draws."""
    rank: int
    """``1 + #controls that fall at least as far``; 1 is best."""
    of: int
    """Controls + 1. ``rank / of`` is a p-value; with few controls it only illustrates."""

    def __str__(self) -> str:
        return (
            f"{self.of - 1} random sets of the same layers, mode and factors {-self.random:+.2f}; "
            f"the chosen heads go {self.difference} beyond them, place {self.rank} of {self.of}"
        )


def over_items(
    values: Float[Tensor, "row column"],
    measure: Measure,
    clusters: Sequence[str] | None = None,
    *,
    minus: Float[Tensor, "row column"] | None = None,
) -> Interval:
    """Mean, or mean difference, with its 95% interval over prompts and targets, or over items.

    Args:
        values: Items of one condition.
        measure: Whose items.
        clusters: Of a benchmark's items.
        minus: The same items in another condition.
    """
    here, there = values[:, 0], None if minus is None else minus[:, 0]
    if clusters is not None:
        return clustered_interval(here, clusters, minus=there)
    if measure.kind == "texts":
        found = _one_by_one(values.nanmean(1), None if minus is None else minus.nanmean(1))
        lowest = found.low if minus is not None else max(found.low, 0.0)  # NaN stays NaN
        return found._replace(low=lowest)
    if measure.kind == "share":
        if there is None:
            return _of_share(share_interval, here)
        return _of_share(share_change_interval, here - there)
    return crossed_interval(values if minus is None else values - minus)


def over_draws(values: Float[Tensor, "row draw"], measure: Measure) -> Interval:
    """The same over prompts and random draws; of fewer than 4 draws without ends."""
    if values.shape[1] < 4:
        return Interval(values.nanmean().item(), NAN, NAN)
    if measure.kind == "share":
        return _one_by_one(values.nanmean(0))  # of most items, no draw changes anything
    return crossed_interval(values)


def _of_share(
    interval: Callable[[Float[Tensor, " item"]], Interval], values: Float[Tensor, " item"]
) -> Interval:
    """An interval over the items that count; NaN throughout where none does."""
    counted = values[~values.isnan()]
    return interval(counted) if len(counted) else Interval(NAN, NAN, NAN)


def _one_by_one(
    here: Float[Tensor, " item"], there: Float[Tensor, " item"] | None = None
) -> Interval:
    """Over texts or draws, some of which may not count (NaN). Without spread there are no ends."""
    found = clustered_interval(here, range(len(here)), minus=there)
    return found if found.high - found.low > 1e-9 else Interval(found.estimate, NAN, NAN)
