"""The words A and N of a bias as tokens of a model."""

from __future__ import annotations

from typing import NamedTuple

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import ModelError
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer


class WordIds(NamedTuple):
    """First tokens of attribute words (A) and neutral words (N), and the words left out."""

    attribute: tuple[int, ...]
    neutral: tuple[int, ...]
    left_out: tuple[str, ...]


def word_ids(model: HookedTransformer, bias: Bias) -> WordIds:
    """Token ids of the words that are one token after a space; the others are listed.

    Raises:
        ModelError: no attribute word or no neutral word is a single token.
    """
    ids: dict[str, list[int]] = {"attribute_words": [], "neutral_words": []}
    left_out = []
    for key, found in ids.items():
        for word in getattr(bias, key):
            pieces = encode_answer(model, " " + word)
            if len(pieces) == 1:
                found.append(pieces[0])
            else:
                left_out.append(word)
        if not found:
            raise ModelError(
                f"{key} of bias {bias.name!r} must hold a word that is one token on this model, "
                f"got {getattr(bias, key)}. Add a more common word."
            )
    return WordIds(tuple(ids["attribute_words"]), tuple(ids["neutral_words"]), tuple(left_out))
