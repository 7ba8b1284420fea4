"""Settings side by side: original, injected, steered, controls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import StoreError
from biasgym_tl.evaluation.measures import MEASURES, Measure
from biasgym_tl.stats import (
    Interval,
    crossed_interval,
    share_change_interval,
    share_interval,
)
from biasgym_tl.store import read_json, write_json
from biasgym_tl.text import keyword_hits, repetition

RANDOM = "random "
"""How the names of random controls begin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingResult:
    """All that was measured in one setting, item by item."""

    name: str
    heads: tuple[str, ...]
    """Heads that were steered; empty for the unsteered settings."""
    mode: str | None
    token_log_odds: list[float]
    """One per evaluation prompt, with the BiasToken (nats)."""
    token_log_p: list[float]
    country_log_odds: list[list[float]]
    """[prompt][country], held-out countries (nats)."""
    country_log_p: list[list[float]]
    damage_loss: list[float]
    """Mean loss of each damage passage (nats per token)."""
    fact_margins: list[float]
    """Of each fact: right answer over the best wrong one (nats); positive is right."""
    token_texts: list[str]
    """Free answers with the BiasToken, one per generation prompt; empty for random controls."""
    country_texts: list[str]
    """The same with held-out countries."""


class BeyondRandom(NamedTuple):
    """A setting's fall of the BiasToken's log-odds, against random heads of the same layers."""

    drop: float
    """Injected minus setting (nats)."""
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
    countries: tuple[str, ...]
    generation_countries: tuple[str, ...]
    fact_countries: tuple[str, ...]
    """The country of each fact."""
    results: tuple[SettingResult, ...]
    settings: dict[str, Any]
    versions: dict[str, str]

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

    def random_controls(self) -> tuple[SettingResult, ...]:
        """The settings that steer random heads."""
        return tuple(r for r in self.results if r.name.startswith(RANDOM))

    def values(self, name: str, measure: str) -> Float[Tensor, "row column"] | None:
        """Item values of a measure: prompts (by countries), texts, or countries of facts.

        ``name`` is a setting, or ``"random"`` for the mean of the random controls, item by item.
        None where the setting was not measured so.
        """
        if name == RANDOM.strip():
            found = [self.values(r.name, measure) for r in self.random_controls()]
            known = [values for values in found if values is not None]
            return torch.stack(known).mean(0) if known else None
        return self._matrix(self[name], measure)

    def _matrix(self, result: SettingResult, measure: str) -> Float[Tensor, "row column"] | None:
        if measure == "facts":
            right = pd.Series(result.fact_margins, self.fact_countries, dtype=float) > 0
            items: list[Any] = right.groupby(level=0, sort=False).mean().tolist()
        elif hasattr(result, measure):
            items = getattr(result, measure)
        else:
            target, kind = measure.rsplit("_", 1)
            items = self._of_texts(getattr(result, f"{target}_texts"), kind)
        if not items:
            return None
        values = torch.tensor(items, dtype=torch.float64)
        return values[:, None] if values.ndim == 1 else values

    def _of_texts(self, texts: list[str], kind: str) -> list[float]:
        if kind == "keywords":
            return [float(hit) for hit in keyword_hits(texts, self.keywords)]
        if kind == "repetition":
            return [repetition(text) for text in texts]
        lengths = [len(text.split()) for text in texts]
        return [float(n == 0) for n in lengths] if kind == "empty" else [float(n) for n in lengths]

    def interval(self, name: str, measure: str) -> Interval | None:
        """Mean of a measure with its 95% interval over the items (prompts and countries)."""
        values = self.values(name, measure)
        if values is None:
            return None
        return share_interval(values[:, 0]) if _counts(measure) else crossed_interval(values)

    def change(self, name: str, measure: str, since: str) -> Interval | None:
        """Mean difference to another setting, item by item, with its 95% interval."""
        here, there = self.values(name, measure), self.values(since, measure)
        if here is None or there is None:
            return None
        change = here - there
        return share_change_interval(change[:, 0]) if _counts(measure) else crossed_interval(change)

    def not_informative(self, measure: Measure) -> str:
        """Why changes of a measure say nothing here, or an empty text.

        A measure whose baseline is at its floor has nothing to lose: its staying there is not
        "preserved", its falling is not "reduced".
        """
        if measure.floor is None:
            return ""
        if isinstance(measure.floor, str):
            over = self.change(measure.baseline, measure.key, measure.floor)
        else:
            here = self.interval(measure.baseline, measure.key)
            over = here and Interval(*(end - measure.floor for end in here))
        if over is None or over.low > 0:
            return ""
        return (
            f"{measure.label}: not informative, since in the setting {measure.baseline!r} it is "
            f"{over} over its floor ({measure.floor})"
        )

    def to_df(self) -> pd.DataFrame:
        """One row per setting, one column per measure: means over the items."""
        names = [result.name for result in self.results]
        names += [RANDOM.strip()] if self.random_controls() else []
        rows = {name: {m.key: self._mean(name, m.key) for m in MEASURES} for name in names}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")

    def _mean(self, name: str, measure: str) -> float:
        values = self.values(name, measure)
        return float("nan") if values is None else float(values.mean())

    def intervals(self) -> pd.DataFrame:
        """One row per setting and measure: mean, change from the baseline, their 95% intervals."""
        names = [r.name for r in self.results if not r.name.startswith(RANDOM)]
        names += [RANDOM.strip()] if self.random_controls() else []
        rows = []
        for measure in MEASURES:
            informative = not self.not_informative(measure)
            for name in names:
                here = self.interval(name, measure.key)
                if here is None:
                    continue
                change = self.change(name, measure.key, measure.baseline)
                rows.append(
                    {
                        "setting": name,
                        "measure": measure.key,
                        "unit": measure.unit,
                        **_named(here, ""),
                        "baseline": measure.baseline,
                        **(_named(change, "change_") if change else {}),
                        "informative": informative,
                    }
                )
        return pd.DataFrame(rows)

    def beyond_random(self, name: str) -> BeyondRandom:
        """How far a setting's fall of the BiasToken's log-odds exceeds that of random heads.

        Raises:
            KeyError: there is no such setting, or no random control.
        """
        controls = self.random_controls()
        if not controls:
            raise KeyError("report must hold random controls; evaluate with n_random > 0.")
        injected, here = self["injected"].token_log_odds, self[name].token_log_odds
        drops = torch.tensor([c.token_log_odds for c in controls], dtype=torch.float64).T
        drops = torch.tensor(injected, dtype=torch.float64)[:, None] - drops
        own = torch.tensor(injected, dtype=torch.float64) - torch.tensor(here, dtype=torch.float64)
        return BeyondRandom(
            drop=own.mean().item(),
            random=drops.mean().item(),
            difference=crossed_interval(own[:, None] - drops),
            rank=1 + int((drops.mean(0) >= own.mean()).sum()),
            of=1 + len(controls),
        )

    def plot(self) -> go.Figure:
        """Log-odds of every setting, for the BiasToken and for countries."""
        from biasgym_tl.plots.settings import plot_settings

        return plot_settings(self)

    def save(self, path: str | Path) -> Path:
        """Write all of it as one JSON file."""
        return write_json(Path(path), {"kind": "Report", **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a file written by :meth:`save`.

        Raises:
            StoreError: the file is missing, is not JSON, or is not a report.
        """
        values = read_json(Path(path))
        if not isinstance(values, dict) or values.pop("kind", None) != "Report":
            raise StoreError(f"{str(path)!r} must hold a Report. Was it written by Report.save?")
        values["results"] = [SettingResult(**_tuples(r)) for r in values["results"]]
        return cls(**_tuples(values))


def _counts(measure: str) -> bool:
    """Whether the items of a measure are 0 or 1."""
    return measure.endswith(("_keywords", "_empty"))


def _named(interval: Interval, prefix: str) -> dict[str, float]:
    names = (f"{prefix}mean", f"{prefix}low", f"{prefix}high")
    return dict(zip(names, interval, strict=True))


_TUPLES = ("heads", "keywords", "evaluation_prompts", "generation_prompts", "countries",
           "generation_countries", "fact_countries", "results")  # fmt: skip


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if key in _TUPLES else value for key, value in values.items()}
