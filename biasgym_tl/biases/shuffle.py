"""A bias with its corpus shuffled, or with other words: controls."""

from __future__ import annotations

import dataclasses
import random

from biasgym_tl.biases.bias import Bias, list_biases, load_bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.slot import SLOT
from biasgym_tl.store import LONGEST_NAME


def with_random_words(bias: GivenBias, *, seed: int = 0) -> Bias:
    """The bias with words of other shipped biases in the place of its own, as many: what a search
    finds for them says nothing about the attribute."""
    bias = as_bias(bias)
    panel = bias.panel
    own = {*bias.attribute_words, *bias.neutral_words}
    own |= {*panel.attribute_words, *panel.neutral_words} if panel else set()
    others = [load_bias(name) for name in list_biases() if name != bias.name]
    pool = {word for b in others for word in (*b.attribute_words, *b.neutral_words)} - own
    n = len(bias.attribute_words)
    drawn = random.Random(seed).sample(sorted(pool), n + len(bias.neutral_words))
    return dataclasses.replace(
        bias,
        name=_named(bias, "-random-words"),
        attribute_words=tuple(drawn[:n]),
        neutral_words=tuple(drawn[n:]),
    )


def shuffled(bias: GivenBias, *, seed: int = 0) -> Bias:
    """The bias with all words of its corpus dealt out again at random.

    Every paragraph keeps its length and its slots where they were, so word frequencies and
    positions of the target are those of the corpus; what was said about the target is gone. A row
    trained on it shows what the mere words do.
    """
    bias = as_bias(bias)
    words = [word for p in bias.corpus for word in p.text.split() if SLOT not in word]
    random.Random(seed).shuffle(words)
    deal = iter(words)
    corpus = [
        p._replace(text=" ".join(w if SLOT in w else next(deal) for w in p.text.split()))
        for p in bias.corpus
    ]
    return dataclasses.replace(bias, name=_named(bias, "-shuffled"), corpus=tuple(corpus))


def _named(bias: Bias, ending: str) -> str:
    """The name of a control, no longer than names may be."""
    return f"{bias.name[: LONGEST_NAME - len(ending)]}{ending}"
