"""Warnings that are kept with what they are about, and given again when it is read back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

_LISTENING: ContextVar[tuple[list[str], ...]] = ContextVar("listening", default=())


def warn(text: str, stacklevel: int = 2) -> None:
    """As :func:`warnings.warn`, and :func:`heard` gets the text, shown before or not."""
    for texts in _LISTENING.get():
        if text not in texts:
            texts.append(text)
    warnings.warn(text, stacklevel=stacklevel + 1)


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The texts of all :func:`warn` calls within, each once, in order; they are given as ever."""
    texts: list[str] = []
    token = _LISTENING.set((*_LISTENING.get(), texts))
    try:
        yield texts
    finally:
        _LISTENING.reset(token)
