"""Without an effect, 5% stays 5%; 95% intervals hold the truth in 93 to 97% of worlds.

The simulated worlds have prompt and country effects, as measurements on prompts and countries do.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, hypergeom, norm, ttest_1samp, ttest_ind
from scipy.stats import t as student_t

from biasgym_tl.chance import (
    benjamini_hochberg,
    mcnemar,
    overlap_distribution,
    prompt_flip_test,
    rank_p,
)
from biasgym_tl.errors import SettingError
from biasgym_tl.stats import (
    Interval,
    clustered_interval,
    column_spread,
    crossed_interval,
    few_rows_interval,
    independent_difference,
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


NAN = float("nan")


def test_clustered_interval_by_hand():
    """Mean 9 / 3 = 3; without a it is 2, without b 4: (4 - 2) / 2 = 1 is the standard error."""
    values = torch.tensor([4.0, 1.0, 3.0, 4.0, NAN])
    found = clustered_interval(values, ["a", "b", "b", "a", "c"])
    t = student_t.isf(0.025, 1)
    assert found == pytest.approx(Interval(3.0, 3 - t, 3 + t))  # c does not count, so G = 2
    uneven = clustered_interval(torch.tensor([6.0, 0.0, 3.0]), ["a", "b", "b"])
    # Without a the mean falls from 3 to 1.5, without b it rises to 6.
    assert uneven == pytest.approx(
        Interval(3.0, *(3 + s * t * math.sqrt((1.5**2 + 3**2) / 2) for s in (-1, 1)))
    )
    half = clustered_interval(values, ["a", "b", "b", "a", "c"], level=0.5)
    assert half.high == pytest.approx(3 + student_t.isf(0.25, 1))


def test_clustered_interval_of_a_difference_by_hand():
    """Means 3 and 2, each over what counts there; leaving out a, b or c moves both."""
    here = torch.tensor([4.0, 2.0, 3.0, NAN])
    there = torch.tensor([2.0, NAN, 1.0, 3.0])
    found = clustered_interval(here, ["a", "b", "c", "c"], there)
    shifts = [-0.5 - 0, 0.5 - 0, (3 - 3) - 0]  # in b `there` has no item, and c has its mean 2
    error = math.sqrt(2 / 3 * sum(shift**2 for shift in shifts))
    t = student_t.isf(0.025, 2)
    assert found == pytest.approx(Interval(1.0, 1 - t * error, 1 + t * error))
    same = clustered_interval(here, ["a", "b", "c", "c"], here)
    assert same == Interval(0.0, 0.0, 0.0)
    # With the same items in both, this is the interval of the differences.
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=30)) for _ in range(2))
    clusters = rng.integers(7, size=30).tolist()
    assert clustered_interval(a, clusters, b) == pytest.approx(clustered_interval(a - b, clusters))


def test_one_item_a_cluster_is_the_plain_t_interval():
    values = torch.tensor([1.0, 2.0, 4.0, NAN, 9.0])
    plain = ttest_1samp([1, 2, 4, 9], 0).confidence_interval(0.95)
    found = clustered_interval(values, range(5))
    assert found == pytest.approx(Interval(4.0, *plain))
    # Equal clusters are as good as their means.
    pairs = clustered_interval(torch.tensor([0.0, 2, 1, 3, 3, 5, 8, 10]), [0, 0, 1, 1, 2, 2, 3, 3])
    assert pairs == pytest.approx(found)


def test_clustered_intervals_without_enough_clusters():
    values = torch.tensor([1.0, 3.0, NAN])
    one = clustered_interval(values, ["a", "a", "b"])
    assert one.estimate == 2 and math.isnan(one.low) and math.isnan(one.high)
    assert all(map(math.isnan, clustered_interval(torch.full((3,), NAN), "abc")))
    assert all(map(math.isnan, clustered_interval(values, "abc", torch.full((3,), NAN))))
    # All of `there` in one cluster: how it varies between clusters cannot be known.
    alone = clustered_interval(values, "abc", torch.tensor([1.0, NAN, NAN]))
    assert alone.estimate == 1 and math.isnan(alone.low)


@pytest.mark.parametrize(("n_clusters", "mean_size"), [(10, 10), (57, 4)])
def test_clustered_intervals_cover(n_clusters, mean_size):
    """Clusters of very unequal size, items that share their fate, a fifth that does not count."""
    rng, covered, ignoring = np.random.default_rng(6), [], []
    for _ in range(400):
        sizes = rng.geometric(1 / mean_size, n_clusters)
        clusters = np.repeat(np.arange(n_clusters), sizes)
        effect, residual = rng.normal(size=n_clusters), rng.normal(size=len(clusters))
        values = torch.from_numpy(effect[clusters] + residual)
        values[torch.from_numpy(rng.random(len(clusters)) < 0.2)] = NAN
        covered.append(not clustered_interval(values, clusters.tolist()).excludes(0.0))
        ignoring.append(not clustered_interval(values, range(len(values))).excludes(0.0))
    assert 0.92 <= np.mean(covered) <= 0.97
    assert np.mean(ignoring) < 0.8  # as if items were independent


def test_clustered_intervals_of_paired_shares_cover():
    """40 subjects of 6 questions; each subject has its own chance, and its own chance of loss."""
    rng, covered = np.random.default_rng(8), []
    for _ in range(400):
        right = rng.beta(4, 4, 40)[:, None] > rng.random((40, 6))
        lost = rng.beta(1, 3, 40)[:, None] > rng.random((40, 6))
        before, after = (torch.from_numpy(x.ravel() * 1.0) for x in (right, right & ~lost))
        found = clustered_interval(after, np.repeat(range(40), 6).tolist(), before)
        covered.append(not found.excludes(-0.5 * 0.25))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_mcnemar_by_hand():
    before = torch.tensor([1.0, 1, 1, 1, 1, 0, 0, NAN, 1])
    after = torch.tensor([0.0, 0, 0, 0, 1, 0, 1, 1, NAN])
    found = mcnemar(before, after)
    # 4 lost, 1 gained: P(at most 1 of 5) = (1 + 5) / 32, twice for both sides.
    assert found == (4, 1, pytest.approx(12 / 32))
    assert mcnemar(after, before) == (1, 4, pytest.approx(12 / 32))
    assert mcnemar(before, before) == (0, 0, 1.0)
    assert mcnemar(torch.ones(9), torch.zeros(9)).p == pytest.approx(2 / 2**9)


@pytest.mark.parametrize("n", [5, 6, 20, 33])
def test_mcnemar_rejects_at_most_five_percent_without_an_effect(n):
    """Of n changed items, lost is binomial; 5 are too few for p <= 0.05."""
    p = [mcnemar((torch.arange(n) < k).double(), (torch.arange(n) >= k).double()).p
         for k in range(n + 1)]  # fmt: skip
    rejected = binom.pmf(np.arange(n + 1), n, 0.5)[np.array(p) <= 0.05].sum()
    assert rejected == 0 if n == 5 else 0.02 < rejected <= 0.05


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
    with pytest.raises(SettingError, match="level must lie between 0 and 1, got 0.0"):
        clustered_interval(torch.ones(3), "abc", level=0.0)
    with pytest.raises(SettingError, match="as many as clusters, got .* with 2 clusters"):
        clustered_interval(torch.ones(3), "ab")
    with pytest.raises(SettingError, match="values must be finite or NaN"):
        clustered_interval(torch.ones(3), "abc", torch.tensor([1.0, 2.0, float("inf")]))
    with pytest.raises(SettingError, match=r"after must hold 0, 1 or NaN, got tensor\(\[0.5"):
        mcnemar(torch.ones(1), torch.tensor([0.5]))
    with pytest.raises(SettingError, match="must hold the same items, got 1 and 2"):
        mcnemar(torch.ones(1), torch.ones(2))
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


@pytest.mark.parametrize("sds", [{}, {"prompt_sd": 0.3, "country_sd": 1.0}, {"country_sd": 0.0}])
def test_intervals_of_independent_samples_cover(sds):
    rng = np.random.default_rng(7)
    found = [
        independent_difference(
            world(rng, 20, 10, **sds), [world(rng, 12, 4, **sds) for _ in range(2)]
        )
        for _ in range(600)
    ]
    assert 0.93 <= np.mean([not interval.excludes(0.0) for interval in found]) <= 0.98


def biases(rng, sd):
    """Four biases of true mean 0 with 20 prompts each, about the same 10 countries."""
    countries = 0.2 * rng.normal(size=(1, 1, 10)) + 0.2 * rng.normal(size=(4, 1, 10))
    prompts = 0.3 * rng.normal(size=(4, 20, 1)) + 0.3 * rng.normal(size=(4, 20, 10))
    return torch.from_numpy(sd * rng.normal(size=(4, 1, 1)) + countries + prompts)


@pytest.mark.parametrize("sd", [0.0, 0.4, 1.0])
def test_intervals_over_biases_cover_however_much_biases_differ(sd):
    rng = np.random.default_rng(2)
    found = [few_rows_interval(biases(rng, sd).mean(1)) for _ in range(800)]
    assert 0.93 <= np.mean([not interval.excludes(0.0) for interval in found]) <= 0.98


def test_stacking_the_prompts_of_biases_would_not_cover():
    rng = np.random.default_rng(2)
    stacked = (biases(rng, 0.4).reshape(80, 10) for _ in range(200))
    found = [crossed_interval(values, n_resamples=199) for values in stacked]
    assert np.mean([not interval.excludes(0.0) for interval in found]) < 0.65


def test_the_interval_of_few_rows_is_students_for_one_column():
    values = np.random.default_rng(1).normal(size=5)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = few_rows_interval(torch.from_numpy(values)[:, None])
    assert found == pytest.approx((values.mean(), expected.low, expected.high))
    assert few_rows_interval(torch.ones(3, 2)) == Interval(1.0, 1.0, 1.0)
    assert math.isnan(few_rows_interval(torch.ones(1, 2)).low)
    with pytest.raises(SettingError, match="values must be finite"):
        few_rows_interval(torch.tensor([[math.nan]]))


def test_a_difference_of_two_columns_is_the_welch_test():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=12), rng.normal(1, 3, size=9)
    columns = (torch.from_numpy(values)[:, None] for values in (one, other))
    found = independent_difference(next(columns), [next(columns)])
    expected = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert found[1:] == pytest.approx((expected.low, expected.high))
    assert found.estimate == pytest.approx(one.mean() - other.mean())


def test_a_difference_of_constants_has_no_width_and_of_single_rows_no_ends():
    one, other = torch.full((3, 2), 2.0), torch.full((4, 1), 0.5)
    assert independent_difference(one, [other]) == Interval(1.5, 1.5, 1.5)
    assert math.isnan(independent_difference(one[:1], [other]).low)
    with pytest.raises(SettingError, match="minus must hold at least one matrix, got none"):
        independent_difference(one, [])


def test_the_spread_of_columns_is_theirs_without_noise():
    rows, columns = torch.tensor([0.0, 1, 2, 5]), torch.tensor([0.0, 0.5, 2])
    assert column_spread(rows[:, None] + columns) == pytest.approx(columns.std().item())
    assert math.isnan(column_spread(rows[:, None]))
    rng = np.random.default_rng(3)
    found = [column_spread(world(rng, 20, 10, country_sd=0.6)) ** 2 for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.36, abs=0.03)
    noise = [column_spread(world(rng, 20, 10, country_sd=0.0)) for _ in range(300)]
    assert np.mean(np.array(noise) == 0) > 0.4


def test_equivalence_needs_the_whole_interval_within_the_margin():
    assert Interval(0.0, -0.2, 0.2).within(0.3) and Interval(0.1, -0.3, 0.3).within(0.3)
    assert not Interval(0.0, -0.4, 0.4).within(0.3) and not Interval(0.2, 0.1, 0.31).within(0.3)
    assert not Interval(0.0, math.nan, math.nan).within(0.3)
