"""What a protocol would take: its steps with time, memory and cost, without running any.

The model is not loaded: its size is read from its configuration. The time is that of as many
multiplications as the steps need, at the speed that this machine shows in a moment's trial.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from biasgym_tl.api import Price
from biasgym_tl.biases.bias import Bias, load_bias
from biasgym_tl.evaluation.condition import BRIEF
from biasgym_tl.evaluation.measurement import ITEM, SENTENCE, TEXT
from biasgym_tl.evaluation.standard import standard_measures
from biasgym_tl.injection.shipped import shipped_row
from biasgym_tl.passages import load_passages
from biasgym_tl.protocol.memory import peak, sizes_of
from biasgym_tl.protocol.parts import LOG_ODDS, MEASURES, Steering
from biasgym_tl.protocol.protocol import Protocol

# In forward passes over a token at the speed of the trial, as a measurement's ``cost``.
PARAGRAPH, PROBE = 90.0, 5800.0
"""Of a training paragraph in an epoch, and of the answers that an epoch is chosen by."""
PAIR, PATCHED, ABLATED, SEARCHED = 160.0, 100.0, 6.0, 1300.0
"""Of a pair in a map, of its gradients, of each head's ablation, and of a step of a search."""
JUDGED = 900
"""Tokens that a judge is sent for a text."""
STAGES = ("rows", "maps", "choices", "k sweeps", "conditions", "random controls", "judge")
"""What a run does of each bias, in this order, as far as the protocol asks for it."""

_UNSTEERED = Steering(name="original, injected", asked="persona")
"""Stands for both: they share all but the row."""


class PlannedStep(NamedTuple):
    """One line of a plan."""

    bias: str
    stage: str
    """One of :data:`STAGES`."""
    name: str
    passes: float
    """Forward passes over a token."""
    seconds: float


class Estimate(NamedTuple):
    """What a run would take."""

    steps: tuple[PlannedStep, ...]
    memory: float
    """Bytes, at most."""
    judged: int
    """Texts that a judge is sent."""
    cost: float | None
    """US dollars of an API judge; None without one, or without its price."""

    def __str__(self) -> str:
        lines = [f"{span(step.seconds):>9}  {step.name}" for step in self.steps]
        total = sum(step.seconds for step in self.steps)
        lines.append(f"{span(total):>9}  in all, on this machine, if nothing was done before")
        lines.append(f"{self.memory / 2**30:6.1f} GB  memory")
        if self.judged:
            cost = "" if self.cost is None else f", about {self.cost:.2f} US dollars"
            lines.append(f"{self.judged:9}  texts for the judge{cost}")
        return "\n".join(lines)


def plan(protocol: Protocol, price: Price | None = None) -> Estimate:
    """Estimate the steps of a protocol.

    Args:
        protocol: What would be done.
        price: Of an API judge.
    """
    biases = [load_bias(name) for name in protocol.biases]
    sizes = sizes_of(protocol.model)
    steps = planned_steps(protocol, sizes.n_parameters, sizes.n_layers * sizes.n_heads)
    judged = sum(_n_answers(protocol, bias) for bias in biases) if protocol.measures.judge else 0
    api = (protocol.measures.judge or "").startswith("api:")
    cost = price.of(judged * JUDGED, judged * 80) if price and api else None
    methods = {spec.settings.get("method", "direct") for spec in protocol.maps.values()}
    trains = any(step.stage == "choices" or " to train" in step.name for step in steps)
    gradients = trains or bool(methods & {"attribution_patching", "screened_ablation"})
    memory = peak(sizes, protocol.dtype, gradients=gradients)
    return Estimate(steps, memory, judged if api else 0, cost)


def planned_steps(protocol: Protocol, n_parameters: int, n_heads: int) -> tuple[PlannedStep, ...]:
    """The steps of a protocol on a model of some size; rows that ship take no time."""
    speed = _operations_per_second() / (2 * n_parameters)
    found = [
        (bias.name, stage, f"{bias.name}: {name}", passes)
        for bias in map(load_bias, protocol.biases)
        for stage, name, passes in _steps(protocol, bias, n_heads)
    ]
    return tuple(PlannedStep(*step, step[-1] / speed) for step in found)


def _steps(protocol: Protocol, bias: Bias, n_heads: int) -> Iterator[tuple[str, str, float]]:
    """Stage, name and passes."""
    seeds, prompts = len(protocol.seeds), len(bias.scoping_prompts)
    injects = not protocol.rows and protocol.injects(bias)
    if injects and (n := _n_trained(protocol, bias)):
        yield "rows", f"rows to train: {n}", n * _training(protocol, bias)
    for name, spec in protocol.maps.items():
        method, n = spec.settings.get("method", "direct"), min(spec.n_prompts or prompts, prompts)
        more = ABLATED * n_heads if "ablation" in method else PATCHED * (method != "direct")
        yield "maps", f"map {name}, seeds: {seeds}", seeds * n * (PAIR + more)
        row = spec.row_of(bias, protocol.seeds[0], protocol.biases)
        if row != bias and (n := _n_trained(protocol, row)):
            yield "maps", f"rows of {row.name} to train: {n}", n * _training(protocol, row)
    for name, choice in protocol.choices.items():
        if choice.by in ("factors", "budget"):
            n_steps = choice.settings.get("n_steps", 40) if choice.by == "factors" else 400
            yield "choices", f"search of heads, {name}", n_steps * SEARCHED
    for sweep in protocol.sweeps:
        at_k = prompts * SENTENCE + len(load_passages("budget")) * TEXT
        yield "k sweeps", f"k sweep, {sweep.mode}", at_k * (1 + len(sweep.ks))
    yield from _again(protocol, bias)
    for condition in (_UNSTEERED, *protocol.conditions):
        yield "conditions", condition.label, _measured(protocol, bias, condition)
    for condition in protocol.conditions:
        if n := max(condition.random, condition.draws):
            brief = condition.random * _cost(protocol, bias, BRIEF)
            rest = (n - condition.random) * _cost(protocol, bias, LOG_ODDS)
            yield "random controls", f"{n} random sets for {condition.label}", brief + rest


def _again(protocol: Protocol, bias: Bias) -> Iterator[tuple[str, str, float]]:
    """Rows of steered models, and of the same training without, unless the first row is that."""
    n = 1 if not protocol.rows and protocol.training.rows != "shipped" else 2
    for condition in (c for c in protocol.conditions if c.reinject):
        name = f"rows to train for {condition.label}: {n}"
        yield "conditions", name, n * _training(protocol, bias)


def _n_trained(protocol: Protocol, bias: Bias) -> int:
    """Seeds whose rows do not ship, as far as it can be known without the model."""
    training = protocol.training
    inject = training.inject if training.rows == "alike" else None
    rows = (
        None if training.rows == "trained" else shipped_row(bias, inject, seed)
        for seed in protocol.seeds
    )
    return sum(row is None or row.model != protocol.model for row in rows)


def _training(protocol: Protocol, bias: Bias) -> float:
    inject = protocol.training.inject
    n = min(inject.n_paragraphs, len(bias.corpus))
    probe = PROBE if inject.choose_by == "similarity" else 0
    return inject.epochs * (n * PARAGRAPH + probe)


def _measured(protocol: Protocol, bias: Bias, spec: Steering) -> float:
    wanted = MEASURES[spec.measures]
    found = _cost(protocol, bias, wanted)
    if wanted is None:
        m = protocol.measures
        found += len(m.benchmarks) * (14_000 if m.whole_benchmarks else 600) * ITEM
        further = m.other_biases(bias, m.further, protocol.biases)
        found += sum(len(f.evaluation_prompts) for f in further) * m.n_targets * SENTENCE
    return found


def _cost(protocol: Protocol, bias: Bias, wanted: tuple[str, ...] | None) -> float:
    """Passes of the usual measurements in a condition."""
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
    return sum(each.cost for each in measures if wanted is None or each.name in wanted)


def _n_answers(protocol: Protocol, bias: Bias) -> int:
    every = (_UNSTEERED, _UNSTEERED, *protocol.conditions)
    return sum(_n_requests(protocol, bias, spec) for spec in every)


def _n_requests(protocol: Protocol, bias: Bias, spec: Steering) -> int:
    m, wanted = protocol.measures, MEASURES[spec.measures]
    if not m.answers or (wanted is not None and "token answers" not in wanted):
        return 0
    more = wanted is None or "other answers" in wanted
    others = m.other_biases(bias, m.others, protocol.biases) if more else []
    return 2 * len(bias.generation_prompts) + sum(len(o.generation_prompts) for o in others)


def _operations_per_second(size: int = 1024) -> float:
    """Of a product of matrices, measured for a moment."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    a @ b
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        a @ b
        n += 1
    return 2 * size**3 * n / (time.perf_counter() - start)


def span(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
