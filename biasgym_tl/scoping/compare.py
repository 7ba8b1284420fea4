"""Do maps of heads agree, and could they; and in how few heads is a bias."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from biasgym_tl.errors import SettingError, check_at_least, check_within
from biasgym_tl.notebook import Card, Carded
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.stats import Interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEWEST_PROMPTS = 4
"""Of maps that are compared: their halves need two each."""
Maps = Float[Tensor, "split head"]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Carded):
    """Agreement of several maps over the same heads, model and prompts."""

    _then = (".plot()", ".to_df()")

    names: tuple[str, ...]
    effects: tuple[str, ...]
    """What each map's values are: direct or total effect, against what, on which run."""
    maps: Float[Tensor, "map n_layers n_heads"]
    k: int
    rank_correlation: dict[tuple[str, str], Interval]
    """Spearman's, over heads, for each pair of names, of maps over so many prompts. Their noise is
    in it, and the interval is around such a value: both are nearer to 0 than what maps over all
    prompts there could be would show."""
    without_noise: dict[tuple[str, str], float]
    """That, about: the correlation between halves that share no prompt, over the root of the two
    maps' own (Spearman's correction for attenuation), at most 1. NaN where a map does not agree
    with itself. An estimate without an interval."""
    overlap: dict[tuple[str, str], Interval]
    """Share of the top k heads that two maps over so many prompts have in common; noise lowers it
    as well."""
    reliability: dict[str, float]
    """Rank correlation that each map would have with itself on as many other prompts: of two halves
    of the prompts, stepped up to all (Spearman-Brown). A low value says that the map is mostly
    noise. It is no ceiling for the agreement, since the maps share their prompts."""
    settings: dict[str, Any]

    def to_df(self) -> pd.DataFrame:
        """One row per pair of maps: both statistics with their 95% intervals, and reliabilities."""
        rows = []
        for first, second in self.rank_correlation:
            row: dict[str, Any] = {"first": first, "second": second}
            for name, found in (
                ("rank_correlation", self.rank_correlation),
                (f"overlap_top_{self.k}", self.overlap),
            ):
                row |= zip((name, f"{name}_low", f"{name}_high"), found[first, second], strict=True)
            row["without_noise"] = self.without_noise[first, second]
            for which in ("first", "second"):
                row[f"reliability_{which}"] = self.reliability[row[which]]
                row[f"effect_{which}"] = self.effects[self.names.index(row[which])]
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, **options: Any) -> go.Figure:
        """Scatter of one map against another; options as in ``plots.plot_agreement``."""
        from biasgym_tl.plots.scatter import plot_agreement

        return plot_agreement(self, **options)

    def _card(self) -> Card:
        rows = [
            (" / ".join(pair), found, f"{self.without_noise[pair]:.2f}", self.overlap[pair])
            for pair, found in self.rank_correlation.items()
        ]
        own = ", ".join(f"{name} {value:.2f}" for name, value in self.reliability.items())
        head = ("maps", "rank correlation", "without noise", f"overlap of the top {self.k}")
        return "Comparison of maps", [head, *rows], (f"reliability: {own}",)

    def __repr__(self) -> str:
        lines = [
            f"  {a} / {b}: {r}, without noise {self.without_noise[a, b]:.2f}"
            for (a, b), r in self.rank_correlation.items()
        ]
        own = ", ".join(f"{name} {value:.2f}" for name, value in self.reliability.items())
        return "\n".join(["Comparison (rank correlation)", *lines, f"  reliability: {own}"])


def compare(
    scores: Sequence[HeadScores],
    *,
    names: Sequence[str] | None = None,
    k: int = 10,
    n_splits: int = 200,
    seed: int = 0,
) -> Comparison:
    """Compare maps that were made on the same pairs of the same model.

    Intervals (95%) are over prompts: the statistic is computed on many random halves of them, whose
    spread is that of the whole (a subsample of half the size varies by as much as it differs). They
    are about maps over as many prompts, noise included; see ``without_noise``.

    Args:
        scores: Two or more maps.
        names: Of the maps; default: their methods.
        k: For the overlap of top heads.
        n_splits: Random splits into halves.
        seed: The same seed, the same result.

    Raises:
        SettingError: there are fewer than two maps or four prompts, names are not distinct, or the
            maps rest on different prompts, labels or models.
    """
    names = tuple(names) if names else tuple(str(s.settings["method"]) for s in scores)
    _check(scores, names, k)
    maps = [found.by_pair.flatten(1).double() for found in scores]
    whole = dict(zip(names, (by_pair.mean(0)[None] for by_pair in maps), strict=True))
    n_pairs = len(maps[0])
    chosen = _halves(n_pairs, n_splits, seed)
    one, other = (
        dict(zip(names, (half @ m / half.sum(1, keepdim=True) for m in maps), strict=True))
        for half in (chosen, 1 - chosen)
    )
    of_whole = math.sqrt((n_pairs // 2) / (n_pairs - n_pairs // 2))

    def intervals(statistic: Callable[[Maps, Maps], Tensor], least: float) -> Any:
        found = {}
        for a, b in combinations(names, 2):
            estimate = statistic(whole[a], whole[b]).item()
            half = 1.96 * of_whole * statistic(one[a], one[b]).std().item()
            ends = max(estimate - half, least), min(estimate + half, 1.0)
            found[a, b] = Interval(estimate, *ends)
        return found

    return Comparison(
        names=names,
        effects=tuple(found.effect for found in scores),
        maps=torch.stack([found.values.double() for found in scores]),
        k=k,
        rank_correlation=intervals(rank_correlation, least=-1.0),
        without_noise={(a, b): _without_noise(one, other, a, b) for a, b in combinations(names, 2)},
        overlap=intervals(partial(top_overlap, k=k), least=0.0),
        reliability={
            name: stepped_up(rank_correlation(one[name], other[name]).mean().item())
            for name in names
        },
        settings={"n_splits": n_splits, "seed": seed, "n_prompts": n_pairs},
    )


def _without_noise(one: dict[str, Maps], other: dict[str, Maps], a: str, b: str) -> float:
    """Correlation of two maps in halves without a prompt in common, over that of each with itself:
    what prompts of a half add to both maps is in neither."""
    across = rank_correlation(one[a], other[b]).mean() + rank_correlation(one[b], other[a]).mean()
    own = [rank_correlation(one[name], other[name]).mean().item() for name in (a, b)]
    if min(own) <= 0:
        return math.nan
    return max(-1.0, min(1.0, across.item() / 2 / math.sqrt(own[0] * own[1])))


def _halves(n_pairs: int, n_splits: int, seed: int) -> Float[Tensor, "split pair"]:
    """1 for the pairs of a random half, 0 for the others."""
    generator = torch.Generator().manual_seed(seed)
    halves = [torch.randperm(n_pairs, generator=generator)[: n_pairs // 2] for _ in range(n_splits)]
    zeros = torch.zeros(n_splits, n_pairs, dtype=torch.float64)
    return zeros.scatter_(1, torch.stack(halves), 1.0)


def rank_correlation(a: Maps, b: Maps) -> Float[Tensor, " split"]:
    """Spearman's rank correlation over heads, row by row."""
    x, y = (torch.from_numpy(rankdata(m.numpy(), axis=-1)) for m in (a, b))
    x, y = (ranks - ranks.mean(-1, keepdim=True) for ranks in (x, y))
    found: Tensor = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    return found


def top_overlap(a: Maps, b: Maps, k: int) -> Float[Tensor, " split"]:
    """Share of the ``k`` highest heads that both have, row by row."""
    tops = [torch.zeros_like(m).scatter_(-1, m.topk(k).indices, 1.0) for m in (a, b)]
    return (tops[0] * tops[1]).sum(-1) / k


def stepped_up(r: float) -> float:
    """Correlation of means over twice as many items, from that of halves (Spearman-Brown)."""
    return 2 * r / (1 + r) if r > 0 else r


def check_same(scores: Sequence[HeadScores], fields: Sequence[str]) -> None:
    """Refuse scores that differ in one of these fields.

    Raises:
        SettingError: the message names the field and what was found.
    """
    for field in fields:
        found = {str(getattr(s, field, None) or s.settings.get(field)) for s in scores}
        if len(found) > 1:
            shown = [text if len(text) < 60 else f"{text[:57]}..." for text in sorted(found)]
            raise SettingError(
                f"{field} of all scores must be the same, got {shown}. Attribute them alike."
            )


def _check(scores: Sequence[HeadScores], names: tuple[str, ...], k: int) -> None:
    if len(scores) < 2 or len(names) != len(scores) or len(set(names)) != len(names):
        raise SettingError(
            f"scores must be two or more, each with a name of its own, got {len(scores)} named "
            f"{list(names)}. Pass names=..."
        )
    check_same(scores, ("model", "prompts", "neutral_prompts", "biased_labels", "neutral_labels"))
    if len(scores[0].prompts) < FEWEST_PROMPTS:
        raise SettingError(
            f"scores must hold at least {FEWEST_PROMPTS} prompts, got {len(scores[0].prompts)}. "
            "Use more."
        )
    check_within("k", k, 1, scores[0].values.numel())


class Concentration(NamedTuple):
    """Of the heads that push toward the stereotype (positive values)."""

    curve: Float[Tensor, " k"]
    """Share of the positive sum in the top 1, 2, ... heads."""
    effective_heads: float
    """Participation ratio ``(sum v)^2 / sum v^2``: n equal heads give n."""

    def share(self, k: int) -> float:
        """Share of the positive sum in the top ``k`` heads (1 or more)."""
        check_at_least(1, k=k)
        return self.curve[min(k, len(self.curve)) - 1].item()

    def k_for(self, share: float) -> int:
        """The smallest number of heads that hold this share."""
        return int((self.curve < share - 1e-9).sum()) + 1

    def __repr__(self) -> str:
        held = ", ".join(f"{share:.0%} in {self.k_for(share)}" for share in (0.5, 0.8, 0.9))
        return f"Concentration(effective heads {self.effective_heads:.1f}; {held})"


def concentration(values: Float[Tensor, "n_layers n_heads"]) -> Concentration:
    """Measure how concentrated the positive values are.

    Noise alone spreads values over many heads: compare methods on the same prompts, and look at
    the reliability of each map (:func:`compare`) first.

    Raises:
        SettingError: no value is positive.
    """
    positive = values.flatten().double().clamp(min=0).sort(descending=True).values
    total = positive.sum()
    if not total > 0:
        raise SettingError(
            f"values must hold a positive one, got at most {values.max():.3g}: no head pushes "
            "toward the stereotype."
        )
    return Concentration(positive.cumsum(0) / total, (total**2 / positive.square().sum()).item())
