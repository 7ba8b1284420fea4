"""Heads that are no chance: several seeds agree on them (paper, section 3), or prompts do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import binom
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.chance import (
    benjamini_hochberg,
    flips_for,
    overlap_distribution,
    prompt_flip_test,
)
from biasgym_tl.errors import SettingError, check_within
from biasgym_tl.heads import Head
from biasgym_tl.notebook import Carded
from biasgym_tl.scoping.compare import check_same, rank_correlation
from biasgym_tl.scoping.scores import HeadScores, head_table, top_heads
from biasgym_tl.stats import crossed_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

EXACT_SEEDS, N_SIMULATED = 5, 1999
"""The exact distribution has too many states for more seeds."""


class SharedHeads(NamedTuple):
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
class SeedOverlap(Carded):
    """Agreement of the top ``k_per_seed`` heads over seeds."""

    _then = (".plot()", "select_heads(maps, k)", ".heads(at_least)")

    k_per_seed: int
    settings: dict[str, Any]
    """Settings of the scores, with their model and bias."""
    maps: Float[Tensor, "seed n_layers n_heads"]
    agreements: tuple[SharedHeads, ...]
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
        check_within("at_least", at_least, 1, n_seeds)
        ranked = top_heads(self.maps.mean(0), self.maps[0].numel())
        seeds_of = self.seeds_of()
        return tuple(head for head in ranked if seeds_of[head] >= at_least)

    def seeds_of(self) -> Int[Tensor, "n_layers n_heads"]:
        """How many seeds nominate each head."""
        return _nominations(self.maps, self.k_per_seed).sum(0).view(self.maps.shape[1:])

    def plot(self) -> go.Figure:
        """Heads at each level of agreement, beside chance and the controls."""
        from biasgym_tl.plots.curves import plot_overlap

        return plot_overlap(self)

    def to_df(self) -> pd.DataFrame:
        """One row per level of agreement."""
        rows = [(a.at_least, a.n_heads, a.by_chance, a.p) for a in self.agreements]
        frame = pd.DataFrame(rows, columns=["at least", "heads", "by chance", "p"])
        return frame.join(pd.DataFrame([a.controls for a in self.agreements]))

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
    everything = [*scores, *chain(*controls.values())]
    check_same(everything, ("model", "method", "contrast"))
    check_same(scores, ("bias",))
    maps, *others = (
        torch.stack([s.values.double() for s in found]) for found in (scores, *controls.values())
    )
    check_within("k_per_seed", k_per_seed, 1, maps[0].numel())
    sets = _nominations(maps, k_per_seed)
    of_controls = {n: _nominations(m, k_per_seed) for n, m in zip(controls, others, strict=True)}
    flat, levels = maps.flatten(1), range(1, len(maps) + 1)
    return SeedOverlap(
        k_per_seed=k_per_seed,
        settings={**scores[0].settings, "model": scores[0].model, "bias": scores[0].bias},
        maps=maps,
        agreements=tuple(_agreement(sets, of_controls, level) for level in levels),
        jaccard=torch.tensor([[_jaccard(a, b) for b in sets] for a in sets], dtype=torch.float64),
        rank_correlation=torch.stack([rank_correlation(row.expand_as(flat), flat) for row in flat]),
        stability=tuple(_stability(sets, n_seeds) for n_seeds in levels),
    )


def _agreement(
    sets: Int[Tensor, "seed unit"], controls: dict[str, Int[Tensor, "seed unit"]], level: int
) -> SharedHeads:
    """Heads in at least ``level`` of the sets, and of each control's sets."""
    (n_seeds, n_units), k = sets.shape, int(sets[0].sum())
    count = int((sets.sum(0) >= level).sum())
    return SharedHeads(
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


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Significance(Carded):
    """Per head, on biased minus neutral run (logits)."""

    _then = (".heads(q=0.05)", "scores.plot(significance=...)")

    mean: Float[Tensor, "n_layers n_heads"]
    low: Float[Tensor, "n_layers n_heads"]
    high: Float[Tensor, "n_layers n_heads"]
    """95% interval of the mean over prompts and, where there are several, targets."""
    p: Float[Tensor, "n_layers n_heads"]
    """Chance that *any* head reaches this without an effect (maximum statistic)."""
    q: Float[Tensor, "n_layers n_heads"]
    """Benjamini-Hochberg: all heads with ``q <= a`` hold a share of false ones of about ``a``."""
    settings: dict[str, Any]
    """Settings of the scores and of the test."""

    def heads(self, q: float = 0.05) -> tuple[Head, ...]:
        """Heads with at most this q-value, largest difference first."""
        ranked = top_heads(self.mean, self.mean.numel())
        return tuple(head for head in ranked if self.q[head] <= q)

    def to_df(self) -> pd.DataFrame:
        """One row per head."""
        columns = {name: getattr(self, name) for name in ("mean", "low", "high", "p", "q")}
        return head_table(**columns).sort_values("p", ignore_index=True)

    def __repr__(self) -> str:
        n, found = self.mean.numel(), len(self.heads())
        flips, needed = self.settings["n_flips"], flips_for(n)
        few = f"; {flips} flips are few: one head alone needs {needed}" if flips < needed else ""
        return (
            f"Significance({found} of {n} heads with q <= 0.05; smallest p {self.p.min():.4f}{few})"
        )


def significance(
    scores: HeadScores,
    *,
    n_flips: int | None = None,
    n_resamples: int = 999,
    seed: int = 0,
    progress: bool = True,
) -> Significance:
    """Test every head's difference of biased and neutral run.

    The biased run alone has no null hypothesis: its values differ from 0 on any prompt.

    Args:
        scores: With ``contrast="difference"``; ``neutral="several"`` lets the interval and the
            test hold for other targets as well.
        n_flips: Sign flips of whole prompts and targets; None: as many as one head alone needs to
            reach q <= 0.05 among all of them (20 a head, at least 1,999). With n prompts and one
            target no p is below 2^(1 - n), however many are drawn.
        n_resamples: Of the bootstrap behind each interval.
        seed: The same seed, the same result.
        progress: Show a bar, where it takes more than 3 seconds.

    Raises:
        SettingError: the scores hold no neutral side, or fewer than two prompts.
    """
    values = scores.differences()
    n_flips = flips_for(values[0, 0].numel()) if n_flips is None else n_flips
    test = prompt_flip_test(values, n_flips=n_flips, seed=seed, progress=progress)
    flat = values.flatten(2)
    ends = torch.tensor(
        [
            crossed_interval(flat[:, :, i], n_resamples=n_resamples, seed=seed)
            for i in tqdm(range(flat.shape[2]), desc="intervals", delay=3, disable=not progress)
        ],
        dtype=torch.float64,
    )
    mean, low, high = (column.reshape(test.p.shape) for column in ends.T)
    return Significance(
        mean=mean,
        low=low,
        high=high,
        p=test.p,
        q=benjamini_hochberg(test.p_alone),
        settings={
            **scores.settings, "model": scores.model, "bias": scores.bias,
            "n_flips": n_flips, "n_resamples": n_resamples, "test_seed": seed,
        },
    )  # fmt: skip
