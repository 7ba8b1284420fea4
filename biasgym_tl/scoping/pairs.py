"""Contrastive pairs: one prompt with the BiasToken and with a target, and their first tokens."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_ids
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.slot import fill
from biasgym_tl.text import next_token_log_probs


class Pairs(NamedTuple):
    """Pairs with frozen labels; ``biased`` is to be read while the BiasToken is attached."""

    prompts: tuple[str, ...]
    """The prompt of each pair, with its slot."""
    targets: tuple[str, ...]
    """The target on the neutral side of each pair."""
    label_targets: tuple[str, ...]
    """All targets that the neutral labels rest on."""
    biased: tuple[tuple[int, ...], ...]
    """Token ids with the BiasToken in the slot."""
    neutral: tuple[tuple[int, ...], ...]
    """Token ids with the target in the slot."""
    biased_ids: Int[Tensor, " pair"]
    """b: first token of the biased answer."""
    neutral_ids: Int[Tensor, " pair"]
    """n: first token of the neutral answer."""
    neutral_delta: Float[Tensor, " pair"]
    """Logit difference b - n on the neutral side (nats of log-odds)."""


def build_pairs(
    model: HookedTransformer,
    bias: Bias,
    token: BiasToken | None,
    *,
    n_targets: int = 8,
    seed: int = 0,
) -> Pairs:
    """Build one pair per scoping prompt and freeze its labels.

    ``n`` is the token outside A with the highest mean probability under ``n_targets`` fitting
    targets. ``b`` is the most likely token with the BiasToken if that is in A, otherwise the
    most likely token of A, so it is the most likely token of A either way. The neutral side of a
    pair is one of those targets, drawn at random.

    Args:
        model: The model, without the token attached.
        bias: Gives the scoping prompts and the words A.
        token: The BiasToken of the biased side; None: the neutral side stands on both sides, and
            ``b`` is the most likely token of A under the targets.
        n_targets: Fitting targets that the neutral labels are taken from.
        seed: Decides the targets.
    """
    attribute = list(word_ids(model, bias).attribute)
    names = bias.sample_targets("fitting", n_targets, seed)
    prompts = bias.scoping_prompts
    by_target = [[encode_sentence(model, fill(p, name)) for name in names] for p in prompts]
    flat = next_token_log_probs(model, [tokens for row in by_target for tokens in row])
    target_log_probs = flat.view(len(prompts), len(names), -1)
    mean_log_probs = target_log_probs.logsumexp(1)

    rng = random.Random(seed)
    sides = torch.tensor([rng.randrange(len(names)) for _ in prompts])
    neutral = [by_target[i][j] for i, j in enumerate(sides.tolist())]
    biased, biased_log_probs = neutral, mean_log_probs
    if token is not None:
        with token.attached(model):
            biased = [encode_sentence(model, fill(prompt, token.text)) for prompt in prompts]
            biased_log_probs = next_token_log_probs(model, biased)
    biased_ids, neutral_ids = choose_labels(
        biased_log_probs, mean_log_probs, _mask(attribute, flat)
    )
    rows = torch.arange(len(prompts))
    at_target = target_log_probs[rows, sides]
    return Pairs(
        prompts=prompts,
        targets=tuple(names[i] for i in sides.tolist()),
        label_targets=names,
        biased=tuple(map(tuple, biased)),
        neutral=tuple(map(tuple, neutral)),
        biased_ids=biased_ids,
        neutral_ids=neutral_ids,
        neutral_delta=at_target[rows, biased_ids] - at_target[rows, neutral_ids],
    )


def choose_labels(
    biased_log_probs: Float[Tensor, "pair d_vocab"],
    neutral_log_probs: Float[Tensor, "pair d_vocab"],
    is_attribute: Bool[Tensor, " d_vocab"],
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Most likely token of A on the biased side, most likely token outside A on the neutral."""
    never = torch.tensor(-torch.inf, device=biased_log_probs.device)
    biased_ids = biased_log_probs.where(is_attribute, never).argmax(-1)
    neutral_ids = neutral_log_probs.where(~is_attribute, never).argmax(-1)
    return biased_ids, neutral_ids


def _mask(ids: list[int], like: Float[Tensor, "n d_vocab"]) -> Bool[Tensor, " d_vocab"]:
    mask = torch.zeros(like.shape[-1], dtype=torch.bool, device=like.device)
    mask[ids] = True
    return mask
