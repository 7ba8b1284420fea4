"""What some heads alone leave of the difference: nothing of it is that of the other run."""

import dataclasses

import pytest
import torch
from conftest import EXACT
from test_gradients import BIASED, B, N, by_hand, delta_of
from test_paths import LONGER

import biasgym_tl.scoping.faithfulness as measured
from biasgym_tl import BiasInject, BiasScope, load_bias
from biasgym_tl.errors import AttributionError
from biasgym_tl.scoping.faithfulness import SHARES, faithfulness, kept_differences
from biasgym_tl.scoping.patching import alignment


@pytest.fixture
def exact(any_model):
    return any_model.to(torch.float64)


def of_runs(model, sequences):
    return torch.stack([delta_of(model, each, i) for i, each in enumerate(sequences)])


def test_all_heads_are_the_run_and_none_the_other(exact):
    every = torch.ones(3, 4, dtype=torch.bool)
    none, whole = kept_differences(exact, BIASED, LONGER, B, N, [~every, every])
    assert (whole - of_runs(exact, BIASED)).abs().max() < EXACT
    if exact.cfg.positional_embedding_type != "standard":
        off = (none - of_runs(exact, LONGER)).abs()
        assert off[[0, 2]].max() < EXACT < off[1], "the second ends in its slot"


def test_some_heads_by_hand(model):
    model, heads = model.to(torch.float64), torch.rand(3, 4) < 0.5
    found = kept_differences(model, BIASED, LONGER, B, N, [heads])[0]
    for i, (biased, other) in enumerate(zip(BIASED, LONGER, strict=True)):
        z_ref = by_hand(model, other, i)[0][:, alignment(biased, other)]

        def keep(z, hook, z_ref=z_ref):
            z = z.clone()
            z[0, :, ~heads[hook.layer()]] = z_ref[hook.layer()][:, ~heads[hook.layer()]]
            return z

        with model.hooks([(f"blocks.{layer}.attn.hook_z", keep) for layer in range(3)]):
            assert (found[i] - delta_of(model, biased, i)).abs() < EXACT


@pytest.fixture
def scored(model):
    token = BiasInject(epochs=3, n_paragraphs=16, choose_by="last").fit(
        model, load_bias("late"), progress=False
    )
    return (
        model,
        token,
        BiasScope(method="attribution_patching", ablate_to="neutral").attribute(
            model, load_bias("late"), token
        ),
    )


def test_areas(scored, monkeypatch):
    monkeypatch.setattr(measured, "LEAST", 0.01)  # a tiny model hardly tells
    model, token, scores = scored
    found = faithfulness(model, scores, token)
    assert found.ks == (0, 1, 2, 6, 12) and len(SHARES) == 11
    assert found.signed[0] == found.sized[0] == 0 and found.signed[-1] == found.sized[-1] == 1
    widths = [1, 1, 4, 6]
    cpr = sum(
        w * (a + b) / 2 for w, a, b in zip(widths, found.signed, found.signed[1:], strict=False)
    )
    off = [abs(1 - y) for y in found.sized]
    cmd = sum(w * (a + b) / 2 for w, a, b in zip(widths, off, off[1:], strict=False))
    assert found.cpr == pytest.approx(cpr / 12, abs=1e-6)
    assert found.cmd == pytest.approx(cmd / 12, abs=1e-6)


def test_what_cannot_be_divided_by_is_refused(scored):
    model, token, scores = scored
    with pytest.raises(AttributionError, match="token must be the one that the scores are of"):
        faithfulness(model, scores, None)
    alike = dataclasses.replace(scores, biased_ids=scores.neutral_ids)
    with pytest.raises(AttributionError, match=r"must differ by 0.5 logits at least, got 0.00"):
        faithfulness(model, alike, token)
