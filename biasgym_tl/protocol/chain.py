"""The one chain: rows, maps, choices of heads, conditions, measures. Finished steps are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from biasgym_tl.api import Price
from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.benchmarks.implicit import has_scenarios, implicit_questions
from biasgym_tl.biases.bias import Bias, load_bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import ApiError, SettingError
from biasgym_tl.evaluation.condition import BRIEF, Condition, random_conditions
from biasgym_tl.evaluation.evaluate import evaluate
from biasgym_tl.evaluation.judging import judged, to_judge
from biasgym_tl.evaluation.measurement import (
    Measurement,
    check_others,
    on_benchmark,
    other_log_odds,
    standard_measures,
)
from biasgym_tl.evaluation.report import Report
from biasgym_tl.heads import check_heads
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.instructions import NOTHING, find_instruction
from biasgym_tl.judges.api_judge import ApiJudge, JudgePlan
from biasgym_tl.judges.verdict import Judge
from biasgym_tl.manifest import Manifest, check_inputs, results_fingerprint
from biasgym_tl.model import load_model
from biasgym_tl.protocol.parts import Steering
from biasgym_tl.protocol.protocol import Protocol
from biasgym_tl.protocol.sources import BENCHMARKS, read_heads, usable_judge
from biasgym_tl.protocol.stages import Heads, Stages, choice_record
from biasgym_tl.scoping.damage import KSweep
from biasgym_tl.scoping.direct import check_exact
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.steering.reference import target_means
from biasgym_tl.steps import Steps, named_inputs

IMPLICIT_PAIRS = 4
"""Targets that the BiasToken is compared with in scenes that do not name the attribute."""
OWN_ANSWERS = (*BRIEF, "token answers", "target answers")
MEASURED: dict[str, tuple[str, ...] | None] = {
    "all": None,
    "brief": BRIEF,
    "own answers": OWN_ANSWERS,
    "answers": ("token answers", "target answers", "other answers"),
}
"""What ``Steering.measures`` stands for."""
LOG_ODDS = ("token log-odds", "target log-odds")
FIRST_ROW = ("token log-odds",)
"""What is measured with the rows of other seeds; the rest does not depend on the row."""


class BiasResult(NamedTuple):
    """What was found of one bias."""

    rows: dict[int, BiasToken]
    """By seed."""
    maps: dict[str, dict[int, HeadScores]]
    """By name and seed."""
    choices: dict[str, dict[int, Heads]]
    """By name and seed; what rests on all seeds stands under the first."""
    sweeps: dict[str, KSweep]
    report: Report


class ProtocolResult(NamedTuple):
    """What one run of a protocol found."""

    protocol: Protocol
    biases: dict[str, BiasResult]
    inputs: dict[str, str]
    """Fingerprints of all that was read."""

    def manifest(self) -> Manifest:
        """What was read and found."""
        numbers = [
            [
                {seed: row.row.tolist() for seed, row in found.rows.items()},
                {
                    n: {s: m.values.tolist() for s, m in maps.items()}
                    for n, maps in found.maps.items()
                },
                {n: sweep.benefit.tolist() for n, sweep in found.sweeps.items()},
                found.report.numbers(),
            ]
            for found in self.biases.values()
        ]
        return Manifest(
            command="run",
            settings=dataclasses.asdict(self.protocol),
            inputs=self.inputs,
            results=results_fingerprint(*numbers),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """How a protocol is run; nothing of it changes a number."""

    expected: Mapping[str, str] | None = None
    """Fingerprints that the inputs must have (those of a manifest)."""
    price: Price | None = None
    """Of an API judge, for the estimate of its cost."""
    confirm: Callable[[JudgePlan], bool] | None = None
    """Is shown what an API judge is going to take; it sends nothing unless this is True."""
    fresh: bool = False
    """Do every step again."""
    progress: bool = True
    """Show progress bars."""
    say: Callable[[str], None] = lambda text: None
    """Is told each step as it begins: "step 3 of 12: ..."."""
    write: Callable[[str, BiasResult], None] = lambda name, found: None
    """Is given the results of each bias as soon as they are there."""


def run_protocol(protocol: Protocol, running: Running | None = None) -> ProtocolResult:
    """Run a protocol; steps that an earlier, interrupted run finished are read back.

    Heads are chosen on scoping prompts and fitting targets and written down before anything is
    evaluated. Finished steps lie in the cache folder under a key of what they use: model, data,
    settings, and the code that they run; so they are reused only where they would come out the
    same, and shared by all protocols.

    Args:
        protocol: What to do.
        running: How.

    Raises:
        SettingError: a part of the protocol does not fit the model or a bias.
        ApiError: an API judge cannot be used.
    """
    running = running or Running()
    biases = [load_bias(name) for name in protocol.biases]
    benchmarks = [BENCHMARKS[name](path) for name, path in protocol.measures.benchmarks.items()]
    given = [BiasToken.load(path) for path in protocol.rows]
    heads = {n: read_heads(c.heads) for n, c in protocol.choices.items() if c.by == "given"}
    m = protocol.measures
    related = {each.name: each for bias in biases for each in _related(protocol, bias)}
    judge = usable_judge(
        m.judge, list(related.values()), price=running.price, progress=running.progress
    )
    _check_different("biases", [bias.name for bias in biases])
    _check_different("rows", [row.label for row in given])
    model = load_model(protocol.model)
    for chosen in heads.values():
        check_heads(chosen, model.cfg.n_layers, model.cfg.n_heads)
    if protocol.maps:
        check_exact(model)
    for choice in protocol.choices.values():
        if choice.by in ("top", "overlap"):
            choice.n_heads(model.cfg.n_layers * model.cfg.n_heads)
    for bias in biases:
        word_tokens(model, bias)
    inputs = named_inputs(
        model,
        **{f"bias {name}": each.fingerprint() for name, each in related.items()},
        **{f"row {path}": row.row.tolist() for path, row in zip(protocol.rows, given, strict=True)},
        **{f"heads {name}": choice_record(each) for name, each in heads.items()},
        **{f"benchmark {each.name}": each.fingerprint for each in benchmarks},
    )
    check_inputs(inputs, running.expected)
    steps = Steps.of(model, fresh=running.fresh)
    found: dict[str, BiasResult] = {}
    for bias in biases:
        stages = Stages(
            protocol=protocol,
            model=model,
            bias=bias,
            steps=steps,
            given_rows=given,
            given_heads=heads,
            progress=running.progress,
            say=running.say,
        )
        found[bias.name] = _result(stages, running, benchmarks, judge)
        running.write(bias.name, found[bias.name])
    return ProtocolResult(protocol, found, inputs)


def _related(protocol: Protocol, bias: Bias) -> list[Bias]:
    m = protocol.measures
    more = [m.other_biases(bias, names, protocol.biases) for names in (m.others, m.further)]
    check_others(bias, more[0])
    return [bias, *(other for others in more for other in others)]


def _check_different(what: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise SettingError(f"{what} must be different ones, got {list(names)}.")


def _result(
    stages: Stages, running: Running, benchmarks: Sequence[Benchmark], judge: Judge | None
) -> BiasResult:
    """All of one bias, in order."""
    protocol, bias = stages.protocol, stages.bias
    rows, choices = stages.rows, stages.choices
    for name in protocol.maps:
        for seed in protocol.seeds:
            stages.map(name, seed)
    sweeps = {f"{s.map}-{s.mode}": stages.sweep(s.map, s.mode, s.ks) for s in protocol.sweeps}
    asked = _Conditions(stages, benchmarks)
    running.say(f"{bias.name}: conditions")
    code = (standard_measures, *map(type, benchmarks), implicit_questions)

    def finished(name: str, uses: Any, make: Callable[[], Any]) -> Any:
        return stages.steps.measured(name, uses, make, *code)

    report = evaluate(
        stages.model,
        bias,
        asked.conditions(),
        asked.measurements(),
        scores=stages.first_map(),
        progress=running.progress,
        finished=finished,
    )
    if judge is not None:
        running.say(f"{bias.name}: judge")
        biases = _related(protocol, bias)
        if isinstance(judge, ApiJudge) and running.confirm is not None:
            _confirm(report, judge, biases, running.confirm)
        report = judged(report, judge, biases)
    return BiasResult(rows, stages.maps, choices, sweeps, report)


def _confirm(
    report: Report, judge: ApiJudge, biases: list[Bias], confirm: Callable[[JudgePlan], bool]
) -> None:
    """Ask once, for all that the judge is going to take of a report."""
    plan = JudgePlan.of_all(
        judge.plan(
            bias,
            [text for answers in found for text in answers.texts],
            [target for answers in found for target in answers.targets],
        )
        for bias, found in to_judge(report, biases)
    )
    if not confirm(plan):
        raise ApiError(f"judging must be confirmed, and was not ({plan}). Nothing was sent.")


@dataclasses.dataclass(frozen=True)
class _Conditions:
    """What is measured of one bias, in which conditions."""

    stages: Stages
    benchmarks: Sequence[Benchmark]

    @property
    def protocol(self) -> Protocol:
        """What is asked for."""
        return self.stages.protocol

    def conditions(self) -> list[Condition]:
        """``original``, ``injected``, those of the protocol, and the random controls of each."""
        row = self.stages.rows[self.stages.first]
        found = [Condition("original", row.untrained()), Condition("injected", row)]
        later = {seed: row for seed, row in self.stages.rows.items() if seed != self.stages.first}
        if any(c.all_seeds for c in self.protocol.conditions):
            found += [
                Condition(f"injected, seed {s}", r, measures=FIRST_ROW) for s, r in later.items()
            ]
        controls: list[Condition] = []
        for spec in self.protocol.conditions:
            condition = self.condition(spec, self.stages.first)
            found.append(condition)
            if spec.all_seeds:
                found += [self.with_row(spec, seed, condition) for seed in later]
            controls += self.random(spec, condition)
        return found + controls

    def with_row(self, spec: Steering, seed: int, first: Condition) -> Condition:
        """The condition with the row of another seed; of the same heads the rest is known."""
        found = self.condition(spec, seed)
        measures = FIRST_ROW if tuple(found.heads) == tuple(first.heads) else BRIEF
        return dataclasses.replace(found, name=f"{spec.label}, seed {seed}", measures=measures)

    def condition(self, spec: Steering, seed: int) -> Condition:
        """A condition with the row of a seed."""
        row = self.stages.rows[seed]
        measures = MEASURED[spec.measures]
        asked = find_instruction(spec.asked) if spec.asked else NOTHING
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
            reference=target_means(self.stages.model, self.stages.bias) if means else None,
            instruction=asked,
            measures=measures,
        )
        if not spec.reinject:
            return found
        row = self.stages.trained(self.stages.bias, seed, found)
        return dataclasses.replace(found, row=row)

    def random(self, spec: Steering, condition: Condition) -> list[Condition]:
        """Its random controls: the first measured in brief, the others by log-odds alone."""
        n = max(spec.random, spec.draws)
        if not n:
            return []
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
            answers=m.answers,
            max_new_tokens=m.max_new_tokens,
        )
        targets = bias.sample_targets("held-out", m.n_targets, seed=0)
        if further := [f for f in further if f.name not in {o.name for o in others}]:
            found.append(other_log_odds(further, targets, whose="further"))
        if m.implicit and has_scenarios(bias.name):
            text = self.stages.rows[self.stages.first].text
            scenes = implicit_questions(
                bias, [text], targets, n=IMPLICIT_PAIRS, baseline="injected"
            )
            found.append(on_benchmark(scenes, needs="row"))
            if len(targets) > 1:
                found.append(on_benchmark(implicit_questions(bias, targets)))
        return found
