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
        Measure("token_strength", "BiasToken strength (judge)", "0 to 3", "injected", "texts",
                "original"),
        Measure("target_strength", "targets strength (judge)", "0 to 3", "original", "texts", MILD),
        Measure("other_strength", "other biases strength (judge)", "0 to 3", "original", "texts",
                MILD),
        *(
            Measure(f"{key}_{kind}", f"{label} {what}", unit, "original", *rest)
            for kind, what, unit, *rest in (
                ("degenerate", "degenerate answers (judge)", "share of answers", "share"),
                ("refusals", "refusals", "share of answers", "share"),
                ("empty", "empty answers", "share of answers", "share"),
                ("repetition", "repetition", "share of 3-word runs", "texts"),
                ("words", "answer length", "words", "texts", None, 1),
            )
            for key, label in (
                ("token", "BiasToken"), ("target", "targets"), ("other", "other biases"),
            )
        ),
    )
}  # fmt: skip
"""Everything that a report measures. Log-odds and loss have no floor: they can always fall."""
