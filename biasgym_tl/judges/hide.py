"""The group's name taken out of a text, so that a judge cannot go by what it thinks of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from biasgym_tl.biases.countries import load_countries
from biasgym_tl.errors import SettingError
from biasgym_tl.slot import SLOT
from biasgym_tl.spelling import composed, plain, whole_words


def hidden(texts: Sequence[str], targets: Sequence[str] | None) -> list[str]:
    """The texts with each one's target replaced by the slot ``{target}``.

    Of the package's countries the demonym is replaced too: "Peruvians" by "people from {target}".
    Cities, languages and names of persons are left, so a text may still give its group away.

    Args:
        texts: Texts about a group.
        targets: For each of them the name of the group; None leaves the texts as they are.

    Raises:
        SettingError: there are not as many targets as texts.
    """
    if targets is None:
        return list(texts)
    if len(targets) != len(texts):
        raise SettingError(
            f"targets must be one for each of {len(texts)} texts, got {len(targets)}."
        )
    return [_hidden(text, target) for text, target in zip(texts, targets, strict=True)]


def _hidden(text: str, target: str) -> str:
    demonym = _demonyms().get(plain(target))
    if demonym:
        text = _replaced(text, f"{demonym}s", f"people from {SLOT}")
        text = _replaced(text, demonym, SLOT)
    return _replaced(text, target, SLOT) if target else text


def _replaced(text: str, name: str, by: str) -> str:
    """``name`` as a whole word; in any case, unless it is a proper name ("Turkey", "turkey")."""
    text = composed(text)  # as long as it is when plain: places in one are places in the other
    found = whole_words([name], any_case=name == name.lower()).finditer(plain(text))
    ends = [0, *(end for match in found for end in match.span()), len(text)]
    return by.join(text[start:end] for start, end in zip(ends[::2], ends[1::2], strict=True))


@cache
def _demonyms() -> dict[str, str]:
    return {plain(country.name): country.demonym for country in load_countries()}
