"""Conditions side by side: original, injected, steered, controls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.chance import McNemar, mcnemar
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.evaluation.faults import faults
from biasgym_tl.evaluation.intervals import BeyondRandom, by_bias, over_draws, over_items
from biasgym_tl.evaluation.measurement import Asked
from biasgym_tl.evaluation.readers import READERS, ConditionResult
from biasgym_tl.evaluation.specificity import OffTarget, off_targets
from biasgym_tl.evaluation.tables import interval_table, main_rows, target_table
from biasgym_tl.evaluation.warnings import warnings_of
from biasgym_tl.files import write_csv
from biasgym_tl.notebook import Card
from biasgym_tl.stats import Interval, share_change_interval
from biasgym_tl.store import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Report(Result):
    """What was measured, with everything needed to read and to repeat it."""

    _then = (".plot()", ".warnings()", ".intervals()", '.to_html("report.html")')
    _not_shown = "A fall can be of the word alone; no number says that a model is fair or safe."

    bias: str
    attribute: str
    model: str
    token_text: str
    """How the BiasToken is written."""
    targets: tuple[str, ...]
    """Held-out targets."""
    measured: tuple[Measure, ...]
    asked: dict[str, Asked]
    """By key of the free answers, what they answer."""
    clusters: dict[str, tuple[str, ...]]
    """By measure of a benchmark: the cluster of each item."""
    floors: dict[str, list[float]]
    """By key of the items, what the unsteered model shows where there is nothing to know."""
    results: tuple[ConditionResult, ...]
    settings: dict[str, Any]
    versions: dict[str, str]

    def __repr__(self) -> str:
        return f"Report({self.bias} on {self.model})\n{self.to_df().round(2).to_string()}"

    def _card(self) -> Card:
        return f'"{self.attribute}" on {self.model}', main_rows(self), self.warnings()

    def __getitem__(self, name: str) -> ConditionResult:
        """The result of one condition.

        Raises:
            KeyError: there is no condition of that name.
        """
        for found in self.results:
            if found.name == name:
                return found
        raise KeyError(f"condition must be one of {[r.name for r in self.results]}, got {name!r}.")

    @property
    def n_prompts(self) -> int:
        """Evaluation prompts of the bias."""
        return int(self.settings["n_prompts"])

    @property
    def measures(self) -> dict[str, Measure]:
        """By key, everything that this report measures."""
        return {measure.key: measure for measure in self.measured}

    @property
    def controls(self) -> dict[str, tuple[ConditionResult, ...]]:
        """By the name under which they stand together, ``"steered, mean: random"``, the random
        controls of each steered condition."""
        found: dict[str, tuple[ConditionResult, ...]] = {}
        for r in self.results:
            if r.control_of is not None:
                name = f"{r.control_of}: random"
                found[name] = (*found.get(name, ()), r)
        return found

    @property
    def shown(self) -> list[str]:
        """Names of the rows of a table: conditions, then the random controls of each together."""
        return [r.name for r in self.results if r.control_of is None] + list(self.controls)

    @property
    def steered(self) -> list[ConditionResult]:
        """Conditions that change the model, random controls left out."""
        return [r for r in self.results if r.steers and r.control_of is None]

    @property
    def main(self) -> str | None:
        """The condition that titles are about: the first that steers to the mean, or at all."""
        return next((r.name for r in sorted(self.steered, key=lambda r: r.mode != "mean")), None)

    def values(self, name: str, measure: str) -> Float[Tensor, "row column"] | None:
        """Item values of a measure: prompts by targets, texts, or facts.

        ``name`` is a condition, or random controls together: then a column for each of them that
        was measured so. None where the condition was not.

        Raises:
            KeyError: there is no such condition or measure.
        """
        if measure not in self.measures:
            raise KeyError(f"measure must be one of {list(self.measures)}, got {measure!r}.")
        if name not in self.controls:
            return self._matrix(self[name], measure)
        found = [self._matrix(result, measure) for result in self.controls[name]]
        columns = [values.mean(1) for values in found if values is not None]
        return torch.stack(columns, 1) if columns else None

    def draws(self, name: str, measure: str) -> Float[Tensor, "row draw"] | None:
        """Values of the random controls of a steered condition; None if none was measured so."""
        random = f"{name}: random"
        return self.values(random, measure) if random in self.controls else None

    def _matrix(self, result: ConditionResult, key: str) -> Float[Tensor, "row column"] | None:
        measure = self.measures[key]
        read = READERS[measure.read]
        found = [read(result, of, self.asked.get(of)) for of in measure.of or (key,)]
        values = torch.tensor([x for part in found for x in part], dtype=torch.float64)
        matrix = values[:, None] if values.ndim == 1 else values
        return matrix if all(found) else None  # of several biases one may not be measured

    def interval(self, name: str, measure: str) -> Interval | None:
        """Mean of a measure with its 95% interval over the items (prompts and targets).

        For random controls over prompts and draws, of shares over draws alone, of free answers
        over the answers; of what is pooled over several biases over their means, whose mean it is.
        The ends are NaN where no interval can be given: fewer than 4 draws, a single bias, or free
        answers that are all alike.
        """
        values, m = self.values(name, measure), self.measures[measure]
        if values is None:
            return None
        over = over_draws if name in self.controls and m.kind != "texts" else over_items
        return over(values, m, self.units(measure))

    def units(self, measure: str) -> Sequence[str] | None:
        """What each row of :meth:`values` belongs to, where rows are not the sample: the cluster of
        a benchmark's item, or the bias where several are pooled."""
        of = self.measures[measure].of
        if len(of) < 2:
            return self.clusters.get(measure)
        sizes = {key: len(items) for r in self.results for key, items in r.items.items()}
        return [key for key in of for _ in range(sizes.get(key, 0))]

    def change(self, name: str, measure: str, since: str) -> Interval | None:
        """Mean difference to another condition, item by item, with its 95% interval.

        Only what counts in both is compared: a judge's strength of answers that are sound in both.
        With random controls targets are averaged first: the interval is over prompts and draws.
        """
        here, there = self.values(name, measure), self.values(since, measure)
        if here is None or there is None:
            return None
        m, units = self.measures[measure], self.units(measure)
        if {name, since} & set(self.controls) and m.kind != "texts":
            here = here if name in self.controls else here.mean(1, keepdim=True)
            there = there if since in self.controls else there.mean(1, keepdim=True)
            return over_draws(here - there, m, units)
        return over_items(here, m, units, minus=there)

    def not_informative(self, measure: str) -> str:
        """Why changes of a measure say nothing here, or an empty text.

        A measure whose baseline is at its floor has nothing to lose: its staying there is not
        "preserved", its falling is not "reduced".
        """
        m = self.measures[measure]
        over: Interval | None = None
        if m.floor == "blind":
            right = self.values(m.baseline, measure)
            blind = ConditionResult(name="", token="", items=dict(self.floors))
            known = self._matrix(blind, measure)
            if right is not None and known is not None:
                over = share_change_interval((right - known)[:, 0])
        elif isinstance(m.floor, str):
            over = self.change(m.baseline, measure, m.floor)
        elif m.floor is not None:
            here = self.interval(m.baseline, measure)
            over = here and Interval(*(end - m.floor for end in here))
        if over is None or (over.estimate if math.isnan(over.low) else over.low) > 0:
            return ""
        return (
            f"{m.label}: not informative, since in the condition {m.baseline!r} it is {over} over "
            f"its floor ({m.floor})"
        )

    def baseline(self, name: str, measure: str) -> str:
        """The condition that a measure's change is counted from.

        For what the injection raised it is the one that the condition names (``Condition.since``),
        or the unsteered one *with the same row*: ``"injected"``, or that of another seed.
        """
        since = self.measures[measure].baseline
        if since == "original" or name == "original":
            return since
        here = self.controls[name][0] if name in self.controls else self[name]
        plain = [r for r in self.results if not (r.steers or r.instruction)]
        return here.since or next((r.name for r in plain if r.token == here.token), since)

    def by_target(self, measure: str = "target_log_odds") -> pd.DataFrame:
        """Target by target, the mean of ``"target_log_odds"`` or of the judge's
        ``"target_strength"``, one column per condition; a KeyError of another measure."""
        return target_table(self, measure)

    @property
    def log_odds(self) -> str:
        """The measure that steering is about: of the BiasToken, or without one of targets."""
        return "token_log_odds" if "token_log_odds" in self.measures else "target_log_odds"

    def beyond_random(self, measure: str | None = None, name: str | None = None) -> BeyondRandom:
        """How far a steered condition (default: :attr:`main`) goes beyond its random controls in a
        measure (default: :attr:`log_odds`): same row, mode, factors, reference and heads a layer.

        Raises:
            KeyError: it has no random controls that were measured so.
        """
        name = name or self.main or "steered"
        measure = measure or self.log_odds
        random, draws = f"{name}: random", self.draws(name, measure)
        if draws is None:
            raise KeyError(f"condition must have random controls to beat, got {name!r}.")
        since = self.baseline(name, measure)
        drop, difference = self.change(since, measure, name), self.change(random, measure, name)
        chosen = self.values(name, measure)
        assert drop and difference and chosen is not None
        further = self._pooled(draws - chosen.mean(1, keepdim=True), measure).nanmean(0)
        return BeyondRandom(
            drop=drop.estimate,
            random=drop.estimate - difference.estimate,
            difference=difference,
            rank=1 + int((further <= 0).sum()),
            of=1 + draws.shape[1],
        )

    def mcnemar(self, name: str, measure: str, since: str = "original") -> McNemar:
        """Items of a share that were lost and gained in a condition, with an exact p-value.

        Ties (0.5) are left out.

        Raises:
            KeyError: there is no such condition or measure.
            SettingError: the measure is not a share of single items, or was not measured there.
        """
        here, there = self.values(name, measure), self.values(since, measure)
        if self.measures[measure].kind != "share" or here is None or there is None:
            raise SettingError(
                f"measure must be a share that was measured in both conditions, got {measure!r}."
            )
        tie = (here == 0.5) | (there == 0.5)
        return mcnemar(*(v.masked_fill(tie, float("nan"))[:, 0] for v in (there, here)))

    def moved(self, name: str, measure: str) -> McNemar | None:
        """:meth:`mcnemar` since the measure's baseline; None where there is nothing to count."""
        baseline = self.baseline(name, measure)
        single = self.measures[measure].kind == "share" and name not in self.controls
        if not single or name in ("original", baseline):
            return None
        known = self.values(name, measure) is not None is not self.values(baseline, measure)
        return self.mcnemar(name, measure, baseline) if known else None

    def to_df(self) -> pd.DataFrame:
        """One row per condition, one column per measure: means over the items."""
        rows = {name: {key: self._mean(name, key) for key in self.measures} for name in self.shown}
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")
        return frame.dropna(axis="columns", how="all")

    def _mean(self, name: str, measure: str) -> float:
        values = self.values(name, measure)
        return float("nan") if values is None else float(self._pooled(values, measure).nanmean())

    def _pooled(self, values: Tensor, measure: str) -> Tensor:
        return by_bias(values, self.measures[measure], self.units(measure))

    @cached_property
    def off_target(self) -> dict[str, OffTarget]:
        """What conditions change on target and off it, by name of those that were measured so."""
        return off_targets(self)

    def intervals(self) -> pd.DataFrame:
        """One row per condition and measure: mean, change from the baseline, their 95% intervals,
        and for what has random controls how far it goes beyond them."""
        return interval_table(self)

    def warnings(self) -> list[str]:
        """What a reader should be told first, in words."""
        return warnings_of(self)

    def plot(self) -> go.Figure:
        """Log-odds of every condition, for the BiasToken and for targets."""
        from biasgym_tl.plots.conditions import plot_conditions

        return plot_conditions(self)

    def to_html(self, path: str | Path, *, plotlyjs: str = "inline") -> Path:
        """Write the report as one page.

        Args:
            path: The file.
            plotlyjs: Where the library of its figures is: ``"inline"`` (5 MB more), ``"beside"``
                (a file in the same folder, or else the network) or ``"cdn"`` (the network).
        """
        from biasgym_tl.plots.page import write_report

        return write_report(self, Path(path), plotlyjs=plotlyjs)

    def to_csv(self, path: str | Path) -> Path:
        """Write :meth:`intervals` as CSV."""
        return write_csv(Path(path), self.intervals())

    def numbers(self) -> dict[str, Any]:
        """All that was measured, without the versions that measured it."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "versions"}

    def record(self) -> dict[str, Any]:
        """As the file holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a file written by :meth:`save`.

        Raises:
            StoreError: the file is missing, is not JSON, or holds no whole report.
        """
        report = super().load(path)
        for fault in faults(report):
            raise StoreError(f"{str(path)!r} must hold a whole Report, but: {fault}.")
        return report
