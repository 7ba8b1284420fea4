"""What long work finds finished, and bars whose remaining time is that of what is left to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

Finished = Callable[[str, Any, Callable[[], Any]], Any]
"""Looks up what was made before by its name and by what it uses, or makes and keeps it."""


def make_now(name: str, uses: Any, make: Callable[[], Any]) -> Any:
    """The ``Finished`` that keeps nothing."""
    return make()


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that tells work of now from work that was found finished."""

    def found(self, n: int | float = 1, *, seconds: float | None = None) -> None:
        """Move on by ``n`` that an earlier run finished, in so many ``seconds`` if it is known."""
        if self.disable:
            return
        if seconds is None:
            self.initial += n  # counts as no work
        else:
            self.start_t -= seconds
        self.update(n)


def bar(total: int | float, desc: str, unit: str = "", *, progress: bool, delay: int = 0) -> Bar:
    """A bar whose remaining time rests on all that was done since it began, not on the last steps:
    in most loops here some steps take much longer than others. Without a unit only the share that
    is done is shown. What is done within ``delay`` seconds shows none."""
    shown = None if unit else "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    disable = not progress
    look: dict[str, Any] = {"unit": unit, "bar_format": shown, "smoothing": 0, "delay": delay}
    found: Bar = Bar(total=total, desc=desc, disable=disable, **look)
    return found
