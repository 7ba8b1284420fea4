"""Heads that several seeds agree on, against what chance would agree on (paper, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor

from biasgym_tl.chance import overlap_distribution
from biasgym_tl.errors import SettingError
from biasgym_tl.heads import Head
from biasgym_tl.scoping.compare import check_same, rank_correlation
from biasgym_tl.scoping.scores import HeadScores, top_heads

EXACT_SEEDS, N_SIMULATED = 5, 1999
"""The exact distribution has too many states for more seeds."""


class Agreement(NamedTuple):
    """Heads in the top of at least so many seeds."""

    at_least: int
    n_heads: int
    by_chance: float
    """Expected number for independent uniform sets."""
    p: float
    """Chance of at least ``n_heads`` with independent uniform sets: exact for up to 5 seeds,
    beyond that from 1,999 simulated ones."""
    controls: dict[str, int]
    """The same count for rows that were not trained on the bias, by the control's name."""


class Stability(NamedTuple):
    """What fewer seeds would have chosen, over all subsets of that size."""

    n_seeds: int
    size: float
    """Mean number of heads that all of them nominate."""
    jaccard: float
    """Mean Jaccard index of that set with the one of all seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SeedOverlap:
    """Agreement of the top ``k_per_seed`` heads over seeds."""

    k_per_seed: int
    settings: dict[str, Any]
    """Settings of the scores, with their model and bias."""
    maps: Float[Tensor, "seed n_layers n_heads"]
    agreements: tuple[Agreement, ...]
    """For at least 1, 2, ... seeds."""
    jaccard: Float[Tensor, "seed seed"]
    rank_correlation: Float[Tensor, "seed seed"]
    """Spearman's, over all heads."""
    stability: tuple[Stability, ...]

    def heads(self, at_least: int | None = None) -> tuple[Head, ...]:
        """Heads that at least so many seeds nominate (default: all), highest mean value first.

        Raises:
            SettingError: there are not so many seeds.
        """
        n_seeds = len(self.maps)
        at_least = n_seeds if at_least is None else at_least
        if not 1 <= at_least <= n_seeds:
            raise SettingError(f"at_least must be in 1..{n_seeds}, got {at_least!r}.")
        ranked = top_heads(self.maps.mean(0), self.maps[0].numel())
        seeds_of = self.seeds_of()
        return tuple(head for head in ranked if seeds_of[head] >= at_least)

    def seeds_of(self) -> Int[Tensor, "n_layers n_heads"]:
        """How many seeds nominate each head."""
        return _nominations(self.maps, self.k_per_seed).sum(0).view(self.maps.shape[1:])

    def plot(self) -> go.Figure:
        """Heads at each level of agreement, beside chance and the controls."""
        from biasgym_tl.plots.spread import plot_overlap

        return plot_overlap(self)

    def to_df(self) -> pd.DataFrame:
        """One row per level of agreement."""
        return pd.DataFrame(
            [
                {"at least": a.at_least, "heads": a.n_heads, "by chance": a.by_chance, "p": a.p,
                 **a.controls}
                for a in self.agreements
            ]
        )  # fmt: skip

    def __repr__(self) -> str:
        n, last = len(self.maps), self.agreements[-1]
        return (
            f"SeedOverlap({last.n_heads} heads in the top {self.k_per_seed} of all {n} seeds; "
            f"{last.by_chance:.2f} by chance, p = {last.p:.2g})"
        )


def seed_overlap(
    scores: Sequence[HeadScores],
    *,
    k_per_seed: int = 30,
    controls: dict[str, Sequence[HeadScores]] | None = None,
) -> SeedOverlap:
    """Count how many heads the seeds agree on, beside what chance and controls agree on.

    Independent uniform sets are the weakest null: any two maps of one model share heads that are
    strong whatever stands in the slot. Controls (maps of untrained rows, of another bias's rows)
    tell that apart.

    Args:
        scores: One map a seed.
        k_per_seed: Heads that each seed nominates.
        controls: By name, as many maps of an untrained row or of another bias's rows.

    Raises:
        SettingError: there are fewer than two seeds, a control has another number of maps, maps
            differ in model, method or contrast, or the model does not have so many heads.
    """
    controls = controls or {}
    for name, found in {"scores": scores, **controls}.items():
        if len(found) < 2 or len(found) != len(scores):
            raise SettingError(
                f"{name} must hold one map for each of at least 2 seeds, got {len(found)}. "
                "Attribute with more seeds."
            )
    check_same(
        [*scores, *(s for found in controls.values() for s in found)],
        ("model", "method", "contrast"),
    )
    check_same(scores, ("bias",))
    maps = torch.stack([s.values.double() for s in scores])
    n_seeds = len(maps)
    if not 1 <= k_per_seed <= maps[0].numel():
        raise SettingError(f"k_per_seed must be in 1..{maps[0].numel()}, got {k_per_seed!r}.")
    sets = _nominations(maps, k_per_seed)
    of_controls = {
        name: _nominations(torch.stack([s.values.double() for s in found]), k_per_seed)
        for name, found in controls.items()
    }
    flat = maps.flatten(1)
    return SeedOverlap(
        k_per_seed=k_per_seed,
        settings={**scores[0].settings, "model": scores[0].model, "bias": scores[0].bias},
        maps=maps,
        agreements=tuple(_agreement(sets, of_controls, level) for level in range(1, n_seeds + 1)),
        jaccard=torch.tensor([[_jaccard(a, b) for b in sets] for a in sets], dtype=torch.float64),
        rank_correlation=torch.stack([rank_correlation(row.expand_as(flat), flat) for row in flat]),
        stability=tuple(_stability(sets, n) for n in range(1, n_seeds + 1)),
    )


def _agreement(
    sets: Int[Tensor, "seed unit"], controls: dict[str, Int[Tensor, "seed unit"]], level: int
) -> Agreement:
    """Heads in at least ``level`` of the sets, and of each control's sets."""
    (n_seeds, n_units), k = sets.shape, int(sets[0].sum())
    count = int((sets.sum(0) >= level).sum())
    return Agreement(
        at_least=level,
        n_heads=count,
        by_chance=n_units * float(binom.sf(level - 1, n_seeds, k / n_units)),
        p=_p(count, n_units, k, n_seeds, level),
        controls={name: int((s.sum(0) >= level).sum()) for name, s in controls.items()},
    )


def _nominations(maps: Float[Tensor, "seed n_layers n_heads"], k: int) -> Int[Tensor, "seed unit"]:
    flat = maps.flatten(1)
    order = flat.argsort(descending=True, stable=True)[:, :k]
    return torch.zeros(flat.shape, dtype=torch.long).scatter_(1, order, 1)


def _p(count: int, n_units: int, k: int, n_seeds: int, at_least: int) -> float:
    """Chance of ``count`` or more units in at least so many of the uniform sets."""
    if n_seeds <= EXACT_SEEDS:
        chance = overlap_distribution(n_units, k, n_seeds, at_least)
        return min(1.0, chance[count:].sum().item())
    generator = torch.Generator().manual_seed(0)
    reached = 1
    for _ in range(N_SIMULATED):
        drawn = torch.rand(n_seeds, n_units, generator=generator).topk(k).indices
        times = torch.bincount(drawn.flatten(), minlength=n_units)
        reached += int((times >= at_least).sum()) >= count
    return reached / (N_SIMULATED + 1)


def _stability(sets: Int[Tensor, "seed unit"], n_seeds: int) -> Stability:
    whole = sets.amin(0)
    chosen = [sets[list(some)].amin(0) for some in combinations(range(len(sets)), n_seeds)]
    sizes = [int(one.sum()) for one in chosen]
    overlaps = [_jaccard(one, whole) for one in chosen]
    return Stability(n_seeds, sum(sizes) / len(sizes), sum(overlaps) / len(overlaps))


def _jaccard(a: Int[Tensor, " unit"], b: Int[Tensor, " unit"]) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
