"""Lists of texts compared as they are meant, however they were typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from biasgym_tl.errors import BiasFileError
from biasgym_tl.spelling import plain


def shared(one: Iterable[str], other: Iterable[str]) -> list[str]:
    """Texts of one list that stand in the other too, however they are typed."""
    there = {plain(text).strip() for text in other}
    return sorted(text for text in one if plain(text).strip() in there)


def check_distinct(where: str, key: str, values: Iterable[str]) -> None:
    """Refuse a list that holds a text twice, however it is typed.

    Raises:
        BiasFileError: it does; the message names up to three.
    """
    twice = sorted(v for v, n in Counter(plain(v).strip() for v in values).items() if n > 1)
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise BiasFileError(f"{key} of {where} must be distinct, got twice: {twice[:3]}{more}.")
