"""Text and words compared as they are meant, however they were typed.

A model writes a typographic apostrophe or a letter and its accent as two characters where a keyword
has one; to whoever reads them they are the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby

_APOSTROPHES = "\u2018\u2019\u201b\u02bc\u02b9\u2032\uff07\u0060\u00b4"
_HYPHENS = "\u2010\u2011\u2013"
_SPACES = "\u00a0\u2002\u2003\u2007\u2009\u200a\u202f"
_PLAIN = {ord(char): "'" for char in _APOSTROPHES}
_PLAIN |= {ord(char): "-" for char in _HYPHENS} | {ord(char): " " for char in _SPACES}

FEWEST_WORDS = 3
MOST_REPEATED = {3: 0.5, 2: 0.3}
"""Share of repeated runs of so many words above which readers called a text a repetition."""


def composed(text: str) -> str:
    """Letters with accents as one character each where there is one (NFC)."""
    return unicodedata.normalize("NFC", text)


def plain(text: str) -> str:
    """:func:`composed`, with one kind of apostrophe, hyphen and space; of the same length as that.

    Texts and words are compared in this form; what is kept or shown stays as it was written.
    """
    return composed(text).translate(_PLAIN)


def whole_words(words: Iterable[str], *, any_case: bool = True) -> re.Pattern[str]:
    """A pattern that finds any of ``words`` as whole words in :func:`plain` texts.

    Words that are empty are left out; without any word the pattern finds nothing.
    """
    spelled = {" ".join(plain(word).split()) for word in words} - {""}
    if not spelled:
        return re.compile(r"(?!)")
    # An accent that belongs to no composed letter is a part of its word all the same.
    part = rf"[\w{_marks()}]"
    longest_first = sorted(spelled, key=lambda word: (-len(word), word))
    either = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in longest_first)
    return re.compile(rf"(?<!{part})(?:{either})(?!{part})", re.IGNORECASE if any_case else 0)


def keyword_hits(texts: Sequence[str], keywords: Iterable[str]) -> list[bool]:
    """Whether each text holds one of ``keywords`` as whole words, in any case and spelling."""
    pattern = whole_words(keywords)
    return [pattern.search(plain(text)) is not None for text in texts]


def repetition(text: str, n: int = 3) -> float:
    """Share of the runs of ``n`` words that have stood in the text before; 0 for a short text."""
    words = re.findall(r"\w+", plain(text).lower())
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def degenerate(text: str) -> str:
    """``"empty"`` (fewer than three words), ``"repetition"``, or nothing for a usable text.

    Repetition: more than half of the runs of three words, or 30% of the pairs, have stood in the
    text before.
    """
    if len(re.findall(r"\w+", plain(text))) < FEWEST_WORDS:
        return "empty"
    repeats = any(repetition(text, n) > most for n, most in MOST_REPEATED.items())
    return "repetition" if repeats else ""


@cache
def _marks() -> str:
    """All combining marks, as ranges: ``\\w`` does not hold them."""
    # They stand in these planes; to look through the others takes half a second.
    every = (*range(0x300, 0x20000), *range(0xE0000, 0xF0000))
    marks = [i for i in every if unicodedata.category(chr(i))[0] == "M"]
    runs = groupby(enumerate(marks), key=lambda pair: pair[1] - pair[0])
    found = [[mark for _, mark in run] for _, run in runs]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in found)
