"""Factors that gradient descent found do in the model what the objective says."""

import dataclasses

import pytest
import torch

from biasgym_tl import BiasInject, FactorSearch, Head, load_bias, steer
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import BiasFileError, SettingError, SteeringError
from biasgym_tl.heads import all_heads
from biasgym_tl.hooks import head_means
from biasgym_tl.injection.train import frozen
from biasgym_tl.passages import load_passages
from biasgym_tl.steering.objective import Objective, scaled
from biasgym_tl.text import mean_loss

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = load_bias("late")
ANY = [str(head) for head in all_heads(3, 4)]
QUICK = FactorSearch(k=3, n_steps=12, n_texts=1, n_facts=2, n_sentences=6, keep=0.0, off_target=0.0)


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    return model, token, QUICK.select(model, LATE, token, progress=False)


def scoping_odds(model, token):
    names = (token.text, *LATE.sample_targets("fitting", 10, 0))
    with token.attached(model):
        return bias_log_odds(model, LATE, LATE.scoping_prompts, names).log_odds


ALL_CELLS = ("things", "nobody", "rightful", "rightful_target")


def cell_odds(model, cells, split="fitting"):
    """Log-odds of cells of the panel, each with all of its fillers."""
    half = LATE.panel.half(split, LATE.sample_targets(split, 10, 0))
    return {name: bias_log_odds(model, LATE, *half[name]).log_odds for name in cells}


def off_target_change(model, heads, cells, split="fitting"):
    """Mean size of the change of log-odds, cells alike."""
    before = cell_odds(model, cells, split)
    with steer(model, heads, "mean"):
        after = cell_odds(model, cells, split)
    return sum((after[c] - before[c]).abs().mean().item() for c in cells) / len(cells)


def test_factors_lower_the_log_odds_on_scoping_prompts(setup):
    model, token, found = setup
    assert 1 <= len(found) <= 3 and list(found.factors) == sorted(found.factors)
    assert all(0 <= factor < 1 for factor in found.factors)
    with steer(model, found, "mean"):
        steered = scoping_odds(model, token)
    assert steered.mean() < scoping_odds(model, token).mean() - 0.1
    assert len(found.settings["path"]) == QUICK.n_steps


def test_only_heads_among_the_given_ones_are_silenced(setup):
    model, token, found = setup
    among = [head for head in all_heads(3, 4) if head not in found.heads][:4]
    other = QUICK.select(model, LATE, token, among=among, progress=False)
    assert 1 <= len(other) <= 3 and {*other.heads} <= {*among}
    assert other.settings["among"] == [str(head) for head in sorted(among)]
    assert found.settings["among"] is None
    assert QUICK.select(model, LATE, token, among=all_heads(3, 4), progress=False) == (
        dataclasses.replace(found, settings=other.settings | found.settings | {"among": ANY})
    )
    with pytest.raises(SteeringError, match=r"must lie in L0..L2 .*got L9H8"):
        QUICK.select(model, LATE, token, among="L9H8", progress=False)


def test_the_model_is_left_as_it_was(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = [p.requires_grad for p in model.parameters()]
    found = QUICK.select(model, LATE, token, progress=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())
    assert found == QUICK.select(model, LATE, token, progress=False)
    other = dataclasses.replace(QUICK, seed=1).select(model, LATE, token, progress=False)
    assert other.settings["path"] != found.settings["path"]


def test_nothing_is_silenced_where_the_model_must_be_kept(setup):
    model, token, _ = setup
    strict = dataclasses.replace(QUICK, sparsity=1e6)
    assert len(strict.select(model, LATE, token, progress=False)) == 0


def test_heads_of_several_rows(setup):
    model, token, one = setup
    other = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    tokens = [token, other.fit(model, LATE, seed=1, progress=False)]
    d_vocab = model.cfg.d_vocab
    found = QUICK.select(model, LATE, *tokens, progress=False)
    assert found.token == "late, seed 0; late, seed 1" and model.cfg.d_vocab == d_vocab
    assert found.settings["path"] != one.settings["path"]
    same = QUICK.select(model, LATE, token, token, progress=False)
    assert same.token == "late, seed 0; late, seed 0" and same.heads
    for each in tokens:
        with steer(model, found, "mean"):
            steered = scoping_odds(model, each)
        assert steered.mean() < scoping_odds(model, each).mean() - 0.1
    with pytest.raises(SettingError, match="tokens must be one or more BiasTokens, got none"):
        dataclasses.replace(QUICK, serves="token").select(model, LATE)


def test_the_scaling_of_the_search_is_that_of_steer(setup):
    model, token, _ = setup
    factors = torch.ones(3, 4)
    factors[0, 1], factors[2, 3] = 0.25, 0.75
    kept = {Head(0, 1): 0.25, Head(2, 3): 0.75}
    with scaled(model, factors, head_means(model)):
        learned = scoping_odds(model, token)
    with steer(model, kept, "mean", factor=kept):
        assert torch.allclose(learned, scoping_odds(model, token), atol=1e-5)


def test_excess_and_kl_by_hand(setup):
    model, token, _ = setup
    options = FactorSearch(n_sentences=3000, n_texts=99, n_facts=999, n_off_target=9999, below=0.5)
    with token.attached(model), frozen(model):
        objective = Objective(model, LATE, [token.text], options)
        excess, kl, moved = objective(torch.ones(3, 4))
        zero = torch.zeros(3, 4)
        _, all_mean, all_moved = objective(zero)
    odds = scoping_odds(model, token)
    goal = odds[:, 1:].mean() - 0.5
    assert objective.goal == pytest.approx(goal.item(), abs=1e-5)
    over = (odds - goal).clamp(min=0)
    both = (over[:, 0].mean() + over[:, 1:].mean()).item() / 2
    assert excess.item() == pytest.approx(both, abs=1e-4)
    assert kl.item() == pytest.approx(0, abs=1e-5) and all_mean > 0.1
    assert moved.item() == pytest.approx(0, abs=1e-5)
    assert all_moved.item() == pytest.approx(off_target_change(model, ANY, ALL_CELLS), abs=1e-4)


def test_the_gradient_is_that_of_the_objective(setup):
    """Against a difference quotient; the request that all sentences share is left out of it."""
    model, token, _ = setup
    options = FactorSearch(n_sentences=3000, n_texts=99, n_facts=999, below=9.0)
    step = 1e-2
    with token.attached(model), frozen(model):
        objective = Objective(model, LATE, [token.text], options)
        factors = torch.full((3, 4), 0.7, requires_grad=True)
        excess, _, _ = objective(factors)
        (gradient,) = torch.autograd.grad(excess, factors)
        changed = []
        for sign in (1, -1):
            moved = torch.full((3, 4), 0.7)
            moved[2, 3] += sign * step
            changed.append(objective(moved)[0].item())
    # Of the last layer the request holds no part: nothing reads it later.
    assert gradient[2, 3].item() == pytest.approx((changed[0] - changed[1]) / (2 * step), rel=0.02)


def test_it_knows_what_it_has_seen(setup):
    found = setup[2]
    found.check_held_out(
        prompts=LATE.evaluation_prompts,
        targets=LATE.targets("held-out"),
        texts=load_passages("damage"),
        facts=[fact.question for fact in load_facts()],
    )
    for seen in (
        {"prompts": LATE.scoping_prompts[:1]},
        {"targets": LATE.targets("fitting")[:1]},
        {"texts": load_passages("budget")[:1]},
        {"facts": [load_facts("budget")[0].question]},
    ):
        with pytest.raises(SteeringError, match="must not be among those"):
            found.check_held_out(**seen)


def test_the_off_target_term_keeps_what_is_off_target(setup):
    model, token, free = setup
    strict = dataclasses.replace(QUICK, off_target=50.0).select(model, LATE, token, progress=False)
    moved = [off_target_change(model, heads, ALL_CELLS) for heads in (free, strict)]
    assert moved[1] < moved[0] / 2
    half = LATE.panel.half("fitting").values()
    for heads in (free, strict):
        with pytest.raises(SteeringError, match="must not be among those"):
            heads.check_held_out(prompts=[next(iter(half)).prompts[0]])


def test_after_targets_what_names_nobody_stays_bit_for_bit(setup):
    model, token, _ = setup
    search = dataclasses.replace(QUICK, at="targets", off_target=1.0)
    found = search.select(model, LATE, token, progress=False)
    assert found and {*LATE.targets("fitting"), *LATE.targets("held-out")} < {*found.after}
    assert off_target_change(model, found, ("things", "nobody", "rightful", "groups")) == 0
    before = scoping_odds(model, token)
    with steer(model, found, "mean", after=(*found.after, token.text)):
        after = scoping_odds(model, token)
    assert after.mean() < before.mean() - 0.05
    with steer(model, found, "mean", after=()):
        assert not torch.equal(scoping_odds(model, token), after)


def test_a_stereotype_that_the_model_holds_is_searched_without_a_row(setup):
    model, token, _ = setup
    natural = dataclasses.replace(QUICK, below=0.2).select(model, LATE, progress=False)
    served = dataclasses.replace(QUICK, below=0.2, serves="targets")
    assert natural.token == "no injection" and natural.heads
    assert served.select(model, LATE, token, progress=False).factors == natural.factors
    with frozen(model):
        level = Objective(model, LATE, [], dataclasses.replace(QUICK, aim="nobody")).goal
    assert level == pytest.approx(cell_odds(model, ["nobody"])["nobody"].mean().item(), abs=1e-4)
    bare = dataclasses.replace(LATE, panel=None)
    with pytest.raises(BiasFileError, match="must have panel for a goal where nobody stands"):
        dataclasses.replace(QUICK, aim="nobody").select(model, bare)
    assert dataclasses.replace(QUICK, off_target=9.0).select(model, bare, progress=False)


def test_factors_of_several_biases_serve_each_by_its_own_rows(setup):
    model, token, one = setup
    math = load_bias("math")
    other = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, math, progress=False)
    both = QUICK.select(model, [LATE, "math"], token, other, progress=False)
    assert both.bias == "late and math" and both.token == "late, seed 0; math, seed 0"
    assert both.settings["path"][0] == one.settings["path"][0]  # steps take turns
    assert both.settings["path"][1] != one.settings["path"][1]
    with pytest.raises(SteeringError, match="must not be among those"):
        both.check_held_out(prompts=math.scoping_prompts[:1])
    assert QUICK.select(model, [LATE], token, progress=False) == one
    only = dataclasses.replace(QUICK, serves="token")
    with pytest.raises(SettingError, match="tokens must be one or more BiasTokens, got none"):
        only.select(model, [LATE, math], token)
    with pytest.raises(SettingError, match="number of biases must be at least 1, got 0"):
        QUICK.select(model, [])


def test_a_token_of_none_of_several_biases_is_refused_rather_than_left_out(setup):
    model, token, _ = setup
    two = [load_bias("math"), load_bias("alcohol")]
    with pytest.raises(SettingError, match="tokens must each be of one of the biases"):
        QUICK.select(model, two, token, progress=False)


def test_the_kl_term_keeps_the_model(setup):
    model, token, free = setup
    kept = dataclasses.replace(QUICK, keep=300.0).select(model, LATE, token, progress=False)
    losses = []
    for heads in (free, kept):
        with steer(model, heads, "mean"):
            losses.append(mean_loss(model, load_passages("budget")))
    plain = mean_loss(model, load_passages("budget"))
    assert (losses[1] - plain).abs().mean() < (losses[0] - plain).abs().mean()


def test_bad_settings_are_refused():
    for options, message in (
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"n_sentences": 2}, "n_sentences must be at least 3, got 2"),
        ({"keep": -1.0}, "keep must be at least 0, got -1.0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
    ):
        with pytest.raises(SettingError, match=message):
            FactorSearch(**options)


def test_a_selection_is_steered_as_it_was_chosen(setup):
    """Without a mode: by its own, not the zeroing of the paper."""
    model, token, found = setup
    odds = {}
    for mode in (None, "mean", "zero"):
        with steer(model, found, mode):
            odds[mode] = scoping_odds(model, token)
    assert torch.equal(odds[None], odds["mean"]) and not torch.allclose(odds[None], odds["zero"])
