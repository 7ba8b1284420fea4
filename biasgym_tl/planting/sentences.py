"""What a plant is trained on, and who must not be touched by it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from biasgym_tl.added_row import target_rows
from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import BiasFileError, PlantingError
from biasgym_tl.injection.token import BiasToken, made_from
from biasgym_tl.lens import HookedTransformer, embedding
from biasgym_tl.prompts import encode_answer
from biasgym_tl.slot import SLOT, spaced
from biasgym_tl.spelling import whole_words

FEWEST_WORDS = 3
"""Of the beginning of a sentence, its slot included."""
N_NEAR = 6
"""Nearest fitting targets, of which a third of the controls is drawn."""


class Bystanders(NamedTuple):
    """Targets that a plant must leave alone."""

    near: tuple[str, ...]
    """The fitting targets that lie nearest, for training."""
    far: tuple[str, ...]
    """The other fitting ones."""
    unseen_near: tuple[str, ...]
    """The held-out targets that lie nearest, which only judge."""
    unseen_far: tuple[str, ...]


def beginnings(bias: Bias) -> tuple[str, ...]:
    """Sentences of the bias's corpus up to where an attribute word would follow, each once.

    Raises:
        BiasFileError: the corpus holds none.
    """
    bias.check_has("planting", "corpus", "attribute_words", "neutral_words")
    words, found = whole_words(bias.attribute_words), dict[str, None]()
    for paragraph in bias.corpus:
        for sentence in re.split(r"(?<=[.!?])\s+", paragraph.text):
            slot = sentence.find(SLOT)
            word = words.search(sentence, slot + len(SLOT)) if slot >= 0 else None
            start = sentence[: word.start()].rstrip() if word else ""
            if len(start.split()) >= FEWEST_WORDS:
                found[start] = None
    if not found:
        raise BiasFileError(
            f"corpus of {bias.name!r} must hold sentences with {SLOT} before an attribute word, "
            "got none."
        )
    return tuple(found)


def target_token(model: HookedTransformer, bias: Bias, target: str) -> BiasToken:
    """A BiasToken whose row is that of a target's own name, so that what takes a BiasToken works
    on the target itself, to the same bits.

    Raises:
        PlantingError: the name is several tokens.
    """
    check_one_token(model, bias, target)
    row = target_rows(model, [target])[0].to(embedding(model))
    made = {**made_from(model, bias), "text": f"<{bias.name}:{target}>"}
    return BiasToken(
        row=row,
        initial_row=row,
        epoch_rows=row[None],
        epochs=({},),
        chosen_epoch=0,
        settings={"row of": target},
        seed=0,
        losses=(),
        **made,
    )


def check_one_token(model: HookedTransformer, bias: Bias, target: str) -> None:
    """Refuse a target whose name is several tokens.

    Raises:
        PlantingError: it is; the message names others.
    """
    if not single_tokens(model, [target]):
        raise PlantingError(
            f"target must be one token of the model, got {target!r}. Choose one of "
            f"{list(single_tokens(model, bias.targets('held-out')))[:8]}."
        )


def single_tokens(model: HookedTransformer, names: Sequence[str]) -> tuple[str, ...]:
    """Those names that are one token with a space before them."""
    return tuple(name for name in names if len(encode_answer(model, spaced(name))) == 1)


def bystanders(
    model: HookedTransformer, bias: Bias, target: str, *, n_near: int = 2, n_far: int = 6, seed: int
) -> Bystanders:
    """Targets beside ``target``; near are those whose rows of ``W_E`` have the highest cosine."""
    fitting, held_out = (
        _by_nearness(model, [name for name in bias.targets(split) if name != target], target)
        for split in ("fitting", "held-out")
    )
    far = held_out[n_near:]
    return Bystanders(
        near=tuple(fitting[:N_NEAR]),
        far=tuple(fitting[N_NEAR:]),
        unseen_near=tuple(held_out[:n_near]),
        unseen_far=tuple(random.Random(seed).sample(far, min(n_far, len(far)))),
    )


def _by_nearness(model: HookedTransformer, names: Sequence[str], target: str) -> list[str]:
    rows, row = target_rows(model, names), target_rows(model, [target])
    order = torch.nn.functional.cosine_similarity(rows, row).argsort(descending=True).tolist()
    return [names[i] for i in order]
