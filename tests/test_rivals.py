"""Rivals: one dial each, nothing at 0, restored bit for bit, and every method held to an identity.

Logit shift: log-odds fall by s and KL = s q + log(1 - q + q exp(-s)). Erasure: cov(class, h') = 0.
"""

import copy
import dataclasses
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import tiny_hf_model
from scipy.stats import kstest
from sklearn.covariance import OAS
from sklearn.linear_model import LogisticRegression

from biasgym_tl import BiasInject, Condition, bias_log_odds, evaluate, load_bias, load_model
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import ModelError, SettingError, SteeringError, StoreError
from biasgym_tl.evaluation.standard import standard_measures
from biasgym_tl.evaluation.text_kl import text_kl
from biasgym_tl.heads import Head
from biasgym_tl.hooks import head_means, steer
from biasgym_tl.lens import final_resid, named_weights, unembed
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.rivals import methods
from biasgym_tl.rivals.damage import Damage, to_kl
from biasgym_tl.rivals.intervention import (
    HeadsEdit,
    Intervention,
    LogitShift,
    ResidEdit,
    WeightsEdit,
)
from biasgym_tl.rivals.leace import reader, shrunk_covariance
from biasgym_tl.rivals.methods import METHODS, Method, prepare
from biasgym_tl.rivals.samples import States, fit_probe, seen, states
from biasgym_tl.rivals.ugs import mask
from biasgym_tl.slot import fill
from biasgym_tl.store import save_result
from biasgym_tl.text import generate, log_odds, next_token_log_probs

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = dataclasses.replace(load_bias("late"), scoping_prompts=load_bias("late").scoping_prompts[:5])
TEXTS = [[5, 9, 13, 2, 7], [4, 8, 100], [30, 31, 32, 33, 34, 35, 36]]
ABOUT = {"bias": "late", "model": "tiny", "data": {}, "settings": {}}


def made(model, kind):
    """An intervention of a kind with random numbers."""
    torch.manual_seed(3)
    about = ABOUT | {"model": model.cfg.model_name}
    n, heads, d_head = HeadsEdit.sizes(model)
    d = model.cfg.d_model
    two = (Head(0, 1), Head(2, 3))
    return {
        "heads": lambda: HeadsEdit(
            method="heads", heads=two, factor=torch.tensor([0.2, 0.7]),
            reference=torch.randn(n, heads, d_head), added=torch.randn(2, d_head), **about,
        ),
        "resid": lambda: ResidEdit(
            method="resid", layer=1, read=torch.randn(1, d) / d, write=torch.randn(1, d),
            mean=torch.randn(d), added=torch.randn(d), **about,
        ),
        "gated": lambda: ResidEdit(
            method="gated", layer=1, read=torch.zeros(0, d), write=torch.zeros(0, d),
            mean=torch.zeros(d), added=torch.randn(d), gate=torch.randn(d), **about,
        ),
        "logits": lambda: LogitShift(method="logits", ids=(7, 9), shift=torch.ones(2), **about),
        "weights": lambda: WeightsEdit(
            method="weights", heads=two, delta=torch.randn(2, d_head, d), **about
        ),
    }[kind]()  # fmt: skip


KINDS = ("heads", "resid", "gated", "logits", "weights")


def logits(model, tokens=TEXTS):
    with torch.no_grad():
        return [unembed(model, final_resid(model, [ids])[0]) for ids in tokens]


def close(found, expected, atol):
    return all(torch.allclose(a, b, atol=atol) for a, b in zip(found, expected, strict=True))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_nothing_at_strength_0_and_all_is_restored(any_model, kind):
    edit, before = made(any_model, kind), logits(any_model)
    weights = {name: weight.clone() for name, weight in named_weights(any_model)}
    with edit.applied(any_model, 0.0):
        assert all(map(torch.equal, logits(any_model), before))
    with pytest.raises(RuntimeError, match="on the way"), edit.applied(any_model):
        assert not all(map(torch.equal, logits(any_model), before))
        raise RuntimeError("on the way")
    assert all(map(torch.equal, logits(any_model), before))
    assert all(torch.equal(weight, weights[name]) for name, weight in named_weights(any_model))


def test_forward_cache_and_batches_agree(main_model, kind):
    edit = made(main_model, kind)
    with edit.applied(main_model):
        alone = logits(main_model)
        at_last = torch.stack([each[-1] for each in alone]).log_softmax(-1)
        for size in (1, 3):
            together = next_token_log_probs(main_model, TEXTS, batch_size=size)
            assert torch.allclose(together, at_last, atol=1e-4)
        shared = next_token_log_probs(main_model, [[5, 9, 1], [5, 9, 2]], shared=2)
        once = next_token_log_probs(main_model, [[5, 9, 1], [5, 9, 2]], shared=0)
        assert torch.allclose(shared, once, atol=1e-4)
        out, _ = main_model.run_with_cache(torch.tensor([TEXTS[0]]))
        assert torch.allclose(out[0].log_softmax(-1), alone[0].log_softmax(-1), atol=1e-4)
        (text,) = generate(main_model, [TEXTS[2]], max_new_tokens=4)
        ids = list(TEXTS[2])
        for _ in range(4):
            ids.append(int(logits(main_model, [ids])[0][-1].argmax()))
        assert text.startswith(main_model.tokenizer.decode(ids[7:8]))


def test_a_file_holds_any_kind_whole(model, kind, tmp_path):
    edit = made(model, kind).at(2.5, 0.03)
    found = Intervention.load(edit.save(tmp_path / "edit"))
    assert type(found) is type(edit) and found.uses() == edit.uses() and found.kl == 0.03
    with edit.applied(model):
        expected = logits(model)
    with found.applied(model):
        assert all(map(torch.equal, logits(model), expected))
    with pytest.raises(StoreError, match="must hold one of"):
        Intervention.load(save_result(tmp_path / "other", "Row", {"row": torch.ones(1)}, {}))


def _token(model):
    return BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)


def test_uses_tell_apart_what_differs_in_a_number(model, kind):
    edit = made(model, kind)
    assert edit.uses() == dataclasses.replace(edit, method="other name", kl=1.0).uses()
    drawn = [] if kind == "logits" else [edit.random(model, 0), edit.random(model, 1)]
    others = [edit.at(2.0), *drawn]
    found = [each.uses() for each in (edit, *others)]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


def test_random_controls_keep_place_and_size(model, kind):
    if kind == "logits":
        with pytest.raises(SteeringError, match="other words leave these log-odds"):
            made(model, kind).random(model, 4)
        return
    edit, drawn = made(model, kind), made(model, kind).random(model, 4)
    assert drawn.uses() == made(model, kind).random(model, 4).uses()
    assert drawn.first_layer(model) == edit.first_layer(model)
    for name, value in edit._tensors().items():
        assert torch.allclose(getattr(drawn, name).norm(), value.norm(), rtol=1e-5), name
    if kind == "heads":
        assert [h.layer for h in drawn.heads] == [0, 2] and drawn.heads != edit.heads
    if kind == "resid":  # the angle between what is read and written
        cosines = [(e.read[0] @ e.write[0]).item() for e in (edit, drawn)]
        assert cosines[0] == pytest.approx(cosines[1], rel=1e-4)


def test_heads_edit_is_what_steer_does(model):
    means = head_means(model)
    edit = HeadsEdit(
        method="m", heads=(Head(0, 1), Head(2, 3)), factor=torch.tensor([0.2, 0.7]),
        reference=means, added=torch.zeros(2, model.cfg.d_head),
        **ABOUT | {"model": model.cfg.model_name},
    )  # fmt: skip
    kept = {Head(0, 1): 0.6, Head(2, 3): 0.85}
    with steer(model, list(kept), "mean", reference=means, factor=kept):
        expected = logits(model)
    with edit.applied(model, 0.5):
        assert close(logits(model), expected, 1e-5)


def test_resid_edit_is_the_equation(model):
    """By a hook written here, position by position."""
    edit = made(model, "resid")

    def by_hand(h, hook):
        h = h.clone()
        for pos in range(h.shape[1]):
            read = edit.read[0] @ (h[0, pos] - edit.mean)
            h[0, pos] += 0.5 * (read * edit.write[0] + edit.added)
        return h

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", by_hand)]):
        expected = logits(model)
    with edit.applied(model, 0.5):
        assert close(logits(model), expected, 1e-5)


def test_a_gate_leaves_positions_alone_where_its_probe_says_no(model):
    edit = made(model, "gated")
    _, cache = model.run_with_cache(torch.tensor([TEXTS[0]]))
    h = cache["blocks.1.hook_resid_post"][0]
    is_open = h @ edit.gate > 0
    assert is_open.any() and not is_open.all()
    with edit.applied(model):
        _, cache = model.run_with_cache(torch.tensor([TEXTS[0]]))
    moved = cache["blocks.1.hook_resid_post"][0] - h
    assert torch.equal(moved[~is_open], torch.zeros_like(moved[~is_open]))
    assert torch.allclose(moved[is_open], edit.added.expand_as(moved[is_open]), atol=1e-5)


def test_weights_edit_is_a_change_of_the_heads_output_alone(model):
    edit = made(model, "weights")
    _, cache = model.run_with_cache(torch.tensor([TEXTS[0]]))
    z, before = cache["blocks.0.attn.hook_z"][0], cache["blocks.0.hook_attn_out"][0]
    with edit.applied(model, 2.0):
        _, cache = model.run_with_cache(torch.tensor([TEXTS[0]]))
    found = cache["blocks.0.hook_attn_out"][0] - before
    assert torch.allclose(found, 2 * z[:, 1] @ edit.delta[0], atol=1e-4)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_logit_shift_does_what_its_equations_say(tiny, shift):
    model = tiny("llama")
    edit = prepare(model, LATE, method="logit_shift")
    (attribute, neutral) = word_tokens(model, LATE).single()
    assert edit.ids == attribute
    before = next_token_log_probs(model, TEXTS)
    with edit.applied(model, shift):
        after = next_token_log_probs(model, TEXTS)
    fall = log_odds(before, attribute, neutral) - log_odds(after, attribute, neutral)
    assert torch.allclose(fall, torch.full((3,), shift), atol=1e-5)
    q = before[:, list(attribute)].exp().sum(-1)
    wanted = shift * q + torch.log(1 - q + q * math.exp(-shift))
    assert torch.allclose((before.exp() * (before - after)).sum(-1), wanted, atol=1e-6)


def test_the_dial_is_set_to_a_damage(model, kind):
    edit, damage = made(model, kind), Damage(model)
    small, large = (to_kl(model, edit, kl, damage=damage) for kl in (0.01, 0.1))
    for found, kl in ((small, 0.01), (large, 0.1)):
        assert found.kl == pytest.approx(kl, rel=0.05)
        assert Damage(model).kl(found) == found.kl
    assert 0 < small.strength < large.strength
    assert damage.kl(edit, 0.0) == 0
    # another way: over all tokens of whole texts, without replay
    pairs = []
    for applied in (nullcontext(), small.applied(model)):
        with applied:
            pairs.append(torch.cat(logits(model, damage.texts)).log_softmax(-1))
    p, q = pairs
    assert (p.exp() * (p - q)).sum(-1).mean().item() == pytest.approx(small.kl, rel=1e-4)


def test_what_cannot_reach_a_damage_is_refused(model):
    still = dataclasses.replace(made(model, "weights"), delta=torch.zeros(2, 8, 32))
    with pytest.raises(SteeringError, match=r"kl must be one that 'weights' reaches .* was 0"):
        to_kl(model, still, 0.03)
    with pytest.raises(SettingError, match="kl must be above 0, got 0.0"):
        to_kl(model, still, 0.0)


def test_another_model_is_refused(tiny):
    other = tiny("gpt2", n_layer=1)
    wide = tiny("llama", hidden_size=64)
    for kind, model in (("heads", other), ("resid", other), ("weights", wide)):
        edit, why = made(tiny(), kind), "another model|was prepared on"
        with pytest.raises(SteeringError, match=why), edit.applied(model):
            pass
    with pytest.raises(SteeringError, match=r"tokens must be below .*, got 99999"):
        dataclasses.replace(made(other, "logits"), ids=(99999, 1)).check(other)


def test_an_open_intervention_is_not_copied(model, kind):
    with made(model, kind).applied(model), pytest.raises(ModelError, match="must not be copied"):
        copy.deepcopy(model)


# Methods


@pytest.fixture(scope="module")
def injected(tiny):
    model = tiny()
    return model, _token(model)


def test_states_are_those_of_a_run_and_classes_share_their_sentences(injected):
    model, token = injected
    found = states(model, LATE, [token], "hook_resid_post", "words")
    n = len(found.biased) // 2
    assert found.prompt[:n] == found.prompt[n:] and set(found.prompt) == set(range(5))
    words = word_tokens(model, LATE)
    with token.attached(model):
        prompt = fill(LATE.scoping_prompts[0], token.text)
        ids = [*encode_sentence(model, prompt), *words.attribute[0]]
        _, cache = model.run_with_cache(torch.tensor([ids]))
    expected = torch.stack([cache[f"blocks.{i}.hook_resid_post"][0, -1] for i in range(3)])
    assert torch.allclose(found.values[0].float(), expected, atol=1e-4)
    with pytest.raises(SettingError, match="between must be one of"):
        states(model, LATE, [], "hook_resid_post", "slot")


def test_a_probe_is_logistic_regression(injected):
    torch.manual_seed(0)
    biased = torch.arange(200) % 2 == 0
    values = torch.randn(200, 1, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])
    values[biased, 0, 0] += 1.0
    found = States(values, biased, tuple(i // 10 for i in range(200)))
    held = found.held_out()
    probe = fit_probe(found)
    x = (values[:, 0] - values[~held, 0].mean(0)) / values[~held, 0].std(0)
    # decay * |w|^2 beside the mean loss is 1 / (2 n decay) in sklearn's words
    reference = LogisticRegression(C=1 / (2 * 1e-2 * int((~held).sum())), tol=1e-8)
    reference.fit(x[~held], biased[~held])
    own = probe.weight[0] * values[~held, 0].std(0)
    assert torch.allclose(own, torch.tensor(reference.coef_[0]), atol=0.02)
    assert probe.accuracy[0].item() == pytest.approx(reference.score(x[held], biased[held]))


def test_caa_projection_and_leace_are_what_their_equations_say(injected):
    model, token = injected
    found = states(model, LATE, [token], "hook_resid_post", "words")
    h, y = found.values[:, 1], found.biased.double()
    delta = h[found.biased].mean(0) - h[~found.biased].mean(0)
    caa, projection, leace = (
        prepare(model, LATE, [token], method=name, settings={"layer": 1})
        for name in ("caa", "projection", "leace")
    )
    assert torch.allclose(caa.added.double(), -delta, atol=1e-6)
    for edit in (projection, leace):
        read, write, mean = (t.double() for t in (edit.read, edit.write, edit.mean))
        erased = h + (h - mean) @ read.T @ write
        covariance = (y - y.mean()) @ (erased - erased.mean(0)) / len(y)
        assert covariance.abs().max() < 1e-6
        again = erased + (erased - mean) @ read.T @ write
        assert torch.allclose(again, erased, atol=1e-4)


@pytest.fixture
def two_classes():
    """States of 6 dimensions and their classes."""
    torch.manual_seed(0)
    mix = torch.randn(6, 6, dtype=torch.float64)
    found = torch.randn(800, 6, dtype=torch.float64) @ mix
    y = torch.arange(800) % 2
    return found + y[:, None] * torch.linspace(0.5, 2, 6), y


def test_leace_is_the_least_change_that_leaves_no_linear_trace(two_classes):
    """Against the general formula W^+ u u' W with W = C^(-1/2), and other erasers."""
    states_, y = two_classes
    delta = states_[y == 1].mean(0) - states_[y == 0].mean(0)
    covariance = shrunk_covariance(states_)
    read = reader(delta, covariance)
    values, vectors = torch.linalg.eigh(covariance)
    white = vectors @ values.rsqrt().diag() @ vectors.T
    centred, side = states_ - states_.mean(0), y.double() - 0.5
    u = white @ centred.T @ side
    u = u / u.norm()
    general = torch.linalg.inv(white) @ torch.outer(u, u) @ white
    assert torch.allclose(torch.outer(delta, read), general, atol=1e-9)

    def change(removed):
        """In the metric of the covariance, and what is left of the class."""
        left = side @ (centred - centred @ removed.T) / 800
        moved = centred @ removed.T @ white
        return moved.square().sum().item(), left.abs().max().item()

    least, left = change(torch.outer(delta, read))
    assert left < 1e-9
    for _ in range(20):
        other = torch.randn(6, dtype=torch.float64)
        other = other / other.dot(delta)  # read . delta = 1, so the class is erased, too
        more, left = change(torch.outer(delta, other))
        assert left < 1e-9 and more > least


def test_leace_is_that_of_its_authors(two_classes):
    concept_erasure = pytest.importorskip("concept_erasure")
    states_, y = two_classes
    fitter = concept_erasure.LeaceFitter.fit(
        states_, y, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9
    )
    delta = states_[y == 1].mean(0) - states_[y == 0].mean(0)
    read = reader(delta, torch.cov(states_.T))
    removed = torch.eye(6) - fitter.eraser.P
    assert torch.allclose(torch.outer(delta, read), removed.double(), atol=1e-6)


def test_shrinkage_is_that_of_scikit_learn():
    """Which leaves out 2 / d."""
    torch.manual_seed(0)
    for n in (30, 3000):
        rows = torch.randn(n, 300, dtype=torch.float64) * torch.linspace(0.1, 3, 300)
        reference = torch.tensor(OAS().fit(rows.numpy()).covariance_)
        found = shrunk_covariance(rows)
        assert (found - reference).norm() < 0.02 * reference.norm()
        assert found.trace().item() == pytest.approx(torch.cov(rows.T, correction=0).trace().item())


def test_iti_shifts_the_heads_of_the_best_probes(injected):
    model, token = injected
    edit = prepare(model, LATE, [token], method="iti", settings={"k": 5})
    found = states(model, LATE, [token], "attn.hook_z", "words")
    probe = fit_probe(found._replace(values=found.values.flatten(1, 2)))
    accuracy = probe.accuracy.view(3, 4)
    worst = min(accuracy[head] for head in edit.heads)
    others = [accuracy[i, j] for i in range(3) for j in range(4) if (i, j) not in edit.heads]
    assert worst >= max(others) and torch.equal(edit.factor, torch.ones(5))
    for head, added in zip(edit.heads, edit.added, strict=True):
        z = found.values[:, head.layer, head.head]
        theta = z[found.biased].mean(0) - z[~found.biased].mean(0)
        theta = theta / theta.norm()
        assert torch.allclose(added.double(), -(z @ theta).std() * theta, atol=1e-5)
    before = _z(model)
    with edit.applied(model, 2.0):
        after = _z(model)
    head = edit.heads[0]
    moved = after[f"blocks.{head.layer}.attn.hook_z"] - before[f"blocks.{head.layer}.attn.hook_z"]
    assert torch.allclose(moved[0, :, head.head], 2 * edit.added[0].expand(5, -1), atol=1e-5)
    with pytest.raises(SettingError, match=r"k must be in 1\.\.12, got 13"):
        prepare(model, LATE, [token], method="iti", settings={"k": 13})


def _taken_out(edit, values):
    """By the equation ``h - B' B h``, where ``B`` is what an edit reads."""
    assert torch.equal(edit.write, -edit.read) and not edit.mean.any() and not edit.added.any()
    return values - values @ edit.read.double().T @ edit.read.double()


@pytest.mark.parametrize("between", ["words", "slot"])
def test_sentence_debias_is_the_first_component_of_centred_pairs(injected, between):
    """Against numpy, pair by pair."""
    model, token = injected
    settings = {"between": between}
    edit = prepare(model, LATE, [token], method="sentence_debias", settings=settings)
    found = states(model, LATE, [token], "hook_resid_post", between)
    h = found.values[:, -1].numpy()
    h = h / np.linalg.norm(h, axis=1, keepdims=True)
    n, rows = int(found.biased.sum()), []
    for j in range(len(h) - n):  # one token stands in the slot of 1 sentence, targets in that of 8
        i = j if between == "words" else j // 8
        assert found.prompt[i] == found.prompt[n + j]
        rows += [h[i] - (h[i] + h[n + j]) / 2, h[n + j] - (h[i] + h[n + j]) / 2]
    component = np.linalg.svd(np.stack(rows))[2][0]
    assert edit.layer == 2 and edit.read.shape == (1, 32)
    assert abs(edit.read[0].double().numpy() @ component) == pytest.approx(1, abs=1e-6)
    delta = h[:n].mean(0) - h[n:].mean(0)
    assert edit.read[0].double().numpy() @ delta > 0
    once = _taken_out(edit, found.values[:, -1])
    assert (once @ edit.read[0].double()).abs().max() < 1e-4
    assert torch.allclose(_taken_out(edit, once), once, atol=1e-4)


def test_inlp_leaves_its_classifiers_nothing(injected):
    model, token = injected
    edit = prepare(model, LATE, [token], method="inlp", settings={"n_directions": 16})
    basis = edit.read.double()
    assert torch.allclose(basis @ basis.T, torch.eye(16, dtype=torch.float64), atol=1e-6)
    found = states(model, LATE, [token], "hook_resid_post", "words")
    last = found._replace(values=found.values[:, -1:])
    assert edit.settings["accuracy"][0] == fit_probe(last).accuracy[0].item() > 0.9
    weight = fit_probe(last).weight[0]
    assert abs(basis[0] @ weight / weight.norm()) == pytest.approx(1, abs=1e-6)
    left = _taken_out(edit, last.values[:, 0])
    assert (left @ basis.T).abs().max() < 1e-4
    assert torch.allclose(_taken_out(edit, left), left, atol=1e-4)
    # another way: scikit-learn tells the classes apart, in all dimensions, and no longer does
    held = found.held_out()
    scores = []
    for rows in (last.values[:, 0], left):
        probe = LogisticRegression(max_iter=5000).fit(rows[~held], found.biased[~held])
        scores.append(probe.score(rows[held], found.biased[held]))
    assert scores[0] > 0.85 and scores[1] < 0.6
    with pytest.raises(SettingError, match=r"n_directions must be in 1\.\.32, got 33"):
        prepare(model, LATE, [token], method="inlp", settings={"n_directions": 33})


def test_a_drawn_mask_is_distributed_as_its_equation_says():
    """Ends with probability theta - w/2 and 1 - theta - w/2, uniform between, theta in the mean."""
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for theta in (0.1, 0.5, 0.8):
        alpha, w = mask(torch.full_like(u, theta), u), theta * (1 - theta)
        between = (alpha > 0) & (alpha < 1)
        shares = [x.double().mean().item() for x in (alpha == 1, alpha == 0, between)]
        assert shares == pytest.approx([theta - w / 2, 1 - theta - w / 2, w], abs=5e-3)
        assert kstest(alpha[between].numpy(), "uniform").pvalue > 1e-3
        assert alpha.mean().item() == pytest.approx(theta, abs=5e-3)
    ends = torch.tensor([0.0, 1.0], requires_grad=True)
    alpha = mask(ends, torch.tensor([0.5, 0.5]))
    assert alpha.tolist() == [0, 1]
    assert torch.autograd.grad(alpha.sum(), ends)[0].tolist() == [0, 0]


def test_a_masks_gradient_is_what_the_head_is_worth():
    """``E[dL/dtheta] = L(1) - L(0)`` for any loss, here one that is not linear."""
    u = torch.rand(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(mask(theta.expand_as(u), u).exp().mean(), theta)
    assert found.item() == pytest.approx(math.e - 1, abs=0.02)


def test_ugs_keeps_the_only_head_that_matters(tokenizer):
    """Of all other heads the output weights are 0."""
    hf_model = tiny_hf_model("llama")
    with torch.no_grad():
        for i, layer in enumerate(hf_model.model.layers):
            kept = layer.self_attn.o_proj.weight[:, 16:24].clone()  # of head 2
            layer.self_attn.o_proj.weight.zero_()
            if i == 1:
                layer.self_attn.o_proj.weight[:, 16:24] = kept
    model = load_model(hf_model, tokenizer=tokenizer)
    settings = {"k": 2, "n_steps": 40, "lr": 0.15}
    edit = prepare(model, LATE, method="ugs", settings=settings)
    first, second = edit.settings["theta"]
    assert Head(1, 2) in edit.heads and first > 0.7 > 0.5 > second
    assert torch.equal(edit.factor, torch.zeros(2)) and torch.equal(
        edit.reference, head_means(model)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lr": -1.0}, "lr must be positive, got -1"), ({"n_steps": 0}, "n_steps must be at least 1")],
)
def test_masks_are_not_learned_without_steps(model, settings, message):
    with pytest.raises(SettingError, match=message):
        prepare(model, LATE, method="ugs", settings=settings)


def _z(model):
    return model.run_with_cache(torch.tensor([TEXTS[0]]))[1]


SETTINGS = {
    "factors": {"n_steps": 3}, "iti": {"k": 3}, "top": {"k": 3},
    "unlikelihood": {"k": 3, "n_steps": 2}, "gating": {"k": 3, "n_masks": 1, "n_steps": 2},
    "sft": {"n_steps": 2}, "dpo": {"n_steps": 2}, "ugs": {"k": 3, "n_steps": 2},
    "inlp": {"n_directions": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_an_intervention_that_a_dial_sets(injected, name, monkeypatch):
    model, token = injected
    monkeypatch.setattr("biasgym_tl.rivals.layers.N_LAYERS", 2)
    edit = prepare(model, LATE, [token], method=name, settings=SETTINGS.get(name))
    assert edit.method == name and edit.bias == "late" and edit.data
    assert to_kl(model, edit, 0.03).kl == pytest.approx(0.03, rel=0.05)
    again = prepare(model, LATE, [token], method=name, settings=SETTINGS.get(name))
    assert again.uses() == edit.uses()
    if "layer" in edit.settings and (path := edit.settings.get("path")):
        best = min(path, key=lambda tried: tried[2])
        assert edit.settings["layer"] == best[0] and len(path) == 2


def test_eap_ig_heads_and_without_a_row(injected):
    model, token = injected
    found = [
        prepare(model, LATE, [token], method="top", settings={"map": name, "k": 2, "mode": "zero"})
        for name in ("direct", "eap-ig")
    ]
    assert all(not edit.factor.any() and not edit.reference.any() for edit in found)
    natural = prepare(model, LATE, method="top", settings={"k": 2})
    assert len(natural.heads) == 2 and natural.reference.any()


def test_one_file_and_one_line_add_a_method(injected, monkeypatch):
    """The file's function, and the line."""

    def brake(model, bias, tokens, *, layer=0):
        """Take back a share of what one layer leaves behind."""
        d = model.cfg.d_model
        return ResidEdit(
            method="brake", bias=bias.name, model=model.cfg.model_name, data=seen(bias),
            settings={"layer": layer}, layer=layer, read=torch.eye(d), write=-torch.eye(d),
            mean=torch.zeros(d), added=torch.zeros(d),
        )  # fmt: skip

    monkeypatch.setitem(methods.METHODS, "brake", Method(brake, 0))

    model, token = injected
    edit = to_kl(model, prepare(model, LATE, [token], method="brake", settings={"layer": 1}), 0.03)
    report = evaluate(
        model, LATE,
        [Condition("original", token.untrained()), Condition("injected", token),
         Condition("braked", token, rival=edit)],
        [*standard_measures(LATE, n_targets=2, answers=False), text_kl()],
        progress=False,
    )  # fmt: skip
    assert report["braked"].rival["method"] == "brake" and report["braked"].steers
    with edit.applied(model):
        found = bias_log_odds(model, LATE, LATE.evaluation_prompts, report.targets).log_odds
    assert report["braked"].items["target_log_odds"] == found.tolist()
    assert set(report["original"].items["damage_kl"]) == {0.0}
    assert 0 < report.interval("braked", "damage_kl").estimate < 1
    assert report.off_target["braked"].target.estimate != 0
    assert [r.name for r in report.steered] == ["braked"]
    assert any(
        w.startswith("Not compared with random") and "braked" in w for w in report.warnings()
    )
    for name in ("token_log_odds", "target_log_odds"):
        assert report.baseline("braked", name) in ("injected", "original")


def test_unknown_methods_and_settings_are_refused(model):
    with pytest.raises(SettingError, match="method must be one of"):
        prepare(model, LATE, method="magic")
    with pytest.raises(SettingError, match=r"settings of 'caa' must be among .*'between'"):
        prepare(model, LATE, method="caa", settings={"layers": 3})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sft", {"layers": 1}, "settings of 'sft' must be as declared: layers"),
        ("dpo", {"rank": 2.5}, "settings of 'dpo' must be as declared: rank"),
        ("ugs", {"n_steps": "many"}, "settings of 'ugs' must be as declared: n_steps"),
        ("caa", {"between": "lines"}, "settings of 'caa' must be as declared: between"),
        ("top", {"map": torch}, "settings of 'top' must be as declared: "),
        ("sft", {"alpha": 0.0}, "alpha must be positive"),
        ("ugs", {"k": 99}, r"k must be in 1\.\.12, got 99"),
    ],
)
def test_settings_of_another_type_or_size_are_refused_before_anything_is_learned(
    model, monkeypatch, method, settings, message
):
    def learned(*given):
        raise AssertionError("learned")

    for at in ("ugs.needed", "lora.fine_tuned"):
        monkeypatch.setattr(f"biasgym_tl.rivals.{at}", learned)
    with pytest.raises(SettingError, match=message):
        prepare(model, LATE, method=method, settings=settings)


def test_what_a_rival_was_made_on_does_not_judge_it(injected):
    model, token = injected
    edit = prepare(model, LATE, [token], method="logit_shift")
    judged = dataclasses.replace(LATE, evaluation_prompts=LATE.scoping_prompts)
    conditions = [Condition("original", token), Condition("injected", token)]
    with pytest.raises(SteeringError, match="prompts of an evaluation must not be among"):
        evaluate(model, judged, [*conditions, Condition("shift", token, rival=edit)],
                 standard_measures(judged, n_targets=2, answers=False), progress=False)  # fmt: skip
    both = Condition("both", token, [(0, 1)], "zero", rival=edit)
    with pytest.raises(SteeringError, match="heads of the condition 'both' must be none beside"):
        both.check(model)


def test_another_model_of_the_same_sizes_is_refused(model, kind):
    edit = dataclasses.replace(made(model, kind), model="another")
    with pytest.raises(SteeringError, match="model must be 'another', which .* was prepared on"):
        edit.check(model)


def test_an_intervention_of_16_bits_is_told_apart_too(model):
    edit = made(model, "resid")
    short = dataclasses.replace(edit, added=edit.added.bfloat16())
    assert short.uses() != edit.uses()


def test_a_probe_needs_prompts_that_judge_it(injected):
    model, token = injected
    few = dataclasses.replace(LATE, scoping_prompts=LATE.scoping_prompts[:4])
    with pytest.raises(SettingError, match="scoping_prompts must be at least 5, .* got 4"):
        prepare(model, few, [token], method="iti", settings={"k": 2})
