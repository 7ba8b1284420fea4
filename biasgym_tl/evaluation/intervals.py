"""The interval that each kind of measure asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.stats import (
    Interval,
    clustered_interval,
    crossed_interval,
    few_rows_interval,
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

    Differences are item by item: of answers, those that count in both conditions. What is pooled
    over several biases has the bias as its unit.

    Args:
        values: Items of one condition.
        measure: Whose items.
        clusters: Of a benchmark's items; or the bias of each row, where there are several.
        minus: The same items in another condition.
    """
    of_biases = len(measure.of) > 1
    if clusters is not None and not of_biases:
        there = None if minus is None else minus[:, 0]
        return clustered_interval(values[:, 0], clusters, minus=there)
    if minus is not None:
        values = values - minus
    if of_biases:
        return _over_biases(values, measure, clusters)
    if measure.kind == "texts":
        found = _one_by_one(values.nanmean(1))
        lowest = found.low if minus is not None else max(found.low, 0.0)  # NaN stays NaN
        return found._replace(low=lowest)
    if measure.kind == "share":
        return _of_share(share_interval if minus is None else share_change_interval, values[:, 0])
    return crossed_interval(values)


def over_draws(
    values: Float[Tensor, "row draw"], measure: Measure, clusters: Sequence[str] | None = None
) -> Interval:
    """The same over prompts and random draws; of fewer than 4 draws without ends."""
    if values.shape[1] < 4:
        return Interval(by_bias(values, measure, clusters).nanmean().item(), NAN, NAN)
    if len(measure.of) > 1:
        return _over_biases(values, measure, clusters)
    if measure.kind == "share":
        return _one_by_one(values.nanmean(0))  # of most items, no draw changes anything
    return crossed_interval(values)


def _of_share(
    interval: Callable[[Float[Tensor, " item"]], Interval], values: Float[Tensor, " item"]
) -> Interval:
    """An interval over the items that count; NaN throughout where none does."""
    counted = values[~values.isnan()]
    return interval(counted) if len(counted) else Interval(NAN, NAN, NAN)


def _one_by_one(values: Float[Tensor, " item"]) -> Interval:
    """Over texts or draws, some of which may not count (NaN)."""
    return _with_spread(clustered_interval(values, range(len(values))))


def by_bias(
    values: Float[Tensor, "row column"], measure: Measure, clusters: Sequence[str] | None
) -> Float[Tensor, "row_or_bias column"]:
    """Of a measure that is pooled over biases, the mean of each; of others, the values."""
    if len(measure.of) < 2 or clusters is None:
        return values
    names = list(dict.fromkeys(clusters))
    place = torch.tensor([names.index(name) for name in clusters])
    return torch.stack([values[place == i].nanmean(0) for i in range(len(names))])


def _over_biases(
    values: Float[Tensor, "row column"], measure: Measure, clusters: Sequence[str] | None
) -> Interval:
    """Over the means of biases, as far as anything of them counts."""
    means = by_bias(values, measure, clusters)
    means = means[means.isfinite().all(1)]
    return _with_spread(few_rows_interval(means)) if len(means) else Interval(NAN, NAN, NAN)


def _with_spread(found: Interval) -> Interval:
    """Without spread there are no ends."""
    return found if found.high - found.low > 1e-9 else Interval(found.estimate, NAN, NAN)
