"""The free answers of a report, scored by a judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_biases
from biasgym_tl.errors import ApiError, SettingError
from biasgym_tl.evaluation.report import Report
from biasgym_tl.judges.api_judge import ApiJudge, JudgePlan
from biasgym_tl.judges.verdict import Judge, Verdict


class Answers(NamedTuple):
    """Free answers of one kind in one condition."""

    condition: str
    key: str
    """As in ``Report.asked``."""
    texts: list[str]
    targets: list[str]
    """The group that each is about."""


def judged(
    report: Report,
    judge: Judge,
    biases: Sequence[GivenBias],
    *,
    confirm: Callable[[JudgePlan], bool] | None = None,
) -> Report:
    """The report with a verdict on every free answer.

    Args:
        report: What was measured.
        judge: Scores texts. It must not be what chose the epoch of the row.
        biases: The bias of the report, and its other biases; what each is asked about is judged by
            it.
        confirm: Is shown, once, what an ``ApiJudge`` is going to take; nothing is sent unless it
            returns True.

    Raises:
        ApiError: an API judge was not confirmed, has no key, or was rejected.
        SettingError: a bias is missing, or the judge does not give one verdict for each text.
    """
    verdicts: dict[str, dict[str, list[Verdict]]] = {r.name: {} for r in report.results}
    asked = [(each, found, *_texts(found)) for each, found in to_judge(report, biases)]
    if isinstance(judge, ApiJudge) and confirm is not None:
        plan = JudgePlan.of_all(judge.plan(each, *what) for each, _, *what in asked)
        if not confirm(plan):
            raise ApiError(f"judging must be confirmed, and was not ({plan}). Nothing was sent.")
    for each, found, texts, targets in asked:
        given = judge.judge(each, texts, targets)
        if len(given) != len(texts):
            raise SettingError(
                f"judge must give one verdict for each of {len(texts)} texts, got "
                f"{len(given)} from {judge.name}."
            )
        scored = iter(given)
        for answers in found:
            verdicts[answers.condition][answers.key] = [next(scored) for _ in answers.texts]
    results = tuple(dataclasses.replace(r, verdicts=verdicts[r.name]) for r in report.results)
    return dataclasses.replace(
        report, results=results, settings={**report.settings, "judge": judge.settings}
    )


def _texts(found: list[Answers]) -> tuple[list[str], list[str]]:
    """All texts, and whom each is about."""
    texts = [text for answers in found for text in answers.texts]
    return texts, [target for answers in found for target in answers.targets]


def to_judge(report: Report, biases: Sequence[GivenBias]) -> list[tuple[Bias, list[Answers]]]:
    """What a judge is asked, by the bias that it is asked about.

    Raises:
        SettingError: answers are to the requests of a bias that is not given.
    """
    known = {bias.name: bias for bias in as_biases(biases)}
    found: dict[str, list[Answers]] = {}
    for result in report.results:
        for key, asked in report.asked.items():
            if texts := result.items.get(key):
                about = [target or report.token_text for target in asked.targets]
                found.setdefault(asked.bias, []).append(Answers(result.name, key, texts, about))
    if missing := sorted(set(found) - set(known)):
        raise SettingError(f"biases must include {missing}, whose requests were answered.")
    return [(known[name], answers) for name, answers in found.items()]
