"""The off-target panel of a bias: prompts about others than its targets, and words of its own.

A stereotype is a difference between groups. Whether a method lowers that, or the word wherever it
stands, shows only here: where nobody is named, about things, about other groups, where the
attribute is true, and in words that no search saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

from biasgym_tl.biases.lists import check_distinct, shared
from biasgym_tl.errors import BiasFileError, check_one_of
from biasgym_tl.slot import SLOT

SPLITS = ("fitting", "held-out")
SPARED = ("nobody", "things", "rightful", "rightful_target")
"""Cells that are to stay as they are."""
RIGHTFUL_TARGETS = 4


class Prompts(NamedTuple):
    """Beginnings of sentences, and what stands in their slot."""

    prompts: tuple[str, ...]
    fillers: tuple[str, ...]
    """As names of targets in other prompts; each goes with each prompt."""


class Cell(NamedTuple):
    """One kind of prompts, in two halves that share neither prompts nor fillers."""

    fitting: Prompts
    """May shape a choice."""
    held_out: Prompts
    """Only judges."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """What a fall of log-odds should spare, and words that it should reach.

    Raises:
        BiasFileError: on construction, if a list is empty or holds a text twice, a prompt lacks the
            slot, the halves of a cell share a prompt or filler, or a word is on both lists.
    """

    attribute_words: tuple[str, ...]
    """Other words for A, which no search sees."""
    neutral_words: tuple[str, ...]
    """Other words for N."""
    nobody: Cell
    """No group is named: what a group is compared with."""
    things: Cell
    """Things and animals."""
    rightful: Cell
    """The attribute is true; asked with its fillers, and with the targets of the bias."""
    groups: Cell
    """Other groups than the targets."""

    def __post_init__(self) -> None:
        words = {"attribute_words": self.attribute_words, "neutral_words": self.neutral_words}
        for key, found in words.items():
            _check(f"{key} of the panel", found)
        _check_disjoint("the words of the panel", *words.values())
        for name, cell in self.cells().items():
            for split, half in zip(SPLITS, cell, strict=True):
                where = f"panel.{name}.{split}"
                _check(f"fillers of {where}", half.fillers)
                _check(f"prompts of {where}", half.prompts)
                for prompt in half.prompts:
                    if SLOT not in prompt:
                        raise BiasFileError(
                            f"prompts of {where} must hold the slot {SLOT}, got {prompt!r}."
                        )
            for one, other in zip(*cell, strict=True):
                _check_disjoint(f"the halves of panel.{name}", one, other)

    def seen(self, words: Iterable[str]) -> list[str]:
        """Words of the panel that are among ``words``, those of the bias."""
        return shared((*self.attribute_words, *self.neutral_words), words)

    def cells(self) -> dict[str, Cell]:
        """By name: nobody, things, rightful, groups."""
        return {name: getattr(self, name) for name in CELLS}

    def half(self, split: str, targets: Iterable[str] = ()) -> dict[str, Prompts]:
        """By cell, the prompts of a half: ``"fitting"`` may shape a choice, ``"held-out"`` judge.

        With ``targets`` also ``rightful_target``: rightful uses with the first of them in the slot,
        as many as other cells have fillers.

        Raises:
            SettingError: there is no such half.
        """
        check_one_of("split", split, SPLITS)
        found = {name: cell[SPLITS.index(split)] for name, cell in self.cells().items()}
        if few := tuple(islice(targets, RIGHTFUL_TARGETS)):
            found["rightful_target"] = found["rightful"]._replace(fillers=few)
        return found


CELLS = tuple(f.name for f in dataclasses.fields(Panel) if not f.name.endswith("_words"))


def _check(where: str, texts: Any) -> None:
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise BiasFileError(f"{where} must be texts, at least one and none empty, got {texts!r}.")
    check_distinct("the panel", where, texts)


def _check_disjoint(where: str, one: tuple[str, ...], other: tuple[str, ...]) -> None:
    if both := shared(one, other):
        raise BiasFileError(f"{where} must be disjoint, got {both} in both.")
