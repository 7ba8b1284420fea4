"""What a protocol measures of one bias, in which conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.benchmarks.implicit import has_scenarios, implicit_questions
from biasgym_tl.errors import SteeringError
from biasgym_tl.evaluation.condition import (
    BRIEF,
    Condition,
    random_conditions,
    standard_conditions,
)
from biasgym_tl.evaluation.measurement import Measurement, on_benchmark
from biasgym_tl.evaluation.standard import other_log_odds, standard_measures
from biasgym_tl.evaluation.text_kl import text_kl
from biasgym_tl.instructions import NOTHING, find_instruction
from biasgym_tl.protocol.protocol import Protocol
from biasgym_tl.protocol.stages import Stages
from biasgym_tl.protocol.steering import LOG_ODDS, MEASURES, OWN_ANSWERS, Steering

IMPLICIT_PAIRS = 4
"""Targets that the BiasToken is compared with in scenes that do not name the attribute."""
FIRST_ROW = ("token log-odds",)
"""What is measured with the rows of other seeds; the rest does not depend on the row."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What is measured of one bias, in which conditions."""

    stages: Stages
    benchmarks: Sequence[Benchmark]

    @property
    def protocol(self) -> Protocol:
        """What is asked for."""
        return self.stages.protocol

    def conditions(self) -> list[Condition]:
        """``original``, ``injected``, those of the protocol, and the random controls of each."""
        row = self.stages.rows.get(self.stages.first)
        found = standard_conditions(row)
        later = {seed: row for seed, row in self.stages.rows.items() if seed != self.stages.first}
        if any(c.all_seeds for c in self.protocol.conditions):
            found += [
                Condition(f"injected, seed {s}", r, measures=FIRST_ROW) for s, r in later.items()
            ]
        controls: list[Condition] = []
        for spec in self.protocol.conditions_of(self.stages.bias):
            try:
                condition = self.condition(spec, self.stages.first)
            except SteeringError as error:  # a dial that does not reach its KL
                self.stages.say(f"{self.stages.bias.name}: {spec.label} is left out: {error}")
                continue
            made = {self.stages.first: condition}
            if spec.all_seeds:
                made |= {seed: self.with_row(spec, seed, condition) for seed in later}
            for seed, each in made.items():
                found += self.trained_again(each, seed) if spec.reinject else [each]
            try:
                controls += self.random(spec, condition)
            except SteeringError as error:
                self.stages.say(f"{self.stages.bias.name}: {spec.label}, no controls: {error}")
        return found + controls

    def trained_again(self, condition: Condition, seed: int) -> list[Condition]:
        """A condition whose row was trained while its heads are steered, beside a row of the same
        training on the model as it is; and both rows after their last epoch, since answers that
        steering changes may choose another one."""
        plain = Condition(
            f"{condition.name}: unsteered",
            self.stages.trained(self.stages.bias, seed, alike=True),
            instruction=condition.instruction,
            measures=FIRST_ROW,
        )
        last = _at_last(plain)
        return [condition, plain, _at_last(condition, last.name), last]

    def with_row(self, spec: Steering, seed: int, first: Condition) -> Condition:
        """The condition with the row of another seed; of the same heads the rest is known."""
        found = self.condition(spec, seed)
        measures = FIRST_ROW if tuple(found.heads) == tuple(first.heads) else BRIEF
        name = f"{spec.label}, seed {seed}"
        since = f"{name}: unsteered" if spec.reinject else None
        return dataclasses.replace(found, name=name, measures=measures, since=since)

    def condition(self, spec: Steering, seed: int) -> Condition:
        """A condition with the row of a seed."""
        row = self.stages.rows.get(seed)
        measures = MEASURES[spec.measures]
        asked = find_instruction(spec.asked) if spec.asked else NOTHING
        if spec.rival:
            rival = self.stages.dialed(spec)
            return Condition(spec.label, row, instruction=asked, measures=measures, rival=rival)
        if not spec.choice:
            return Condition(spec.label, row, instruction=asked, measures=measures)
        choices = self.stages.choices[spec.choice]
        heads = choices.get(seed, choices[self.stages.first])
        means = spec.mode == "mean" and spec.mean_over == "targets"
        found = Condition(
            spec.label,
            row,
            heads,
            spec.mode,
            factor=spec.factor,
            reference=self.stages.target_means if means else None,
            instruction=asked,
            measures=measures,
        )
        if not spec.reinject:
            return found
        row = self.stages.trained(self.stages.bias, seed, found)
        return dataclasses.replace(found, row=row, since=f"{spec.label}: unsteered")

    def random(self, spec: Steering, condition: Condition) -> list[Condition]:
        """Its random controls: the first measured in brief, the others by log-odds alone."""
        n = max(spec.random, spec.draws)
        if not n:
            return []
        if spec.rival:
            drawn = [
                dataclasses.replace(
                    condition,
                    name=f"{condition.name}: random {i}",
                    rival=self.stages.dialed(spec, draw=i),
                    control_of=condition.name,
                )
                for i in range(1, n + 1)
            ]
        else:
            n_heads = self.stages.model.cfg.n_heads
            drawn = random_conditions(condition, n_heads, n=n, seed=self.stages.first)
        measures = (
            [OWN_ANSWERS] * spec.random_answers
            + [BRIEF] * (spec.random - spec.random_answers)
            + [LOG_ODDS] * n
        )
        return [
            dataclasses.replace(each, measures=m) for each, m in zip(drawn, measures, strict=False)
        ]

    def measurements(self) -> list[Measurement]:
        """What is measured in every condition."""
        m, bias = self.protocol.measures, self.stages.bias
        others, further = (
            m.other_biases(bias, names, self.protocol.biases) for names in (m.others, m.further)
        )
        found = standard_measures(
            bias,
            others=others,
            benchmarks=self.benchmarks,
            n_targets=m.n_targets,
            n_facts=m.n_facts,
            off_target=m.off_target,
            answers=m.answers,
            max_new_tokens=m.max_new_tokens,
        )
        if self.protocol.rivals:
            found.append(text_kl())
        targets = bias.sample_targets("held-out", m.n_targets, seed=0)
        if further := [f for f in further if f.name not in {o.name for o in others}]:
            found.append(other_log_odds(further, targets, whose="further"))
        if m.implicit and has_scenarios(bias.name) and self.stages.rows:
            text = self.stages.rows[self.stages.first].text
            scenes = implicit_questions(
                bias, [text], targets, n=IMPLICIT_PAIRS, baseline="injected"
            )
            found.append(on_benchmark(scenes, needs="row"))
            if len(targets) > 1:
                found.append(on_benchmark(implicit_questions(bias, targets)))
        return found


def _at_last(condition: Condition, since: str | None = None) -> Condition:
    """With the row as it was after its last epoch."""
    assert condition.row
    row = condition.row.at_epoch(len(condition.row.epochs) - 1)
    name = f"{condition.name}, last epoch"
    return dataclasses.replace(condition, name=name, row=row, measures=FIRST_ROW, since=since)
