"""What a protocol would take: its steps with time, memory and cost, without running any.

The model is not loaded: its sizes are read from its configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from biasgym_tl.allowed import METHODS
from biasgym_tl.api import Price
from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.biases.bias import Bias, load_bias
from biasgym_tl.evaluation.condition import BRIEF
from biasgym_tl.injection.shipped import shipped_row
from biasgym_tl.passages import load_passages
from biasgym_tl.protocol import work
from biasgym_tl.protocol.machine import Machine, this_machine
from biasgym_tl.protocol.memory import Sizes, peak, sizes_of, weights
from biasgym_tl.protocol.parts import Choice, Map, Training
from biasgym_tl.protocol.protocol import Protocol
from biasgym_tl.protocol.sources import load_benchmarks
from biasgym_tl.protocol.steering import LOG_ODDS, MEASURES, Steering
from biasgym_tl.protocol.work import Work, together
from biasgym_tl.rivals.methods import METHODS as RIVALS
from biasgym_tl.scoping.ablation import ROWS_AT_ONCE
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.steering.factors import FactorSearch

DISK = 0.5e9
"""Bytes a second that weights are read at the first time, assumed."""
JUDGED = 900
"""Tokens that a judge is sent for a text."""
DIALED = 6
"""Runs of the budget texts that set a dial, about."""
STAGES = ("rows", "maps", "choices", "k sweeps", "conditions", "random controls", "judge")
"""What a run does of each bias, in this order, as far as the protocol asks for it."""

_UNSTEERED = Steering(name="original, injected", asked="persona")
"""Stands for both: they share all but the row."""


class PlannedStep(NamedTuple):
    """One line of a plan."""

    bias: str
    """Empty for what is done once, for all of them."""
    stage: str
    """One of :data:`STAGES`, or ``"loading"``."""
    name: str
    seconds: float
    memory: float
    """Bytes at most, weights included."""


class Estimate(NamedTuple):
    """What a run would take, predicted."""

    model: str
    dtype: str
    machine: Machine
    weights: float
    """Bytes."""
    steps: tuple[PlannedStep, ...]
    judged: int
    """Texts that a judge is sent."""
    cost: float | None
    """US dollars of an API judge; None without one, or without its price."""

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def memory(self) -> float:
        """Bytes, at most."""
        return max(step.memory for step in self.steps)

    @property
    def fits(self) -> bool:
        """Whether the machine has that much memory."""
        return self.memory <= self.machine.memory

    def values(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            **self._asdict(),
            "machine": self.machine._asdict(),
            "steps": [step._asdict() for step in self.steps],
            "seconds": self.seconds,
            "memory": self.memory,
            "fits": self.fits,
        }

    def __str__(self) -> str:
        machine = self.machine
        how = "speed tried here" if machine.measured else "by its data sheet, never measured"
        lines = [f"Predicted for {self.model}, {self.dtype}, on {machine.name} ({how}):"]
        rows = [(step.seconds, step.memory, step.name) for step in self.steps]
        rows.append((self.seconds, self.memory, "in all, if nothing was done before"))
        lines += [f"{span(time):>9} {gib(memory):>9}  {name}" for time, memory, name in rows]
        lines.append(
            f"{gib(self.weights)} of it are weights; it {'fits' if self.fits else 'does NOT fit'} "
            f"into the {gib(machine.memory)} of {machine.name}."
        )
        if self.judged:
            cost = "" if self.cost is None else f", about {self.cost:.2f} US dollars"
            lines.append(f"{self.judged} texts for the judge{cost}.")
        return "\n".join(lines)


def plan(
    protocol: Protocol, price: Price | None = None, machine: Machine | None = None
) -> Estimate:
    """Estimate the steps of a protocol.

    Args:
        protocol: What would be done.
        price: Of an API judge.
        machine: Where; default: here, on the protocol's device.

    Raises:
        ModelError: there is no configuration of the model.
        SettingError: torch cannot use the device here.
        BenchmarkError: a benchmark cannot be read, whose length is counted.
    """
    biases = [load_bias(name) for name in protocol.biases]
    sizes, dtype, m = sizes_of(protocol.model), protocol.dtype, protocol.measures
    machine = machine or this_machine(protocol.device)
    read = Work(calls=1).seconds(machine, sizes, dtype) + weights(sizes, dtype) / DISK
    loading = PlannedStep("", "loading", "loading the model", read, peak(sizes, dtype, "loading"))
    benchmarks = load_benchmarks(m.benchmarks, whole=m.whole_benchmarks)
    steps = (loading, *planned_steps(protocol, sizes, machine, benchmarks))
    judged = sum(_n_answers(protocol, bias) for bias in biases) if m.judge else 0
    api = (m.judge or "").startswith("api:")
    cost = price.of(judged * JUDGED, judged * 80) if price and api else None
    return Estimate(
        protocol.model, dtype, machine, weights(sizes, dtype), steps, judged if api else 0, cost
    )


def each_step() -> Protocol:
    """A protocol with one step of each kind, which says what a model takes."""
    return Protocol(
        name="each step",
        training=Training(rows="trained"),
        maps={method: Map(settings={"method": method}) for method in METHODS},
        choices={"factors": Choice(by="factors"), "budget": Choice(by="budget")},
        conditions=(Steering(choice="factors"),),
    )


class _Step(NamedTuple):
    """Of one bias."""

    stage: str
    name: str
    work: Work
    held: str
    """What it holds beside the weights, of :data:`biasgym_tl.protocol.memory.HELD`."""


def planned_steps(
    protocol: Protocol, sizes: Sizes, machine: Machine, benchmarks: Sequence[Benchmark]
) -> tuple[PlannedStep, ...]:
    """The steps of a protocol on a model of some size; rows that ship take no time."""
    dtype = protocol.dtype
    asked = together(*map(work.of_benchmark, benchmarks))
    return tuple(
        PlannedStep(
            bias.name,
            step.stage,
            f"{bias.name}: {step.name}",
            step.work.seconds(machine, sizes, dtype),
            peak(sizes, dtype, step.held),
        )
        for bias in map(load_bias, protocol.biases)
        for step in _steps(protocol, bias, sizes, asked)
    )


def _steps(protocol: Protocol, bias: Bias, sizes: Sizes, asked: Work) -> Iterator[_Step]:
    """Those of a bias, where benchmarks take ``asked`` in each condition."""
    injects = not protocol.rows and protocol.injects(bias)
    if injects and (n := _n_trained(protocol, bias)):
        yield _trains("rows", f"rows to train: {n}", protocol, bias, n)
    yield from _maps(protocol, bias, sizes)
    for name, choice in protocol.choices.items():
        if choice.by in ("factors", "budget"):
            search = choice.search()
            if isinstance(search, FactorSearch):
                done = together(work.SOUGHT, work.SEARCHED.times(search.n_steps))
            else:
                proposed = work.PROPOSED.times(math.ceil(search.k / search.rounds_per_map))
                done = together(work.BUDGETED, proposed, work.ADDED.times(search.k))
            yield _Step("choices", f"search of heads, {name}", done, "searching")
    yield from _rivals(protocol, bias)
    for sweep in protocol.sweeps:
        at_k = together(
            work.PROMPT.times(len(bias.scoping_prompts)),
            work.TEXT.times(len(load_passages("budget"))),
        )
        n = 1 + len(sweep.ks)
        yield _Step("k sweeps", f"k sweep, {sweep.mode}", at_k.times(n), "reading")
    # Rows of steered models, and of the same training without, unless the first row is that.
    n = 1 if not protocol.rows and protocol.training.rows != "shipped" else 2
    for condition in (c for c in protocol.conditions if c.reinject):
        yield _trains("conditions", f"rows to train for {condition.label}: {n}", protocol, bias, n)
    measured = work.of_measurements(protocol, bias, asked)
    for condition in (_UNSTEERED, *protocol.conditions_of(bias)):
        done = _sum(measured, MEASURES[condition.measures])
        yield _Step("conditions", condition.label, done, "reading")
    for condition in protocol.conditions_of(bias):
        if n := max(condition.random, condition.draws):
            done = together(
                _sum(measured, BRIEF).times(condition.random),
                _sum(measured, LOG_ODDS).times(n - condition.random),
            )
            name = f"{n} random sets for {condition.label}"
            yield _Step("random controls", name, done, "reading")


def _rivals(protocol: Protocol, bias: Bias) -> Iterator[_Step]:
    """Interventions, and their dials, with those of random controls."""
    for name, rival in protocol.rivals_of(bias).items():
        passes = RIVALS[rival.method].passes
        done = work.PROMPT.times(10 * passes * len(bias.scoping_prompts))
        dials = (c for c in protocol.conditions if c.rival == name and c.kl is not None)
        n = sum(1 + max(c.random, c.draws) for c in dials)
        dialed = work.TEXT.times(DIALED * n * len(load_passages("budget")))
        yield _Step("choices", f"rival {name}, dials: {n}", together(done, dialed), "reading")


def _trains(stage: str, name: str, protocol: Protocol, bias: Bias, n_rows: int) -> _Step:
    inject = protocol.training.inject
    n_paragraphs = inject.epochs * min(inject.n_paragraphs, len(bias.corpus))
    n_probes = inject.epochs + 1 if inject.choose_by == "similarity" else 0
    row = together(work.ROW, work.PARAGRAPH.times(n_paragraphs), work.PROBE.times(n_probes))
    return _Step(stage, name, row.times(n_rows), "training")


def _maps(protocol: Protocol, bias: Bias, sizes: Sizes) -> Iterator[_Step]:
    for name, spec in protocol.maps.items():
        seed, seeds = protocol.seeds[0], len(protocol.seeds)
        n = min(spec.n_prompts or len(bias.scoping_prompts), len(bias.scoping_prompts))
        done, held = _mapped(spec.scope(seed), n, sizes)
        if name == next(iter(protocol.maps)):
            done = together(done, work.LABELS.times(n))
        yield _Step("maps", f"map {name}, seeds: {seeds}", done.times(seeds), held)
        row = spec.row_of(bias, seed, protocol.biases)
        if row != bias and (n := _n_trained(protocol, row)):
            yield _trains("maps", f"rows of {row.name} to train: {n}", protocol, row, n)


def _mapped(scope: BiasScope, n: int, sizes: Sizes) -> tuple[Work, str]:
    """What a map of so many pairs takes, and what it holds."""
    n_heads = sizes.n_layers * sizes.n_heads
    screens = scope.method == "screened_ablation"
    patches = screens or scope.method in ("attribution_patching", "slot_patching")
    parts = [work.MAP, work.PAIR.times(n)]
    if patches:
        parts.append(work.PATCHED.times(n * _gradients(scope, sizes)))
    if scope.method == "path_patching":  # a position for each head, through half of the layers
        parts.append(Work(n * n_heads / 2, calls=sizes.n_layers / 2))
    if "ablation" in scope.method:
        silenced = min(scope.n_screened, n_heads) if screens else n_heads
        # From each layer on, for all its heads at once: half of the layers on average.
        calls = sizes.n_layers * (1 + n * sizes.n_heads / ROWS_AT_ONCE) / 2
        each = work.SCREENED if screens else work.ABLATED
        parts += [each.times(n * silenced), Work(calls=calls)]
    held = "patching" if patches else "ablating" if "ablation" in scope.method else "reading"
    return together(*parts), held


def _gradients(scope: BiasScope, sizes: Sizes) -> float:
    """Runs with a gradient, of which two thirds go back."""
    once = 1 + scope.to_neutral / 3
    found = {
        "run": once, "both": once + 1, "inputs": once + scope.n_steps - 1,
        "activations": once + sizes.n_layers * (scope.n_steps - 1),
        "dropped": once + (1 + 2 * sizes.n_layers) / 3,
    }  # fmt: skip
    return float(found[scope.gradient])


def _n_trained(protocol: Protocol, bias: Bias) -> int:
    """Seeds whose rows do not ship, as far as it can be known without the model."""
    training = protocol.training
    inject = training.inject if training.rows == "alike" else None
    rows = (
        None if training.rows == "trained" else shipped_row(bias, inject, seed)
        for seed in protocol.seeds
    )
    return sum(row is None or row.model != protocol.model for row in rows)


def _sum(of: dict[str, Work], wanted: tuple[str, ...] | None) -> Work:
    return together(*(done for name, done in of.items() if wanted is None or name in wanted))


def _n_answers(protocol: Protocol, bias: Bias) -> int:
    every = (_UNSTEERED, _UNSTEERED, *protocol.conditions_of(bias))
    return sum(_n_requests(protocol, bias, spec) for spec in every)


def _n_requests(protocol: Protocol, bias: Bias, spec: Steering) -> int:
    m, wanted = protocol.measures, MEASURES[spec.measures]
    if not m.answers or (wanted is not None and "token answers" not in wanted):
        return 0
    more = wanted is None or "other answers" in wanted
    others = m.other_biases(bias, m.others, protocol.biases) if more else []
    return 2 * len(bias.generation_prompts) + sum(len(o.generation_prompts) for o in others)


def gib(n_bytes: int | float) -> str:
    """A size in words."""
    return f"{n_bytes / 2**30:.1f} GB"


def span(seconds: int | float) -> str:
    """A time in words."""
    if seconds >= 5 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
