"""What a text is compared with beside the paraphrases: affirmative, opposite and neutral."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import NamedTuple

from biasgym_tl.errors import SettingError
from biasgym_tl.toml import read_toml


class Statements(NamedTuple):
    """Sentences with the slot that are compared with a text, beside a bias's paraphrases.

    Each list should have short plain ones ("They are late.") as well: without them, answers that
    are as short are nearest to whatever else is short.
    """

    affirmative: tuple[str, ...]
    """They ascribe the attribute, in the words in which ``opposite`` denies it."""
    opposite: tuple[str, ...]
    """They ascribe the opposite of the attribute, or deny it."""
    neutral: tuple[str, ...]
    """They speak of the same group and the same part of life."""


def load_statements(bias: str) -> Statements:
    """Statements for a shipped bias, by its name.

    Raises:
        SettingError: there are none for this bias.
    """
    found = _shipped()
    if bias not in found:
        raise SettingError(
            f"bias must be one of {sorted(found)} to have statements, got {bias!r}. "
            "Pass your own: LocalJudge(statements=Statements(affirmative=..., opposite=..., ...))."
        )
    return found[bias]


@cache
def _shipped() -> dict[str, Statements]:
    file = resources.files("biasgym_tl").joinpath("data/statements.toml")
    table = read_toml(file.read_text(encoding="utf-8"), "statements.toml")
    return {
        name: Statements(*(tuple(lists[field]) for field in Statements._fields))
        for name, lists in table.items()
    }
