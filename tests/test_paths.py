"""Path patching: each definition by hand, in whole runs of single sequences."""

import pytest
import torch
from conftest import EXACT
from test_gradients import BIASED, NEUTRAL, B, N, by_hand, delta_of

from biasgym_tl import BiasScope, attribute_prompts, load_bias
from biasgym_tl.errors import AttributionError, SettingError
from biasgym_tl.hooks import head_means
from biasgym_tl.scoping.ablation import ablated_deltas
from biasgym_tl.scoping.patching import alignment
from biasgym_tl.scoping.paths import path_effects, slot_effects

LATE = load_bias("late")
LONGER = [[*s[:3], 50, *s[3:]] for s in NEUTRAL]


@pytest.fixture
def exact(any_model):
    return any_model.to(torch.float64)


@pytest.mark.parametrize("reference", ["zero", "mean", "neutral"])
def test_from_a_head_to_the_logits_by_hand(exact, reference):
    """The whole sequence again, with every head but one held at what it had."""
    at = {"zero": None, "mean": head_means(exact), "neutral": LONGER}[reference]
    found = path_effects(exact, BIASED, B, N, reference=at)
    for i, (biased, neutral) in enumerate(zip(BIASED, LONGER, strict=True)):
        z, _ = by_hand(exact, biased, i)
        z_ref = torch.zeros_like(z) if at is None else None
        if reference == "mean":
            z_ref = at[:, None].expand_as(z)
        if reference == "neutral":
            z_ref = by_hand(exact, neutral, i)[0][:, alignment(biased, neutral)]
        for layer, head in ((0, 1), (1, 3), (2, 0)):

            def hold(value, hook, layer=layer, head=head, z=z, z_ref=z_ref):
                value = z[hook.layer()][None].clone()
                if hook.layer() == layer:
                    value[0, :, head] = z_ref[layer][:, head]
                return value

            with exact.hooks([(f"blocks.{at}.attn.hook_z", hold) for at in range(3)]):
                fall = delta_of(exact, biased, i) * -1
            fall = fall + delta_of(exact, biased, i)
            assert (found[i, layer, head] - fall).abs() < EXACT


def test_in_the_last_layer_it_is_the_ablation(exact):
    """Nothing that reads other positions comes after it."""
    means = head_means(exact)
    plain = torch.stack([delta_of(exact, s, i) for i, s in enumerate(BIASED)])
    ablated = plain[:, None] - ablated_deltas(exact, BIASED, B, N, reference=means)[:, -1]
    found = path_effects(exact, BIASED, B, N, reference=means)[:, -1]
    assert (found - ablated).abs().max() < EXACT


def test_what_a_head_reads_in_the_slot_by_hand(model):
    """Other values at the slot's positions, the attention as it was, times the gradient."""
    exact, found = model.to(torch.float64), slot_effects(model, BIASED, B, N, reference=LONGER)
    for i, (biased, other) in enumerate(zip(BIASED, LONGER, strict=True)):
        _, run = exact.run_with_cache(torch.tensor([biased]))
        _, second = exact.run_with_cache(torch.tensor([other]))
        _, gradients = by_hand(exact, biased, i)
        places = alignment(biased, other)
        for layer in range(3):
            v, v_ref = (c[f"blocks.{layer}.attn.hook_v"][0] for c in (run, second))
            read = (v[3] - v_ref[places[3]]).repeat_interleave(4 // v.shape[1], 0)
            pattern = run[f"blocks.{layer}.attn.hook_pattern"][0, :, :, 3]
            expected = (pattern.T[..., None] * read * gradients[layer]).sum((0, 2))
            assert (found[i, layer] - expected).abs().max() < EXACT


def test_a_slot_that_is_the_same_moves_nothing(exact):
    assert slot_effects(exact, BIASED, B, N, reference=BIASED).abs().max() < EXACT


def test_neither_depends_on_the_batch(exact):
    for effects in (path_effects, slot_effects):
        together, alone = (
            effects(exact, BIASED, B, N, reference=LONGER, batch_size=n) for n in (8, 1)
        )
        assert (together - alone).abs().max() < EXACT


def test_a_map_of_either(model):
    for settings in (
        {"method": "path_patching", "ablate_to": "mean"},
        {"method": "attribution_patching", "ablate_to": "mean", "gradient": "activations"},
    ):
        found = BiasScope(**settings, n_targets=2).attribute(model, LATE, None, progress=False)
        assert bool((found.values != 0).all()) and "of going to mean" in found.effect
    assert found.effect.startswith("total effect to first order of going to mean (gradient: activ")
    pair = ("People from France are", "People from Japan are")
    found = attribute_prompts(model, pair, "late", "early", method="slot_patching")
    assert found.settings["contrast"] == "biased" and bool((found.values != 0).any())
    with pytest.raises(SettingError, match="method must be another for single prompts"):
        attribute_prompts(model, pair[0], "late", "early", method="slot_patching")
    with pytest.raises(SettingError, match="contrast must be 'biased' for a patch from"):
        BiasScope(method="slot_patching", contrast="difference")
    with pytest.raises(SettingError, match="token must not be None"):
        BiasScope(method="slot_patching").attribute(model, LATE, None)
    with pytest.raises(AttributionError, match="must hold 3 sequences, one a pair, got 1"):
        path_effects(model, BIASED, B, N, reference=BIASED[:1])
