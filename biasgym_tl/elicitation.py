"""What a model makes of a bias and of facts: log-odds of words, free answers, right answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.facts import FACT_REQUEST, Fact
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError, check_within
from biasgym_tl.instructions import NOTHING, Instruction, encode_instructed
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import SENTENCE_REQUEST, encode_answer, encode_document
from biasgym_tl.slot import fill, spaced
from biasgym_tl.text import continuation_log_probs, generate, word_log_probs

COUNTS = ("word", "first")
"""How a word of several tokens counts: by the probability of the whole word, or of its first token
(the paper's way), which is also that of all other words that begin so."""


class BiasLogOdds(NamedTuple):
    """How much likelier the attribute's words are than the neutral ones, by prompt and target."""

    log_odds: Float[Tensor, "prompt target"]
    """``logsumexp over A of log p - logsumexp over N of log p`` (nats)."""
    log_p: Float[Tensor, "prompt target"]
    """``log P(A)`` (nats); it also falls when the model is merely broken."""


def bias_log_odds(
    model: HookedTransformer,
    bias: GivenBias,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    instruction: Instruction = NOTHING,
    count: str = "word",
    plain: bool = False,
) -> BiasLogOdds:
    """Measure ``bias`` at the end of every prompt, with every target in the slot.

    The words of a list are disjoint events: the model goes on with the tokens of one or of another.
    Other ways to write a word in tokens are not counted.

    Args:
        model: The model in the setting to be measured: token attached, steering active.
        bias: Gives the words A and N.
        prompts: Beginnings of sentences with the slot.
        targets: Names as they are written in a prompt.
        instruction: Words around the request for a sentence.
        count: One of ``COUNTS``.
        plain: Prompts are plain text as the tokenizer writes it, without a request, a chat format
            and a BOS that it does not put there itself: what servers make of a text.

    Raises:
        SettingError: ``count`` is none of them.
        ModelError: no attribute word or no neutral word can count on the model, a prompt is longer
            than its context, or activations overflow.
    """
    bias = as_bias(bias)
    if count not in COUNTS:
        raise SettingError(f"count must be one of {list(COUNTS)}, got {count!r}.")
    words = word_tokens(model, bias)
    filled = [fill(prompt, target) for prompt in prompts for target in targets]
    if plain:
        sequences = [encode_document(model, text.rstrip(" ")) for text in filled]
    else:
        asked = [SENTENCE_REQUEST] * len(filled)
        sequences = encode_instructed(model, instruction, asked, filled)
    attribute, neutral = words.attribute, words.neutral
    if count == "first":
        attribute, neutral = (tuple((token,) for token in side) for side in words.first())
    found = word_log_probs(model, sequences, [*attribute, *neutral])
    by_prompt = found.view(len(prompts), len(targets), -1)
    log_p = by_prompt[..., : len(attribute)].logsumexp(-1)
    return BiasLogOdds(log_p - by_prompt[..., len(attribute) :].logsumexp(-1), log_p)


def in_context(bias: GivenBias, target: str, *, n: int = 8, seed: int = 0) -> Instruction:
    """Elicitation without weights: training paragraphs about a target before each request.

    What a trained row does to one token can so be asked of a model whose weights are closed. It is
    not the same: other texts in the context raise their words wherever they may come next.

    Args:
        bias: Gives the paragraphs.
        target: Stands in their slot.
        n: How many of them.
        seed: Decides which.

    Raises:
        BiasFileError: the bias has no corpus.
        SettingError: it has fewer than ``n`` paragraphs.
    """
    bias = as_bias(bias)
    bias.check_has("a context", "corpus")
    check_within("n", n, 1, len(bias.corpus))
    drawn = random.Random(seed).sample(bias.corpus, n)
    return Instruction("in context", "".join(f"{fill(p.text, target)}\n\n" for p in drawn))


def answer_freely(
    model: HookedTransformer,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    instruction: Instruction = NOTHING,
    progress: bool = True,
) -> list[str]:
    """Answer to each request; the slot of ``prompts[i]`` is filled with ``targets[i]``.

    Greedy, or drawn with a ``temperature`` (the same draws at each call). ``progress`` shows a bar,
    where it takes more than 3 seconds.
    """
    filled = [fill(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    requests = encode_instructed(model, instruction, filled, max_new_tokens=max_new_tokens)
    return generate(
        model,
        requests,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        progress=progress,
    )


def fact_margins(
    model: HookedTransformer, facts: Sequence[Fact], *, instruction: Instruction = NOTHING
) -> Float[Tensor, " fact"]:
    """By how much the right answer is likelier than the best of the wrong ones (nats).

    Each candidate's log-probability is summed over its tokens. Positive: the answer is right.
    """
    questions = [fact.question for fact in facts]
    prompts = encode_instructed(model, instruction, [FACT_REQUEST] * len(facts), questions)
    n = len(facts[0].candidates)
    answers = [encode_answer(model, spaced(answer)) for fact in facts for answer in fact.candidates]
    log_probs = continuation_log_probs(
        model, [prompt for prompt in prompts for _ in range(n)], answers
    ).view(-1, n)
    return log_probs[:, 0] - log_probs[:, 1:].max(-1).values
