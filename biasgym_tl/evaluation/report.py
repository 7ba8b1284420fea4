"""Settings side by side: original, injected, steered, controls."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.benchmarks.refusals import is_refusal
from biasgym_tl.chance import McNemar, mcnemar
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.evaluation.measures import MEASURES
from biasgym_tl.files import write_csv, write_text
from biasgym_tl.judges.verdict import Verdict, strengths
from biasgym_tl.stats import (
    Interval,
    clustered_interval,
    crossed_interval,
    share_change_interval,
    share_interval,
)
from biasgym_tl.store import as_declared, read_kind, write_kind
from biasgym_tl.text import keyword_hits, repetition

RANDOM = "random "
"""How the names of random controls begin."""
RANDOM_MEAN = "random"
"""All random controls together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingResult:
    """All that was measured in one setting, item by item."""

    name: str
    heads: tuple[str, ...]
    """Heads that were steered; empty for the unsteered settings."""
    mode: str | None
    token: str
    """Which row the BiasToken had (``BiasToken.label``)."""
    token_log_odds: list[float]
    """One per evaluation prompt, with the BiasToken (nats)."""
    token_log_p: list[float]
    target_log_odds: list[list[float]]
    """[prompt][target], held-out targets (nats)."""
    target_log_p: list[list[float]]
    damage_loss: list[float]
    """Mean loss of each damage passage (nats per token)."""
    fact_margins: list[float]
    """Of each fact: right answer over the best wrong one (nats); positive is right."""
    token_texts: list[str]
    """Free answers with the BiasToken, one per generation prompt; empty for random controls."""
    target_texts: list[str]
    """The same with held-out targets."""
    factor: Any = None
    """Share of its own output that a head kept, for all or by head."""
    reference: str = ""
    """What a mean was taken over."""
    instruction: str = ""
    """Name of the words around each request."""
    other_log_odds: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)
    """By other bias: [prompt][target], held-out targets (nats)."""
    other_texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """By other bias: free answers about held-out targets."""
    benchmarks: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """By measure: one number per item; NaN where an item does not count."""
    verdicts: dict[str, list[Verdict]] = dataclasses.field(default_factory=dict)
    """A judge's, of the ``"token"`` and ``"target"`` texts and of those of each other bias."""


class BeyondRandom(NamedTuple):
    """Fall of log-odds in ``"steered, mean"``, against random heads."""

    drop: float
    """Baseline minus setting (nats)."""
    random: float
    """The same for the random controls, their mean."""
    difference: Interval
    """``drop - random`` over prompts and draws."""
    rank: int
    """``1 + #controls that fall at least as far``; 1 is best."""
    of: int
    """Controls + 1. With few, the rank illustrates and is no p-value."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """What was measured, with everything needed to read and to repeat it."""

    bias: str
    attribute: str
    model: str
    keywords: tuple[str, ...]
    evaluation_prompts: tuple[str, ...]
    generation_prompts: tuple[str, ...]
    targets: tuple[str, ...]
    generation_targets: tuple[str, ...]
    fact_countries: tuple[str, ...]
    """The country of each fact. All countries, fitting ones too: nothing is fitted to facts."""
    blind_fact_margins: tuple[float, ...]
    """Margins of the original model where the question leaves the country out: the floor."""
    results: tuple[SettingResult, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    token_text: str = ""
    """How the BiasToken is written."""
    other_keywords: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Of each other bias, the words that show it in free text."""
    other_generation_prompts: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Of each other bias, the requests that its free answers answer."""
    benchmark_measures: tuple[Measure, ...] = ()
    clusters: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By measure of a benchmark: the cluster of each item."""

    def __repr__(self) -> str:
        return f"Report({self.bias} on {self.model})\n{self.to_df().round(2).to_string()}"

    def __getitem__(self, name: str) -> SettingResult:
        """The result of one setting.

        Raises:
            KeyError: there is no setting of that name.
        """
        for found in self.results:
            if found.name == name:
                return found
        raise KeyError(f"setting must be one of {[r.name for r in self.results]}, got {name!r}.")

    @property
    def n_draws(self) -> int:
        """Number of random controls."""
        return len(self.random_controls())

    def random_controls(self) -> tuple[SettingResult, ...]:
        """The settings that steer random heads."""
        return tuple(r for r in self.results if r.name.startswith(RANDOM))

    @property
    def measures(self) -> dict[str, Measure]:
        """By key, everything that this report measures."""
        return MEASURES | {measure.key: measure for measure in self.benchmark_measures}

    def values(self, name: str, measure: str) -> Float[Tensor, "row column"] | None:
        """Item values of a measure: prompts by targets, texts, or facts.

        ``name`` is a setting, or ``"random"``: then a column for each random control. None where
        the setting was not measured so.

        Raises:
            KeyError: there is no such setting or measure.
        """
        if measure not in self.measures:
            raise KeyError(f"measure must be one of {list(self.measures)}, got {measure!r}.")
        if name != RANDOM_MEAN:
            return self._matrix(self[name], measure)
        found = [self._matrix(result, measure) for result in self.random_controls()]
        columns = [values.mean(1) for values in found if values is not None]
        return torch.stack(columns, 1) if columns else None

    def _matrix(self, result: SettingResult, measure: str) -> Float[Tensor, "row column"] | None:
        if measure == "facts":
            items: Any = _right(result.fact_margins)
        elif measure in self.clusters:
            items = result.benchmarks.get(measure)
        elif measure.endswith(("_strength", "_degenerate")):
            items = _of_verdicts(result.verdicts, *measure.rsplit("_", 1))
        elif measure == "other_log_odds":
            items = [row for matrix in result.other_log_odds.values() for row in matrix]
        elif hasattr(result, measure):
            items = getattr(result, measure)
        else:
            items = self._of_answers(result, *measure.rsplit("_", 1))
        if not items:
            return None
        values = torch.tensor(items, dtype=torch.float64)
        return values[:, None] if values.ndim == 1 else values

    def _of_answers(self, result: SettingResult, whose: str, kind: str) -> list[float]:
        if whose != "other":
            return _of_texts(getattr(result, f"{whose}_texts"), kind, self.keywords)
        return [
            value
            for name, texts in result.other_texts.items()
            for value in _of_texts(texts, kind, self.other_keywords[name])
        ]

    def interval(self, name: str, measure: str) -> Interval | None:
        """Mean of a measure with its 95% interval over the items (prompts and targets).

        For ``"random"`` over prompts and draws, of shares over draws alone. The ends are NaN where
        no interval can be given: fewer than 4 draws, or free answers that are all alike.
        """
        values = self.values(name, measure)
        if values is None:
            return None
        if name == RANDOM_MEAN:
            return self._interval(values, measure, over_draws=True)
        if measure in self.clusters:
            return clustered_interval(values[:, 0], self.clusters[measure])
        if self.measures[measure].kind == "texts":
            found = _one_by_one(values[:, 0])
            return found._replace(low=max(found.low, 0.0))  # NaN stays NaN
        if self.measures[measure].kind == "share":
            return _of_share(share_interval, values[:, 0])
        return self._interval(values, measure)

    def change(self, name: str, measure: str, since: str) -> Interval | None:
        """Mean difference to another setting, item by item, with its 95% interval.

        With ``"random"`` targets are averaged first: the interval is over prompts and draws.
        """
        here, there = self.values(name, measure), self.values(since, measure)
        if here is None or there is None:
            return None
        if measure in self.clusters:
            return clustered_interval(here[:, 0], self.clusters[measure], minus=there[:, 0])
        if self.measures[measure].kind == "texts":
            return _one_by_one(here[:, 0], there[:, 0])
        if RANDOM_MEAN in (name, since):  # items of a setting against a column for each draw
            here = here if name == RANDOM_MEAN else here.mean(1, keepdim=True)
            there = there if since == RANDOM_MEAN else there.mean(1, keepdim=True)
            return self._interval(here - there, measure, over_draws=True)
        if self.measures[measure].kind == "share":
            return _of_share(share_change_interval, (here - there)[:, 0])
        return self._interval(here - there, measure)

    def _interval(
        self, values: Float[Tensor, "row column"], measure: str, *, over_draws: bool = False
    ) -> Interval:
        if over_draws and self.n_draws < 4:
            return Interval(values.mean().item(), float("nan"), float("nan"))
        if over_draws and self.measures[measure].kind == "share":
            return _one_by_one(values.mean(0))  # of most items, no draw changes anything
        return crossed_interval(values)

    def not_informative(self, measure: str) -> str:
        """Why changes of a measure say nothing here, or an empty text.

        A measure whose baseline is at its floor has nothing to lose: its staying there is not
        "preserved", its falling is not "reduced".
        """
        m = self.measures[measure]
        over: Interval | None = None
        if m.floor == "blind":
            right = self.values(m.baseline, measure)
            if right is not None:
                blind = torch.tensor(_right(self.blind_fact_margins), dtype=torch.float64)
                over = share_change_interval(right[:, 0] - blind)
        elif isinstance(m.floor, str):
            over = self.change(m.baseline, measure, m.floor)
        elif m.floor is not None:
            here = self.interval(m.baseline, measure)
            over = here and Interval(*(end - m.floor for end in here))
        if over is None or (over.estimate if math.isnan(over.low) else over.low) > 0:
            return ""
        return (
            f"{m.label}: not informative, since in the setting {m.baseline!r} it is {over} over "
            f"its floor ({m.floor})"
        )

    def to_df(self) -> pd.DataFrame:
        """One row per setting, one column per measure: means over the items."""
        names = [result.name for result in self.results]
        names += [RANDOM_MEAN] if self.random_controls() else []
        rows = {name: {key: self._mean(name, key) for key in self.measures} for name in names}
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")
        return frame.dropna(axis="columns", how="all")

    def _mean(self, name: str, measure: str) -> float:
        values = self.values(name, measure)
        return float("nan") if values is None else float(values.nanmean())

    def intervals(self) -> pd.DataFrame:
        """One row per setting and measure: mean, change from the baseline, their 95% intervals."""
        names = [r.name for r in self.results if not r.name.startswith(RANDOM)]
        names += [RANDOM_MEAN] if self.random_controls() else []
        rows = []
        for key, measure in self.measures.items():
            informative = not self.not_informative(key)
            for name in names:
                here = self.interval(name, key)
                if here is None:
                    continue
                since = self.baseline(name, key)
                change = self.change(name, key, since)
                moved = self.moved(name, key)
                rows.append(
                    {
                        "setting": name,
                        "measure": key,
                        "unit": measure.unit,
                        **_named(here, ""),
                        "baseline": since,
                        **(_named(change, "change_") if change else {}),
                        **({"lost": moved.lost, "gained": moved.gained} if moved else {}),
                        **({"mcnemar_p": moved.p} if moved else {}),
                        "informative": informative,
                    }
                )
        frame = pd.DataFrame(rows)
        counts = frame.columns.intersection(["lost", "gained"])
        return frame.astype(dict.fromkeys(counts, "Int64"))

    def baseline(self, name: str, measure: str) -> str:
        """The setting that a measure's change is counted from.

        For what the injection raised it is the unsteered setting *with the same row*, if there is
        one: ``"injected"``, or that of another seed.
        """
        since = self.measures[measure].baseline
        if since == "original" or name in ("original", RANDOM_MEAN):
            return since
        same = [
            result.name
            for result in self.results
            if result.token == self[name].token and not result.heads and not result.instruction
        ]
        return next(iter(same), since)

    def moved(self, name: str, measure: str) -> McNemar | None:
        """:meth:`mcnemar` since the measure's baseline; None where there is nothing to count."""
        baseline = self.baseline(name, measure)
        if self.measures[measure].kind != "share" or name in (RANDOM_MEAN, "original", baseline):
            return None
        known = self.values(name, measure) is not None is not self.values(baseline, measure)
        return self.mcnemar(name, measure, baseline) if known else None

    def by_target(self, measure: str = "target_log_odds") -> pd.DataFrame:
        """Target by target, the mean of ``"target_log_odds"`` or of the judge's
        ``"target_strength"``, one column per setting.

        Raises:
            KeyError: it is another measure.
        """
        if measure not in ("target_log_odds", "target_strength"):
            raise KeyError(
                f"measure must be 'target_log_odds' or 'target_strength', got {measure!r}."
            )
        columns = {}
        for result in self.results:
            values = self.values(result.name, measure)
            if values is None:
                continue
            if measure == "target_log_odds":
                columns[result.name] = pd.Series(values.mean(0).tolist(), self.targets)
            else:
                each = pd.Series(values[:, 0].tolist(), self.generation_targets)
                columns[result.name] = each.groupby(level=0).mean()
        return pd.DataFrame(columns, index=list(self.targets)).rename_axis("target")

    def beyond_random(self, measure: str = "token_log_odds") -> BeyondRandom:
        """How far mean ablation of the chosen heads goes beyond that of random heads.

        Of the setting ``"steered, mean"``, the only one that the random sets match: the same row,
        the same mode, as many heads in each layer.

        Args:
            measure: ``"token_log_odds"``, or ``"target_log_odds"``.

        Raises:
            KeyError: the report has no such setting, or no random control.
        """
        if not self.n_draws:
            raise KeyError("report must hold random controls; evaluate with n_random > 0.")
        drop = self.change(self.measures[measure].baseline, measure, "steered, mean")
        difference = self.change(RANDOM_MEAN, measure, "steered, mean")
        draws = self.values(RANDOM_MEAN, measure)
        chosen = self.values("steered, mean", measure)
        assert drop and difference and draws is not None and chosen is not None
        return BeyondRandom(
            drop=drop.estimate,
            random=drop.estimate - difference.estimate,
            difference=difference,
            rank=1 + int((draws.mean(0) <= chosen.mean()).sum()),
            of=1 + self.n_draws,
        )

    def plot(self) -> go.Figure:
        """Log-odds of every setting, for the BiasToken and for targets."""
        from biasgym_tl.plots.settings import plot_settings

        return plot_settings(self)

    def warnings(self) -> list[str]:
        """What a reader should be told first, in words."""
        from biasgym_tl.evaluation.warnings import warnings_of

        return warnings_of(self)

    def mcnemar(self, name: str, measure: str, since: str = "original") -> McNemar:
        """Items of a share that were lost and gained in a setting, with an exact p-value.

        Ties (0.5) are left out.

        Raises:
            KeyError: there is no such setting or measure.
            SettingError: the measure is not a share of single items, or was not measured there.
        """
        here, there = self.values(name, measure), self.values(since, measure)
        if self.measures[measure].kind != "share" or here is None or there is None:
            raise SettingError(
                f"measure must be a share that was measured in both settings, got {measure!r}."
            )
        tie = (here == 0.5) | (there == 0.5)
        return mcnemar(*(v.masked_fill(tie, float("nan"))[:, 0] for v in (there, here)))

    def to_html(self, path: str | Path, *, plotlyjs: str = "inline") -> Path:
        """Write the report as one page.

        Args:
            path: The file.
            plotlyjs: ``"inline"``: 5 MB, needs nothing else. ``"cdn"``: small, needs the network.
        """
        from biasgym_tl.plots.page import report_page

        return write_text(Path(path), report_page(self, plotlyjs=plotlyjs))

    def to_csv(self, path: str | Path) -> Path:
        """Write :meth:`intervals` as CSV."""
        return write_csv(Path(path), self.intervals())

    def numbers(self) -> dict[str, Any]:
        """All that was measured, without the versions that measured it."""
        beside = ("versions", "other_generation_prompts")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in beside}

    def save(self, path: str | Path) -> Path:
        """Write all of it as one JSON file."""
        return write_kind(Path(path), "Report", dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a file written by :meth:`save`.

        Raises:
            StoreError: the file is missing, is not JSON, or is not a report.
        """

        def build(values: dict[str, Any]) -> Report:
            results = [SettingResult(**as_declared(SettingResult, v)) for v in values["results"]]
            rest = {key: value for key, value in values.items() if key != "results"}
            report = cls(results=tuple(results), **as_declared(cls, rest))
            share = report.settings.get("attribution_in_heads")
            if not isinstance(share, int | float | None):
                raise StoreError(f"attribution_in_heads must be a number or None, got {share!r}")
            for name, n, wanted in _lengths(report):
                if n not in wanted:
                    raise StoreError(f"{name} is {n}, not {' or '.join(map(str, wanted))}")
            return report

        return read_kind(Path(path), "Report", build)


def _lengths(report: Report) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Every number of items that another one decides: its name, itself, and what it may be."""
    n_asked = len(report.generation_prompts)
    names = [result.name for result in report.results]
    for name in ("original", "injected"):
        yield f"number of settings {name!r}", names.count(name), (1,)
    yield "number of names", len(set(names)), (len(names),)
    yield "number of generation targets", len(report.generation_targets), (n_asked,)
    yield "number of blind facts", len(report.blind_fact_margins), (0, len(report.fact_countries))
    measures = {measure.key: measure for measure in report.benchmark_measures}
    yield "number of clusters", len(report.clusters.keys() | measures), (len(report.clusters),)
    yield "number of benchmark measures", len(measures), (len(report.clusters),)
    for measure in measures.values():
        yield f"baseline of {measure.key}", names.count(measure.baseline), (1,)
    for result in report.results:
        for name, n, wanted in _lengths_of(result, report):
            yield f"{name} of {result.name!r}", n, wanted


def _lengths_of(
    result: SettingResult, report: Report
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Those of one setting; what was not measured in it is empty."""
    first, others = report.results[0], report.other_keywords
    texts = {"token": result.token_texts, "target": result.target_texts} | result.other_texts
    asked = {name: len(found) for name, found in first.other_texts.items()}
    asked |= {name: len(prompts) for name, prompts in report.other_generation_prompts.items()}
    asked |= dict.fromkeys(("token", "target"), len(report.generation_prompts))
    for name, answers in texts.items():
        yield f"number of {name} texts", len(answers), (0, asked.get(name, 0))
    for name, verdicts in result.verdicts.items():
        yield f"number of {name} verdicts", len(verdicts), (0, len(texts.get(name, ())))
    unknown = result.other_texts.keys() | result.other_log_odds
    yield "number of biases without keywords", len(unknown - others.keys()), (0,)
    for name in ("token_log_odds", "token_log_p", "target_log_odds", "target_log_p"):
        yield f"number of {name}", len(getattr(result, name)), (0, len(report.evaluation_prompts))
    for name, matrix in result.other_log_odds.items():
        yield f"number of {name} rows", len(matrix), (0, len(first.other_log_odds.get(name, ())))
    rows = [result.target_log_odds, result.target_log_p, *result.other_log_odds.values()]
    for row in itertools.chain(*rows):
        yield "number of targets in a row", len(row), (len(report.targets),)
    numbers = [result.token_log_odds, result.token_log_p, result.damage_loss, result.fact_margins]
    for found in itertools.chain(numbers, *rows):
        yield "number of values that are not finite", sum(not math.isfinite(x) for x in found), (0,)
    yield "number of facts", len(result.fact_margins), (0, len(report.fact_countries))
    yield "number of losses", len(result.damage_loss), (0, len(first.damage_loss))
    for key, items in result.benchmarks.items():
        yield f"number of items of {key}", len(items), (0, len(report.clusters.get(key, ())))


def _right(margins: Sequence[float]) -> list[float]:
    """1 for each question whose right answer is the likeliest."""
    return [float(margin > 0) for margin in margins]


def _of_share(
    interval: Callable[[Float[Tensor, " item"]], Interval], values: Float[Tensor, " item"]
) -> Interval:
    """An interval over the items that count; NaN throughout where none does."""
    counted = values[~values.isnan()]
    return interval(counted) if len(counted) else Interval(*[float("nan")] * 3)


def _one_by_one(
    here: Float[Tensor, " item"], there: Float[Tensor, " item"] | None = None
) -> Interval:
    """Over texts or draws, some of which may not count (NaN). Without spread there are no ends."""
    found = clustered_interval(here, range(len(here)), minus=there)
    nan = float("nan")
    return found if found.high - found.low > 1e-9 else Interval(found.estimate, nan, nan)


def _of_verdicts(verdicts: dict[str, list[Verdict]], whose: str, kind: str) -> list[float]:
    """Strength (NaN for a text that is unscored or degenerate), or whether it is degenerate (NaN
    for one of which the judge said nothing)."""
    own = ("token", "target")
    found = [
        verdict
        for name, each in verdicts.items()
        if (name == whose if whose in own else name not in own)
        for verdict in each
    ]
    if kind == "strength":
        return strengths(found)
    return [
        float("nan") if v.unscored and not v.degenerate else float(bool(v.degenerate))
        for v in found
    ]


def _of_texts(texts: list[str], kind: str, keywords: Sequence[str]) -> list[float]:
    """One number for each text."""
    if kind == "keywords":
        return [float(hit) for hit in keyword_hits(texts, keywords)]
    if kind == "refusals":
        return [float(is_refusal(text)) for text in texts]
    if kind == "repetition":
        return [repetition(text) for text in texts]
    lengths = [len(text.split()) for text in texts]
    return [float(n == 0) for n in lengths] if kind == "empty" else [float(n) for n in lengths]


def _named(interval: Interval, prefix: str) -> dict[str, float]:
    names = (f"{prefix}mean", f"{prefix}low", f"{prefix}high")
    return dict(zip(names, interval, strict=True))
