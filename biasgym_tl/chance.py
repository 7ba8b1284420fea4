"""How often chance alone gives as much as was found: tests on plain tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest, false_discovery_control, hypergeom, multivariate_hypergeom
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.errors import SettingError
from biasgym_tl.stats import checked, mean_and_variance


class McNemar(NamedTuple):
    """How many items changed either way, and whether that is more uneven than chance."""

    lost: int
    """Right before, wrong after."""
    gained: int
    """Wrong before, right after."""
    p: float
    """Chance of so uneven a change, or one more uneven, where either way is equally likely."""


def mcnemar(before: Float[Tensor, " before"], after: Float[Tensor, " after"]) -> McNemar:
    """Whether more items were lost than gained, or the other way round (exact, two-sided).

    Only items that changed say anything: each is then the toss of a fair coin (McNemar 1947, in
    its exact form). The test takes items as independent; where they come in clusters, ``p`` is too
    small and :func:`biasgym_tl.stats.clustered_interval` is the one to go by.

    Args:
        before: 1 where an item is right and 0 where it is wrong; NaN where it does not count.
        after: The same items afterwards. An item counts if it does so in both.

    Raises:
        SettingError: the lengths differ, or a value is not 0, 1 or NaN.
    """
    for name, values in (("before", before), ("after", after)):
        if not bool(((values == 0) | (values == 1) | values.isnan()).all()):
            raise SettingError(f"{name} must hold 0, 1 or NaN, got {values!r}.")
    if len(before) != len(after):
        raise SettingError(
            f"before and after must hold the same items, got {len(before)} and {len(after)}."
        )
    lost, gained = int((before > after).sum()), int((before < after).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return McNemar(lost, gained, p)


class FlipTest(NamedTuple):
    """Result of :func:`prompt_flip_test`, one value per unit (such as a head)."""

    statistic: Float[Tensor, "*unit"]
    """Mean divided by its standard error over prompts and countries."""
    p: Float[Tensor, "*unit"]
    """Adjusted for all units together: the chance that *any* reaches this without an effect."""
    p_alone: Float[Tensor, "*unit"]
    """Of each unit by itself, for :func:`benjamini_hochberg`."""


FEWEST_FLIPS = 1999


def flips_for(n_units: int, q: float = 0.05) -> int:
    """Flips with which one unit alone among so many can reach this q (at least 1,999).

    The smallest p of ``n`` flips is ``1 / (n + 1)``, and Benjamini-Hochberg multiplies it by the
    number of units where no other has one as small.
    """
    return max(FEWEST_FLIPS, math.ceil(n_units / q))


def prompt_flip_test(
    values: Float[Tensor, "prompt country *unit"],
    *,
    n_flips: int = FEWEST_FLIPS,
    seed: int = 0,
    progress: bool = False,
) -> FlipTest:
    """Test every unit's mean against 0, flipping the signs of whole prompts and whole countries.

    ``values`` must be differences whose sign means nothing if there is no effect, such as biased
    minus neutral run. The values of a prompt, or of a country, are not independent, so each prompt
    and each country gets one sign. With one country the values themselves are flipped: an exact
    permutation by prompt. With several, prompt effects, country effects and residual (which takes
    the product of both signs) are flipped apart: a wild bootstrap, since both factors at once
    leave nothing to permute. The largest ``|t|`` over all units is the reference, so the
    error rate holds for the family. In simulations with prompt and country effects and no true
    effect, 5% of families had a unit with p <= 0.05; flipping pair by pair gave more than half.

    Raises:
        SettingError: there are fewer than two prompts, or a value is not finite.
    """
    n_prompts, n_countries, *unit = values.shape
    if n_prompts < 2:
        raise SettingError(f"values must hold at least 2 prompts, got {n_prompts}.")
    matrices = checked(values).reshape(n_prompts, n_countries, -1).permute(2, 0, 1)
    statistic = _t(matrices)
    prompts, countries, residual = _effects(matrices)
    generator = torch.Generator().manual_seed(seed)
    reached, reached_alone = torch.ones_like(statistic), torch.ones_like(statistic)
    for _ in tqdm(range(n_flips), desc="flips", delay=3, disable=not progress):
        s = torch.randint(2, (n_prompts, 1), generator=generator) * 2.0 - 1
        t = torch.randint(2, (1, n_countries), generator=generator) * 2.0 - 1
        flipped = s * prompts + t * countries + s * t * residual
        found = _t(flipped).abs()
        reached += found.max() >= statistic.abs()
        reached_alone += found >= statistic.abs()
    n = n_flips + 1
    return FlipTest(*(x.reshape(unit) for x in (statistic, reached / n, reached_alone / n)))


def benjamini_hochberg(p: Float[Tensor, "*unit"]) -> Float[Tensor, "*unit"]:
    """q-values: reporting all units with ``q <= a`` keeps the expected share of false ones at a."""
    if p.numel() == 0 or bool(((p < 0) | (p > 1)).any()):
        raise SettingError("p must hold probabilities between 0 and 1.")
    return torch.from_numpy(false_discovery_control(p.double().numpy().ravel())).reshape(p.shape)


def rank_p(value: float, controls: Float[Tensor, " draw"]) -> float:
    """``(1 + #controls at least as large) / (1 + #controls)``: the chance of such a rank."""
    return (1 + int((controls >= value).sum())) / (1 + controls.numel())


def overlap_distribution(
    n_units: int, k: int, n_sets: int, at_least: int
) -> Float[Tensor, " count"]:
    """Chance that exactly x units are in at least ``at_least`` of ``n_sets`` random sets.

    Each set holds ``k`` of ``n_units`` units, all sets equally likely and independent; entry x of
    the result is the exact probability of x such units. It is followed set by set how many units
    are so far in 0, 1, ... of them; how many of each kind the next set holds is multivariate
    hypergeometric.

    Raises:
        SettingError: a number is outside its range.
    """
    if not 1 <= k <= n_units:
        raise SettingError(f"k must be in 1..{n_units}, got {k!r}.")
    if not 1 <= at_least <= n_sets:
        raise SettingError(f"at_least must be in 1..{n_sets}, got {at_least!r}.")
    # A state counts the units in 1, 2, ..., at_least - 1 sets, and last those in at_least or more.
    states = torch.zeros(1, at_least, dtype=torch.long)
    chances = torch.ones(1, dtype=torch.float64)
    for _ in range(n_sets - 1):
        states, chances = _with_one_more_set(states, chances, n_units, k)
    # Of the last set only the units matter that it lifts over the threshold.
    one_short = states[:, -2] if at_least > 1 else n_units - states.sum(1)
    counts = torch.zeros(n_units + k + 1, dtype=torch.float64)
    for lifted in range(k + 1):
        p = torch.from_numpy(hypergeom.pmf(lifted, n_units, one_short.numpy(), k))
        counts.index_add_(0, states[:, -1] + lifted, chances * p)
    return counts[: min(n_units, k * n_sets // at_least) + 1]


def _with_one_more_set(
    states: Int[Tensor, "state kind"], chances: Float[Tensor, " state"], n_units: int, k: int
) -> tuple[Int[Tensor, "following kind"], Float[Tensor, " following"]]:
    """Every state that one more set can lead to, with its chance."""
    following, weights = [], []
    for state, chance in zip(states, chances, strict=True):
        kinds = torch.cat([n_units - state.sum()[None], state])  # units in no set yet come first
        drawn = torch.cartesian_prod(*(torch.arange(min(n, k) + 1) for n in state.tolist()))
        drawn = drawn.reshape(-1, len(state))
        drawn = torch.cat([k - drawn.sum(1, keepdim=True), drawn], 1)  # of each kind, k in all
        drawn = drawn[(drawn[:, 0] >= 0) & (drawn[:, 0] <= kinds[0])]
        p = multivariate_hypergeom.pmf(drawn.numpy(), kinds.numpy(), k)
        new = state + drawn[:, :-1]
        new[:, :-1] -= drawn[:, 1:-1]  # what is over the threshold stays there
        following.append(new)
        weights.append(chance * torch.as_tensor(p))
    unique, where = torch.unique(torch.cat(following), dim=0, return_inverse=True)
    total = torch.zeros(len(unique), dtype=torch.float64)
    return unique, total.index_add_(0, where, torch.cat(weights))


def _effects(
    matrices: Float[Tensor, "unit prompt country"],
) -> tuple[
    Float[Tensor, "unit prompt #country"],
    Float[Tensor, "unit #prompt country"],
    Float[Tensor, "unit prompt country"],
]:
    """Prompt effects, country effects and residual, each scaled to the size it has in the world.

    Subtracting means shrinks them. With a single country nothing is split off or subtracted.
    """
    n_prompts, n_countries = matrices.shape[1:]
    nothing = torch.zeros_like(matrices)
    if n_countries == 1:
        return matrices, nothing, nothing
    mean = matrices.mean((1, 2), keepdim=True)
    prompts = matrices.mean(2, keepdim=True) - mean
    countries = matrices.mean(1, keepdim=True) - mean
    residual = matrices - prompts - countries - mean
    p, c = n_prompts / (n_prompts - 1), n_countries / (n_countries - 1)
    return prompts * p**0.5, countries * c**0.5, residual * (p * c) ** 0.5


def _t(matrices: Float[Tensor, "unit prompt country"]) -> Float[Tensor, " unit"]:
    mean, variance = mean_and_variance(matrices)
    # Values without any spread give no scale to judge by, so they count as no evidence.
    return torch.where(variance > 0, mean / variance.sqrt(), 0.0)
