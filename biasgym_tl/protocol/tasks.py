"""The steps of a protocol as tasks with names, which any process that opened it can do.

What a task makes is put into the store, where the chain and the tasks after it find it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

from biasgym_tl.evaluation.evaluate import evaluate
from biasgym_tl.protocol.chain import Opened
from biasgym_tl.protocol.conditions import Conditions
from biasgym_tl.protocol.parts import Map
from biasgym_tl.protocol.plan import PlannedStep
from biasgym_tl.protocol.stages import Stages
from biasgym_tl.protocol.steering import Steering
from biasgym_tl.store import digest

Named = dict[str, Callable[[], object]]


class Tasks:
    """All tasks of a protocol, by bias, stage and name."""

    def __init__(self, opened: Opened) -> None:
        """Nothing is made yet."""
        self.opened = opened
        self.of_biases = {bias.name: opened.stages(bias) for bias in opened.given.biases}
        self.known: tuple[tuple[str, str], Named] = (("", ""), {})

    def of(self, bias: str, stage: str) -> Named:
        """Tasks of one of :data:`STAGES`, for which those before it are done; they do not depend
        on each other."""
        if self.known[0] != (bias, stage):
            make = STAGES[stage]
            self.known = (bias, stage), make(self.opened, self.of_biases[bias])
        return self.known[1]


def _rows(opened: Opened, stages: Stages) -> Named:
    """Trainings: of the bias, and of what else is to stand in the slot."""
    protocol, bias = opened.protocol, stages.bias
    if not protocol.injects(bias):
        return {}
    searched = [Map(slot=c.rows) for c in protocol.choices.values() if c.rows != "none"]
    found: Named = {}
    for spec, seed in product((Map(), *protocol.maps.values(), *searched), protocol.seeds):
        row = spec.row_of(bias, seed, protocol.biases)
        if row != bias or not protocol.rows:
            found[f"{row.name}, seed {seed}"] = partial(stages.trained, row, seed)
    return found


def _maps(opened: Opened, stages: Stages) -> Named:
    asked = product(opened.protocol.maps, opened.protocol.seeds)
    return {f"{name}, seed {seed}": partial(stages.map, name, seed) for name, seed in asked}


def _choices(opened: Opened, stages: Stages) -> Named:
    """Searches and sweeps; other choices are read off maps."""
    protocol = opened.protocol

    def choose(name: str) -> object:
        return list(stages.chosen(name, protocol.choices[name]))

    def set_dials(spec: Steering) -> object:
        """A rival, and its dial with those of its random controls."""
        draws = range(1, 1 + max(spec.random, spec.draws))
        return [stages.dialed(spec, draw) for draw in (None, *draws)]

    rivals = [c for c in protocol.conditions_of(stages.bias) if c.rival]
    searches = [name for name, c in protocol.choices.items() if c.by in ("factors", "budget")]
    sweeps = {f"sweep {s.map}, {s.mode}": (s.map, s.mode, s.ks) for s in protocol.sweeps}
    found: Named = {name: partial(choose, name) for name in searches}
    found |= {name: partial(stages.sweep, *asked) for name, asked in sweeps.items()}
    return found | {spec.label: partial(set_dials, spec) for spec in rivals}


def _again(opened: Opened, stages: Stages) -> Named:
    """Trainings on steered models."""
    asked, seeds = Conditions(stages, opened.given.benchmarks), opened.protocol.seeds
    return {
        f"{spec.label}, seed {seed}": partial(
            lambda s, seed: asked.trained_again(asked.condition(s, seed), seed), spec, seed
        )
        for spec in opened.protocol.conditions
        if spec.reinject
        for seed in (seeds if spec.all_seeds else seeds[:1])
    }


def _measures(opened: Opened, stages: Stages) -> Named:
    """Every measurement in every condition, by a hash of what it uses."""
    asked, found = Conditions(stages, opened.given.benchmarks), dict[str, Callable[[], object]]()

    def defer(name: str, uses: Any, make: Callable[[], Any]) -> Any:
        found[digest([name, uses])] = partial(opened.finished(), name, uses, make)
        return {}

    conditions, measurements = asked.conditions(), asked.measurements()
    evaluate(opened.model, stages.bias, conditions, measurements, progress=False, finished=defer)
    return found


STAGES: dict[str, Callable[[Opened, Stages], Named]] = {
    "rows": _rows, "maps": _maps, "choices": _choices, "rows again": _again, "measures": _measures,
}  # fmt: skip
"""By name, what lists the tasks of a stage, in order."""
_PLANNED = {
    "k sweeps": "choices", "conditions": "measures", "random controls": "measures",
}  # fmt: skip


def stage_of(step: PlannedStep) -> str:
    """The stage whose tasks make a step of a plan."""
    again = step.stage == "conditions" and " to train for " in step.name
    return "rows again" if again else _PLANNED.get(step.stage, step.stage)
