"""200 texts about a placeholder group, labelled twice: what a judge can be checked against.

Where texts and labels come from, and what no person has checked: docs/judges.md.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import NamedTuple

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
    rows = map(json.loads, file.read_text(encoding="utf-8").strip().split("\n"))
    return tuple(
        LabelledText(
            strengths=(row.pop("strength_a"), row.pop("strength_b")),
            degenerate=(row.pop("degenerate_a"), row.pop("degenerate_b")),
            **row,
        )
        for row in rows
    )
