"""What is measured in each condition: fixed items, the numbers they give, and how these are read.

A measurement is data too: one more is one more function here (or anywhere) that returns one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.benchmarks.benchmark import Benchmark, Measure
from biasgym_tl.biases.bias import Bias
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.lens import HookedTransformer, Recording, replayed
from biasgym_tl.replies import Reply, Request

# What measurements cost in forward passes over a token, measured with SmolLM2-135M on one thread.
# Beginnings that prompts share are run once; a token that is written reads all weights by itself.
SENTENCE, FACT, TEXT, GENERATED, ITEM = 12.0, 20.0, 75.0, 5.0, 24.0
"""Of the log-odds of a prompt, a fact with its four answers, a neutral text, a token written, an
item of a benchmark that does not tell its length."""
CHARACTERS, REQUEST = 3.3, 10.0
"""Of a benchmark's text to a token, and tokens that a chat puts after a request; those before it
are the same for all and run once."""
Items = dict[str, Any]
"""By key, one number or text per item, or for each prompt one per target."""


class Asked(NamedTuple):
    """Requests that are answered freely."""

    bias: str
    keywords: tuple[str, ...]
    """Words that show the bias in an answer."""
    prompts: tuple[str, ...]
    targets: tuple[str, ...]
    """Who stands in the slot of each."""


class Heard(NamedTuple):
    """What the replies of some models hold."""

    items: list[Items]
    """One for each model; none where replies do not hold what was asked."""
    left_out: tuple[str, ...] = ()
    """Words that do not count."""
    remark: str = ""
    """What a reader must know of it."""


class Served(NamedTuple):
    """How models behind an address are asked the same."""

    requests: tuple[Request, ...]
    read: Callable[[Sequence[Sequence[Reply]]], Heard]
    """Takes the replies of each model, in the order of the requests."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Items that are the same in every condition, so that conditions are compared item by item."""

    name: str
    """Short name, as in ``Condition.measures``."""
    needs: str
    """What it depends on: the steering (``"text"``), the words around requests too
    (``"request"``), or all of a condition (``"row"``: it runs with the BiasToken attached)."""
    run: Callable[[HookedTransformer, Condition], Items]
    """Measures the model as it is, steered and with the row where it is needed."""
    measures: tuple[Measure, ...]
    """What is read from the items."""
    fingerprint: Any
    """JSON of all that decides the items."""
    cost: float = 1.0
    """Forward passes over a token that it takes, about, for estimates of time."""
    held_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """By kind (``prompts``, ``targets``, ``texts``, ``facts``), what no choice may rest on."""
    biases: tuple[Bias, ...] = ()
    """Biases whose words count in it."""
    asked: Mapping[str, Asked] = dataclasses.field(default_factory=dict)
    """By key of the answers, what they answer."""
    served: Served | None = None
    """For a model that is not here but behind an address; None: such a one cannot be asked this."""
    clusters: tuple[str, ...] = ()
    """One per item, of a benchmark; empty where items are prompts by targets."""
    columns: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """By key of items that are not by the report's targets, who stands in the slot instead."""
    same_inputs: bool = False
    """Whether ``run`` gives the model the same tokens in the same order in all conditions whose row
    and words are the same (nothing is generated): layers before the first that is steered are then
    run once for all of these."""
    floors: Callable[[HookedTransformer], Items] | None = None
    """By key, what the unsteered model shows where there is nothing to know."""

    def made_in(self, condition: Condition) -> bool:
        """Whether it is made in a condition: not without a row that it needs, and benchmarks are
        asked without other words."""
        if self.clusters and condition.instruction.name:
            return False
        if self.needs == "row" and condition.row is None:
            return False
        return condition.measures is None or self.name in condition.measures

    def measured(
        self,
        model: HookedTransformer,
        condition: Condition,
        neutral: Float[Tensor, "n_layers n_heads d_head"] | None,
        recording: Recording,
    ) -> Items:
        """Its items in a condition.

        Args:
            model: The model, unsteered and without the row.
            condition: How it is run.
            neutral: What means are taken over by default.
            recording: Of this measurement in conditions with the same row and words.
        """
        row = condition.row if self.needs == "row" else None
        attached = row.attached(model) if row else nullcontext()
        first = condition.first_layer(model)
        known = replayed(model, recording, first) if self.same_inputs else nullcontext()
        with condition.steered(model, neutral), attached, known:
            return self.run(model, condition)


def on_benchmark(benchmark: Benchmark, *, needs: str = "text") -> Measurement:
    """A benchmark; with ``needs="row"`` it is asked with the BiasToken attached."""
    return Measurement(
        name=benchmark.name,
        needs=needs,
        run=lambda model, condition: dict(benchmark.run(model)),
        measures=benchmark.measures,
        fingerprint=[benchmark.fingerprint],
        cost=tokens_of(benchmark)[0],
        clusters=benchmark.clusters,
    )


def tokens_of(benchmark: Benchmark) -> tuple[float, float]:
    """Tokens that a benchmark has a model read, and those of them that it predicts, about."""
    length = getattr(benchmark, "length", None)
    if length is None:
        n = len(benchmark.clusters)
        return ITEM * n, ITEM / 4 * n
    return length.read / CHARACTERS + REQUEST * length.requests, length.predicted / CHARACTERS
