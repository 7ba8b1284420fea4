"""What every benchmark is: fixed items, and for each measure one number per item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from biasgym_tl.errors import BenchmarkError
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer, encode_prompt, encode_text
from biasgym_tl.text import continuation_log_probs

KINDS = ("mean", "share", "texts")
"""Of measures; see :class:`Measure`."""


class Measure(NamedTuple):
    """What one number of a report is, and when it says nothing."""

    key: str
    label: str
    unit: str
    baseline: str = "original"
    """The setting that changes are counted from: ``"original"`` or ``"injected"``."""
    kind: str = "mean"
    """``"mean"`` of numbers, ``"share"`` of 0 and 1 (0.5 is a tie that is neither), ``"texts"``:
    a number for each free answer, some of which may not count."""
    floor: float | str | None = None
    """Where there is nothing to lose: a value, a setting whose own value it is, or ``"blind"``."""
    decimals: int = 2
    of: tuple[str, ...] = ()
    """Keys of the items that it is read from; default: its own key."""
    read: str = "items"
    """How: one of :data:`biasgym_tl.evaluation.readers.READERS`."""

    @property
    def rests_on(self) -> set[str]:
        """Names of the conditions that others are compared with."""
        floor = {self.floor} if isinstance(self.floor, str) else set()
        return {self.baseline} | floor - {"blind"}


@runtime_checkable
class Benchmark(Protocol):
    """Items that are the same in every setting, so that settings can be compared item by item."""

    @property
    def name(self) -> str:
        """Short name, such as ``"blimp"``."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is measured; each key begins with the benchmark's name."""

    @property
    def clusters(self) -> tuple[str, ...]:
        """One per item: items of a cluster (a template, a subject) may share their fate."""

    @property
    def fingerprint(self) -> str:
        """Short hash of the items and of how they are asked."""

    def run(self, model: HookedTransformer) -> dict[str, list[float]]:
        """Measure the model as it is now (a steering may be active).

        Returns:
            For the key of each measure one number per item; NaN where an item does not count.
        """


def preference(difference: float) -> float:
    """1 where the first of two is preferred (the difference is positive), else 0; a tie is 0.5."""
    return 0.5 if difference == 0 else float(difference > 0)


class Question(NamedTuple):
    """What a model reads, and the continuations whose likelihood is compared."""

    beginning: str
    """Empty where the options are whole texts."""
    options: tuple[str, ...]
    """With the space before them, if one belongs there."""
    request: str | None = None
    """The user's turn before it; None: the beginning is plain text, without a chat format."""


def option_log_probs(model: HookedTransformer, questions: Sequence[Question]) -> list[list[float]]:
    """Log-probability (nats) of each option of each question, summed over the option's tokens.

    Of a whole text, the first token counts only where the model has a BOS to predict it from.

    Args:
        model: The model in the setting to be measured.
        questions: What is asked.

    Raises:
        BenchmarkError: nothing is left of an option whose likelihood could be told.
    """
    prompts, continuations = [], []
    for question in questions:
        if question.request is not None:
            start = encode_prompt(model, question.request, question.beginning)
        else:
            start = encode_text(model, question.beginning)
        for option in question.options:
            whole = question.request is None and not question.beginning
            tokens = (
                encode_text(model, option)[len(start) :]
                if whole
                else (encode_answer(model, option))
            )
            # Without anything before them, a text's tokens are predicted from its first.
            prompts.append(start or tokens[:1])
            continuations.append(tokens if start else tokens[1:])
            if not continuations[-1]:
                raise BenchmarkError(
                    "an option must have a token that is predicted from another, got "
                    f"{option!r} after {question.beginning!r}."
                )
    log_probs = continuation_log_probs(model, prompts, continuations).tolist()
    ends = iter(log_probs)
    return [[next(ends) for _ in question.options] for question in questions]
