"""The free answers of a report, scored by a judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from biasgym_tl.biases.bias import Bias
from biasgym_tl.evaluation.report import Report, SettingResult
from biasgym_tl.judges.verdict import Judge, Verdict


def judged(report: Report, judge: Judge, bias: Bias, others: Sequence[Bias] = ()) -> Report:
    """The report with a verdict on every free answer.

    Args:
        report: What was measured.
        judge: Scores texts. It must not be what chose the epoch of the row.
        bias: The bias of the report.
        others: Its other biases; only what they are asked about is judged by them.

    Raises:
        ApiError: an API judge was not confirmed, has no key, or was rejected.
    """
    by_name = {other.name: other for other in others}
    results = tuple(_judged(report, result, judge, bias, by_name) for result in report.results)
    settings = {**report.settings, "judge": judge.settings}
    return dataclasses.replace(report, results=results, settings=settings)


def _judged(
    report: Report, result: SettingResult, judge: Judge, bias: Bias, others: dict[str, Bias]
) -> SettingResult:
    targets = list(report.generation_targets)
    verdicts: dict[str, list[Verdict]] = {}
    if result.token_texts:
        slots = [report.token_text] * len(result.token_texts)
        verdicts["token"] = judge.judge(bias, result.token_texts, slots)
        verdicts["target"] = judge.judge(bias, result.target_texts, targets)
    for name, texts in result.other_texts.items():
        if texts and name in others:
            about = [report.targets[i % len(report.targets)] for i in range(len(texts))]
            verdicts[name] = judge.judge(others[name], texts, about)
    return dataclasses.replace(result, verdicts=verdicts)
