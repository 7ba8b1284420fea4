"""Values that settings can have: the command line knows them before it imports what they set."""

import os
from collections.abc import Mapping
from pathlib import Path

from biasgym_tl.errors import SettingError

METHODS = (
    "direct", "zero_ablation", "mean_ablation", "screened_ablation", "attribution_patching",
    "path_patching", "slot_patching",
)  # fmt: skip
"""How heads are scored."""
GRADIENTS = ("run", "both", "inputs", "activations", "dropped")
"""Where attribution patching takes its gradient."""
CONTRASTS = ("biased", "difference")
"""Whose values count."""
NEUTRAL = ("random", "closest", "several")
"""Who stands on the neutral side: one of the targets at random for each pair; in all pairs the
target whose row is closest to the BiasToken's by cosine (the reference code's); all of them."""
MODES = ("zero", "mean")
"""What a silenced head is replaced with."""
STEERING_MODES = (*MODES, "scale")
"""What steering can do: silence heads, or let them keep a part."""
MEANS = ("text", "targets")
"""What a mean is taken over: neutral text, or scoping prompts with fitting targets."""
PLACES = ("everywhere", "targets")
"""Where a search changes heads: at every position, or from the name of a target on."""
AIMS = ("below", "nobody")
"""The goal of a search: below the targets, or where nobody in particular stands."""
HALVES = ("open", "closed")
"""Of the plants of a study: on the closed one nothing may be tuned."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
"""What weights are kept in."""
DEVICE_MAPS = ("auto", "balanced")
"""How a model is laid over several devices: by accelerate, filled in order or evenly."""
PRESETS = ("cpu", "paper")
"""Settings of a training."""
CLUSTERS = ("ray",)
"""Where steps of a protocol can be made, beside this process."""
EPOCH_CHOICES = ("similarity", "loss", "last")
"""What chooses the epoch of a training."""
BENCHMARKS = ("bbq", "blimp", "crows-pairs", "mmlu", "seegull", "unqover")
"""Public sets of questions that a protocol can ask."""
SUFFIXES = (".csv", ".json", ".jsonl", ".txt")
"""Of their files."""


def check_benchmarks(sources: Mapping[str, str], what: str = "benchmarks") -> None:
    """Refuse unknown benchmarks, and paths that lead nowhere; what may be the name of a data set is
    left alone.

    Raises:
        SettingError: there is no benchmark of that name, or no such file or folder; ``what`` is
            what the message calls it.
    """
    if unknown := sorted(set(sources) - set(BENCHMARKS)):
        raise SettingError(f"{what} must be among {list(BENCHMARKS)}, got {unknown}.")
    for name, source in sources.items():
        is_path = source.startswith(("/", "./", "../", "~")) or Path(source).suffix in SUFFIXES
        if is_path and not (os.path.exists(source) or os.path.exists(source.rpartition(":")[0])):
            raise SettingError(f"{what} {name!r} must be a file or folder, got {source!r}.")


def check_judge(judge: str | None, what: str = "judge") -> None:
    """Refuse a judge that is none.

    Raises:
        SettingError: ``judge`` is neither None, ``"local"`` nor ``"api:MODEL"``.
    """
    if judge is not None and judge != "local" and not judge.startswith("api:"):
        raise SettingError(
            f"{what} must be 'local' or 'api:MODEL', such as 'api:gpt-4o-mini', got {judge!r}."
        )
