"""Gradients of attribution patching: each definition by hand, and the sums that calculus gives."""

import pytest
import torch
from conftest import EXACT, FAMILIES

from biasgym_tl import BiasScope, load_bias
from biasgym_tl.allowed import GRADIENTS
from biasgym_tl.errors import SettingError
from biasgym_tl.hooks import head_means
from biasgym_tl.scoping.patching import patching_effects

BIASED = [[1, 7, 9, 30, 4], [1, 7, 9, 30], [1, 7, 9, 30, 8, 8, 12, 40]]
NEUTRAL = [[1, 7, 9, 55, 4], [1, 7, 9, 60], [1, 7, 9, 61, 8, 8, 12, 40]]
B, N = torch.tensor([10, 11, 12]), torch.tensor([20, 21, 22])


@pytest.fixture
def exact(any_model):
    return any_model.to(torch.float64)


def effects(model, gradient, sequences=BIASED, reference=NEUTRAL, **options):
    return patching_effects(
        model, sequences, B, N, reference=reference, gradient=gradient, **options
    )


def delta_of(model, sequence, i):
    """The logit difference at the end of a sequence, before a final soft cap."""
    logits, cap = model(torch.tensor([sequence]))[0, -1], model.cfg.output_logits_soft_cap
    logits = cap * (logits / cap).atanh() if cap and cap > 0 else logits
    return logits[B[i]] - logits[N[i]]


def by_hand(model, sequence, i, change=None, detached=None):
    """``z`` and its gradient in each layer, from a run of one sequence in which the embeddings are
    changed, or no gradient passes the branches of a layer."""
    found = []

    def keep(z, hook):
        found.append(z)
        return z

    hooks = [(f"blocks.{layer}.attn.hook_z", keep) for layer in range(3)]
    leaf = [("hook_embed", lambda e, hook: (change or (lambda e: e))(e).detach().requires_grad_())]
    closed = [
        (name, lambda out, hook: out.detach())
        for name in (f"blocks.{detached}.hook_attn_out", f"blocks.{detached}.hook_mlp_out")
        if name in model.hook_dict
    ]
    with torch.enable_grad(), model.hooks([*leaf, *hooks, *closed]):
        delta = delta_of(model, sequence, i)
        gradients = torch.autograd.grad(delta, found, allow_unused=True, materialize_grads=True)
    return torch.stack([z[0] for z in found]).detach(), torch.stack([g[0] for g in gradients])


def test_one_step_is_the_run(exact):
    plain = effects(exact, "run")
    for gradient in ("inputs", "activations"):
        assert torch.equal(effects(exact, gradient, n_steps=1), plain)


def test_both_runs(exact):
    """With slots of one length the roles can be exchanged, which turns the sign of the shift."""
    there, back = effects(exact, "run"), effects(exact, "run", NEUTRAL, BIASED)
    assert (effects(exact, "both") - (there - back) / 2).abs().max() < EXACT
    back = effects(exact, "both", NEUTRAL, BIASED)
    assert (effects(exact, "both") + back).abs().max() < EXACT


def test_over_inputs_by_hand(exact):
    found = effects(exact, "inputs", n_steps=3)
    for i, (biased, neutral) in enumerate(zip(BIASED, NEUTRAL, strict=True)):
        start = []
        by_hand(exact, neutral, i, lambda e, start=start: start.append(e) or e)
        z_ref, _ = by_hand(exact, neutral, i)
        z, _ = by_hand(exact, biased, i)
        line = [
            by_hand(exact, biased, i, lambda e, k=k, at=start[0]: at + k / 3 * (e - at))[1]
            for k in (1, 2, 3)
        ]
        expected = ((z - z_ref) * sum(line) / 3).sum((1, 3))
        assert (found[i] - expected).abs().max() < EXACT


def test_over_activations_by_hand(exact):
    means = head_means(exact)
    found = effects(exact, "activations", reference=means, n_steps=2)
    for i, sequence in enumerate(BIASED):
        z, at_run = by_hand(exact, sequence, i)
        for layer in range(3):
            kept = []

            def leaf(z, hook, kept=kept, to=means[layer]):
                kept.append((to + 0.5 * (z - to)).detach().requires_grad_())
                return kept[0]

            with torch.enable_grad(), exact.hooks([(f"blocks.{layer}.attn.hook_z", leaf)]):
                (half,) = torch.autograd.grad(delta_of(exact, sequence, i), kept)
            expected = ((z[layer] - means[layer]) * (half[0] + at_run[layer]) / 2).sum((0, 2))
            assert (found[i, layer] - expected).abs().max() < EXACT


@pytest.mark.parametrize("reference", ["mean", "neutral"])
def test_over_activations_a_layer_sums_to_what_moving_it_does(model, reference):
    """Integrated gradients are complete, and sums of rectangles come near with their number."""
    model = model.to(torch.float64)
    means = head_means(model)
    at = NEUTRAL if reference == "neutral" else means
    few, many = (effects(model, "activations", reference=at, n_steps=n).sum(-1) for n in (40, 80))
    for i, sequence in enumerate(BIASED):
        plain = delta_of(model, sequence, i)
        z_ref = by_hand(model, NEUTRAL[i], i)[0] if at is NEUTRAL else means
        for layer in range(3):
            to = (
                f"blocks.{layer}.attn.hook_z",
                lambda z, hook, to=z_ref[layer]: to.expand_as(z).to(z),
            )
            with model.hooks([to]):
                fall = plain - delta_of(model, sequence, i)
            error = (2 * many - few)[i, layer] - fall  # without the part in 1 / n
            assert error.abs() < 0.02 * plain.abs().clamp(min=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_by_hand(tiny, family):
    model = tiny(family).to(torch.float64)
    found = effects(model, "dropped")
    sign = effects(model, "run").sign()
    assert torch.equal(found.sign(), sign)
    for i, (biased, neutral) in enumerate(zip(BIASED, NEUTRAL, strict=True)):
        shift = by_hand(model, biased, i)[0] - by_hand(model, neutral, i)[0]
        each = [(shift * by_hand(model, biased, i, detached=j)[1]).sum((1, 3)) for j in range(3)]
        expected = sum(effect.abs() for effect in each) / 2
        assert (found[i].abs() - expected).abs().max() < EXACT
        assert bool((each[0][0] == 0).all()) and bool((each[0][1] != 0).any())


def test_none_depends_on_the_batch(exact):
    for gradient in GRADIENTS:
        together, alone = (effects(exact, gradient, batch_size=n) for n in (8, 1))
        assert (together - alone).abs().max() < EXACT, gradient
    assert not any(p.grad is not None for p in exact.parameters())


def test_slots_of_other_lengths_are_aligned(exact):
    longer = [[*s[:3], 50, *s[3:]] for s in NEUTRAL]
    for gradient in GRADIENTS:
        found = effects(exact, gradient, reference=longer)
        assert bool(found.isfinite().all()) and bool((found != 0).any())


def test_a_map_says_which_gradient_it_has(model):
    scope = BiasScope(
        method="attribution_patching", ablate_to="zero", gradient="activations", n_steps=2,
        n_targets=2,
    )  # fmt: skip
    found = scope.attribute(model, load_bias("late"), None, progress=False)
    assert found.settings["gradient"] == "activations" and found.settings["n_steps"] == 2
    for wrong, message in (
        ({"gradient": "inputs"}, "gradient must be 'run' for the method 'direct'"),
        ({"method": "attribution_patching", "gradient": "both"},
         "gradient must be another when ablate_to is 'zero', got 'both'"),
        ({"gradient": "mean"}, r"gradient must be one of .*'dropped'"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=message):
            BiasScope(**wrong)
