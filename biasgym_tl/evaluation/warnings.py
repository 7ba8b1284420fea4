"""What a reader of a report should be told before they believe it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from biasgym_tl.evaluation.readers import ConditionResult
from biasgym_tl.judges.verdict import summarise
from biasgym_tl.stats import Interval

if TYPE_CHECKING:
    from biasgym_tl.evaluation.report import Report

WEAK_INJECTION = 1.0
"""Rise of the BiasToken's log-odds (nats) under which an injection is weak."""
LARGE_DAMAGE = 0.05
"""Share of the unsteered loss, or of the facts, whose loss is large."""
DIFFUSE = 0.5
"""Share of the positive attribution in the chosen heads under which a bias is spread out."""


def warnings_of(report: Report) -> list[str]:
    """Warnings in words; empty if there is nothing to warn of."""
    found = [_words_left_out(report), _weak_injection(report), _diffuse(report)]
    found.append(_uncontrolled(report))
    for result in report.steered:
        found.append(_not_beyond_random(report, result.name, "token_log_odds", "the BiasToken's"))
        found.append(_not_beyond_random(report, result.name, "target_log_odds", "targets'"))
        found.append(_unspecific(report, result.name))
    found += [_damage(report, result.name) for result in report.steered]
    found += [_unscored(result) for result in report.results]
    found += [report.not_informative(key) for key in report.measures]
    found += report.settings.get("remarks", [])
    return [warning for warning in found if warning]


def _change(report: Report, name: str, measure: str) -> Interval | None:
    """Since the unsteered model, where both were measured."""
    names = [result.name for result in report.results]
    known = measure in report.measures and {"original", name} <= set(names)
    return report.change(name, measure, "original") if known else None


def _words_left_out(report: Report) -> str:
    found = report.settings.get("words_left_out") or {}
    named = "; ".join(f"{name}: {', '.join(words)}" for name, words in found.items())
    return f"Words that cannot count on this model: {named}" if found else ""


def _weak_injection(report: Report) -> str:
    rise = _change(report, "injected", "token_log_odds")
    if rise is None or rise.low > WEAK_INJECTION:
        return ""
    return (
        f"Injection weak: training raised the BiasToken's log-odds by {rise} nats, whose interval "
        f"is not above {WEAK_INJECTION:g}. What follows from its heads is doubtful"
    )


def _damage(report: Report, name: str) -> str:
    found = []
    rise = _change(report, name, "damage_loss")
    if rise and rise.estimate > LARGE_DAMAGE * (loss := _loss(report)):
        found.append(f"loss on neutral text up by {rise.estimate / loss:.0%}")
    facts = _change(report, name, "facts")
    if facts and facts.estimate < -LARGE_DAMAGE:
        found.append(f"{-facts.estimate:.0%} of the facts lost")
    return f"Damage above {LARGE_DAMAGE:.0%} in {name!r}: {', '.join(found)}" if found else ""


def _loss(report: Report) -> float:
    found = report.interval("original", "damage_loss")
    return found.estimate if found else float("inf")


def _unscored(result: ConditionResult) -> str:
    found = summarise([verdict for each in result.verdicts.values() for verdict in each])
    if not found.unscored:
        return ""
    reasons = ", ".join(f"{n} {reason}" for reason, n in found.unscored.items())
    return (
        f"Not scored in {result.name!r}: {sum(found.unscored.values())} of {found.n} answers "
        f"({reasons}). Means of the judge are over the others"
    )


def _uncontrolled(report: Report) -> str:
    modes = {r.mode for r in report.results if r.control_of and r.mode}
    names = {r.control_of for r in report.results if r.control_of}
    alone = [r.name for r in report.steered if r.mode not in modes and r.name not in names]
    if not alone:
        return ""
    return f"Not compared with random heads of the same layers and mode: {', '.join(alone)}"


def _not_beyond_random(report: Report, name: str, measure: str, whose: str) -> str:
    draws = report.draws(name, measure) if measure in report.measures else None
    if draws is None or draws.shape[1] < 4:
        return ""
    beyond = report.beyond_random(measure, name)
    if beyond.difference.low > 0:
        return ""
    return (
        f"{name!r} is no better than random heads: the chosen heads change {whose} log-odds by "
        f"{-beyond.drop:+.2f} nats, {beyond.of - 1} random sets of the same layers and mode by "
        f"{-beyond.random:+.2f}; the chosen ones lower them by {beyond.difference} more"
    )


def _unspecific(report: Report, name: str) -> str:
    found = report.off_target.get(name)
    if found is None or found.target.high >= 0 or found.specificity.high < 0:
        return ""
    return (
        f"Specificity not shown in {name!r}: this lowers the word, not the stereotype. Targets' "
        f"log-odds change by {found.target} nats, of which {found.specificity} is beyond things "
        "and nobody"
    )


def _diffuse(report: Report) -> str:
    share = report.settings.get("attribution_in_heads")
    if share is None or share >= DIFFUSE:
        return ""
    return (
        f"Bias diffuse: the chosen heads hold {share:.0%} of what all heads write toward it, so "
        "most of it stays when they are silenced"
    )
