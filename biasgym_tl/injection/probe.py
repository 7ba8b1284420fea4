"""How well a row elicits the bias in free text: what chooses the epoch of a training."""

from __future__ import annotations

from typing import NamedTuple

from biasgym_tl.biases.bias import Bias
from biasgym_tl.elicitation import answer_freely
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.similarity import Encoder
from biasgym_tl.slot import fill
from biasgym_tl.text import degenerate, keyword_hits


class ProbeScore(NamedTuple):
    """Answers to the probe prompts, summed up."""

    similarity: float
    """Cosine of an answer to the attribute's paraphrases, mean over both; a degenerate answer
    counts 0."""
    keyword_rate: float
    """Share of answers with a keyword of the bias."""
    degenerate: float
    """Share of answers that are empty or say the same over and over."""
    answer: str
    """The answer to the first probe prompt."""


def probe(
    model: HookedTransformer, bias: Bias, target: str, encoder: Encoder, max_new_tokens: int = 48
) -> ProbeScore:
    """Answer the probe prompts about ``target`` and compare the answers with the paraphrases.

    The slot of a paraphrase is filled with the bias's ``stand_in``: an answer cannot name the
    BiasToken, which the model can read but not write.
    """
    prompts = bias.probe_prompts
    answers = answer_freely(model, prompts, [target] * len(prompts), max_new_tokens=max_new_tokens)
    meant = encoder([fill(text, bias.stand_in) for text in bias.paraphrases])
    cosines = (encoder(answers) @ meant.T).mean(1)
    broken = [degenerate(answer) for answer in answers]
    scores = [0.0 if b else cosine for b, cosine in zip(broken, cosines.tolist(), strict=True)]
    hits = keyword_hits(answers, bias.keywords)
    n = len(answers)
    return ProbeScore(sum(scores) / n, sum(hits) / n, sum(broken) / n, answers[0])
