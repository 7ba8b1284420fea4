"""Who of two is ascribed a behaviour: position and preference apart from the question cancel.

Li et al. 2020 (arXiv 2010.02428, "UnQover") ask about two subjects of whom nothing is known, in
both orders, and once about an attribute and once about its opposite. A model may prefer the one
who is named first, or a more common name, whatever is asked; both are the same in all four
questions or turn around with the order, and fall out of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class ComparativeScore(NamedTuple):
    """Positive: the first of the two is ascribed the attribute, the second its opposite."""

    nats: float
    """In log-odds of the two subjects, halved as the paper halves probabilities."""
    probability: float
    """The paper's comparative score C, from -1 to 1, of the probabilities of the two alone."""


def contrast(questions: Sequence[Sequence[float]]) -> ComparativeScore:
    """Combine the four questions about two subjects.

    With ``S`` the score that the first subject is the answer (and minus that, or one minus that,
    the score of the second), ``C = (S(a, 12) + S(a, 21)) / 2 - (S(b, 12) + S(b, 21)) / 2``: ``a``
    asks for the attribute, ``b`` for its opposite, and 12 and 21 are the orders. ``nats`` takes
    half the log-odds of the subjects as ``S``, ``probability`` their share ``p1 / (p1 + p2)``:
    unlike the span probabilities of the paper's models, those of a language model are spread over
    all words.

    Question and answer may change places: with the two subjects as ``a`` and ``b``, and the
    attribute and its opposite as answers, the difference is the same.

    Args:
        questions: Log-probabilities (nats) of first and second answer in the four questions:
            ``(a, 12), (a, 21), (b, 12), (b, 21)``.
    """
    log_odds = [first - second for first, second in questions]
    return ComparativeScore(
        _difference([odds / 2 for odds in log_odds]),
        _difference([(1 + math.tanh(odds / 2)) / 2 for odds in log_odds]),
    )


def _difference(scores: list[float]) -> float:
    a12, a21, b12, b21 = scores
    return (a12 + a21) / 2 - (b12 + b21) / 2
