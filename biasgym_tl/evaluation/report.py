"""Settings side by side: original, injected, steered, random controls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from biasgym_tl.errors import StoreError
from biasgym_tl.store import read_json, write_json
from biasgym_tl.text import keyword_hits


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingResult:
    """All measures of one setting, item by item (nats)."""

    name: str
    heads: tuple[str, ...]
    """Heads that were steered; empty for the unsteered settings."""
    mode: str | None
    token_log_odds: list[float]
    """One per evaluation prompt, with the BiasToken."""
    token_log_p: list[float]
    country_log_odds: list[list[float]]
    """[prompt][country], held-out countries."""
    country_log_p: list[list[float]]
    damage_loss: list[float]
    """Mean loss of each damage passage, nats per token."""
    token_texts: list[str]
    """Free answers with the BiasToken, one per generation prompt; empty for random controls."""
    country_texts: list[str]
    """The same with held-out countries."""

    def means(self) -> dict[str, float]:
        """Mean of each measure over its items."""
        return {
            "token_log_odds": _mean(self.token_log_odds),
            "token_log_p": _mean(self.token_log_p),
            "country_log_odds": _mean([x for row in self.country_log_odds for x in row]),
            "country_log_p": _mean([x for row in self.country_log_p for x in row]),
            "damage_loss": _mean(self.damage_loss),
        }


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
        return tuple(r for r in self.results if r.name.startswith("random "))

    def keyword_rate(self, texts: list[str]) -> float | None:
        """Share of texts with a keyword; None without texts."""
        return _mean([float(h) for h in keyword_hits(texts, self.keywords)]) if texts else None

    def to_df(self) -> pd.DataFrame:
        """One row per setting: mean measures and keyword rates; random controls also as a mean."""
        rows = [
            {
                "setting": result.name,
                **result.means(),
                "token_keywords": self.keyword_rate(result.token_texts),
                "country_keywords": self.keyword_rate(result.country_texts),
            }
            for result in self.results
        ]
        frame = pd.DataFrame(rows).set_index("setting")
        controls = [r.name for r in self.random_controls()]
        if controls:
            frame.loc["random (mean)"] = frame.loc[controls].mean(skipna=False)
        return frame

    def drop_beyond_random(self, name: str) -> dict[str, float]:
        """How far a setting's fall of log-odds exceeds that of the random controls (nats).

        ``drop`` is injected minus ``name`` for the BiasToken, ``random`` the mean drop of the
        controls, ``rank`` the place of ``name`` among them, ``(1 + #at least as large)``: 1 of
        n + 1 is best. With few controls the rank is an illustration, not a p-value.
        """
        start = self["injected"].means()["token_log_odds"]
        drop = start - self[name].means()["token_log_odds"]
        drops = [start - r.means()["token_log_odds"] for r in self.random_controls()]
        return {
            "drop": drop,
            "random": _mean(drops),
            "beyond": drop - _mean(drops),
            "rank": 1 + sum(d >= drop for d in drops),
            "of": 1 + len(drops),
        }

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
        values["results"] = [SettingResult(**_tuples(r, ("heads",))) for r in values["results"]]
        lists = (
            "keywords",
            "evaluation_prompts",
            "generation_prompts",
            "countries",
            "generation_countries",
            "results",
        )
        return cls(**_tuples(values, lists))


def _tuples(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: tuple(value) if key in keys else value for key, value in values.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
