"""The free answers of a report, scored by a judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias, as_biases
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.parts import deal
from biasgym_tl.evaluation.report import Report
from biasgym_tl.judges.verdict import Judge, Verdict


class Answers(NamedTuple):
    """Free answers of one kind in one setting."""

    setting: str
    kind: str
    """``"token"``, ``"target"``, or the name of another bias."""
    texts: list[str]
    targets: list[str]
    """The group that each is about."""


def judged(
    report: Report, judge: Judge, bias: GivenBias, others: Sequence[GivenBias] = ()
) -> Report:
    """The report with a verdict on every free answer.

    Args:
        report: What was measured.
        judge: Scores texts. It must not be what chose the epoch of the row.
        bias: The bias of the report.
        others: Its other biases; only what they are asked about is judged by them.

    Raises:
        ApiError: an API judge was not confirmed, has no key, or was rejected.
        SettingError: the judge does not give one verdict for each text.
    """
    verdicts: dict[str, dict[str, list[Verdict]]] = {r.name: {} for r in report.results}
    for each, found in to_judge(report, bias, others):
        texts = [text for answers in found for text in answers.texts]
        targets = [target for answers in found for target in answers.targets]
        given = judge.judge(each, texts, targets)
        if len(given) != len(texts):
            raise SettingError(
                f"judge must give one verdict for each of {len(texts)} texts, got "
                f"{len(given)} from {judge.name}."
            )
        scored = iter(given)
        for answers in found:
            verdicts[answers.setting][answers.kind] = [next(scored) for _ in answers.texts]
    results = tuple(dataclasses.replace(r, verdicts=verdicts[r.name]) for r in report.results)
    return dataclasses.replace(
        report, results=results, settings={**report.settings, "judge": judge.settings}
    )


def to_judge(
    report: Report, bias: GivenBias, others: Sequence[GivenBias] = ()
) -> list[tuple[Bias, list[Answers]]]:
    """What a judge is asked, by the bias that it is asked about."""
    bias, others = as_bias(bias), as_biases(others)
    found = list(_answers(report))
    by_bias = [(bias, [a for a in found if a.kind in ("token", "target")])]
    by_bias += [(other, [a for a in found if a.kind == other.name]) for other in others]
    return [(each, answers) for each, answers in by_bias if answers]


def _answers(report: Report) -> Iterator[Answers]:
    for result in report.results:
        if result.token_texts:
            slots = [report.token_text] * len(result.token_texts)
            yield Answers(result.name, "token", result.token_texts, slots)
            about = list(report.generation_targets)
            yield Answers(result.name, "target", result.target_texts, about)
        for name, texts in result.other_texts.items():
            if texts:
                yield Answers(result.name, name, texts, deal(report.targets, len(texts)))
