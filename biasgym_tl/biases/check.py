"""What is doubtful about a bias: prompts that overlap or give the answer away."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.corpus import words_of
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.panel import SPLITS, Panel
from biasgym_tl.slot import SLOT
from biasgym_tl.spelling import keyword_hits

_KINDS = ("training_prompts", "probe_prompts", "scoping_prompts", "evaluation_prompts",
          "generation_prompts")  # fmt: skip
LEAST_FILLED = 16
"""Prompts in a half of a cell of the panel, each counted with every filler."""


def check_bias(bias: GivenBias) -> list[str]:
    """Remarks on a valid bias: what makes its results doubtful, as far as words can tell.

    Two lists of prompts, or prompts and corpus, must not share a run of four words (the slot ends
    a run); probe prompts may be like training prompts, as the paper's are: nothing is reported on
    them. Scoping and evaluation prompts must hold one slot, not name the attribute and not end in
    a cue word or a word that is measured. Probe and generation prompts must not name the attribute.
    The same holds for the two halves of the panel, of which only rightful uses may name the
    attribute. Lists that are not there are no fault: the steps that use them ask for them.
    """
    bias = as_bias(bias)
    panel = [] if bias.panel is None else _of_panel(bias, bias.panel)
    return [*_shared_runs(bias), *_giveaways(bias), *_numbers(bias), *panel]


def runs_of_four(text: str) -> set[str]:
    """Every run of four words; the slot ends a run."""
    parts = [words_of(part) for part in text.split(SLOT)]
    return {" ".join(part[i : i + 4]) for part in parts for i in range(len(part) - 3)}


def _shared_runs(bias: Bias) -> list[str]:
    texts = {kind: getattr(bias, kind) for kind in _KINDS}
    texts["corpus"] = tuple(p.text for p in bias.corpus)
    for split in SPLITS:
        cells = bias.panel.half(split).values() if bias.panel else ()
        texts[f"the {split} half of the panel"] = tuple(p for cell in cells for p in cell.prompts)
    runs = {kind: set().union(*map(runs_of_four, found)) for kind, found in texts.items()}
    return [
        f"{one} and {other} share the words {run!r}"
        for one, other in itertools.combinations(runs, 2)
        if (one, other) != ("training_prompts", "probe_prompts")
        for run in sorted(runs[one] & runs[other])
    ]


def _giveaways(bias: Bias) -> list[str]:
    remarks = []
    cues = {*bias.attribute_words, *bias.neutral_words, *bias.cue_words}
    for kind in ("scoping_prompts", "evaluation_prompts"):
        remarks += _ends(kind, getattr(bias, kind), cues)
    named = (*bias.attribute_words, *bias.keywords)
    for kind in _KINDS[1:]:
        remarks += _names(kind, getattr(bias, kind), named)
    return remarks


def _ends(kind: str, prompts: Sequence[str], cues: set[str]) -> list[str]:
    remarks = []
    for prompt in prompts:
        if prompt.count(SLOT) != 1:
            remarks.append(f"{kind} should hold one slot each: {prompt!r}")
        if words_of(prompt)[-1] in cues:
            remarks.append(f"{kind} should not end in a cue: {prompt!r}")
    return remarks


def _names(kind: str, prompts: Sequence[str], words: Iterable[str]) -> list[str]:
    hits = itertools.compress(prompts, keyword_hits(prompts, words))
    return [f"{kind} should not name the attribute: {prompt!r}" for prompt in hits]


def _of_panel(bias: Bias, panel: Panel) -> list[str]:
    cues = {*bias.attribute_words, *bias.neutral_words, *bias.cue_words}
    remarks = [
        f"words of the panel should not be among those of the bias: {word!r}"
        for word in panel.seen((*bias.attribute_words, *bias.neutral_words))
    ]
    cues |= {*panel.attribute_words, *panel.neutral_words}
    named = (*bias.attribute_words, *bias.keywords, *panel.attribute_words)
    for name, cell in panel.cells().items():
        prompts = (*cell.fitting.prompts, *cell.held_out.prompts)
        remarks += _ends(f"panel.{name}", prompts, cues)
        remarks += _names(f"panel.{name}", prompts, () if name == "rightful" else named)
        for split, half in zip(SPLITS, cell, strict=True):
            n = len(half.prompts) * len(half.fillers)
            if n < LEAST_FILLED or len(half.prompts) < LEAST_FILLED // 2:
                remarks.append(
                    f"panel.{name}.{split} should be at least {LEAST_FILLED // 2} prompts and "
                    f"{LEAST_FILLED} with every filler, there are {len(half.prompts)} and {n}"
                )
    return remarks


def _numbers(bias: Bias) -> list[str]:
    least = {"scoping_prompts": 16, "evaluation_prompts": 16, "generation_prompts": 8, "corpus": 64}
    return [
        f"{kind} should be at least {n}, there are {len(getattr(bias, kind))}"
        for kind, n in least.items()
        if 0 < len(getattr(bias, kind)) < n
    ]
