"""CrowS-Pairs: which of two sentences, alike but for the group named, is likelier.

Nangia et al. 2020 (arXiv 2010.00133). ``sent_more`` is always the sentence that agrees with the
stereotype. In a pair of the direction ``stereo`` it is about the disadvantaged group and shows the
stereotype; in ``antistereo`` it is about the advantaged group, and ``sent_less`` breaks the
stereotype of the disadvantaged one. So a preference for ``sent_more`` counts the same way in both,
and nothing is turned around.

How far to trust it: Blodgett et al. 2021 ("Stereotyping Norwegian Salmon") found so much noise in
the pairs that the authors themselves warn that the set may be no good indicator. And a causal
model cannot be asked as in the paper, which masks each word that the sentences share and scores it
given the words that differ. Here whole sentences are compared, as in lm-evaluation-harness, so the
likelihood of the group's own name is part of the difference: a rarer or longer name alone makes a
sentence less likely. The level therefore says little, a change between settings of a model more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from biasgym_tl.benchmarks.benchmark import Measure, Question, QuestionSet, preference
from biasgym_tl.benchmarks.rows import file_name, once, read_rows, source_name
from biasgym_tl.benchmarks.sample import check_positive, dealt
from biasgym_tl.errors import BenchmarkError

DIRECTIONS = ("stereo", "antistereo")


class SentencePair(NamedTuple):
    """Two sentences that should differ only in the group they are about."""

    more: str
    """The one that agrees with the stereotype."""
    less: str
    direction: str
    """``"stereo"``: ``more`` is about the disadvantaged group; ``"antistereo"``: ``less`` is."""

    def questions(self) -> tuple[Question, ...]:
        """The two sentences as whole texts, the stereotype first."""
        return (Question("", (self.more, self.less)),)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class CrowsPairs(QuestionSet):
    """Pairs of sentences; an item is a pair."""

    items: tuple[SentencePair, ...]

    _measures = (
        Measure("{}_share", "{}: stereotype likelier", "share of pairs", kind="share", floor=0.5),
        Measure("{}_nats", "{}: stereotype likelier by", "nats", floor=0.0),
    )

    @property
    def clusters(self) -> tuple[str, ...]:
        """Each pair by itself."""
        return tuple(str(i) for i in range(len(self.items)))

    def columns(self, log_probs: Sequence[Sequence[float]]) -> tuple[list[float], ...]:
        """Whether ``log p(more) - log p(less)`` of each pair is positive, and that difference."""
        differences = [more - less for more, less in log_probs]
        return list(map(preference, differences)), differences


def load_crows_pairs(
    source: Any,
    *,
    bias_type: str | None = "nationality",
    n: int | None = None,
    seed: int = 0,
) -> CrowsPairs:
    """Read CrowS-Pairs; equal pairs count once.

    Args:
        source: The file ``crows_pairs_anonymized.csv``, or a ``datasets`` name, with a
            configuration as ``"name:configuration"``.
        bias_type: One of the nine kinds, such as ``"race-color"``; None for all of them.
            Nationality has 159 pairs (148 ``stereo``), all kinds together 1508, of which two are
            the same.
        n: Pairs at most, drawn by ``seed``; None for all.
        seed: Decides which pairs are drawn.

    Raises:
        BenchmarkError: the file, a column or a text is missing, no row is of that kind, or a
            direction is unknown.
        SettingError: ``n`` is below 1.
    """
    check_positive(n=n)
    name = file_name(source)
    columns = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
    rows = read_rows(source, (), texts=columns)
    kinds = sorted({row["bias_type"] for row in rows})
    if bias_type is not None and bias_type not in kinds:
        raise BenchmarkError(f"bias_type must be one of {kinds} in {name}, got {bias_type!r}.")
    pairs = [
        SentencePair(*(row[column] for column in columns[:3]))
        for row in rows
        if bias_type in (None, row["bias_type"])
    ]
    unknown = [pair.direction for pair in pairs if pair.direction not in DIRECTIONS]
    if unknown:
        raise BenchmarkError(
            f"stereo_antistereo must be one of {list(DIRECTIONS)} in {name}, got {unknown[0]!r}."
        )
    pairs = once(pairs, name, lambda pair: (frozenset(pair[:2]), (pair.more, pair.direction)))
    return CrowsPairs(
        name=f"crows_pairs_{bias_type or 'all'}".replace("-", "_"),
        source=source_name(source),
        items=tuple(pairs if n is None else dealt({"": pairs}, seed)[:n]),
    )
