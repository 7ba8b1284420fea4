"""What the parts of a study have a model do, counted on SmolLM2-135M-Instruct, and how long a
machine takes for it.

The counts are of tokens, so that they hold for any model whose tokenizer is as fine; what is the
same in all models is little.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from biasgym_tl.evaluation import measurement
from biasgym_tl.evaluation.measurement import Measurement
from biasgym_tl.protocol.machine import LAYER, Machine
from biasgym_tl.protocol.memory import Sizes, width_of

ATTACHED = 3e-6
"""Seconds for each entry of the vocabulary when a row is attached: the tokenizer is looked through,
and copied the first time."""


class Work(NamedTuple):
    """Of a step, or of one of its parts."""

    tokens: float = 0.0
    """That go through all layers; once more where a gradient comes back."""
    logits: float = 0.0
    """Tokens whose logits over the vocabulary are taken, likewise."""
    calls: float = 0.0
    """Of the model, each of which reads all weights."""
    attached: float = 0.0
    """Times that a row is attached."""

    def times(self, n: int | float) -> Work:
        """So many of it."""
        return Work(*(n * each for each in self))

    def seconds(self, machine: Machine, sizes: Sizes, dtype: str) -> float:
        """Products at the machine's speed, or reading the weights where that takes longer; and what
        each call takes for itself: casting weights of 16 bits, and starting the layers."""
        layers, table = sizes.n_layers * sizes.layer, sizes.d_vocab * sizes.d_model
        products = 2 * (layers * self.tokens + table * self.logits) / machine.flops
        read = self.calls * (layers + table) / machine.bandwidth
        cast = 6 * read if width_of(dtype) == 2 else 0.0  # 2 bytes are read and 4 written
        wide = max(width_of(dtype) / 4, 1)
        started = self.calls * sizes.n_layers * LAYER + self.attached * sizes.d_vocab * ATTACHED
        return max(products, 4 * read) * wide + cast + started


def together(*parts: Work) -> Work:
    """All of it."""
    return Work(*map(sum, zip(Work(), *parts, strict=True)))


ROW, PARAGRAPH = Work(attached=1), Work(80, 41, 0.3)
"""A training, and each paragraph in an epoch."""
PROBE = Work(1640, 576, 24)
"""The answers that an epoch is chosen by."""
MAP, LABELS, PAIR = Work(calls=6, attached=3), Work(105, 8, 0.4), Work(60, 1, 0.1)
"""A map; its labels under all targets, which the maps of a seed share; and each pair."""
PATCHED, ABLATED = Work(104, 0, 0.25), Work(12)
"""What its gradients take, and one head's ablation."""
SOUGHT, SEARCHED = Work(7600, 1430, 58, 1), Work(1200, 203, 8)
"""A search of factors before its first step, and each step."""
BUDGETED = Work(14_000, 2000, 150, 4)
"""A head of a search within a budget, with the maps that propose it."""
PROMPT, FACT, TEXT, ITEM = Work(14, 3.5, 0.15), Work(17, 5, 0.2), Work(39, 38, 1), Work(24, 6, 0.2)
"""The log-odds of a prompt, a fact with its four answers, a neutral text, an item of a
benchmark."""
ASKED, AT_ONCE = 45, 32
"""Tokens of a request, and how many are answered at once."""


def of_measurement(made: Measurement) -> Work:
    """What a measurement takes in a condition."""
    if made.asked:
        n = sum(len(asked.prompts) for asked in made.asked.values())
        new = made.cost / measurement.GENERATED / n
        found = Work(n * (ASKED + new), n * new, math.ceil(n / AT_ONCE) * new)
    elif made.name == "loss":
        found = TEXT.times(made.cost / measurement.TEXT)
    elif made.name == "facts":
        found = FACT.times(made.cost / measurement.FACT)
    else:
        found = PROMPT.times(made.cost / measurement.SENTENCE)
    return found._replace(attached=made.needs == "row")
