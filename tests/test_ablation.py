"""delta without a head == delta of a run in which that head is steered, head by head.

And the steps between direct and total effect: silencing a head at the answer position, with all
that comes later frozen, takes away exactly its direct value. Attribution patching is exact where
the logit difference is linear in what a head writes, and close for small changes elsewhere.
"""

import dataclasses
import math

import pytest
import torch
from conftest import EXACT, FAMILIES

from biasgym_tl import BiasInject, BiasScope, Head, k_sweep, load_bias, steer
from biasgym_tl.biases.facts import FACT_REQUEST, load_facts
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import AttributionError, SettingError
from biasgym_tl.hooks import head_means
from biasgym_tl.lens import ENGINE, logit_difference
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_answer, encode_prompt
from biasgym_tl.scoping.ablation import ablated, ablated_deltas, ablated_losses
from biasgym_tl.scoping.damage import KSweep, head_damage
from biasgym_tl.scoping.direct import direct_attribution, post_norm
from biasgym_tl.scoping.patching import alignment, patching_effects
from biasgym_tl.scoping.scores import top_heads
from biasgym_tl.text import answer_differences, mean_loss, next_token_log_probs

SEQUENCES = [[1, 7, 9, 30, 4], [1, 7, 9, 8], [1, 7, 9, 8, 8, 8, 12, 40], [1, 7, 9, 7]]
B, N = torch.tensor([10, 11, 12, 13]), torch.tensor([20, 21, 22, 23])


@pytest.fixture
def exact(any_model):
    return any_model.to(torch.float64)


def one_by_one(model, mode, reference):
    """The naive sweep: one run for each head, through the public steering."""
    found = torch.zeros(len(SEQUENCES), 3, 4, dtype=torch.float64)
    for layer in range(3):
        for head in range(4):
            with steer(model, [(layer, head)], mode, reference=reference):
                found[:, layer, head] = answer_differences(model, SEQUENCES, B, N)
    return found


def test_the_sweep_equals_one_run_for_each_head(exact):
    for mode, reference in (("zero", None), ("mean", head_means(exact))):
        swept = ablated_deltas(exact, SEQUENCES, B, N, reference=reference)
        assert (swept - one_by_one(exact, mode, reference)).abs().max() < EXACT


def test_some_heads_are_swept_as_all_are(exact):
    some = [Head(2, 3), Head(0, 1), Head(2, 0)]
    whole = ablated_deltas(exact, SEQUENCES, B, N)
    found = ablated_deltas(exact, SEQUENCES, B, N, heads=some)
    swept = torch.zeros(3, 4, dtype=torch.bool)
    for head in some:
        swept[head] = True
    assert torch.equal(found.isnan(), (~swept).expand_as(found))
    assert (found - whole)[:, swept].abs().max() < EXACT


def test_it_does_not_depend_on_what_is_run_together(exact):
    together = ablated_deltas(exact, SEQUENCES, B, N)
    apart = ablated_deltas(exact, SEQUENCES, B, N, shared=0)
    assert (together - apart).abs().max() < EXACT
    for i, sequence in enumerate(SEQUENCES):
        alone = ablated_deltas(exact, [sequence], B[i : i + 1], N[i : i + 1])
        assert (alone[0] - together[i]).abs().max() < EXACT


def test_silencing_at_the_answer_alone(exact):
    found = ablated_deltas(exact, SEQUENCES, B, N, answer_only=True)
    for i, sequence in enumerate(SEQUENCES):
        for layer in range(3):

            def silence(z, hook):
                z[:, -1, 2] = 0
                return z

            with exact.hooks([(f"blocks.{layer}.attn.hook_z", silence)]):
                resid = exact(torch.tensor([sequence]), stop_at_layer=3)[:, -1]
            expected = logit_difference(exact, resid, B[i : i + 1], N[i : i + 1]).item()
            assert found[i, layer, 2].item() == pytest.approx(expected, abs=EXACT)


def test_at_the_answer_with_later_parts_frozen_it_is_the_direct_value(exact):
    """Attention and MLPs above the head, and all scales, keep the values of the plain run."""
    direct = direct_attribution(exact, SEQUENCES, B, N)
    for i, sequence in enumerate(SEQUENCES):
        tokens = torch.tensor([sequence])
        plain = answer_differences(exact, [sequence], B[i : i + 1], N[i : i + 1]).item()
        _, cache = exact.run_with_cache(tokens)
        for layer in range(3):
            later = [f"blocks.{at}.attn.hook_z" for at in range(layer + 1, 3)]
            later += [f"blocks.{at}.hook_mlp_out" for at in range(layer, 3)]
            later += ["ln_final.hook_scale"]
            for at in range(layer, 3):
                if (name := post_norm(exact, at)) is not None:
                    later.append(f"blocks.{at}.{name}.hook_scale")
            frozen = [(name, lambda value, hook, c=cache: c[hook.name]) for name in later]

            def silence(z, hook):
                z = z.clone()
                z[:, -1, 1] = 0
                return z

            with exact.hooks([(f"blocks.{layer}.attn.hook_z", silence), *frozen]):
                normed = exact.ln_final(exact(tokens, stop_at_layer=3))[:, -1]
            logits = normed @ exact.W_U + exact.b_U
            lost = plain - (logits[0, B[i]] - logits[0, N[i]]).item()
            assert lost == pytest.approx(direct.heads[i, layer, 1].item(), abs=EXACT)


def test_screened_heads_have_the_values_of_mean_ablation(tiny):
    """Those with the largest values of either sign by patching to the mean; the others 0."""
    model, late = tiny(), load_bias("late")
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, late, progress=False)
    found = {}
    for method, options in (
        ("screened_ablation", {"n_screened": 5}),
        ("mean_ablation", {}),
        ("attribution_patching", {"ablate_to": "mean"}),
    ):
        scope = BiasScope(method=method, contrast="difference", n_targets=2, **options)
        found[method] = scope.attribute(model, late, token, progress=False)
    screened, swept, patched = found.values()
    biased = dataclasses.replace(patched, settings=patched.settings | {"contrast": "biased"})
    assert {*top_heads(biased.values.abs(), 5)} == {*top_heads((screened.values != 0).float(), 5)}
    marked = screened.values != 0
    assert marked.sum() == 5
    assert (screened.values - swept.values)[marked].abs().max() < 1e-4
    many = BiasScope(method="screened_ablation", contrast="difference", n_targets=2)
    every = many.attribute(model, late, token, progress=False)
    assert (every.values - swept.values).abs().max() < 1e-4
    with pytest.raises(SettingError, match="n_screened must be at least 1, got 0"):
        BiasScope(method="screened_ablation", n_screened=0)


def test_losses_without_each_head(exact):
    texts = load_passages("budget")[:2]
    found = ablated_losses(exact, texts)
    for head in ((0, 3), (1, 0), (2, 2)):
        with steer(exact, [head]):
            expected = mean_loss(exact, texts)
        assert (found[:, head[0], head[1]] - expected).abs().max() < EXACT


def test_a_steering_stays_active(model):
    model = model.to(torch.float64)
    with steer(model, [(1, 2)]):
        swept = ablated_deltas(model, SEQUENCES, B, N)
        expected = one_by_one(model, "zero", None)
    assert (swept - expected).abs().max() < EXACT
    plain = ablated_deltas(model, SEQUENCES, B, N)
    assert (swept - plain).abs().max() > 1e-6


def test_positions_outside_the_residual_stream_are_refused(model, monkeypatch):
    monkeypatch.setattr(model.cfg, "positional_embedding_type", "shortformer")
    with pytest.raises(AttributionError, match="must be in the residual stream, got 'shortformer'"):
        next(ablated(model, SEQUENCES))


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_is_the_derivative_of_the_ablation(tiny, family):
    """Moving ``z`` a small step toward the reference changes delta by the step times the effect."""
    model = tiny(family).to(torch.float64)
    step, share = (1e-5, 1e-3) if ENGINE == "hooked" else (1e-3, 1e-2)  # norms in fp32
    means = head_means(model)
    plain = answer_differences(model, SEQUENCES, B, N)
    for reference in (None, means):
        effects = patching_effects(model, SEQUENCES, B, N, reference=reference)
        for layer, head in ((0, 1), (1, 3), (2, 0)):

            def nudge(z, hook, head=head, layer=layer, reference=reference):
                toward = 0 if reference is None else reference[layer, head]
                z = z.clone()
                z[:, :, head] += step * (toward - z[:, :, head])
                return z

            moved = []
            for i, sequence in enumerate(SEQUENCES):
                with model.hooks([(f"blocks.{layer}.attn.hook_z", nudge)]):
                    moved.append(answer_differences(model, [sequence], B[i:][:1], N[i:][:1]))
            found = (plain - torch.cat(moved)) / step
            scale = effects.abs().max()
            assert (found - effects[:, layer, head]).abs().max() < share * scale


def test_patching_does_not_depend_on_the_batch(model):
    model = model.to(torch.float64)
    together = patching_effects(model, SEQUENCES, B, N)
    alone = patching_effects(model, SEQUENCES, B, N, batch_size=1)
    assert (together - alone).abs().max() < EXACT
    assert not any(p.grad is not None for p in model.parameters())


def test_another_run_as_the_reference(model):
    model = model.to(torch.float64)
    same = patching_effects(model, SEQUENCES, B, N, reference=SEQUENCES)
    assert same.abs().max() < EXACT
    others = [[*s[:3], 50, 51, *s[3:]] for s in SEQUENCES]
    biased = [[*s[:3], 60, *s[3:]] for s in SEQUENCES]
    found = patching_effects(model, biased, B, N, reference=others)
    for i in range(4):
        _, run = model.run_with_cache(torch.tensor([biased[i]]))
        _, other = model.run_with_cache(torch.tensor([others[i]]))
        to_zero = patching_effects(model, [biased[i]], B[i:][:1], N[i:][:1])
        for layer in range(3):
            # (z - z_ref) . g, with the gradient g from linearity in a fixed reference
            z, z_ref = (cache[f"blocks.{layer}.attn.hook_z"][0] for cache in (run, other))
            positions = [0, 1, 2, 4, *range(5, len(others[i]))]
            assert z.shape[0] == len(positions)
            gradient = gradient_of_delta(model, biased[i], int(B[i]), int(N[i]), layer)
            assert torch.allclose((z * gradient).sum((0, 2)), to_zero[0, layer], atol=EXACT)
            expected = ((z - z_ref[positions]) * gradient).sum((0, 2))
            assert torch.allclose(expected, found[i, layer], atol=EXACT)


def gradient_of_delta(model, sequence, biased_id, neutral_id, layer):
    """By autograd through the whole model, from a leaf in place of ``z``."""
    kept = []

    def leaf(z, hook):
        kept.append(z.detach().requires_grad_())
        return kept[0]

    with torch.enable_grad(), model.hooks([(f"blocks.{layer}.attn.hook_z", leaf)]):
        logits = model(torch.tensor([sequence]))[0, -1]
        (gradient,) = torch.autograd.grad(logits[biased_id] - logits[neutral_id], kept)
    return gradient[0]


def test_alignment_by_hand():
    assert alignment([1, 2, 9, 3, 4], [1, 2, 7, 8, 3, 4]) == [0, 1, 3, 4, 5]
    assert alignment([1, 2, 9, 3], [1, 2, 7, 3]) == [0, 1, 2, 3]
    assert alignment([1, 2], [1, 2]) == [0, 1]
    for one, other in (([1, 9, 2], [1, 2]), ([1, 2], [1, 9, 2])):
        with pytest.raises(AttributionError, match="must differ in the slot alone"):
            alignment(one, other)


def test_wrong_input_of_patching(model):
    with pytest.raises(AttributionError, match="must hold 4 sequences, one a pair, got 1"):
        patching_effects(model, SEQUENCES, B, N, reference=SEQUENCES[:1])


def test_damage_of_each_head(model):
    facts = load_facts()[:12]
    found = head_damage(model, mode="zero", texts=load_passages("budget")[:2], facts=facts)
    assert found.loss.shape == (2, 3, 4) and found.facts.shape[1:] == (3, 4)
    with steer(model, [(1, 3)]):
        loss = mean_loss(model, load_passages("budget")[:2])
    expected = loss - mean_loss(model, load_passages("budget")[:2])
    assert (found.loss[:, 1, 3] - expected).abs().max() < 1e-5
    assert set(found.countries) <= {fact.country for fact in facts}
    fact = next(fact for fact in facts if fact.country == found.countries[0])
    prompt = encode_prompt(model, FACT_REQUEST, fact.question)
    right, *wrong = (encode_answer(model, f" {answer}")[0] for answer in fact.candidates)
    plain = next_token_log_probs(model, [prompt])[0]
    best = max(wrong, key=lambda i: plain[i].item())
    with steer(model, [(1, 3)]):
        without = next_token_log_probs(model, [prompt])[0]
    fall = (plain[right] - plain[best] - without[right] + without[best]).item()
    assert found.facts[0, 1, 3].item() == pytest.approx(fall, abs=1e-4)
    frame = found.to_df()
    assert len(frame) == 12 and frame["loss"][7] == pytest.approx(found.loss[:, 1, 3].mean().item())
    assert "loss worst without L" in repr(found)
    with pytest.raises(SettingError, match="mode must be one of"):
        head_damage(model, mode="half")
    with pytest.raises(SettingError, match="texts and facts must not be empty, got 0"):
        head_damage(model, texts=[], facts=facts)


def test_a_k_sweep_steers_the_top_heads(model):
    bias = load_bias("late")
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, bias, progress=False)
    scores = BiasScope().attribute(model, bias, token)
    found = k_sweep(model, bias, token, scores, ks=(1, 4, 99), mode="zero", progress=False)
    assert found.ks == (1, 4) and found.benefit.shape == (2, 24)
    with token.attached(model):
        plain = bias_log_odds(model, bias, bias.scoping_prompts, (token.text,)).log_odds[:, 0]
        with steer(model, scores.top(4)):
            without = bias_log_odds(model, bias, bias.scoping_prompts, (token.text,)).log_odds
    assert (found.benefit[1] - (plain - without[:, 0])).abs().max() < 1e-4
    texts = load_passages("budget")
    with steer(model, scores.top(1)):
        loss = mean_loss(model, texts)
    assert (found.damage[0] - (loss - mean_loss(model, texts))).abs().max() < 1e-4
    with pytest.raises(SettingError, match="scores must be of the token 'late, seed 0', got 'no"):
        k_sweep(model, bias, token, BiasScope().attribute(model, bias, None))
    assert found.to_df()["k"].tolist() == [1, 4] and "direct on late, zero: " in repr(found)
    for ks in ((), (0, 2), (3, 2), (99,)):
        with pytest.raises(SettingError, match="ks must rise within 1..12"):
            k_sweep(model, bias, token, scores, ks=ks)


def test_saturation_by_hand():
    benefit = torch.tensor([[1.0], [9.0], [10.0], [8.0]]).expand(4, 6).double()
    sweep = KSweep(
        ks=(1, 2, 5, 9), benefit=benefit, damage=benefit, method="direct", mode="mean",
        bias="late", token="late, seed 0", model="tiny", settings={}, versions={},
    )  # fmt: skip
    assert sweep.saturation() == (2, 2, 2)
    useless = dataclasses.replace(sweep, benefit=-benefit)
    assert all(math.isnan(value) for value in useless.saturation())
    assert "no k lowers the log-odds reliably" in repr(useless)
