"""A benchmark that compares how likely a model finds the options of fixed questions."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

from biasgym_tl.benchmarks.benchmark import Measure, Question, option_log_probs
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.store import digest

Scores = dict[str, list[float]]
"""For the key of each measure one number per item; NaN where an item does not count."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class QuestionSet(abc.ABC):
    """Questions, and what the log-probabilities of their options say about each item."""

    name: str
    """Short name; the keys of the measures begin with it."""
    source: str
    """Where the items are from."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.clusters)} items, {self.source!r})"

    @property
    @abc.abstractmethod
    def measures(self) -> tuple[Measure, ...]:
        """What is measured."""

    @property
    @abc.abstractmethod
    def clusters(self) -> tuple[str, ...]:
        """One per item: items of a cluster may share their fate."""

    @property
    @abc.abstractmethod
    def questions(self) -> tuple[Question, ...]:
        """What the model is asked; an item may need several questions."""

    @abc.abstractmethod
    def score(self, log_probs: Sequence[Sequence[float]]) -> Scores:
        """What the items show.

        Args:
            log_probs: Of each question, the log-probability of each option (nats).
        """

    @property
    def fingerprint(self) -> str:
        """Short hash of the items, of what makes an answer right, and of how they are asked."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del parts["source"]
        return digest([parts, self.questions])

    def run(self, model: HookedTransformer) -> Scores:
        """Ask the model as it is now (a steering may be active) and score its answers."""
        return self.score(option_log_probs(model, self.questions))
