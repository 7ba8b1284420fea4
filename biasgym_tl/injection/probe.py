"""How well a row elicits the bias in free text: what chooses the epoch of a training."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from biasgym_tl.biases.bias import Bias
from biasgym_tl.elicitation import answer_freely
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.similarity import Encoder
from biasgym_tl.slot import fill
from biasgym_tl.text import degenerate, keyword_hits

ANSWERS_EACH = 6
"""Answers drawn to each probe prompt; one greedy answer each is too noisy to choose by."""
TEMPERATURE = 0.7


class ProbeScore(NamedTuple):
    """Answers to the probe prompts, summed up."""

    similarity: float
    """Mean over the answers of the cosine to the nearest of the attribute's paraphrases; a
    degenerate answer counts 0."""
    standard_error: float
    """Of that mean, over the answers."""
    keyword_rate: float
    """Share of answers with a keyword of the bias."""
    degenerate: float
    """Share of answers that are empty or say the same over and over."""
    answer: str
    """The first answer to the first probe prompt."""


def probe(
    model: HookedTransformer, bias: Bias, target: str, encoder: Encoder, max_new_tokens: int = 24
) -> ProbeScore:
    """Answer the probe prompts about ``target`` and compare the answers with the paraphrases.

    The slot of a paraphrase is filled with the bias's ``stand_in``: an answer cannot name the
    BiasToken, which the model can read but not write. The draws are the same at each call.
    """
    prompts = bias.probe_prompts * ANSWERS_EACH
    answers = answer_freely(
        model,
        prompts,
        [target] * len(prompts),
        max_new_tokens=max_new_tokens,
        temperature=TEMPERATURE,
    )
    meant = encoder([fill(text, bias.stand_in) for text in bias.paraphrases])
    broken = torch.tensor([bool(degenerate(answer)) for answer in answers])
    cosines = (encoder(answers) @ meant.T).amax(1).masked_fill(broken, 0.0)
    hits = keyword_hits(answers, bias.keywords)
    n = len(answers)
    return ProbeScore(
        similarity=cosines.mean().item(),
        standard_error=cosines.std().item() / math.sqrt(n),
        keyword_rate=sum(hits) / n,
        degenerate=broken.float().mean().item(),
        answer=answers[0],
    )
