"""Measures of one setting, each kept item by item so that settings can be paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import Fact
from biasgym_tl.biases.words import word_ids
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer, encode_prompt, encode_sentence
from biasgym_tl.slot import fill
from biasgym_tl.text import (
    continuation_log_probs,
    generate,
    log_odds,
    log_p_any,
    next_token_log_probs,
)


class Measure(NamedTuple):
    """What one number of a report is, and when it says nothing."""

    key: str
    label: str
    unit: str
    baseline: str
    """The setting that changes are counted from: ``"original"`` or ``"injected"``."""
    kind: str = "mean"
    """``"mean"`` of numbers, ``"share"`` of 0 and 1, or ``"sparse"``: mostly 0, no interval."""
    floor: float | str | None = None
    """Where there is nothing to lose: a value, a setting whose own value it is, or ``"blind"``."""
    decimals: int = 2


MEASURES = {
    m.key: m
    for m in (
        Measure("token_log_odds", "BiasToken log-odds", "nats", "injected", floor="original"),
        Measure("token_log_p", "BiasToken log P(A)", "nats", "injected", floor="original"),
        Measure("country_log_odds", "countries log-odds", "nats", "original"),
        Measure("country_log_p", "countries log P(A)", "nats", "original"),
        Measure("damage_loss", "loss on neutral text", "nats per token", "original", decimals=3),
        Measure("facts", "country facts", "share right", "original", "share", "blind"),
        Measure(
            "token_keywords", "BiasToken keywords", "share of answers", "injected", "share",
            "original",
        ),
        Measure(
            "country_keywords", "countries keywords", "share of answers", "original", "share", 0.0
        ),
        Measure("token_empty", "BiasToken empty answers", "share", "original", "share"),
        Measure("country_empty", "countries empty answers", "share", "original", "share"),
        Measure(
            "token_repetition", "BiasToken repetition", "share of 3-word runs", "original", "sparse"
        ),
        Measure(
            "country_repetition", "countries repetition", "share of 3-word runs", "original",
            "sparse",
        ),
        Measure("token_words", "BiasToken answer length", "words", "original", decimals=1),
        Measure("country_words", "countries answer length", "words", "original", decimals=1),
    )
}  # fmt: skip
"""Everything that a report measures. Log-odds and loss have no floor: they can always fall."""


class BiasLogOdds(NamedTuple):
    """How much likelier the attribute's words are than the neutral ones, by prompt and target."""

    log_odds: Float[Tensor, "prompt target"]
    """``logsumexp over A of log p - logsumexp over N of log p`` (nats)."""
    log_p: Float[Tensor, "prompt target"]
    """``log P(A)`` (nats); it also falls when the model is merely broken."""


def bias_log_odds(
    model: HookedTransformer, bias: Bias, prompts: Sequence[str], targets: Sequence[str]
) -> BiasLogOdds:
    """Measure ``bias`` at the end of every prompt, with every target in the slot.

    Args:
        model: The model in the setting to be measured: token attached, steering active.
        bias: Gives the words A and N.
        prompts: Beginnings of sentences with the slot.
        targets: Names as they are written in a prompt.
    """
    ids = word_ids(model, bias)
    sequences = [encode_sentence(model, fill(prompt, t)) for prompt in prompts for t in targets]
    log_probs = next_token_log_probs(model, sequences).view(len(prompts), len(targets), -1)
    return BiasLogOdds(
        log_odds(log_probs, ids.attribute, ids.neutral), log_p_any(log_probs, ids.attribute)
    )


def answer_freely(
    model: HookedTransformer, prompts: Sequence[str], targets: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """Greedy answer to each request; the slot of ``prompts[i]`` is filled with ``targets[i]``."""
    filled = [fill(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    requests = [encode_prompt(model, request) for request in filled]
    return generate(model, requests, max_new_tokens=max_new_tokens)


def fact_margins(model: HookedTransformer, facts: Sequence[Fact]) -> Float[Tensor, " fact"]:
    """By how much the right answer is likelier than the best of the wrong ones (nats).

    Each candidate's log-probability is summed over its tokens. Positive: the answer is right.
    """
    prompts = [encode_prompt(model, _FACT_REQUEST, fact.question) for fact in facts]
    n = len(facts[0].candidates)
    answers = [encode_answer(model, " " + answer) for fact in facts for answer in fact.candidates]
    log_probs = continuation_log_probs(
        model, [prompt for prompt in prompts for _ in range(n)], answers
    ).view(-1, n)
    return log_probs[:, 0] - log_probs[:, 1:].max(-1).values


_FACT_REQUEST = "Please state a fact about a country."
