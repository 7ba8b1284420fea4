"""Agreement of maps, of seeds, concentration and significance, on planted numbers."""

import dataclasses
import math

import pytest
import torch

from biasgym_tl.chance import overlap_distribution
from biasgym_tl.errors import SettingError
from biasgym_tl.heads import Head
from biasgym_tl.scoping.agreement import seed_overlap, significance
from biasgym_tl.scoping.compare import (
    compare,
    concentration,
    rank_correlation,
    stepped_up,
    top_overlap,
)
from biasgym_tl.scoping.scores import HeadScores


def scores(values, *, neutral=None, method="direct", **changes):
    """Scores with the given value of each head on each pair."""
    n = len(values)
    found = HeadScores(
        pair_values=values.double(),
        neutral_values=neutral,
        delta=torch.zeros(n),
        neutral_delta=torch.zeros(n, 1 if neutral is None else neutral.shape[1]),
        prompts=tuple(f"prompt {i} {{target}}" for i in range(n)),
        targets=tuple(("Italy",) for _ in range(n)),
        label_targets=("Italy",),
        biased_labels=(" late",) * n,
        neutral_labels=(" on",) * n,
        model="tiny",
        bias="late",
        token="late, seed 0",
        n_key_value_heads=4,
        settings={
            "method": method,
            "contrast": "biased" if neutral is None else "difference",
            "answer_only": False,
            "ablate_to": "zero",
        },
        versions={},
    )
    return dataclasses.replace(found, **changes)


def noisy(signal, n_pairs, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    return signal + noise * torch.randn(n_pairs, *signal.shape, generator=generator).double()


SIGNAL = torch.randn(6, 4, generator=torch.Generator().manual_seed(9)).double()


def test_rank_correlation_and_overlap_by_hand():
    a = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4]])
    b = torch.tensor([[10.0, 20, 30, 40], [4, 3, 2, 1]])
    assert rank_correlation(a, b).tolist() == pytest.approx([1, -1])
    assert top_overlap(a, b, 2).tolist() == [1, 0]
    assert top_overlap(a, b, 3).tolist() == pytest.approx([1, 2 / 3])


def test_maps_of_one_signal_agree_as_far_as_their_noise_allows():
    a, b = (scores(noisy(SIGNAL, 24, 1.0, seed)) for seed in (1, 2))
    c = scores(noisy(SIGNAL.flip(0), 24, 1.0, 3), method="zero_ablation")
    found = compare([a, b, c], names=["a", "b", "c"], k=4)
    agreement = found.rank_correlation["a", "b"]
    assert agreement.low < agreement.estimate < agreement.high and agreement.estimate > 0.8
    assert found.rank_correlation["a", "c"].estimate < 0.5
    assert all(0.8 < found.reliability[name] < 1 for name in "abc")
    assert found.effects[2] == "total effect of zeroing at all positions, biased run"
    frame = found.to_df()
    assert len(frame) == 3 and frame["effect_second"][1] == found.effects[2]
    assert frame["rank_correlation_low"][0] == agreement.low
    assert "a / b" in repr(found)


def test_agreement_without_noise_is_that_of_the_signals():
    """The intervals are around what so many prompts give, which noise holds down."""
    size = (20, 20)
    generator = torch.Generator().manual_seed(3)
    signal, more = (torch.randn(size, generator=generator).double() for _ in range(2))
    other = (signal + more) / 2**0.5
    true = rank_correlation(signal.flatten()[None], other.flatten()[None]).item()
    for noise in (0.5, 4.0):
        maps = [scores(noisy(x, 16, noise, seed)) for seed, x in enumerate((signal, other))]
        found = compare(maps, names=["a", "b"], n_splits=60)
        assert found.without_noise["a", "b"] == pytest.approx(true, abs=0.08)
    assert found.rank_correlation["a", "b"].high < true  # of the noisier ones
    assert found.to_df()["without_noise"][0] == found.without_noise["a", "b"]
    shared = noisy(torch.zeros(size).double(), 16, 4.0, 7)  # noise of prompts, in both maps
    maps = [scores(noisy(x, 16, 1.0, 9) + shared) for x in (signal, other)]
    found = compare(maps, names=["a", "b"], n_splits=60)
    assert found.without_noise["a", "b"] == pytest.approx(true, abs=0.12)
    nothing = [scores(noisy(torch.zeros(size), 16, 1.0, seed)) for seed in (1, 2)]
    values = compare(nothing, names=["a", "b"], n_splits=60).without_noise["a", "b"]
    assert math.isnan(values) or -1 <= values <= 1


def test_reliability_sees_noise():
    clean, loud = scores(noisy(SIGNAL, 24, 0.1, 1)), scores(noisy(SIGNAL, 24, 20.0, 2))
    found = compare([clean, loud], names=["clean", "loud"])
    assert found.reliability["clean"] > 0.95 and found.reliability["loud"] < 0.6


def test_reliability_is_what_another_sample_of_prompts_gives():
    draws = [scores(noisy(SIGNAL, 21, 4.0, seed)) for seed in range(40)]
    said = [compare([d, draws[0]], names=["a", "b"], n_splits=20).reliability["a"] for d in draws]
    means = torch.stack([draw.values.flatten() for draw in draws])
    seen = rank_correlation(means[::2], means[1::2]).mean().item()
    assert 0.3 < seen < 0.75
    assert sum(said) / 40 == pytest.approx(seen, abs=0.1)
    assert stepped_up(0.5) == pytest.approx(2 / 3) and stepped_up(-0.5) == -0.5


def test_intervals_are_as_wide_as_the_agreement_varies():
    """Over repeated draws of an odd number of prompts."""
    other = SIGNAL + 0.7 * torch.randn(6, 4, generator=torch.Generator().manual_seed(5)).double()
    estimates, widths = [], []
    for seed in range(60):
        a, b = scores(noisy(SIGNAL, 9, 0.7, seed)), scores(noisy(other, 9, 0.7, 100 + seed))
        interval = compare([a, b], names=["a", "b"], n_splits=60).rank_correlation["a", "b"]
        estimates.append(interval.estimate)
        widths.append(interval.high - interval.low)
    true_width = 2 * 1.96 * torch.tensor(estimates).std().item()
    assert 0.7 * true_width < sum(widths) / 60 < 1.5 * true_width


def test_a_share_does_not_fall_below_0():
    a, b = scores(noisy(SIGNAL, 8, 3.0, 1)), scores(noisy(-SIGNAL, 8, 3.0, 2))
    found = compare([a, b], names=["a", "b"], k=3).overlap["a", "b"]
    assert 0 <= found.low <= found.estimate <= found.high <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, r"model of all scores must be the same, got \['other', 'tiny'\]"),
        ({"prompts": ("one",) * 8}, "prompts of all scores must be the same"),
        ({"biased_labels": (" too",) * 8}, "biased_labels of all scores must be the same"),
    ],
)
def test_maps_that_cannot_be_compared(changes, message):
    one = scores(noisy(SIGNAL, 8, 1.0, 1))
    with pytest.raises(SettingError, match=message):
        compare([one, dataclasses.replace(one, **changes)], names=["a", "b"])


def test_wrong_numbers_of_maps():
    one, few = scores(noisy(SIGNAL, 8, 1.0, 1)), scores(noisy(SIGNAL, 3, 1.0, 1))
    with pytest.raises(SettingError, match="two or more, each with a name of its own, got 1"):
        compare([one])
    with pytest.raises(SettingError, match=r"got 2 named \['direct', 'direct'\]"):
        compare([one, one])
    with pytest.raises(SettingError, match="at least 4 prompts, got 3"):
        compare([few, few], names=["a", "b"])
    with pytest.raises(SettingError, match=r"k must be in 1\.\.24, got 25"):
        compare([one, one], names=["a", "b"], k=25)


def test_concentration_by_hand():
    found = concentration(torch.tensor([[4.0, -9.0], [3.0, 3.0]]))
    assert found.curve.tolist() == pytest.approx([0.4, 0.7, 1.0, 1.0])
    assert found.share(2) == pytest.approx(0.7) and found.share(99) == 1
    assert [found.k_for(share) for share in (0.4, 0.5, 0.8, 1.0)] == [1, 2, 3, 3]
    assert found.effective_heads == pytest.approx(100 / 34)
    assert "effective heads 2.9; 50% in 2, 80% in 3, 90% in 3" in repr(found)
    with pytest.raises(SettingError, match="k must be at least 1, got 0"):
        found.share(0)
    with pytest.raises(SettingError, match="no head pushes toward"):
        concentration(torch.tensor([[-1.0, 0.0]]))


def test_seeds_that_agree_and_seeds_that_do_not():
    agreeing = [scores(noisy(SIGNAL, 12, 0.1, seed)) for seed in range(3)]
    unrelated = [scores(noisy(torch.zeros(6, 4), 12, 1.0, 50 + seed)) for seed in range(3)]
    found = seed_overlap(agreeing, k_per_seed=5, controls={"untrained row": unrelated})
    top = agreeing[0].top(5)
    assert set(found.heads(1)) >= set(top) and len(found.heads()) >= 4
    assert [a.at_least for a in found.agreements] == [1, 2, 3]
    last = found.agreements[-1]
    assert last.by_chance == pytest.approx(24 * (5 / 24) ** 3) and last.p < 1e-3
    assert last.controls["untrained row"] < last.n_heads
    assert found.agreements[0].p > 0.5  # agreeing seeds name few heads in all
    assert found.seeds_of()[top[0]] == 3
    assert found.jaccard.diagonal().tolist() == [1, 1, 1] and found.rank_correlation.min() > 0.9
    assert found.stability[-1].jaccard == 1 and found.stability[0].size == 5
    assert found.to_df()["untrained row"].tolist()[0] >= 5
    assert "heads in the top 5 of all 3 seeds" in repr(found)


def test_wrong_seeds():
    one = scores(noisy(SIGNAL, 8, 1.0, 1))
    with pytest.raises(SettingError, match="scores must hold one map for each of at least 2"):
        seed_overlap([one])
    with pytest.raises(SettingError, match="other must hold one map for each"):
        seed_overlap([one, one], controls={"other": [one]})
    with pytest.raises(SettingError, match=r"method of all scores must be the same, got \['dir"):
        seed_overlap([one, scores(noisy(SIGNAL, 8, 1.0, 1), method="zero_ablation")])
    with pytest.raises(SettingError, match=r"k_per_seed must be in 1\.\.24, got 30"):
        seed_overlap([one, one])
    with pytest.raises(SettingError, match=r"at_least must be in 1\.\.2, got 3"):
        seed_overlap([one, one], k_per_seed=3).heads(3)


def test_significance_finds_the_planted_heads():
    planted = torch.zeros(6, 4).double()
    planted[2, 1], planted[4, 3] = 3.0, 2.0
    generator = torch.Generator().manual_seed(0)
    neutral = torch.randn(20, 5, 6, 4, generator=generator).double()
    found = significance(scores(noisy(planted, 20, 1.0, 4), neutral=neutral), n_flips=499)
    assert found.heads()[:2] == (Head(2, 1), Head(4, 3))
    assert found.p[2, 1] < 0.01 and found.p[0, 0] > 0.05
    assert found.low[2, 1] < 3 < found.high[2, 1] and found.low[2, 1] > 1
    assert found.to_df()["head"][0] in ("L2H1", "L4H3") and "of 24 heads" in repr(found)


def test_one_clear_head_among_a_thousand_is_found():
    """With 1,999 flips no p is below 1 / 2000, so that q of one head alone is 1024 / 2000."""
    planted = torch.zeros(32, 32).double()
    planted[2, 1] = 3.0
    found = scores(noisy(planted, 16, 0.5, 4), neutral=torch.zeros(16, 1, 32, 32).double())
    tested = significance(found, n_resamples=9)
    assert tested.heads() == (Head(2, 1),) and tested.settings["n_flips"] == 20480
    few = significance(found, n_flips=1999, n_resamples=9)
    assert few.heads() == () and few.q[2, 1] > 0.05
    assert "1999 flips are few: one head alone needs 20480" in repr(few)
    assert "flips" not in repr(tested)


def test_significance_needs_the_neutral_side():
    with pytest.raises(SettingError, match="contrast must be 'difference' for this"):
        significance(scores(noisy(SIGNAL, 8, 1.0, 1)))


def test_the_contrast_decides_the_values():
    neutral = torch.ones(8, 2, 6, 4).double()
    values = noisy(SIGNAL, 8, 1.0, 1)
    difference = scores(values, neutral=neutral)
    assert torch.allclose(difference.values, values.mean(0) - 1)
    assert torch.equal(scores(values).values, values.mean(0))


def test_many_seeds_are_simulated():
    many = [scores(noisy(torch.zeros(6, 4), 6, 1.0, seed)) for seed in range(6)]
    found = seed_overlap(many, k_per_seed=5)
    assert found.agreements[0].by_chance == pytest.approx(24 * (1 - (19 / 24) ** 6))
    assert all(0 < a.p <= 1 for a in found.agreements)
    five = seed_overlap(many[:5], k_per_seed=5).agreements
    expected = sum(x * p for x, p in enumerate(overlap_distribution(24, 5, 5, 2).tolist()))
    assert five[1].by_chance == pytest.approx(expected)
