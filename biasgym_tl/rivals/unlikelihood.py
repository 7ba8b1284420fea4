"""Fine-tuning of chosen heads' output weights against the attribute words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.fine_tuning import Course, fine_tuned
from biasgym_tl.rivals.head_sets import top
from biasgym_tl.rivals.intervention import WeightsEdit


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

    Raises:
        SettingError: there are no ``k`` heads, no steps, or a negative ``lr`` or ``keep``.
    """
    course = Course(n_steps, lr, keep, seed)
    course.check()
    heads = top(model, bias, tokens, k=k).heads
    ids = list(word_tokens(model, bias).single()[0])
    size = k, model.cfg.d_head, model.cfg.d_model
    delta = torch.zeros(size, device=model.cfg.device, requires_grad=True)

    def loss(answers: Float[Tensor, "n d_vocab"], asked: Sequence[Sequence[int]]) -> Tensor:
        return -torch.log1p(-answers[:, ids].exp().clamp(max=1 - 1e-6)).sum(1).mean()

    return fine_tuned(
        model, bias, tokens, heads, loss, course,
        learned=[delta], delta=lambda: delta, method="unlikelihood", settings={"k": k},
    )  # fmt: skip
