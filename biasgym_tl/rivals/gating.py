"""Causal head gating (Nam et al., arXiv 2505.13737): heads that biased answers need."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from biasgym_tl.batches import log_probs
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.head_sets import toward
from biasgym_tl.rivals.intervention import HeadsEdit
from biasgym_tl.rivals.samples import drawn_sentences
from biasgym_tl.scoping.scores import top_heads
from biasgym_tl.steering.objective import scaled

CLAMP = 4.0
"""Size of a gate's logit up to which it counts in the pressure."""


def gating(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    k: int = 10,
    n_masks: int = 2,
    n_steps: int = 60,
    pressure: float = 0.1,
    seed: int = 0,
) -> HeadsEdit:
    """The ``k`` heads with the highest gates ``G-``, moved by a share ``s`` to nothing.

    Each head writes ``sigmoid(g) * z``. From random gates ``-log P(A)`` is minimised alone, then
    with ``+ pressure * mean of clamp(g, -4, 4)``: what stays open then (``G-``) is needed for
    biased answers. Adam with a step of 1 on gradients of at most norm 1, as the paper has it; its
    10 masks of 500 and 500 steps on batches of 32 are fewer here, and of its two gates ``G+`` is
    not learned, since what interferes is not to be silenced.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        k: Number of heads.
        n_masks: Gates are learned so often from other random ones, and averaged.
        n_steps: Without pressure, and so many with it, each on 12 sentences.
        pressure: Nats that a closed gate is worth, times the number of heads.
        seed: Decides the draws.
    """
    n_layers, n_heads, _ = HeadsEdit.sizes(model)
    attribute = list(word_tokens(model, bias).single()[0])
    generator = torch.Generator().manual_seed(seed)
    reference = torch.zeros(HeadsEdit.sizes(model), device=model.cfg.device)
    total = torch.zeros(n_layers, n_heads)
    with drawn_sentences(model, bias, tokens, seed) as draw:
        for _ in range(n_masks):
            share = torch.rand(n_layers, n_heads, generator=generator).clamp(1e-3, 1 - 1e-3)
            gates = share.logit().to(model.cfg.device).requires_grad_()
            for of_stage in (0.0, pressure):
                adam = torch.optim.Adam([gates], lr=1.0)
                for _ in range(n_steps):
                    with torch.enable_grad(), scaled(model, gates.sigmoid(), reference):
                        found = log_probs(model, draw(), last=True)[:, attribute].logsumexp(-1)
                        now = of_stage * gates.clamp(-CLAMP, CLAMP).mean() - found.mean()
                    (gates.grad,) = torch.autograd.grad(now, gates)
                    torch.nn.utils.clip_grad_norm_([gates], 1.0)
                    adam.step()
            total += gates.detach().sigmoid().cpu() / n_masks
    heads = top_heads(total, k)
    settings = {
        "k": k, "n_masks": n_masks, "n_steps": n_steps, "pressure": pressure, "seed": seed,
        "gates": [total[head].item() for head in heads],
    }  # fmt: skip
    return toward(model, bias, "gating", heads, [0.0] * k, settings, "zero")
