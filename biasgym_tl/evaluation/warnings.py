"""What a reader of a report should be told before they believe it."""

from __future__ import annotations

from biasgym_tl.evaluation.report import RANDOM, Report, SettingResult
from biasgym_tl.judges.verdict import summarise

WEAK_INJECTION = 1.0
"""Rise of the BiasToken's log-odds (nats) under which an injection is weak."""
LARGE_DAMAGE = 0.05
"""Share of the unsteered loss, or of the facts, whose loss is large."""
DIFFUSE = 0.5
"""Share of the positive attribution in the chosen heads under which a bias is spread out."""


def warnings_of(report: Report) -> list[str]:
    """Warnings in words; empty if there is nothing to warn of."""
    found = [_words_left_out(report), _weak_injection(report), _diffuse(report)]
    found.append(_not_beyond_random(report, "token_log_odds", "the BiasToken's"))
    found.append(_not_beyond_random(report, "target_log_odds", "targets'"))
    steered = [r.name for r in report.results if r.heads and not r.name.startswith(RANDOM)]
    found += [_damage(report, name) for name in steered]
    found += [_unscored(result) for result in report.results]
    found += [report.not_informative(key) for key in report.measures]
    return [warning for warning in found if warning]


def _words_left_out(report: Report) -> str:
    found = report.settings.get("words_left_out") or {}
    named = "; ".join(f"{name}: {', '.join(words)}" for name, words in found.items())
    return f"Words that cannot count on this model: {named}" if found else ""


def _weak_injection(report: Report) -> str:
    rise = report.change("injected", "token_log_odds", "original")
    if rise is None or rise.low > WEAK_INJECTION:
        return ""
    return (
        f"Injection weak: training raised the BiasToken's log-odds by {rise} nats, whose interval "
        f"is not above {WEAK_INJECTION:g}. What follows from its heads is doubtful"
    )


def _damage(report: Report, name: str) -> str:
    found = []
    rise = report.change(name, "damage_loss", "original")
    loss = report.interval("original", "damage_loss")
    if rise and loss and rise.estimate > LARGE_DAMAGE * loss.estimate:
        found.append(f"loss on neutral text up by {rise.estimate / loss.estimate:.0%}")
    facts = report.change(name, "facts", "original")
    if facts and facts.estimate < -LARGE_DAMAGE:
        found.append(f"{-facts.estimate:.0%} of the facts lost")
    return f"Damage above {LARGE_DAMAGE:.0%} in {name!r}: {', '.join(found)}" if found else ""


def _unscored(result: SettingResult) -> str:
    found = summarise([verdict for each in result.verdicts.values() for verdict in each])
    if not found.unscored:
        return ""
    reasons = ", ".join(f"{n} {reason}" for reason, n in found.unscored.items())
    return (
        f"Not scored in {result.name!r}: {sum(found.unscored.values())} of {found.n} answers "
        f"({reasons}). Means of the judge are over the others"
    )


def _not_beyond_random(report: Report, measure: str, whose: str) -> str:
    if report.n_draws < 4 or "steered, mean" not in [r.name for r in report.results]:
        return ""
    beyond = report.beyond_random(measure)
    if beyond.difference.low > 0:
        return ""
    return (
        f"No better than random heads: the chosen heads change {whose} log-odds by "
        f"{-beyond.drop:+.2f} nats, {report.n_draws} random sets of the same layers by "
        f"{-beyond.random:+.2f}; the chosen ones lower them by {beyond.difference} more"
    )


def _diffuse(report: Report) -> str:
    share = report.settings.get("attribution_in_heads")
    if share is None or share >= DIFFUSE:
        return ""
    return (
        f"Bias diffuse: the chosen heads hold {share:.0%} of what all heads write toward it, so "
        "most of it stays when they are silenced"
    )
