"""What can go wrong, one class per room.

Every message follows ``<name> must be <expected>, got <value!r>. <what to do>``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints


class BiasGymError(Exception):
    """Base of all errors raised on purpose by biasgym_tl."""


class ModelError(BiasGymError, ValueError):
    """A model cannot be loaded, or cannot be used for what was asked."""


class BiasFileError(BiasGymError, ValueError):
    """A bias, corpus or country file does not hold what it must."""


class BenchmarkError(BiasGymError, ValueError):
    """A benchmark's files are missing or do not hold what they must."""


class TokenError(BiasGymError, ValueError):
    """A BiasToken does not fit the model, or a call cannot deal with its extra row."""


class AttributionError(BiasGymError, ValueError):
    """An attribution would not be exact, so no numbers are returned."""


class SteeringError(BiasGymError, ValueError):
    """Heads, mode or reference of a steering are not valid for the model."""


class PlantingError(BiasGymError, ValueError):
    """A bias cannot be planted as asked, or a plant is not specific."""


class StoreError(BiasGymError, ValueError):
    """A saved result is missing, broken or of another kind."""


class SettingError(BiasGymError, ValueError):
    """An argument or setting is outside its range."""


class ExtraError(BiasGymError, ImportError):
    """An optional package that was asked for is not installed."""


class ApiError(BiasGymError, RuntimeError):
    """A language model's API cannot be reached, refuses, or answers nothing that can be used."""


def check_one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Refuse a setting that is none of the ``allowed``."""
    if value not in tuple(allowed):
        raise SettingError(
            f"{name} must be one of {list(allowed)}, got {value!r}.{did_you_mean(value, allowed)}"
        )


def did_you_mean(value: object, known: Iterable[object]) -> str:
    """What may have been meant, as a sentence with a space before it; nothing if nothing is close.

    Close is what is spelled alike, or begins so.
    """
    wanted, names = str(value).lower(), [each for each in known if isinstance(each, str)]
    close = difflib.get_close_matches(wanted, names, n=3)
    close = close or [name for name in names if wanted and name.startswith(wanted)][:3]
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def check_literals(settings: Any) -> None:
    """Refuse a field of a dataclass that is none of the values its ``Literal`` type allows."""
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal:
            check_one_of(name, getattr(settings, name), get_args(hint))


def check_at_least(least: int, **settings: Any) -> None:
    """Refuse settings, given by name, that are below ``least``; None is none."""
    for name, value in settings.items():
        if value is not None and not value >= least:
            raise SettingError(f"{name} must be at least {least}, got {value!r}.")


def check_within(name: str, value: Any, least: int, most: int) -> None:
    """Refuse a setting outside ``least`` to ``most``."""
    if not least <= value <= most:
        raise SettingError(f"{name} must be in {least}..{most}, got {value!r}.")


def first_line(error: BaseException) -> str:
    """What an error of another package says, in one line; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    r"""Text from outside as it can be shown: control characters and the like as ``\x1b``."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)
