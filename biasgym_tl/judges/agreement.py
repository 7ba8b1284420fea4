"""How far two judges agree: quadratically weighted kappa, with an interval."""

from __future__ import annotations

import csv
import dataclasses
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.files import csv_text, read_text, write_csv
from biasgym_tl.judges.verdict import DEGENERATE, LEVELS, Verdict
from biasgym_tl.notebook import Card, Carded, rows_of


def weighted_kappa(
    first: Float[Tensor, "*draw text"], second: Float[Tensor, "*draw text"]
) -> Float[Tensor, "*draw"]:
    """Agreement beyond chance: 1 perfect, 0 by chance, NaN where neither has any variation.

    ``1 - sum_i (x_i - y_i)^2 / (1/n sum_ij (x_i - y_j)^2)``: Cohen's (1968) kappa with quadratic
    weights. For values between the levels it is Lin's (1989) concordance correlation.
    """
    x, y = first.double(), second.double()
    observed = (x - y).square().mean(-1)
    by_chance = x.var(-1, correction=0) + y.var(-1, correction=0)
    by_chance = by_chance + (x.mean(-1) - y.mean(-1)).square()
    return 1 - observed / by_chance


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Agreement(Carded):
    """How far two judges agree on the texts that both scored."""

    _then = (".to_df()",)

    kappa: float
    """Quadratically weighted; NaN if neither judge varies."""
    low: float
    high: float
    """Interval of kappa, over texts."""
    n: int
    """Texts that both scored."""
    left_out: int
    """Texts that one or both did not score."""
    confusion: Float[Tensor, "4 4"]
    """Texts by level of the first (row) and the second judge; values between are rounded."""
    names: tuple[str, str] = ("first", "second")

    def __repr__(self) -> str:
        left_out = f", {self.left_out} unscored left out" if self.left_out else ""
        return (
            f"Agreement({self.names[0]} and {self.names[1]}: weighted kappa {self.kappa:.2f} "
            f"[{self.low:.2f}, {self.high:.2f}], {self.n} texts{left_out})\n{self.to_df()}"
        )

    def _card(self) -> Card:
        return repr(self).splitlines()[0], rows_of(self.to_df(), index=True), ()

    def to_df(self) -> pd.DataFrame:
        """The confusion matrix."""
        rows, columns = ([f"{name} {level}" for level in LEVELS] for name in self.names)
        return pd.DataFrame(self.confusion.int().numpy(), index=rows, columns=columns)


def agreement(
    first: Sequence[Verdict | float | None],
    second: Sequence[Verdict | float | None],
    *,
    names: tuple[str, str] = ("first", "second"),
    level: float = 0.95,
    n_resamples: int = 1999,
    seed: int = 0,
) -> Agreement:
    """Compare two judges, or a judge and labels, on the same texts in the same order.

    Texts that either did not score are left out and counted. The interval is a percentile
    bootstrap over texts; resamples without any variation are left out of it.

    Args:
        first: Verdicts or strengths of one judge.
        second: Those of another, or labels.
        names: What the two are called in the result.
        level: Share of intervals that are to hold the true kappa.
        n_resamples: Resampled sets of texts.
        seed: The same seed, the same interval.

    Raises:
        SettingError: the lists differ in length, a strength is outside 0..3, fewer than two texts
            were scored by both, or ``level`` is not between 0 and 1.
    """
    if len(first) != len(second):
        raise SettingError(
            f"second must be on the same {len(first)} texts as first, got {len(second)}."
        )
    if not 0 < level < 1:
        raise SettingError(f"level must lie between 0 and 1, got {level!r}.")
    pairs = list(zip(map(_strength, first), map(_strength, second), strict=True))
    both = torch.tensor([(x, y) for x, y in pairs if x is not None and y is not None])
    if len(both) < 2:
        raise SettingError(f"texts scored by both must be at least 2, got {len(both)}.")
    x, y = both.double().T
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(x), (n_resamples, len(x)), generator=generator)
    kappas = weighted_kappa(x[draws], y[draws])
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = kappas.nanquantile(ends).tolist()
    confusion = torch.zeros(len(LEVELS), len(LEVELS))
    for i, j in (both + 0.5).floor().clamp(max=LEVELS[-1]).long().tolist():
        confusion[i, j] += 1
    return Agreement(
        kappa=weighted_kappa(x, y).item(),
        low=low,
        high=high,
        n=len(both),
        left_out=len(pairs) - len(both),
        confusion=confusion,
        names=names,
    )


def _strength(value: Verdict | float | None) -> float | None:
    strength = value.strength if isinstance(value, Verdict) else value
    if strength is None or np.isnan(strength):
        return None
    if not LEVELS[0] <= strength <= LEVELS[-1]:
        raise SettingError(f"strength must lie between 0 and 3, got {strength!r}.")
    return float(strength)


def write_sheet(texts: Mapping[str, str], attribute: str, path: str | Path, seed: int = 0) -> Path:
    """Write a CSV sheet on which a person scores texts blind, to be read by :func:`read_labels`.

    Texts are shuffled, and nothing says where they come from. One that a spreadsheet would take
    for a formula gets a ``'`` in front.

    Args:
        texts: Each text by an id that does not give its origin away.
        attribute: What is looked for, such as ``bias.attribute``.
        path: Where to write it.
        seed: Decides the order.
    """
    ids = sorted(texts)
    random.Random(seed).shuffle(ids)
    rows = [{"id": i, "attribute": attribute, "text": texts[i]} for i in ids]
    sheet = pd.DataFrame(rows).assign(strength="", degenerate="")
    return write_csv(Path(path), sheet)


def read_labels(path: str | Path) -> dict[str, Verdict]:
    """Read labels of a person or another judge: CSV with ``id``, ``strength`` and more.

    A ``'`` that :func:`write_sheet` put in front of an id is taken off.

    ``strength`` is 0 to 3, or empty where the text was not scored; ``degenerate``, if there, is
    empty, ``empty``, ``repetition`` or ``off topic``. Other columns are ignored.

    Returns:
        For each id a verdict, to be compared with :func:`agreement`.

    Raises:
        StoreError: the file is missing, is no CSV, lacks a column, or a row is not valid.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"labels must be a CSV file, got {str(path)!r}. Check the path.")
    text = read_text(path, "labels", StoreError)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    labels: dict[str, Verdict] = {}
    try:
        if {"id", "strength"} - set(reader.fieldnames or ()):
            raise StoreError(
                f"{path.name} must have the columns id and strength, got {reader.fieldnames!r}."
            )
        for row in reader:
            where = f"line {reader.line_num} of {path.name}"
            name = csv_text(row["id"] or "")
            if not name or name in labels:
                raise StoreError(f"id in {where} must be there and new, got {name!r}.")
            labels[name] = _label(row, where)
    except csv.Error as error:
        where = f"line {reader.line_num} of {path.name}"
        raise StoreError(f"{where} must be CSV, but: {error}.") from error
    return labels


def _label(row: Mapping[str, str | None], where: str) -> Verdict:
    strength, kind = (row["strength"] or "").strip(), (row.get("degenerate") or "").strip()
    if kind not in ("", *DEGENERATE):
        raise StoreError(
            f"degenerate in {where} must be empty or one of {list(DEGENERATE)}, got {kind!r}."
        )
    if not strength:
        return Verdict(None, degenerate=kind, unscored="no label")
    try:
        found = _strength(float(strength))
    except (ValueError, SettingError):
        found = None
    if found is None:
        raise StoreError(f"strength in {where} must be 0 to 3 or empty, got {strength!r}.")
    return Verdict(found, degenerate=kind)
