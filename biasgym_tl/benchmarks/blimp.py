"""BLiMP: does the model prefer the grammatical one of two sentences?"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from biasgym_tl.benchmarks.benchmark import Measure, Question
from biasgym_tl.benchmarks.question_set import QuestionSet, Scores
from biasgym_tl.benchmarks.rows import once, read_rows, warn_of_contradictions
from biasgym_tl.benchmarks.sample import stratified_sample
from biasgym_tl.errors import BenchmarkError


class MinimalPair(NamedTuple):
    """Two sentences that differ in one point of grammar."""

    paradigm: str
    """What is tested, BLiMP's ``UID``, such as ``"adjunct_island"``."""
    good: str
    bad: str


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Blimp(QuestionSet):
    """Minimal pairs (Warstadt et al. 2020, TACL 8, 377-392), read as whole sentences.

    A pair is right if the grammatical sentence is the likelier one; a model that knows no grammar
    is right in half. The margin says by how much. Sentences stand as they are after the BOS, if the
    model has one (lm-evaluation-harness's task puts a space before them as well).

    Clusters are the paradigms, although an interval over single pairs would be narrower: all pairs
    of a paradigm come from one template and are lost together, and what is to be known is whether
    grammar was kept, not whether these paradigms were.
    """

    pairs: tuple[MinimalPair, ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Share right, and log p of the good sentence minus that of the bad one."""
        return (
            Measure("blimp", "BLiMP", "share right", kind="share", floor=0.5),
            Measure("blimp_margin", "BLiMP margin", "nats"),
        )

    @property
    def clusters(self) -> tuple[str, ...]:
        """The paradigm of each pair."""
        return tuple(pair.paradigm for pair in self.pairs)

    @property
    def questions(self) -> tuple[Question, ...]:
        """The two sentences of each pair as whole texts, the grammatical one first."""
        return tuple(Question("", (pair.good, pair.bad)) for pair in self.pairs)

    def score(self, log_probs: Sequence[Sequence[float]]) -> Scores:
        """``log p(good) - log p(bad)`` of each pair, and whether it is positive."""
        margins = [good - bad for good, bad in log_probs]
        return {"blimp": [float(m > 0) for m in margins], "blimp_margin": margins}


def load_blimp(folder: str | Path, *, n: int | None = 600, seed: int = 0) -> Blimp:
    """Read BLiMP from a folder of its ``.jsonl`` files, one a paradigm; equal pairs count once.

    Args:
        folder: Holds the files of all 67 paradigms, or of some.
        n: Size of the sample, as many pairs of each paradigm; None: all of them.
        seed: Decides the sample.

    Raises:
        BenchmarkError: there is no such file in the folder, or a line does not hold a pair.
        SettingError: ``n`` is less than 1.
    """
    found = (
        MinimalPair(row["UID"], row["sentence_good"], row["sentence_bad"])
        for path in sorted(Path(folder).glob("*.jsonl"))
        for row in read_rows(path, (), texts=("UID", "sentence_good", "sentence_bad"))
    )
    paradigms: dict[str, list[MinimalPair]] = defaultdict(list)
    distinct = once(found, str(folder))
    warn_of_contradictions(
        ((frozenset((pair.good, pair.bad)), pair.good) for pair in distinct), str(folder)
    )
    for pair in distinct:
        paradigms[pair.paradigm].append(pair)
    if not paradigms:
        raise BenchmarkError(
            f"folder must hold BLiMP's .jsonl files, got {str(folder)!r}. "
            "They are in the folder data of https://github.com/alexwarstadt/blimp"
        )
    sample = stratified_sample(paradigms, n, seed=seed)
    pairs = tuple(pair for found in sample.values() for pair in found)
    return Blimp(name="blimp", source=str(folder), pairs=pairs)
