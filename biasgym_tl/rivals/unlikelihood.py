"""Fine-tuning of chosen heads' output weights against the attribute words."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from biasgym_tl.batches import log_probs
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_text
from biasgym_tl.rivals.head_sets import top
from biasgym_tl.rivals.intervention import WeightsEdit
from biasgym_tl.rivals.samples import drawn_sentences, seen
from biasgym_tl.steering.objective import TEXT_TOKENS
from biasgym_tl.text import kl
from biasgym_tl.weights import Deltas, added_weights, replaced


def unlikelihood(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    k: int = 10,
    n_steps: int = 40,
    lr: float = 1e-3,
    keep: float = 15.0,
    seed: int = 0,
) -> WeightsEdit:
    """Changes of ``W_O`` of the ``k`` highest heads by direct attribution, learned by Adam.

    Minimises the mean of ``-sum over A of log(1 - p(w))`` (arXiv 1908.04319) at the answers of
    scoping prompts with BiasTokens and fitting targets, ``+ keep * KL(original || changed)`` per
    token of budget texts.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        k: Number of heads.
        n_steps: Steps, each on 12 sentences and 2 texts.
        lr: Step of a weight.
        keep: Nats of unlikelihood that a nat of KL per token is worth.
        seed: Decides the draws.
    """
    heads = top(model, bias, tokens, k=k).heads
    ids, drawn = list(word_tokens(model, bias).single()[0]), random.Random(seed)
    texts = [encode_text(model, text)[:TEXT_TOKENS] for text in load_passages("budget")]
    size = k, model.cfg.d_head, model.cfg.d_model
    delta = torch.zeros(size, device=model.cfg.device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=lr)
    with drawn_sentences(model, bias, tokens, seed) as draw:
        for _ in range(n_steps):
            some = drawn.sample(texts, min(2, len(texts)))
            with torch.no_grad():
                before = log_probs(model, some)
            weights = added_weights(model, heads, Deltas(delta, None))
            with torch.enable_grad(), replaced(model, weights):
                p = log_probs(model, draw(), last=True)[:, ids].exp()
                damage = kl(before, log_probs(model, some))
                total = -torch.log1p(-p.clamp(max=1 - 1e-6)).sum(1).mean() + keep * damage
            (delta.grad,) = torch.autograd.grad(total, delta)
            adam.step()
    return WeightsEdit(
        method="unlikelihood",
        bias=bias.name,
        model=model.cfg.model_name,
        data=seen(bias),
        settings={"k": k, "n_steps": n_steps, "lr": lr, "keep": keep, "seed": seed},
        heads=heads,
        delta=delta.detach().cpu(),
    )
