"""Statistics of what was measured on prompts and countries, both drawn from many more.

Everything here is on plain tensors. A measurement is a matrix, one row per prompt and one column
per country (a single column where there is only one target), and its items are not independent:
all values of a prompt move together, and so do all values of a country. Comparisons of two
settings are made item by item first, so that the matrix holds differences.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor

from biasgym_tl.errors import SettingError


class Interval(NamedTuple):
    """A mean with its confidence interval, in the unit of the values."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.estimate:+.2f}"
        return f"{self.estimate:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside the interval; of one without ends, nothing does."""
        return value < self.low or value > self.high

    def within(self, margin: float) -> bool:
        """Whether all of it lies within ``margin`` of 0; one without ends does not."""
        return -margin <= self.low and self.high <= margin


def crossed_interval(
    values: Float[Tensor, "prompt country"],
    *,
    level: float = 0.95,
    n_resamples: int = 1999,
    seed: int = 0,
) -> Interval:
    """Interval of the mean when prompts *and* countries are samples (studentised bootstrap).

    Rows and columns are resampled independently (Owen 2007, "The pigeonhole bootstrap"), and each
    resampled mean is divided by its own standard error, from the mean squares of rows (A), columns
    (B) and residual (E): ``se^2 = (A + B - E) / n``, at least what the larger factor alone gives.
    With one column, only rows are resampled. In simulations with 20 prompts and 5 to 10 countries,
    95% intervals covered 93 to 97%. Not for fewer than about 8 prompts or 4 columns, nor for values
    that are mostly equal, such as counts that are nearly always 0: there they are too narrow.

    Args:
        values: One row per prompt, one column per country (or random draw, or text).
        level: Share of intervals that are to hold the true mean.
        n_resamples: Resampled matrices.
        seed: The same seed, the same interval.

    Raises:
        SettingError: there is no value or one is not finite, or ``level`` is not between 0 and 1.
    """
    matrix = checked(values)
    if not 0 < level < 1:
        raise SettingError(f"level must lie between 0 and 1, got {level!r}.")
    mean, variance = mean_and_variance(matrix)
    if matrix.numel() == 1:
        return Interval(mean.item(), float("nan"), float("nan"))
    negligible = 1e-24 * matrix.abs().max().square()  # what rounding leaves of equal values
    if variance <= negligible:
        return Interval(mean.item(), mean.item(), mean.item())
    generator = torch.Generator().manual_seed(seed)
    n_rows, n_columns = matrix.shape
    rows = torch.randint(n_rows, (n_resamples, n_rows, 1), generator=generator)
    columns = torch.randint(n_columns, (n_resamples, 1, n_columns), generator=generator)
    t = []
    at_once = max(1, 10**7 // matrix.numel())
    for start in range(0, n_resamples, at_once):
        part = slice(start, start + at_once)
        means, variances = mean_and_variance(matrix[rows[part], columns[part]])
        usable = variances > negligible  # a resample of equal values has no scale
        t.append((means[usable] - mean) / variances[usable].sqrt())
    ends = torch.tensor([(1 + level) / 2, (1 - level) / 2], dtype=matrix.dtype)
    low, high = (mean - torch.cat(t).quantile(ends) * variance.sqrt()).tolist()
    return Interval(mean.item(), low, high)


def share_interval(values: Float[Tensor, " item"], *, level: float = 0.95) -> Interval:
    """Interval of a share (Wilson's score interval).

    Unlike a bootstrap it stays within 0 and 1 and does not shrink to a point at 0 of n.

    Args:
        values: 0 or 1; or, where items come in groups that may share their fate, the share in
            each group, which makes the interval as wide as if they always did.
        level: Share of intervals that are to hold the true share.

    Raises:
        SettingError: a value is not between 0 and 1.
    """
    items = checked(values)
    if not bool(((items >= 0) & (items <= 1)).all()):
        raise SettingError("values of a share must lie between 0 and 1.")
    n, share, z = items.numel(), items.mean().item(), float(norm.isf((1 - level) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    # Exactly 0 and 1 at the ends, which rounding may miss.
    low, high = (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
    return Interval(share, low, high)


def share_change_interval(values: Float[Tensor, " item"], *, level: float = 0.95) -> Interval:
    """Interval of the change of a share, from paired differences.

    Agresti and Min 2005: half an item that gains and half an item that loses are added (and one
    that does neither), so that no observed change does not mean no possible change.

    Args:
        values: After minus before: -1, 0 or 1; or the mean of that in each group of items that
            may share their fate.
        level: Share of intervals that are to hold the true change.

    Raises:
        SettingError: a value is not between -1 and 1.
    """
    items = checked(values)
    if bool((items.abs() > 1).any()):
        raise SettingError("changes of a share must lie between -1 and 1.")
    n = items.numel() + 2
    mean = items.sum().item() / n
    variance = ((items.square().sum().item() + 1) / n - mean**2) / n
    half = float(norm.isf((1 - level) / 2)) * math.sqrt(variance)
    return Interval(items.mean().item(), max(mean - half, -1.0), min(mean + half, 1.0))


def clustered_interval(
    values: Float[Tensor, " item"],
    clusters: Sequence[Hashable],
    minus: Float[Tensor, " item"] | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """Interval of a mean over items whose clusters are the sample, or of a difference of means.

    The mean is a ratio, ``m = sum of values / number of items``, and both parts differ from cluster
    to cluster. Without cluster c it is ``m_c = m - sum over c of (value - m) / items not in c``,
    and the variance is the jackknife's, ``(G - 1) / G * sum over c of (m_c - m)^2`` for G clusters;
    the interval takes t with G - 1 degrees. With one item in each cluster this is the interval of
    the plain t test, and with clusters of equal size the usual linearised ("sandwich") one. With
    clusters of unequal size that one is too narrow: in simulations with 10 and 20 of them it held
    the truth in 90 to 93%, this one in 93 to 94%. Neither is fit for a cluster that holds most of
    the items.

    A share at 0 or 1, or a change that is 0 everywhere, has no spread, and gives a point.

    Args:
        values: One per item; NaN where an item does not count.
        clusters: The cluster of each item. Items of a cluster may share their fate.
        minus: The same items elsewhere: the interval is then that of the difference of the two
            means, each over the items that count there, with whole clusters paired.
        level: Share of intervals that are to hold the true mean.

    Returns:
        NaN throughout where no item counts; NaN ends with fewer than two clusters.

    Raises:
        SettingError: a value is infinite, the lengths differ, or ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise SettingError(f"level must lie between 0 and 1, got {level!r}.")
    for items in (values,) if minus is None else (values, minus):
        if len(items) != len(clusters) or bool(items.isinf().any()):
            raise SettingError(
                f"values must be finite or NaN and as many as clusters, got {items!r} with "
                f"{len(clusters)} clusters."
            )
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    place = torch.tensor([places[name] for name in clusters], dtype=torch.long)
    found = _left_out(values, place, len(places))
    if minus is not None:
        other = _left_out(minus, place, len(places))
        found = _LeftOut(
            found.mean - other.mean, found.shift - other.shift, found.counts | other.counts
        )
    n = int(found.counts.sum())
    mean, shift = found.mean.item(), found.shift[found.counts]
    if n < 2:
        return Interval(mean, float("nan"), float("nan"))
    error = math.sqrt((n - 1) / n * shift.square().sum().item())
    half = float(student_t.isf((1 - level) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half)


def checked(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The values as fp64 on the CPU; raises a :class:`SettingError` unless all are finite."""
    if values.numel() == 0 or not bool(values.isfinite().all()):
        raise SettingError(f"values must be finite and at least one, got {values!r}.")
    return values.detach().double().cpu()


class _LeftOut(NamedTuple):
    """A mean over items in clusters, and how it moves when one cluster is left out."""

    mean: Float[Tensor, ""]
    shift: Float[Tensor, " cluster"]
    counts: Bool[Tensor, " cluster"]
    """Whether any item of the cluster counts."""


def _left_out(
    values: Float[Tensor, " item"], place: Int[Tensor, " item"], n_clusters: int
) -> _LeftOut:
    here = ~values.isnan()
    items, place = values[here].detach().double().cpu(), place[here.cpu()]
    count = torch.bincount(place, minlength=n_clusters).double()
    mean = items.sum() / count.sum()
    centred = torch.zeros(n_clusters, dtype=torch.float64).index_add_(0, place, items - mean)
    return _LeftOut(mean, -centred / (count.sum() - count), count > 0)


class _MeanSquares(NamedTuple):
    """Of rows (A), columns (B) and residual (E) of each matrix, with degrees of freedom."""

    rows: Float[Tensor, "*batch"]
    columns: Float[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]
    free_rows: int
    free_columns: int

    @classmethod
    def of(cls, values: Float[Tensor, "*batch row column"]) -> _MeanSquares:
        """Those of the values."""
        n_rows, n_columns = values.shape[-2:]
        centred = values - values.mean((-2, -1))[..., None, None]
        row_sum = n_columns * centred.mean(-1).square().sum(-1)
        column_sum = n_rows * centred.mean(-2).square().sum(-1)
        residual_sum = (centred.square().sum((-2, -1)) - row_sum - column_sum).clamp(min=0)
        free = max(n_rows - 1, 1), max(n_columns - 1, 1)
        return cls(
            row_sum / free[0], column_sum / free[1], residual_sum / (free[0] * free[1]), *free
        )


def mean_and_variance(
    values: Float[Tensor, "*batch row column"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Mean of each matrix, and that mean's variance with rows and columns both random."""
    squares = _MeanSquares.of(values)
    either = torch.maximum(squares.rows, squares.columns)
    variance = torch.maximum(squares.rows + squares.columns - squares.residual, either)
    return values.mean((-2, -1)), variance / (values.shape[-2] * values.shape[-1])


def column_spread(values: Float[Tensor, "prompt country"]) -> float:
    """Standard deviation of the columns' true means, without what sampling of rows adds to it.

    From the mean squares of columns (B) and residual (E) with n rows, ``sqrt((B - E) / n)``; 0
    where columns differ by no more than the residual. NaN with a single row or column.

    Args:
        values: One row per prompt, one column per country.

    Raises:
        SettingError: there is no value or one is not finite.
    """
    matrix = checked(values)
    if min(matrix.shape) < 2:
        return float("nan")
    squares = _MeanSquares.of(matrix)
    return math.sqrt(max(0.0, (squares.columns - squares.residual).item() / len(matrix)))


def independent_difference(
    values: Float[Tensor, "prompt column"],
    minus: Sequence[Float[Tensor, "_ _"]],
    *,
    level: float = 0.95,
) -> Interval:
    """Interval of a mean minus the mean of others' means, where all are samples of their own.

    The variances of the means (rows and columns random, as :func:`crossed_interval`) add up, those
    of K others divided by K squared; the interval takes t with the degrees of freedom of
    Satterthwaite (1946), over all mean squares. In simulations with 20 prompts and 10 countries
    against two of 12 prompts and 4 fillers, 95% intervals covered 95%.

    Args:
        values: One row per prompt, one column per country or filler.
        minus: The same for other prompts, each counting alike.
        level: Share of intervals that are to hold the true difference.

    Returns:
        NaN ends where one of them has a single row.

    Raises:
        SettingError: nothing is to be subtracted, or a value is not finite.
    """
    if not minus:
        raise SettingError("minus must hold at least one matrix, got none.")
    weights = [1.0, *(1 / len(minus) for _ in minus)]
    matrices = [checked(values), *map(checked, minus)]
    parts = [_variance_and_degrees(matrix) for matrix in matrices]
    estimate = (matrices[0].mean() - torch.stack([m.mean() for m in matrices[1:]]).mean()).item()
    single = min(map(len, matrices)) < 2
    found = [(w**2 * variance, free) for w, (variance, free) in zip(weights, parts, strict=True)]
    variance = math.nan if single else sum(v for v, _ in found)
    below = sum(v**2 / n for v, n in found)
    return _student(estimate, variance, variance**2 / below if below else 1.0, level)


def few_rows_interval(values: Float[Tensor, "row column"], *, level: float = 0.95) -> Interval:
    """Interval of the mean over few rows, such as the means of biases, that are a sample as columns
    are: by t, with variance and degrees as :func:`independent_difference`; of one column it is
    Student's, of one row it has no ends. In simulations with 4 biases whose true means differ by
    0.4, of 20 prompts and 10 countries, it covered 95%, an interval over all 80 prompts 54%.

    Raises:
        SettingError: there is no value or one is not finite.
    """
    matrix = checked(values)
    variance, free = _variance_and_degrees(matrix)
    return _student(matrix.mean().item(), variance if len(matrix) > 1 else math.nan, free, level)


def _student(estimate: float, variance: float, free: float, level: float) -> Interval:
    half = float(student_t.isf((1 - level) / 2, free)) * math.sqrt(variance)
    return Interval(estimate, estimate - half, estimate + half)


def _variance_and_degrees(values: Float[Tensor, "row column"]) -> tuple[float, float]:
    """Of the mean; a sum ``A + B - E`` has the degrees that Satterthwaite gives it."""
    a, b, e, free_a, free_b = _MeanSquares.of(values)
    variance = mean_and_variance(values)[1].item()
    each = [(a, free_a), (b, free_b), (e, free_a * free_b)]
    kept = each if a + b - e >= max(a, b) else [max(each[:2], key=lambda part: float(part[0]))]
    scaled = [(float(square) / values.numel(), free) for square, free in kept]
    below = sum(square**2 / free for square, free in scaled)
    return variance, variance**2 / below if below else 1.0
