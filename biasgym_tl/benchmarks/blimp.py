"""BLiMP: does the model prefer the grammatical one of two sentences?"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from biasgym_tl.benchmarks.benchmark import Measure, Question, QuestionSet
from biasgym_tl.benchmarks.rows import once, read_rows
from biasgym_tl.benchmarks.sample import stratified_sample
from biasgym_tl.errors import BenchmarkError


class MinimalPair(NamedTuple):
    """Two sentences that differ in one point of grammar."""

    cluster: str
    """The paradigm that is tested, BLiMP's ``UID``, such as ``"adjunct_island"``."""
    good: str
    bad: str

    def questions(self) -> tuple[Question, ...]:
        """The two sentences as whole texts, the grammatical one first."""
        return (Question("", (self.good, self.bad)),)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Blimp(QuestionSet):
    """Minimal pairs (Warstadt et al. 2020, TACL 8, 377-392), read as whole sentences.

    A pair is right if the grammatical sentence is the likelier one; a model that knows no grammar
    is right in half. The margin, ``log p(good) - log p(bad)``, says by how much. Sentences stand as
    they are after the BOS, if the model has one (lm-evaluation-harness's task puts a space before
    them as well).

    Clusters are the paradigms, although an interval over single pairs would be narrower: all pairs
    of a paradigm come from one template and are lost together, and what is to be known is whether
    grammar was kept, not whether these paradigms were.
    """

    items: tuple[MinimalPair, ...]

    _measures = (
        Measure("blimp", "BLiMP", "share right", kind="share", floor=0.5),
        Measure("blimp_margin", "BLiMP margin", "nats"),
    )

    def columns(self, log_probs: Sequence[Sequence[float]]) -> tuple[list[float], ...]:
        """Whether each pair is right, and its margin."""
        margins = [good - bad for good, bad in log_probs]
        return [float(margin > 0) for margin in margins], margins


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
    found = [
        MinimalPair(row["UID"], row["sentence_good"], row["sentence_bad"])
        for path in sorted(Path(folder).glob("*.jsonl"))
        for row in read_rows(path, (), texts=("UID", "sentence_good", "sentence_bad"))
    ]
    if not found:
        raise BenchmarkError(
            f"folder must hold BLiMP's .jsonl files, got {str(folder)!r}. "
            "They are in the folder data of https://github.com/alexwarstadt/blimp"
        )
    paradigms: dict[str, list[MinimalPair]] = defaultdict(list)
    for pair in once(found, str(folder), lambda pair: (frozenset(pair[1:]), pair.good)):
        paradigms[pair.cluster].append(pair)
    sample = stratified_sample(paradigms, n, seed=seed)
    items = tuple(pair for pairs in sample.values() for pair in pairs)
    return Blimp(name="blimp", source=str(folder), items=items)
