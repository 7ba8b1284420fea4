"""Heads are added while the jointly measured drop rises and the damage stays within the bounds."""

import dataclasses
from contextlib import contextmanager

import pytest

from biasgym_tl import BiasInject, BudgetSearch, load_bias, steer
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.elicitation import bias_log_odds, fact_margins
from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.heads import all_heads
from biasgym_tl.hooks import head_means
from biasgym_tl.passages import load_passages
from biasgym_tl.text import mean_loss

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = load_bias("late")
FREE = {"max_loss": 99.0, "max_facts": 1.0, "max_off_target": None}


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    return model, token


def select(setup, **options):
    return BudgetSearch(**options).select(*setup[:1], LATE, setup[1], progress=False)


@contextmanager
def steered(setup, heads, mode):
    model, token = setup
    reference = head_means(model) if mode == "mean" else None
    with token.attached(model), steer(model, heads, mode, reference=reference):
        yield model


def mean_odds(setup, heads, mode, n_prompts=12, n_targets=4):
    """Log-odds of the BiasToken, and of the targets."""
    slots = (setup[1].text, *LATE.sample_targets("fitting", n_targets, 0))
    with steered(setup, heads, mode) as model:
        odds = bias_log_odds(model, LATE, LATE.scoping_prompts[:n_prompts], slots).log_odds
    return odds[:, 0].mean(), odds[:, 1:].mean()


def measured(setup, heads, mode):
    """Drop of the BiasToken's and of the targets' log-odds, rise of the loss, fall of the facts."""
    found = []
    for silent in ((), heads):
        with steered(setup, silent, mode) as model:
            loss = mean_loss(model, load_passages("budget")).mean()
            right = (fact_margins(model, load_facts("budget")) > 0).double().mean()
        found.append((*mean_odds(setup, silent, mode), -loss, right))
    return [(before - after).item() for before, after in zip(*found, strict=True)]


@pytest.mark.parametrize("mode", ["mean", "zero"])
def test_the_path_is_what_its_heads_do_together(setup, mode):
    selection = select(setup, k=3, mode=mode, serves="both", **FREE)
    path = selection.settings["path"]
    assert len(selection) == len(path) == 3
    drops = [step[0] for step in path]
    assert drops == sorted(drops) and drops[0] > 0
    token, targets, loss, facts = measured(setup, selection.heads, mode)
    assert path[-1] == pytest.approx([(token + targets) / 2, loss, facts, 0], abs=1e-4)


@pytest.mark.parametrize(("serves", "at"), [("token", 0), ("targets", 1)])
def test_the_first_head_is_the_one_that_lowers_the_served_most(setup, serves, at):
    selection = select(setup, k=1, width=12, serves=serves, **FREE)
    odds = {head: mean_odds(setup, [head], "mean")[at] for head in all_heads(3, 4)}
    assert selection.heads[0] == min(odds, key=odds.get)


def test_bounds_hold_for_all_heads_together(setup):
    free = select(setup, k=4, serves="token", **FREE)
    loss = max(step[1] for step in free.settings["path"])
    assert loss > 0
    bound = select(setup, k=4, serves="token", max_loss=loss / 2, max_facts=1.0)
    assert all(step[1] <= loss / 2 for step in bound.settings["path"])
    assert bound.heads != free.heads
    assert measured(setup, bound.heads, "mean")[2] <= loss / 2 + 1e-6


def test_it_knows_what_it_has_seen(setup):
    selection = select(setup, k=1, **FREE)
    held_out = LATE.sample_targets("held-out", 32, 0)
    selection.check_held_out(
        prompts=LATE.evaluation_prompts,
        targets=held_out,
        texts=load_passages("damage"),
        facts=[fact.question for fact in load_facts()],
    )
    for seen in (
        {"prompts": LATE.scoping_prompts[:1]},
        {"targets": LATE.targets("fitting")[:1]},
        {"texts": load_passages("budget")[:1]},
        {"facts": [load_facts("budget")[0].question]},
    ):
        with pytest.raises(SteeringError, match="in both"):
            selection.check_held_out(**seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"serves": "all"}, "serves must be one of"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"max_loss": -0.1}, "max_loss must be at least 0, got -0.1"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(SettingError, match=message):
        BudgetSearch(**options)
    with pytest.raises(SteeringError, match="mode must be one of"):
        BudgetSearch(mode="scale")


def spared_change(setup, heads):
    """Mean size of the change of log-odds on the panel's fitting half."""
    found = []
    half = LATE.panel.half("fitting", LATE.sample_targets("fitting", 4, 0))
    cells = [half[name] for name in ("things", "nobody", "rightful", "rightful_target")]
    for silent in ((), heads):
        with steered(setup, silent, "mean") as model:
            found.append([bias_log_odds(model, LATE, *cell).log_odds for cell in cells])
    changes = [(after - before).abs().mean() for before, after in zip(*found, strict=True)]
    return (sum(changes) / len(changes)).item()


def test_what_is_off_target_stays_within_its_bound(setup):
    free = {**FREE, "max_off_target": 99.0, "n_off_target": 9999}
    loose = select(setup, k=4, **free)
    for i in range(1, len(loose) + 1):
        reached = loose.settings["path"][i - 1][-1]
        assert reached == pytest.approx(spared_change(setup, loose.heads[:i]), abs=1e-4)
    bound = max(step[-1] for step in loose.settings["path"]) / 2
    tight = select(setup, k=4, **{**free, "max_off_target": bound})
    assert tight.heads != loose.heads
    assert all(step[-1] <= bound for step in tight.settings["path"])


def test_a_stereotype_is_searched_without_a_row(setup):
    model, token = setup
    found = BudgetSearch(k=2, **FREE).select(model, LATE, progress=False)
    same = BudgetSearch(k=2, serves="targets", **FREE).select(model, LATE, token, progress=False)
    assert found.token == "no injection" and found.heads == same.heads
    with pytest.raises(SettingError, match="tokens must be one or more BiasTokens where they are"):
        BudgetSearch(serves="token").select(model, LATE)


def test_several_rows_are_served_in_their_mean(setup):
    model, token = setup
    alone = BudgetSearch(k=2, **FREE).select(model, LATE, token, progress=False)
    twice = BudgetSearch(k=2, **FREE).select(model, LATE, token, token, progress=False)
    assert twice.heads == alone.heads and twice.token == f"{token.label}; {token.label}"
    for one, two in zip(alone.settings["path"], twice.settings["path"], strict=True):
        assert two == pytest.approx(one, abs=1e-6)
    other = dataclasses.replace(token, row=-token.row, seed=1)
    found = BudgetSearch(k=1, serves="token", **FREE).select(
        model, LATE, token, other, progress=False
    )
    falls = []
    for row in (token, other):
        before, after = (mean_odds((model, row), heads, "mean")[0] for heads in ((), found.heads))
        falls.append((before - after).item())
    assert found.settings["path"][0][0] == pytest.approx(sum(falls) / 2, abs=1e-5)
    assert falls[0] != pytest.approx(falls[1], abs=1e-3)
