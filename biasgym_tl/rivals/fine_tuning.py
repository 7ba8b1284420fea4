"""Fine-tuning of heads' output weights: a loss at answers, with KL on budget text in its way."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.batches import log_probs
from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import SettingError, check_at_least
from biasgym_tl.heads import Head
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_text
from biasgym_tl.rivals.intervention import WeightsEdit
from biasgym_tl.rivals.samples import drawn_sentences, seen
from biasgym_tl.steering.objective import TEXT_TOKENS
from biasgym_tl.text import kl
from biasgym_tl.weights import Deltas, added_weights, replaced

Loss: TypeAlias = Callable[[Float[Tensor, "sentence d_vocab"], Sequence[Sequence[int]]], Tensor]
"""Of the log-probabilities at the answers of some sentences, and of these; it is called while the
model is the original, which it may run. A mean over sentences."""


class Course(NamedTuple):
    """How long, how fast, and at what price."""

    n_steps: int
    """Steps of Adam, each on 12 sentences and 2 texts."""
    lr: float
    """Step of a parameter."""
    keep: float
    """Units of the loss that a nat of KL per token is worth."""
    seed: int
    """Decides the draws."""

    def check(self) -> None:
        """Refuse what is no course.

        Raises:
            SettingError: the message says which setting.
        """
        check_at_least(1, n_steps=self.n_steps)
        check_at_least(0, keep=self.keep)
        if not self.lr > 0:
            raise SettingError(f"lr must be positive, got {self.lr!r}.")


def fine_tuned(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    heads: Sequence[Head],
    loss: Loss,
    course: Course,
    *,
    learned: Sequence[Tensor],
    delta: Callable[[], Float[Tensor, "head d_head d_model"]],
    method: str,
    settings: Mapping[str, Any],
) -> WeightsEdit:
    """Changes of ``W_O`` that minimise ``loss + keep * KL(original || changed)``.

    The loss is that at the answers of scoping prompts with BiasTokens and fitting targets, the KL
    that per token of budget texts. No gradient goes through what all sentences begin with.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts and fitting targets.
        tokens: BiasTokens.
        heads: Whose weights are changed.
        loss: What is asked for.
        course: Steps, and what KL costs.
        learned: Parameters, which are changed in place.
        delta: The change that they stand for.
        method: Its name.
        settings: Of the method, beside the course.
    """
    drawn = random.Random(course.seed)
    texts = [encode_text(model, text)[:TEXT_TOKENS] for text in load_passages("budget")]
    adam = torch.optim.Adam(learned, lr=course.lr)
    with drawn_sentences(model, bias, tokens, course.seed) as draw:
        for _ in range(course.n_steps):
            some, asked = drawn.sample(texts, min(2, len(texts))), draw()
            with torch.no_grad():
                before = log_probs(model, some)
            with torch.enable_grad():
                with replaced(model, added_weights(model, heads, Deltas(delta(), None))):
                    answers, after = log_probs(model, asked, last=True), log_probs(model, some)
                total = loss(answers, asked) + course.keep * kl(before, after)
            grads = torch.autograd.grad(total, learned)
            for parameter, grad in zip(learned, grads, strict=True):
                parameter.grad = grad
            adam.step()
    return WeightsEdit(
        method=method,
        bias=bias.name,
        model=model.cfg.model_name,
        data=seen(bias),
        settings={**settings, **course._asdict()},
        heads=tuple(heads),
        delta=delta().detach().cpu(),
    )
