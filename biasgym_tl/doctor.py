"""Is a model one whose numbers can be trusted here: identities that must hold, checked on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.heads import Head
from biasgym_tl.hooks import steer
from biasgym_tl.identities import without_output
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.precision import computed_in
from biasgym_tl.progress import bar
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.scoping.checks import check_exact
from biasgym_tl.scoping.compare import rank_correlation
from biasgym_tl.scoping.direct import TOLERANCE, unchecked_attribution
from biasgym_tl.slot import fill
from biasgym_tl.text import next_token_log_probs

LOG_PROB_TOLERANCE = 1e-3
"""Largest accepted difference of log-probabilities that must be equal (nats)."""
SAME_RANKS = 0.95
"""Rank correlation of heads in bf16 and fp32 below which there is a remark."""


class Check(NamedTuple):
    """One identity: what was found, what is accepted, what to do where it does not hold."""

    name: str
    found: float
    limit: float
    passed: bool
    advice: str
    required: bool = True
    """Whether numbers of this package rest on it."""

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED" if self.required else "note"
        remark = "" if self.passed else f" {self.advice}"
        return f"{verdict:6} {self.name}: {self.found:.3g} (limit {self.limit:g}).{remark}"


def examine(
    model: HookedTransformer, bias: GivenBias, *, n_prompts: int = 8, progress: bool = True
) -> list[Check]:
    """Check the identities that every number of this package rests on.

    Args:
        model: In fp32, without a token attached or a steering.
        bias: Gives the prompts and the words.
        n_prompts: Scoping prompts that are used.
        progress: Show a bar, where it takes more than 3 seconds.

    Raises:
        AttributionError: direct attribution does not hold on this model at all.
        ModelError: the model has no tokenizer, or no word of the bias can count on it.
    """
    bias = as_bias(bias)
    bias.needs("scoping")
    check_exact(model)
    attribute, neutral = word_tokens(model, bias).single()
    names = bias.sample_targets("fitting", n_prompts, seed=0)
    filled = (fill(p, name) for p, name in zip(bias.scoping_prompts, names, strict=False))
    sequences = [encode_sentence(model, prompt) for prompt in filled]
    labels = torch.tensor([attribute[0], neutral[0]], device=model.cfg.device)
    biased, neutral = labels[:, None].expand(2, len(sequences))
    head = Head(model.cfg.n_layers // 2, model.cfg.n_heads - 1)
    with bar(7, "examine", progress=progress, delay=3) as shown:

        def log_probs(**how: Any) -> Tensor:
            found = next_token_log_probs(model, sequences, **how)
            shown.update()
            return found

        alone, batched = (log_probs(shared=0, batch_size=n) for n in (1, len(sequences)))
        cached = log_probs()
        with steer(model, [head]):
            steered = log_probs()
        with without_output(model, head):
            edited = log_probs()
        parts = unchecked_attribution(model, sequences, biased, neutral)
        shown.update()
        ranks = _ranks_in_bf16(model, sequences, biased, neutral, parts.heads)
        shown.update()

    def equal(name: str, a: Tensor, b: Tensor, advice: str) -> Check:
        found = (a - b).abs().max().item()
        return Check(f"{name} (nats)", found, LOG_PROB_TOLERANCE,
                     found <= LOG_PROB_TOLERANCE, advice)  # fmt: skip

    error = parts.error().max().item()
    return [
        equal("batch of one = batch of many", alone, batched, "Padding reaches the answer."),
        equal("cached = uncached", alone, cached, "The cache changes what the model computes."),
        equal("silenced head = zeroed W_O", steered, edited, "Another hook changes this head."),
        Check("parts sum to the logit difference (share)", error, TOLERANCE, error <= TOLERANCE,
              "Direct attribution misses a part of this model."),
        Check("head ranks in bf16 = in fp32 (rank correlation)", ranks, SAME_RANKS,
              ranks >= SAME_RANKS, "Keep this model in fp32.", required=False),
    ]  # fmt: skip


@torch.inference_mode()
def _ranks_in_bf16(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, " pair"],
    neutral_ids: Int[Tensor, " pair"],
    heads: Float[Tensor, "pair n_layers n_heads"],
) -> float:
    """Rank correlation of the heads' mean values in fp32 with those of the model in bf16."""
    with computed_in(model, torch.bfloat16):
        found = unchecked_attribution(model, sequences, biased_ids, neutral_ids).heads
    flat = [values.mean(0).flatten()[None].double() for values in (heads, found)]
    return rank_correlation(*flat).item()
