"""A bias that was put into known heads is found there, and one spread over all heads is said to be.

The BiasToken's row lies along one dimension that no other token and no other part uses. Each
planted head reads it and writes toward " late"; all that the other heads write is small.
"""

import dataclasses

import pytest
import torch

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Head,
    compare,
    concentration,
    load_bias,
    significance,
)
from biasgym_tl.allowed import METHODS
from biasgym_tl.lens import named_weights
from biasgym_tl.prompts import encode_answer

LATE = load_bias("late")
FEW = (Head(1, 2), Head(2, 1))
OWN = 31
ALL = tuple(Head(layer, head) for layer in range(3) for head in range(4))


@pytest.fixture(scope="module")
def planted(tiny):
    """Build a model with the bias in some heads, and the BiasToken that elicits it."""

    def build(heads):
        model = tiny("llama")
        fitted = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
        token = fitted.fit(model, LATE, progress=False)
        (late,) = encode_answer(model, " late")
        toward = model.W_U[:, late] / model.W_U[:, late].norm()
        toward[OWN] = 0
        weights = dict(named_weights(model))
        weights["embed.W_E"][:, OWN] = 0
        for name, weight in weights.items():
            if name.endswith(("W_O", "b_O", "W_out", "b_out")):
                weight *= 0.02
                weight[..., OWN] = 0
        for layer, head in heads:
            W_Q, b_Q, W_V, W_O = (
                weights[f"blocks.{layer}.attn.{name}"].unflatten(0, (-1, 8))  # by head
                for name in ("W_Q", "b_Q", "W_V", "W_O")
            )
            W_Q[head] = b_Q[head] = 0  # it attends to every position alike
            W_V[head // 2, 0] = 3 * torch.eye(32)[OWN]
            W_O[head, 0] = 4 * toward / len(heads)
        return model, dataclasses.replace(token, row=2 * torch.eye(32)[OWN])

    return build


@pytest.mark.parametrize("method", [m for m in METHODS if m != "slot_patching"])
def test_the_planted_heads_are_found(planted, method):
    model, token = planted(FEW)
    scores = BiasScope(method=method, contrast="difference").attribute(model, LATE, token)
    assert set(scores.top(2)) == set(FEW)
    found = concentration(scores.values)
    assert found.share(2) > 0.8 and found.effective_heads < 3.5


def test_what_is_spread_is_said_to_be_spread(planted):
    model, token = planted(ALL)
    scores = BiasScope(contrast="difference").attribute(model, LATE, token)
    found = concentration(scores.values)
    assert found.share(2) < 0.5 and found.effective_heads > 5


def test_significance_and_agreement_on_planted_heads(planted):
    model, token = planted(FEW)
    maps = [
        BiasScope(method=method, contrast="difference", neutral="several", n_targets=3).attribute(
            model, LATE, token
        )
        for method in ("direct", "zero_ablation")
    ]
    tested = significance(maps[0], n_flips=499)
    assert set(tested.heads()[:2]) == set(FEW) and all(tested.p[head] < 0.01 for head in FEW)
    assert compare(maps, k=2).overlap["direct", "zero_ablation"].estimate == 1
