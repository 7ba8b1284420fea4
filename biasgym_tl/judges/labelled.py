"""200 texts about a placeholder group, labelled twice: what a judge can be checked against.

Origin of the texts: 135 were written by SmolLM2-135M-Instruct (as it is; with a BiasToken in the
prompt; with that token and ten heads steered; or asked for the attribute outright), greedily or at
temperature 0.8, cut off after 44 or 48 tokens; country names, demonyms and places were replaced by
the slot, and what still gave a country away was dropped. 65 were written by hand for what such a
model hardly ever writes: hedges, hearsay, denials, counter-stereotypes, degenerate texts. The
split was drawn within bias and kind of origin before anything was labelled.

Origin of the labels: two language models, each alone and blind to origin, split and the other's
labels, scored every text by :data:`~biasgym_tl.judges.verdict.RUBRIC`. No person has checked them.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from biasgym_tl.errors import SettingError
from biasgym_tl.judges.verdict import Verdict

SPLITS = ("calibration", "test")


class LabelledText(NamedTuple):
    """A text with two labels."""

    id: str
    bias: str
    """Name of the shipped bias whose attribute was looked for."""
    split: str
    """``"calibration"`` or ``"test"``."""
    origin: str
    """``"written"``, or the model, its setting and how it was sampled."""
    text: str
    """With the slot where the group was named."""
    strengths: tuple[int, int]
    """0 to 3, of the first and the second reader."""
    degenerate: tuple[str, str]
    """What each said of the text as a text; empty for a sound one."""

    @property
    def strength(self) -> float:
        """Mean of the two."""
        return sum(self.strengths) / 2

    def label(self, reader: int) -> Verdict:
        """What one reader (0 or 1) said."""
        return Verdict(float(self.strengths[reader]), degenerate=self.degenerate[reader])


def load_labelled_texts(split: str | None = None) -> tuple[LabelledText, ...]:
    """The labelled texts, or those of one split.

    Raises:
        SettingError: there is no such split.
    """
    if split not in (*SPLITS, None):
        raise SettingError(f"split must be one of {list(SPLITS)} or None, got {split!r}.")
    return tuple(text for text in _shipped() if split in (text.split, None))


@cache
def _shipped() -> tuple[LabelledText, ...]:
    file = resources.files("biasgym_tl").joinpath("data/judged_texts.jsonl")
    lines = file.read_text(encoding="utf-8").split("\n")
    return tuple(_read(json.loads(line)) for line in lines if line)


def _read(row: dict[str, Any]) -> LabelledText:
    pairs = {key: (row.pop(f"{key}_a"), row.pop(f"{key}_b")) for key in ("strength", "degenerate")}
    return LabelledText(**row, strengths=pairs["strength"], degenerate=pairs["degenerate"])
