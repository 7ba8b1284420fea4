"""How the items of a result are read as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from biasgym_tl.benchmarks.refusals import is_refusal
from biasgym_tl.evaluation.measurement import Asked
from biasgym_tl.judges.verdict import Verdict, strengths
from biasgym_tl.spelling import keyword_hits, repetition


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionResult:
    """All that was measured in one condition, item by item."""

    name: str
    heads: tuple[str, ...] = ()
    """Heads that were steered; empty for the unsteered conditions."""
    mode: str | None = None
    token: str
    """Which row the BiasToken had (``BiasToken.label``); empty: there was none."""
    factor: Any = None
    """Share of its own output that a head kept, for all or by head."""
    instruction: str = ""
    """Name of the words around each request."""
    control_of: str | None = None
    """The steered condition that this one is a random control of."""
    after: tuple[str, ...] = ()
    """Names after which alone heads were steered; empty: everywhere."""
    since: str | None = None
    """The condition that changes of what the injection raised are counted from, if it is another
    than the unsteered one with the same row."""
    rival: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Method, settings, strength and KL of another intervention, where there was one."""
    items: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    """By key, one number or text per item, or for each prompt one number per target; NaN where an
    item does not count."""
    verdicts: dict[str, list[Verdict]] = dataclasses.field(default_factory=dict)
    """A judge's, by the key of the texts."""

    @property
    def steers(self) -> bool:
        """Whether the model was changed."""
        return bool(self.heads or self.rival)


Reader = Callable[[ConditionResult, str, Asked | None], list[Any]]


def _texts(read: Callable[[str], float]) -> Reader:
    """One number for each text, read from it alone."""
    return lambda result, key, asked: [float(read(text)) for text in result.items.get(key, ())]


def _keywords(result: ConditionResult, key: str, asked: Asked | None) -> list[Any]:
    words = asked.keywords if asked else ()
    return [float(hit) for hit in keyword_hits(result.items.get(key, []), words)]


def _degenerate(result: ConditionResult, key: str, asked: Asked | None) -> list[Any]:
    """NaN for a text of which the judge said nothing."""
    return [
        float("nan") if v.unscored and not v.degenerate else float(bool(v.degenerate))
        for v in result.verdicts.get(key, ())
    ]


READERS: dict[str, Reader] = {
    "items": lambda result, key, asked: result.items.get(key, []),
    "right": lambda result, key, asked: [float(x > 0) for x in result.items.get(key, ())],
    "keywords": _keywords,
    "refusals": _texts(is_refusal),
    "empty": _texts(lambda text: not text.split()),
    "repetition": _texts(repetition),
    "words": _texts(lambda text: len(text.split())),
    # NaN for a text that is unscored or degenerate
    "strength": lambda result, key, asked: list(strengths(result.verdicts.get(key, []))),
    "degenerate": _degenerate,
}
"""By name: the numbers of a condition's items under a key."""
