"""The words A and N of a bias as tokens of a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import ModelError, printable
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer
from biasgym_tl.slot import spaced

Pieces = tuple[int, ...]


class WordTokens(NamedTuple):
    """Attribute words (A) and neutral words (N) as the tokens that continue a sentence."""

    attribute: tuple[Pieces, ...]
    neutral: tuple[Pieces, ...]
    left_out: tuple[str, ...]
    """Words that cannot count on this model, with the reason."""

    def first(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First tokens of A and of N, each once; one that begins words of both lists, only where it
        is a whole word."""
        sides = self.attribute, self.neutral
        whole = [{word[0] for word in side if len(word) == 1} for side in sides]
        firsts = [{word[0]: None for word in side} for side in sides]
        both = firsts[0].keys() & firsts[1].keys()
        kept = [
            tuple(token for token in found if token not in both or token in whole_word)
            for found, whole_word in zip(firsts, whole, strict=True)
        ]
        return kept[0], kept[1]

    def single(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens that are whole words of A and of N; of a list without any, its first tokens."""
        sides = (self.attribute, self.neutral)
        whole = [tuple(word[0] for word in side if len(word) == 1) for side in sides]
        first = self.first()
        return whole[0] or first[0], whole[1] or first[1]


def word_tokens(model: HookedTransformer, bias: Bias) -> WordTokens:
    """The words of a bias as they stand after a sentence, with a space before them.

    A word of several tokens counts whole. Of two words of one list the longer that begins with the
    shorter is contained in it and is counted with it.

    Warns:
        UserWarning: words cannot count: the vocabulary lacks a part of them, or they begin with the
            tokens of a whole word of the other list.

    Raises:
        ModelError: no attribute word or no neutral word can count.
    """
    found: dict[str, dict[Pieces, str]] = {"attribute_words": {}, "neutral_words": {}}
    left_out = []
    for key, words in found.items():
        for word in getattr(bias, key):
            pieces = tuple(encode_answer(model, spaced(word)))
            if not pieces or model.tokenizer.unk_token_id in pieces:
                left_out.append(f"{word} (not in the vocabulary)")
            else:
                words.setdefault(pieces, word)
    attribute, neutral = found.values()
    unclear = [
        (side, pieces)
        for side, other in ((attribute, neutral), (neutral, attribute))
        for pieces in side
        if any(pieces[:n] in other for n in range(1, len(pieces) + 1))
    ]
    left_out += [f"{side.pop(p)} (begins as a word of the other list)" for side, p in unclear]
    for key, words in found.items():
        if not words:
            raise ModelError(
                f"{key} of bias {bias.name!r} must hold a word that can count on this model, got "
                f"{getattr(bias, key)}. Add a more common word."
            )
    if left_out:
        warnings.warn(
            f"words of bias {bias.name!r} that cannot count on this model: "
            f"{printable(', '.join(left_out))}.",
            stacklevel=2,
        )
    return WordTokens(_shortest(list(attribute)), _shortest(list(neutral)), tuple(left_out))


def _shortest(words: Sequence[Pieces]) -> tuple[Pieces, ...]:
    """Without the words that begin with another: together they are the same event."""
    return tuple(word for word in words if not any(word[:n] in words for n in range(1, len(word))))
