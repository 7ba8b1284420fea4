"""Neutral prose shipped for three uses that must not share a text.

``reference`` gives the mean output of a head, ``budget`` is what a choice of heads may look at,
``damage`` is kept for what is reported. Written for this project; about no group of people.
"""

from __future__ import annotations

from functools import cache

from biasgym_tl.errors import SettingError
from biasgym_tl.toml import shipped_toml


@cache
def load_passages(use: str) -> tuple[str, ...]:
    """Return the passages for one use: ``"reference"``, ``"budget"`` or ``"damage"``.

    Raises:
        SettingError: there is no such use.
    """
    uses = shipped_toml("data/passages.toml")
    if use not in uses:
        raise SettingError(f"use must be one of {sorted(uses)}, got {use!r}.")
    return tuple(uses[use])
