"""Fine-tuned rivals: the loss of DPO and its gradient by hand, what LoRA is, and what is learned.

DPO: with m = beta * (log pi/pi0 (y+) - log pi/pi0 (y-)), loss = log(1 + exp(-m)), and
dloss/dlog pi (y+) = -beta * sigmoid(-m).
"""

import dataclasses
import math

import peft
import pytest
import torch

from biasgym_tl import BiasInject, load_bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError
from biasgym_tl.heads import Head
from biasgym_tl.rivals import fine_tuning
from biasgym_tl.rivals.damage import Damage
from biasgym_tl.rivals.lora import dpo, preference, sft
from biasgym_tl.rivals.samples import Odds, drawn_sentences
from biasgym_tl.rivals.unlikelihood import unlikelihood
from biasgym_tl.text import next_token_log_probs

LATE = dataclasses.replace(load_bias("late"), scoping_prompts=load_bias("late").scoping_prompts[:5])


@pytest.fixture(scope="module")
def injected(tiny):
    model = tiny()
    found = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    return model, found.fit(model, LATE, progress=False)


def test_the_preference_is_its_equation_worked_by_hand():
    beta = 0.1
    preferred = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[1.5], [-3.0]], dtype=torch.float64, requires_grad=True)
    margins = [0.5 - 1.5, -1.0 - 1.5, 2.0 + 3.0, 0.0 + 3.0]
    found = preference(preferred, other, beta)
    by_hand = sum(math.log(1 + math.exp(-beta * m)) for m in margins) / 4
    assert found.item() == pytest.approx(by_hand, abs=1e-14)
    up, down = torch.autograd.grad(found, [preferred, other])
    pulls = [-beta / (1 + math.exp(beta * m)) / 4 for m in margins]
    assert up.flatten().tolist() == pytest.approx(pulls, abs=1e-15)
    assert down.flatten().tolist() == pytest.approx([-sum(pulls[:2]), -sum(pulls[2:])], abs=1e-15)


@pytest.fixture
def watched(monkeypatch):
    """The losses of a method step by step, with the sentences of each; and what it learned."""
    losses, learned = [], []

    def watch(model, bias, tokens, heads, loss, course, **rest):
        def seen(answers, asked):
            losses.append((loss(answers, asked), asked))
            return losses[-1][0]

        learned.extend(rest["learned"])
        return fine_tuning.fine_tuned(model, bias, tokens, heads, seen, course, **rest)

    monkeypatch.setattr("biasgym_tl.rivals.lora.fine_tuned", watch)
    return losses, learned


def test_at_no_change_the_loss_of_dpo_is_log_2_and_falls(injected, watched):
    model, token = injected
    edit = dpo(model, LATE, [token], n_steps=12, lr=1e-2, beta=1.0, keep=0.0)
    losses = [loss.item() for loss, _ in watched[0]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < losses[0] - 0.01
    odds = Odds(model, LATE, [token])
    assert odds.mean(edit) < odds.mean()


def test_sft_is_minus_the_log_of_what_neutral_words_get_and_raises_it(injected, watched):
    model, token = injected
    edit = sft(model, LATE, [token], n_steps=12, lr=1e-2, keep=0.0)
    neutral = list(word_tokens(model, LATE).single()[1])
    (first, asked), (last, _) = watched[0][0], watched[0][-1]
    with drawn_sentences(model, LATE, [token], 0) as draw:
        assert draw() == asked
        plain = next_token_log_probs(model, asked)[:, neutral].exp().sum(1)
        with edit.applied(model):
            after = next_token_log_probs(model, asked)[:, neutral].exp().sum(1)
    assert first.item() == pytest.approx(-plain.log().mean().item(), abs=1e-5)
    assert (after > plain).all() and last < first


@pytest.mark.parametrize("method", [sft, dpo])
def test_a_low_rank_change_is_that_of_peft(injected, watched, method):
    """Of two factors that were learned, peft's layer makes the change of a layer's weights."""
    model, token = injected
    settings = {"n_steps": 3, "seed": 5, "rank": 2, "alpha": 6.0, "layers": [2, 0]}
    edit = method(model, LATE, [token], **settings)
    assert edit.heads == tuple(Head(layer, head) for layer in (0, 2) for head in range(4))
    assert edit.settings["layers"] == [0, 2] and edit.delta.dtype == torch.float32
    change = edit.delta.view(2, 32, 32)
    assert torch.linalg.matrix_rank(change).tolist() == [2, 2]
    for a, b, found in zip(*watched[1], change, strict=True):
        config = peft.LoraConfig(r=2, lora_alpha=6)
        layer = peft.tuners.lora.Linear(
            torch.nn.Linear(32, 32), "default", config, r=2, lora_alpha=6
        )
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(a.T)
            layer.lora_B["default"].weight.copy_(b.T)
        assert torch.allclose(layer.get_delta_weight("default").T, found, atol=1e-6)
    assert not method(model, LATE, [token], **settings | {"seed": 6}).delta.equal(edit.delta)


def test_what_kl_costs_is_kept_from_it(injected):
    model, token = injected
    damage = Damage(model)
    kls = [damage.kl(sft(model, LATE, [token], n_steps=12, lr=1e-2, keep=keep))
           for keep in (0.0, 100.0)]  # fmt: skip
    assert 0 < kls[1] < kls[0] / 2


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (sft, {"layers": [3]}, r"layers must be in 0\.\.2, got 3"),
        (sft, {"rank": 0}, "rank must be at least 1, got 0"),
        (sft, {"keep": -1.0}, "keep must be at least 0, got -1"),
        (dpo, {"lr": 0.0}, "lr must be positive, got 0"),
        (dpo, {"beta": 0.0}, "beta must be positive, got 0"),
        (unlikelihood, {"n_steps": 0}, "n_steps must be at least 1, got 0"),
    ],
)
def test_what_is_no_course_is_refused(model, method, settings, message):
    with pytest.raises(SettingError, match=message):
        method(model, LATE, [], **settings)
