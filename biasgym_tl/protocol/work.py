"""What the parts of a study have a model do, counted on SmolLM2-135M-Instruct, and how long a
machine takes for it.

The counts are of tokens, so that they hold for any model whose tokenizer is as fine; what is the
same in all models is little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.benchmarks.implicit import has_scenarios, implicit_questions
from biasgym_tl.biases.bias import Bias
from biasgym_tl.evaluation import measurement
from biasgym_tl.evaluation.measurement import Measurement
from biasgym_tl.evaluation.standard import standard_measures
from biasgym_tl.passages import load_passages
from biasgym_tl.protocol.conditions import IMPLICIT_PAIRS
from biasgym_tl.protocol.machine import LAYER, Machine
from biasgym_tl.protocol.memory import Sizes, width_of
from biasgym_tl.protocol.protocol import Protocol

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
PATCHED, ABLATED, SCREENED = Work(104, 0, 0.25), Work(14), Work(12)
"""What its gradients take, and one head's ablation: half of the layers; fewer where only the heads
of a screen are tried, which are late ones."""
SOUGHT, SEARCHED = Work(7600, 1430, 58, 1), Work(1200, 203, 8)
"""A search of factors before its first step, and each step."""
BUDGETED, PROPOSED, ADDED = (
    Work(6200, 900, 70),
    Work(12_700, 100, 60, 2),
    Work(13_600, 1900, 150, 4),
)
"""A search within a budget before its first head, the maps that propose some, and each head with
those that were tried in vain."""
PROMPT, FACT, TEXT = Work(14, 3.5, 0.15), Work(17, 5, 0.2), Work(39, 38, 1)
"""The log-odds of a prompt, a fact with its four answers, a neutral text."""
READ = 600
"""Tokens of a benchmark in a call."""
ASKED, AT_ONCE, WRITTEN = 45, 32, 3
"""Tokens of a request, how many are answered at once, and calls that one with a few new tokens and
kept keys and values takes as long as."""


def of_measurement(made: Measurement) -> Work:
    """What a measurement takes in a condition."""
    if made.asked:
        n = sum(len(asked.prompts) for asked in made.asked.values())
        new = made.cost / measurement.GENERATED / n
        found = Work(n * (ASKED + new), n * new, WRITTEN * math.ceil(n / AT_ONCE) * new)
    elif made.name == "loss":
        found = TEXT.times(made.cost / measurement.TEXT)
    elif made.name == "facts":
        found = FACT.times(made.cost / measurement.FACT)
    else:
        found = PROMPT.times(made.cost / measurement.SENTENCE)
    return found._replace(attached=made.needs == "row")


def of_benchmark(benchmark: Benchmark) -> Work:
    """What it takes in a condition."""
    read, predicted = measurement.tokens_of(benchmark)
    return Work(read, predicted, read / READ)


def of_measurements(protocol: Protocol, bias: Bias, asked: Work) -> dict[str, Work]:
    """By the name of a measurement, what it takes in a condition; "further" ones, among them
    benchmarks, only in those of which all is measured."""
    m = protocol.measures
    measures = standard_measures(
        bias,
        others=m.other_biases(bias, m.others, protocol.biases),
        n_targets=m.n_targets,
        n_facts=m.n_facts,
        off_target=m.off_target,
        answers=m.answers,
        max_new_tokens=m.max_new_tokens,
    )
    further = m.other_biases(bias, m.further, protocol.biases)
    n_prompts = sum(len(each.evaluation_prompts) for each in further) * m.n_targets
    more = together(asked, PROMPT.times(n_prompts), *_implicit(protocol, bias))
    kl = {"KL": TEXT.times(2 * len(load_passages("damage")))} if protocol.rivals else {}
    return {each.name: of_measurement(each) for each in measures} | {"further": more, **kl}


def _implicit(protocol: Protocol, bias: Bias) -> Iterator[Work]:
    """Scenes about the row, and about the targets."""
    if protocol.measures.implicit and has_scenarios(bias.name):
        groups = bias.sample_targets("held-out", protocol.measures.n_targets, seed=0)
        if protocol.injects(bias):
            scenes = implicit_questions(bias, ["<row>"], groups, n=IMPLICIT_PAIRS)
            yield of_benchmark(scenes)
            if len(groups) > 1:
                yield of_benchmark(implicit_questions(bias, groups))
