"""Masks of heads learned by uniform gradient sampling (Li and Janson, arXiv 2409.09951)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.batches import log_probs
from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import SettingError, check_at_least, check_within
from biasgym_tl.hooks import head_means
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.head_sets import toward
from biasgym_tl.rivals.intervention import HeadsEdit
from biasgym_tl.rivals.samples import drawn_sentences
from biasgym_tl.scoping.scores import top_heads
from biasgym_tl.steering.objective import scaled
from biasgym_tl.text import kl


def ugs(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    k: int = 10,
    n_steps: int = 120,
    lr: float = 0.1,
    pressure: float = 1e-3,
    seed: int = 0,
) -> HeadsEdit:
    """The ``k`` heads with the highest ``theta``, moved by a share ``s`` to their mean.

    Each head writes ``alpha * z + (1 - alpha) * mean`` with a drawn :func:`mask` ``alpha`` of
    ``theta = sigmoid(l)``. Adam minimises, from ``l = 0``, ``KL(original || masked)`` at the
    answers of scoping prompts with BiasTokens and fitting targets ``+ pressure * sum of theta``:
    what stays is needed for these answers. No gradient goes through what all sentences begin with.
    Other than published, all sentences of a step share a mask, the mean over neutral text stands
    for what is masked, not a constant that is learned with the mask, and steps are few.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts and fitting targets.
        tokens: BiasTokens.
        k: Number of heads.
        n_steps: Steps, each on 12 sentences.
        lr: Step of an ``l``.
        pressure: Nats that a head must be worth; the paper's.
        seed: Decides the draws.

    Raises:
        SettingError: there are no ``k`` heads or no steps, or ``lr`` is not positive.
    """
    n_layers, n_heads, _ = HeadsEdit.sizes(model)
    check_within("k", k, 1, n_layers * n_heads)
    check_at_least(1, n_steps=n_steps)
    check_at_least(0, pressure=pressure)
    if not lr > 0:
        raise SettingError(f"lr must be positive, got {lr!r}.")
    theta = needed(model, bias, tokens, n_steps, lr, pressure, seed)
    heads = top_heads(theta, k)
    settings = {
        "k": k, "n_steps": n_steps, "lr": lr, "pressure": pressure, "seed": seed,
        "theta": [theta[head].item() for head in heads],
    }  # fmt: skip
    return toward(model, bias, "ugs", heads, [0.0] * k, settings, "mean")


def needed(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    n_steps: int,
    lr: float,
    pressure: float,
    seed: int,
) -> Float[Tensor, "n_layers n_heads"]:
    """``theta`` of every head, learned as :func:`ugs` says."""
    n_layers, n_heads, _ = HeadsEdit.sizes(model)
    generator = torch.Generator().manual_seed(seed)
    reference = head_means(model)
    logits = torch.zeros(n_layers, n_heads, device=model.cfg.device, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=lr)
    with drawn_sentences(model, bias, tokens, seed) as draw:
        for _ in range(n_steps):
            asked, u = draw(), torch.rand(n_layers, n_heads, generator=generator)
            with torch.no_grad():
                before = log_probs(model, asked, last=True)
            with torch.enable_grad():
                theta = logits.sigmoid()
                with scaled(model, mask(theta, u.to(theta.device)), reference):
                    after = log_probs(model, asked, last=True)
                now = kl(before, after) + pressure * theta.sum()
            (logits.grad,) = torch.autograd.grad(now, logits)
            adam.step()
    return logits.detach().sigmoid().cpu()


def mask(theta: Float[Tensor, "*head"], u: Float[Tensor, "*head"]) -> Float[Tensor, "*head"]:
    """``alpha = 1 - clamp((u - theta) / w + 1/2, 0, 1)`` with ``w = theta * (1 - theta)``.

    Of ``u`` uniform in 0 to 1 it is 1 with probability ``theta - w/2``, 0 with ``1 - theta - w/2``,
    else uniform between, and ``theta`` in the mean. No gradient goes through ``w``: so the mean
    over ``u`` of the gradient by one ``theta`` is the loss at 1 less the loss at 0, that of a mask
    which is 1 with probability ``theta``.
    """
    width = (theta * (1 - theta)).detach().clamp(min=1e-6)
    return 1 - ((u - theta) / width + 0.5).clamp(0, 1)
