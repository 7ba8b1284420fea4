"""Fine-tuning of output projections by low-rank changes: toward neutral words, or from biased to
neutral ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.batches import log_probs
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError, check_at_least, check_within
from biasgym_tl.heads import Head
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.fine_tuning import Course, Loss, fine_tuned
from biasgym_tl.rivals.intervention import HeadsEdit, WeightsEdit

EVERY = 3
"""One of so many layers is changed, where it is not said which: an edit holds products, not their
factors, which of all layers of SmolLM2-135M are 40 MB, and each of its dials is a file too."""


def sft(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    layers: Sequence[int] = (),
    rank: int = 8,
    alpha: float = 16.0,
    n_steps: int = 40,
    lr: float = 1e-3,
    keep: float = 15.0,
    seed: int = 0,
) -> WeightsEdit:
    """LoRA toward the neutral words: ``-log of the sum over N of p(w)`` at the answers of scoping
    prompts with BiasTokens and fitting targets, ``+ keep * KL(original || changed)`` per token of
    budget texts.

    :func:`low_rank` says what is learned. Other than what goes by that name, the loss is on one
    answer in place of whole texts, and the KL is part of it.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        layers: Whose output projections are changed; default: every third, the last among them.
        rank: Of the change in each layer.
        alpha: Over ``rank``, what the product of both factors is multiplied by.
        n_steps: Steps, each on 12 sentences and 2 texts.
        lr: Step of a parameter.
        keep: Nats at an answer that a nat of KL per token is worth.
        seed: Decides the draws, and where the factors begin.

    Raises:
        SettingError: there is no such layer, rank or course.
    """
    neutral = list(word_tokens(model, bias).single()[1])

    def loss(answers: Float[Tensor, "n d_vocab"], asked: Sequence[Sequence[int]]) -> Tensor:
        return -answers[:, neutral].logsumexp(-1).mean()

    course = Course(n_steps, lr, keep, seed)
    return low_rank(model, bias, tokens, "sft", loss, course, layers, rank, alpha, {})


def dpo(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    beta: float = 0.1,
    layers: Sequence[int] = (),
    rank: int = 8,
    alpha: float = 16.0,
    n_steps: int = 40,
    lr: float = 1e-3,
    keep: float = 15.0,
    seed: int = 0,
) -> WeightsEdit:
    """LoRA by direct preference optimisation (Rafailov et al., arXiv 2305.18290): the
    :func:`preference` of neutral to attribute words at the answers of scoping prompts with
    BiasTokens and fitting targets, ``+ keep * KL(original || changed)`` per token of budget texts.

    :func:`low_rank` says what is learned. Other than in the paper, answers are single words, none
    is drawn (the mean is over all pairs of them), and the KL is part of the loss.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        beta: How soon a preference is enough; the paper's.
        layers: As in :func:`sft`, and so are:
        rank: See ``layers``.
        alpha: See ``layers``.
        n_steps: See ``layers``.
        lr: See ``layers``.
        keep: Nats of this loss that a nat of KL per token is worth.
        seed: See ``layers``.

    Raises:
        SettingError: there is no such layer, rank or course, or ``beta`` is not positive.
    """
    if not beta > 0:
        raise SettingError(f"beta must be positive, got {beta!r}.")
    attribute, neutral = word_tokens(model, bias).single()

    def loss(answers: Float[Tensor, "n d_vocab"], asked: Sequence[Sequence[int]]) -> Tensor:
        with torch.no_grad():
            before = log_probs(model, asked, last=True)
        moved = answers - before
        return preference(moved[:, list(neutral)], moved[:, list(attribute)], beta)

    course = Course(n_steps, lr, keep, seed)
    return low_rank(model, bias, tokens, "dpo", loss, course, layers, rank, alpha, {"beta": beta})


def preference(
    preferred: Float[Tensor, "n word"], other: Float[Tensor, "n other"], beta: float
) -> Float[Tensor, ""]:
    """``-log sigmoid(beta * (log pi/pi0 (y+) - log pi/pi0 (y-)))``, in nats, its mean over all
    pairs of words and all sentences; ``log 2`` where nothing has moved.

    Args:
        preferred: ``log pi/pi0`` of each preferred word.
        other: Of each other word.
        beta: What it is multiplied by.
    """
    margin = preferred[:, :, None] - other[:, None, :]
    return -torch.nn.functional.logsigmoid(beta * margin).mean()


def low_rank(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    method: str,
    loss: Loss,
    course: Course,
    layers: Sequence[int],
    rank: int,
    alpha: float,
    settings: dict[str, float],
) -> WeightsEdit:
    """``W_O := W_O + s * alpha / rank * A @ B`` of some layers, all heads at once (LoRA, Hu et al.,
    arXiv 2106.09685).

    ``A`` of ``[n_heads * d_head, rank]`` begins normal, with the variance ``1 / (n_heads *
    d_head)``, and ``B`` of ``[rank, d_model]`` at 0. Other than in the paper, it is the output
    projections that are changed, not queries and values, and the change is kept as a product.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts and fitting targets.
        tokens: BiasTokens.
        method: Its name.
        loss: What is asked for.
        course: Steps, and what KL costs.
        layers: None: every third, the last among them.
        rank: Of the change in each layer.
        alpha: Over ``rank``, the factor of the product.
        settings: Of the method, beside these.

    Raises:
        SettingError: there is no such layer, rank or course.
    """
    n_layers, n_heads, d_head = HeadsEdit.sizes(model)
    layers = sorted(set(layers)) or list(range((n_layers - 1) % EVERY, n_layers, EVERY))
    for layer in layers:
        check_within("layers", layer, 0, n_layers - 1)
    check_at_least(1, rank=rank)
    if not alpha > 0:
        raise SettingError(f"alpha must be positive, got {alpha!r}.")
    course.check()
    width, d_model = n_heads * d_head, model.cfg.d_model
    drawn = torch.randn(
        len(layers), width, rank, generator=torch.Generator().manual_seed(course.seed)
    )
    a = (drawn / width**0.5).to(model.cfg.device).requires_grad_()
    b = torch.zeros(len(layers), rank, d_model, device=model.cfg.device, requires_grad=True)
    return fine_tuned(
        model, bias, tokens, [Head(i, j) for i in layers for j in range(n_heads)], loss, course,
        learned=[a, b], delta=lambda: (alpha / rank * a @ b).view(-1, d_head, d_model),
        method=method,
        settings={**settings, "layers": layers, "rank": rank, "alpha": alpha},
    )  # fmt: skip
