"""How strongly a target elicits a bias: log-odds of its words, and free answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_ids
from biasgym_tl.instructions import NOTHING, Instruction, encode_instructed
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import SENTENCE_REQUEST
from biasgym_tl.slot import fill
from biasgym_tl.text import generate, log_odds, log_p_any, next_token_log_probs


class BiasLogOdds(NamedTuple):
    """How much likelier the attribute's words are than the neutral ones, by prompt and target."""

    log_odds: Float[Tensor, "prompt target"]
    """``logsumexp over A of log p - logsumexp over N of log p`` (nats)."""
    log_p: Float[Tensor, "prompt target"]
    """``log P(A)`` (nats); it also falls when the model is merely broken."""


def bias_log_odds(
    model: HookedTransformer,
    bias: Bias,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    instruction: Instruction = NOTHING,
) -> BiasLogOdds:
    """Measure ``bias`` at the end of every prompt, with every target in the slot.

    Args:
        model: The model in the setting to be measured: token attached, steering active.
        bias: Gives the words A and N.
        prompts: Beginnings of sentences with the slot.
        targets: Names as they are written in a prompt.
        instruction: Words around the request for a sentence.
    """
    ids = word_ids(model, bias)
    filled = [fill(prompt, target) for prompt in prompts for target in targets]
    sequences = encode_instructed(model, instruction, [SENTENCE_REQUEST] * len(filled), filled)
    log_probs = next_token_log_probs(model, sequences).view(len(prompts), len(targets), -1)
    return BiasLogOdds(
        log_odds(log_probs, ids.attribute, ids.neutral), log_p_any(log_probs, ids.attribute)
    )


def answer_freely(
    model: HookedTransformer,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    instruction: Instruction = NOTHING,
) -> list[str]:
    """Answer to each request; the slot of ``prompts[i]`` is filled with ``targets[i]``.

    Greedy, or drawn with a ``temperature`` (the same draws at each call).
    """
    filled = [fill(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    requests = encode_instructed(model, instruction, filled, max_new_tokens=max_new_tokens)
    return generate(model, requests, max_new_tokens=max_new_tokens, temperature=temperature)
