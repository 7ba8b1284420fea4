"""Whether a text is a usable answer at all: a broken model must not look like a cured one."""

from __future__ import annotations

import re

from biasgym_tl.text import MOSTLY_REPEATED, repetition

FEWEST_WORDS = 3


def broken(text: str) -> str:
    """``"empty"`` (fewer than three words), ``"repetition"``, or nothing for a usable text.

    Repetition: more than half of the runs of three words have stood in the text before, or more
    than half of those of one word in a text of at least a dozen.
    """
    words = re.findall(r"\w+", text.lower())
    if len(words) < FEWEST_WORDS:
        return "empty"
    return "repetition" if repetition(text) > MOSTLY_REPEATED else ""
