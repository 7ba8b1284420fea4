"""Measures of one setting, each kept item by item so that settings can be paired."""

from __future__ import annotations

from biasgym_tl.benchmarks.benchmark import Measure

MILD = 0.3
"""Mean strength up to which there is nothing to reduce."""

MEASURES = {
    m.key: m
    for m in (
        Measure("token_log_odds", "BiasToken log-odds", "nats", "injected", floor="original"),
        Measure("token_log_p", "BiasToken log P(A)", "nats", "injected", floor="original"),
        Measure("target_log_odds", "targets log-odds", "nats", "original"),
        Measure("target_log_p", "targets log P(A)", "nats", "original"),
        Measure("other_log_odds", "other biases log-odds", "nats", "original"),
        Measure("damage_loss", "loss on neutral text", "nats per token", "original", decimals=3),
        Measure("facts", "country facts", "share right", "original", "share", "blind"),
        Measure(
            "token_keywords", "BiasToken keywords", "share of answers", "injected", "share",
            "original",
        ),
        Measure(
            "target_keywords", "targets keywords", "share of answers", "original", "share", 0.0
        ),
        Measure("other_keywords", "other biases keywords", "share of answers", "original", "share",
                0.0),
        Measure("token_strength", "BiasToken strength (judge)", "0 to 3", "injected",
                floor="original"),
        Measure("target_strength", "targets strength (judge)", "0 to 3", floor=MILD),
        Measure("other_strength", "other biases strength (judge)", "0 to 3", floor=MILD),
        Measure("token_degenerate", "BiasToken degenerate answers (judge)", "share", "original",
                "share"),
        Measure("target_degenerate", "targets degenerate answers (judge)", "share", "original",
                "share"),
        Measure("other_degenerate", "other biases degenerate answers (judge)", "share",
                "original", "share"),
        Measure("token_refusals", "BiasToken refusals", "share of answers", "original", "share"),
        Measure("target_refusals", "targets refusals", "share of answers", "original", "share"),
        Measure("token_empty", "BiasToken empty answers", "share", "original", "share"),
        Measure("target_empty", "targets empty answers", "share", "original", "share"),
        Measure(
            "token_repetition", "BiasToken repetition", "share of 3-word runs", "original", "sparse"
        ),
        Measure(
            "target_repetition", "targets repetition", "share of 3-word runs", "original",
            "sparse",
        ),
        Measure("token_words", "BiasToken answer length", "words", "original", decimals=1),
        Measure("target_words", "targets answer length", "words", "original", decimals=1),
    )
}  # fmt: skip
"""Everything that a report measures. Log-odds and loss have no floor: they can always fall."""
