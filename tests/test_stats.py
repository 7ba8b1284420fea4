"""Without an effect, 5% stays 5%; 95% intervals hold the truth in 93 to 97% of worlds.

The simulated worlds have prompt and country effects, as measurements on prompts and countries do.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, hypergeom, norm

from biasgym_tl.errors import SettingError
from biasgym_tl.stats import (
    Interval,
    benjamini_hochberg,
    crossed_interval,
    overlap_distribution,
    prompt_flip_test,
    rank_p,
    share_change_interval,
    share_interval,
)


def world(rng, prompts, countries, *units, prompt_sd=1.0, country_sd=0.5, residual_sd=1.0):
    """Values of mean 0: prompt effect + country effect + residual, separate for each unit."""
    return torch.from_numpy(
        prompt_sd * rng.normal(size=(prompts, 1, *units))
        + country_sd * rng.normal(size=(1, countries, *units))
        + residual_sd * rng.normal(size=(prompts, countries, *units))
    )


@pytest.mark.parametrize(
    ("shape", "sds"),
    [
        ((20, 10), {}),
        ((20, 10), {"prompt_sd": 0.3, "country_sd": 1.0}),
        ((20, 5), {"country_sd": 0.3, "residual_sd": 0.5}),  # five random draws as columns
        ((24, 1), {"country_sd": 0}),
    ],
)
def test_intervals_cover(shape, sds):
    rng = np.random.default_rng(5)
    found = [crossed_interval(world(rng, *shape, **sds), n_resamples=599) for _ in range(800)]
    assert 0.93 <= np.mean([not interval.excludes(0.0) for interval in found]) <= 0.97


def test_ignoring_countries_would_not_cover():
    """The reason for two factors: prompts alone give intervals that are far too narrow."""
    rng = np.random.default_rng(5)
    worlds = [world(rng, 20, 10, prompt_sd=0.3, country_sd=1.0) for _ in range(300)]
    found = [crossed_interval(w.mean(1, keepdim=True), n_resamples=299) for w in worlds]
    assert np.mean([not interval.excludes(0.0) for interval in found]) < 0.7


def test_interval_of_an_additive_table_by_hand():
    """Without residual the variance is s_a^2 / I + s_b^2 / J, and the interval follows it."""
    rows, columns = torch.tensor([0.0, 1, 2, 5]), torch.tensor([0.0, 0.5, 2])
    values = rows[:, None] + columns
    found = crossed_interval(values)
    standard_error = math.sqrt(rows.var().item() / 4 + columns.var().item() / 3)
    assert found.estimate == pytest.approx(values.mean().item())
    assert found.low < found.estimate - standard_error
    assert found.high > found.estimate + standard_error
    assert crossed_interval(values) == found != crossed_interval(values, seed=1)
    assert crossed_interval(values * 10 + 3).low == pytest.approx(found.low * 10 + 3)
    narrow = crossed_interval(values, level=0.5)
    assert found.low < narrow.low < narrow.estimate < narrow.high < found.high


def test_intervals_of_few_or_equal_values():
    assert crossed_interval(torch.full((5, 2), 3.0)) == Interval(3.0, 3.0, 3.0)
    tenth = crossed_interval(torch.full((7, 3), 0.1))  # 0.1 is not exact, its spread is still 0
    assert tenth.low == tenth.high == pytest.approx(0.1)
    single = crossed_interval(torch.tensor([[2.0]]))
    assert single.estimate == 2 and math.isnan(single.low) and math.isnan(single.high)
    assert str(Interval(1.234, -1, 2)) == "+1.23 [-1.00, +2.00]" and str(single) == "+2.00"


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_intervals_of_shares_cover(share):
    """Averaged over what n = 16 can show; the exact coverage of a share jumps with the share."""
    hits = np.arange(17)
    chance = binom.pmf(hits, 16, share)
    found = [share_interval((torch.arange(16) < h).double()) for h in hits]
    covered = sum(p for p, i in zip(chance, found, strict=True) if not i.excludes(share))
    assert 0.92 <= covered <= 0.99
    for h, interval in enumerate(found):
        wilson = binomtest(h, 16).proportion_ci(method="wilson")
        assert (interval.low, interval.high) == pytest.approx(tuple(wilson), abs=1e-12)
    assert found[0].low == 0 and 0.15 < found[0].high < 0.25  # 0 of 16 is not never
    assert all(0 <= i.low <= i.estimate <= i.high <= 1 for i in found)


def test_intervals_of_changes_of_shares_cover():
    rng = np.random.default_rng(3)
    for gain, loss in ((0.3, 0.1), (0.05, 0.02), (0.6, 0.0)):
        drawn = rng.choice([1.0, -1.0, 0.0], (4000, 24), p=[gain, loss, 1 - gain - loss])
        found = [share_change_interval(torch.from_numpy(row)) for row in drawn]
        assert 0.93 <= np.mean([not i.excludes(gain - loss) for i in found]) <= 0.995
    unchanged = share_change_interval(torch.zeros(24))
    assert unchanged.estimate == 0 and unchanged.low < 0 < unchanged.high


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("chance", [0.0, 0.02, 0.2])
def test_intervals_of_changes_of_groups_cover(chance, together):
    """64 countries of three facts, lost together or each by itself."""
    rng = np.random.default_rng(4)
    lost = rng.random((1000, 64, 3)) < chance
    lost = lost[:, :, :1].repeat(3, 2) if together else lost
    found = [share_change_interval(torch.from_numpy(-row.mean(1))) for row in lost]
    assert np.mean([not i.excludes(-chance) for i in found]) >= 0.93


def test_values_that_cannot_be_judged_are_refused():
    with pytest.raises(SettingError, match="values must be finite and at least one"):
        crossed_interval(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(SettingError, match="level must lie between 0 and 1, got 1.5"):
        crossed_interval(torch.ones(3, 3), level=1.5)
    with pytest.raises(SettingError, match="at least 2 prompts, got 1"):
        prompt_flip_test(torch.ones(1, 5, 3))
    with pytest.raises(SettingError, match="values of a share must lie between 0 and 1"):
        share_interval(torch.tensor([1.5, 1.0]))
    with pytest.raises(SettingError, match="changes of a share must lie between -1 and 1"):
        share_change_interval(torch.tensor([1.5, 1.0]))
    with pytest.raises(SettingError, match="probabilities between 0 and 1"):
        benjamini_hochberg(torch.tensor([0.1, 1.2]))


def per_pair_p(values, rng, n_flips=199):
    """The wrong test: every pair flips by itself."""

    def largest(v):
        flat = v.reshape(-1, v.shape[-1])
        return np.abs(flat.mean(0) / (flat.std(0, ddof=1) / math.sqrt(len(flat)))).max()

    v = values.numpy()
    found = largest(v)
    flips = [largest(v * rng.choice([-1.0, 1.0], (*v.shape[:2], 1))) for _ in range(n_flips)]
    return (1 + sum(f >= found for f in flips)) / (1 + n_flips)


@pytest.mark.parametrize(
    ("shape", "sds"),
    [
        ((24, 8, 12), {}),
        ((24, 8, 12), {"prompt_sd": 0.5, "country_sd": 1.0}),
        ((24, 1, 12), {"country_sd": 0}),
    ],
)
def test_five_percent_stays_five_percent(shape, sds):
    rng = np.random.default_rng(7)
    worlds = [world(rng, *shape, **sds) for _ in range(240)]
    rate = np.mean([prompt_flip_test(w, n_flips=99).p.min().item() <= 0.05 for w in worlds])
    assert 0.02 <= rate <= 0.08  # 5% within 2.2 standard errors


def test_flipping_pair_by_pair_fails():
    rng = np.random.default_rng(7)
    assert np.mean([per_pair_p(world(rng, 24, 8, 12), rng) <= 0.05 for _ in range(100)]) > 0.5


def test_the_flip_test_finds_a_planted_unit_and_no_other():
    values = world(np.random.default_rng(2), 24, 8, 3, 4)
    values[..., 1, 2] += 1.5
    found = prompt_flip_test(values)
    assert found.p.shape == found.statistic.shape == (3, 4)
    assert found.p[1, 2] < 0.01 and found.statistic[1, 2] > 3
    assert (found.p.flatten() < 0.05).sum() == 1
    again = prompt_flip_test(values)
    assert torch.equal(again.p, found.p)
    assert prompt_flip_test(torch.full((4, 2, 1), 2.0)).p.item() == 1  # no spread, no evidence


def test_q_values_by_hand():
    found = benjamini_hochberg(torch.tensor([[0.01, 0.04], [0.03, 0.5]]))
    assert torch.allclose(found, torch.tensor([[0.04, 0.16 / 3], [0.16 / 3, 0.5]]).double())


def test_q_values_keep_the_share_of_false_discoveries():
    """80 units without an effect, 20 with one: of those with q <= 0.1, at most a tenth is false."""
    rng, shares, found = np.random.default_rng(0), [], []
    for _ in range(400):
        z = rng.normal(size=100) + np.repeat([0.0, 3.0], [80, 20])
        q = benjamini_hochberg(torch.from_numpy(2 * norm.sf(np.abs(z))))
        chosen = (q <= 0.1).numpy()
        shares.append(chosen[:80].sum() / max(chosen.sum(), 1))
        found.append(chosen[80:].mean())
    assert 0.06 <= np.mean(shares) <= 0.1 and np.mean(found) > 0.5


def test_rank_p_by_hand():
    controls = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_p(3.0, controls) == 3 / 5 and rank_p(5.0, controls) == 1 / 5


def test_rank_p_is_uniform_without_an_effect():
    rng = np.random.default_rng(1)
    p = [rank_p(float(x[0]), torch.from_numpy(x[1:])) for x in rng.normal(size=(4000, 20))]
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 0.01


def test_overlap_of_two_sets_is_hypergeometric():
    found = overlap_distribution(270, 10, 2, 2)
    assert torch.allclose(found, torch.from_numpy(hypergeom.pmf(np.arange(11), 270, 10, 10)))


@pytest.mark.parametrize(("n_sets", "at_least"), [(3, 2), (5, 3), (5, 5), (4, 1)])
def test_overlap_of_random_sets_equals_simulation(n_sets, at_least):
    n_units, k, rng = 20, 6, np.random.default_rng(0)
    found = overlap_distribution(n_units, k, n_sets, at_least)
    assert found.sum().item() == pytest.approx(1)
    mean = (found * torch.arange(len(found))).sum().item()
    assert mean == pytest.approx(n_units * binom.sf(at_least - 1, n_sets, k / n_units))
    drawn = rng.random((20_000, n_sets, n_units)).argsort(-1) < k
    counts = (drawn.sum(1) >= at_least).sum(1)
    simulated = np.bincount(counts, minlength=len(found)) / len(counts)
    assert np.abs(simulated - found.numpy()).max() < 0.015


def test_overlap_refuses_impossible_numbers():
    with pytest.raises(SettingError, match=r"k must be in 1\.\.20, got 21"):
        overlap_distribution(20, 21, 3, 2)
    with pytest.raises(SettingError, match=r"at_least must be in 1\.\.3, got 4"):
        overlap_distribution(20, 5, 3, 4)
