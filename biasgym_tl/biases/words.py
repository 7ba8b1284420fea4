"""The words A and N of a bias as tokens of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import ModelError, printable
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer
from biasgym_tl.slot import spaced
from biasgym_tl.warned import warn

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
    lists = {key: getattr(bias, key) for key in ("attribute_words", "neutral_words")}
    found, left_out = count_on(model, lists, f"bias {bias.name!r}")
    return WordTokens(found["attribute_words"], found["neutral_words"], left_out)


def count_on(
    model: HookedTransformer, lists: Mapping[str, Sequence[str]], of: str
) -> tuple[dict[str, tuple[Pieces, ...]], tuple[str, ...]]:
    """Tokens of the words of each list that can count beside those of all others, and what is left
    out, with the reason; as :func:`word_tokens`, which warns and raises in the same way."""
    found: dict[str, dict[Pieces, str]] = {key: {} for key in lists}
    left_out = []
    for key, words in found.items():
        for word in lists[key]:
            pieces = tuple(encode_answer(model, spaced(word)))
            if not pieces or model.tokenizer.unk_token_id in pieces:
                left_out.append(f"{word} (not in the vocabulary)")
            else:
                words.setdefault(pieces, word)
    holders = Counter(pieces for words in found.values() for pieces in words)
    unclear = [
        (words, pieces)
        for words in found.values()
        for pieces in words
        if any(holders[pieces[:n]] > (pieces[:n] in words) for n in range(1, len(pieces) + 1))
    ]
    left_out += [f"{words.pop(p)} (begins as a word of another list)" for words, p in unclear]
    for key, words in found.items():
        if not words:
            raise ModelError(
                f"{key} of {of} must hold a word that can count on this model, got "
                f"{lists[key]}. Add a more common word."
            )
    if left_out:
        warn(
            f"words of {of} that cannot count on this model: {printable(', '.join(left_out))}.",
            stacklevel=3,
        )
    return {key: _shortest(list(words)) for key, words in found.items()}, tuple(left_out)


def _shortest(words: Sequence[Pieces]) -> tuple[Pieces, ...]:
    """Without the words that begin with another: together they are the same event."""
    return tuple(word for word in words if not any(word[:n] in words for n in range(1, len(word))))
