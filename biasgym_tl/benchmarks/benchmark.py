"""What every benchmark is: fixed items, and for each measure one number per item."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from biasgym_tl.errors import BenchmarkError
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer, encode_prompt, encode_text
from biasgym_tl.store import digest
from biasgym_tl.text import continuation_log_probs

KINDS = ("mean", "share", "texts")
"""Of measures; see :class:`Measure`."""
Scores = dict[str, list[float]]
"""For the key of each measure one number per item; NaN where an item does not count."""


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

    def run(self, model: HookedTransformer) -> Scores:
        """Measure the model as it is now (a steering may be active).

        Returns:
            For the key of each measure one number per item; NaN where an item does not count.
        """


class Length(NamedTuple):
    """How much text a benchmark has a model read, to tell beforehand what it takes."""

    read: int
    """Characters; what options and questions have in common at the beginning counts once."""
    predicted: int
    """Those of them that are options."""
    requests: int
    """Of a user in a chat."""


class Question(NamedTuple):
    """What a model reads, and the continuations whose likelihood is compared."""

    beginning: str
    """Empty where the options are whole texts."""
    options: tuple[str, ...]
    """With the space before them, if one belongs there."""
    request: str | None = None
    """The user's turn before it; None: the beginning is plain text, without a chat format."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class QuestionSet(abc.ABC):
    """A benchmark that compares how likely a model finds the options of fixed questions."""

    name: str
    source: str
    """Where the items are from."""
    items: tuple[Any, ...]
    """Each has its ``questions()`` and its ``cluster``."""

    _measures: ClassVar[tuple[Measure, ...]]
    """In the order of :meth:`columns`; ``{}`` stands for the name."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.clusters)} items, {self.source!r})"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is measured."""
        return tuple(
            measure._replace(
                key=measure.key.format(self.name), label=measure.label.format(self.name)
            )
            for measure in self._measures
        )

    @property
    def clusters(self) -> tuple[str, ...]:
        """One per item."""
        return tuple(item.cluster for item in self.items)

    @property
    def questions(self) -> tuple[Question, ...]:
        """What the model is asked; an item may need several questions."""
        return tuple(question for item in self.items for question in item.questions())

    @property
    def length(self) -> Length:
        """How much text it has a model read."""
        asked = [f"{q.request or ''}{q.beginning}" for q in self.questions]
        predicted = sum(len(option) for q in self.questions for option in q.options)
        requests = sum(q.request is not None for q in self.questions)
        return Length(sum(map(len, asked)) + predicted, predicted, requests)

    @property
    def fingerprint(self) -> str:
        """Short hash of the items, of what makes an answer right, and of how they are asked."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del parts["source"]
        return digest([parts, self.questions])

    @abc.abstractmethod
    def columns(self, log_probs: Sequence[Sequence[float]]) -> tuple[list[float], ...]:
        """For each measure one number per item, from the log-probabilities as in :meth:`score`."""

    def score(self, log_probs: Sequence[Sequence[float]]) -> Scores:
        """What the items show.

        Args:
            log_probs: Of each question, the log-probability of each option (nats).
        """
        columns = self.columns(log_probs)
        return {m.key: values for m, values in zip(self.measures, columns, strict=True)}

    def run(self, model: HookedTransformer) -> Scores:
        """Ask the model as it is now (a steering may be active) and score its answers."""
        return self.score(option_log_probs(model, self.questions))


def preference(difference: float) -> float:
    """1 where the first of two is preferred (the difference is positive), else 0; a tie is 0.5."""
    return 0.5 if difference == 0 else float(difference > 0)


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
    for beginning, options, request in questions:
        if request is None:
            start = encode_text(model, beginning)
        else:
            start = encode_prompt(model, request, beginning)
        for option in options:
            if request is None and not beginning:
                tokens = encode_text(model, option)[len(start) :]
            else:
                tokens = encode_answer(model, option)
            # Without anything before them, a text's tokens are predicted from its first.
            prompts.append(start or tokens[:1])
            continuations.append(tokens if start else tokens[1:])
            if not continuations[-1]:
                raise BenchmarkError(
                    "an option must have a token that is predicted from another, got "
                    f"{option!r} after {beginning!r}."
                )
    ends = iter(continuation_log_probs(model, prompts, continuations).tolist())
    return [[next(ends) for _ in question.options] for question in questions]
