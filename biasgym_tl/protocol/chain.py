"""The one chain: rows, maps, choices of heads, conditions, measures. Finished steps are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from biasgym_tl.api import Price
from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.benchmarks.implicit import implicit_questions
from biasgym_tl.biases.bias import Bias, load_bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.evaluation.evaluate import Shared, evaluate
from biasgym_tl.evaluation.judging import judged
from biasgym_tl.evaluation.report import Report
from biasgym_tl.evaluation.standard import check_others, standard_measures
from biasgym_tl.evaluation.text_kl import text_kl
from biasgym_tl.heads import check_heads
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.judges.api_judge import JudgePlan
from biasgym_tl.judges.verdict import Judge
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.manifest import Manifest, check_inputs
from biasgym_tl.model import load_model
from biasgym_tl.origin import model_sizes
from biasgym_tl.progress import Finished
from biasgym_tl.protocol.conditions import Conditions
from biasgym_tl.protocol.machine import this_machine
from biasgym_tl.protocol.memory import sizes_of_loaded
from biasgym_tl.protocol.plan import planned_steps
from biasgym_tl.protocol.protocol import Protocol
from biasgym_tl.protocol.record import Recorder, recorded
from biasgym_tl.protocol.result import BiasResult, ProtocolResult
from biasgym_tl.protocol.sources import load_benchmarks, read_heads, usable_judge
from biasgym_tl.protocol.stages import Heads, Stages, choice_record
from biasgym_tl.scoping.checks import check_exact
from biasgym_tl.steps import Steps, named_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """How a protocol is run; nothing of it changes a number."""

    expected: Manifest | None = None
    """Names the inputs that a repetition must have."""
    price: Price | None = None
    """Of an API judge, for the estimate of its cost."""
    confirm: Callable[[JudgePlan], bool] | None = None
    """Is shown what an API judge is going to take; it sends nothing unless this is True."""
    fresh: bool = False
    """Do every step again."""
    progress: bool = True
    """Show progress bars."""
    say: Callable[[str], None] = lambda text: None
    """Is told each step as it begins: ``"late: step 2 of 5, maps; about 4 min left"``."""
    write: Callable[[str, BiasResult], None] = lambda name, found: None
    """Is given the results of each bias as they come: maps and heads, then a report of the
    conditions, then one with their random controls, then the judge's."""
    out: Path | None = None
    """Folder of the results, by which ``biasgym status`` finds the run."""
    ahead: Callable[[Opened, Recorder], None] | None = None
    """Makes steps before the run looks for them in the store, such as an ``OnRay``."""

    def __post_init__(self) -> None:
        if self.fresh and self.ahead:
            raise SettingError(
                "fresh must be False for a run on a cluster, whose workers find each other's steps "
                "in the cache folder, got True. Set BIASGYM_CACHE to an empty folder."
            )


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
    opened = open_protocol(protocol, running)
    machine = this_machine(opened.model.cfg.device)
    planned = planned_steps(
        protocol, sizes_of_loaded(opened.model), machine, opened.given.benchmarks
    )
    with recorded(protocol, running.out, planned) as recorder:
        opened.steps.tell.append(recorder.step)
        if running.ahead:
            running.ahead(opened, recorder)
        found = {b.name: _result(opened.stages(b), recorder, opened) for b in opened.given.biases}
    return ProtocolResult(protocol, found, opened.inputs)


class Opened(NamedTuple):
    """A protocol with all that it names, read and checked, and its model."""

    protocol: Protocol
    running: Running
    given: _Given
    model: HookedTransformer
    inputs: dict[str, str]
    """Fingerprints of all that was read."""
    steps: Steps

    def stages(self, bias: Bias) -> Stages:
        """Of one bias."""
        return Stages(
            protocol=self.protocol,
            model=self.model,
            bias=bias,
            steps=self.steps,
            given_rows=self.given.rows,
            given_heads=self.given.heads,
            progress=self.running.progress,
            say=self.running.say,
        )

    def finished(self) -> Finished:
        """Looks up what was measured before."""
        benchmarks = map(type, self.given.benchmarks)
        return self.steps.finished(standard_measures, text_kl, *benchmarks, implicit_questions)


def open_protocol(protocol: Protocol, running: Running) -> Opened:
    """Read and check a protocol and load its model; errors as of :func:`run_protocol`."""
    given = _given(protocol, running)
    model = load_model(
        protocol.model, dtype=protocol.dtype, device=protocol.device, device_map=protocol.device_map
    )
    _check_heads(protocol, given.heads, model.cfg.n_layers, model.cfg.n_heads)
    _check_fits(protocol, model, given.biases)
    inputs = named_inputs(model, **given.read(protocol))
    check_inputs(inputs, running.expected)
    return Opened(protocol, running, given, model, inputs, Steps.of(model, fresh=running.fresh))


class _Given(NamedTuple):
    """What a protocol names, read before the model is loaded."""

    biases: list[Bias]
    related: dict[str, Bias]
    """Those and their other biases."""
    benchmarks: list[Benchmark]
    rows: list[BiasToken]
    heads: dict[str, Heads]
    judge: Judge | None

    def read(self, protocol: Protocol) -> dict[str, Any]:
        """All that numbers depend on, by name."""
        rows = zip(protocol.rows, self.rows, strict=True)
        return {
            **{f"bias {name}": each.fingerprint() for name, each in self.related.items()},
            **{f"row {path}": row.row.tolist() for path, row in rows},
            **{f"heads {name}": choice_record(each) for name, each in self.heads.items()},
            **{f"file {p}": d for r in protocol.rivals.values() for p, d in r.files().items()},
            **{f"benchmark {each.name}": each.fingerprint for each in self.benchmarks},
        }


def _given(protocol: Protocol, running: Running) -> _Given:
    """Read and check it, as far as that needs no model."""
    m, biases = protocol.measures, [load_bias(name) for name in protocol.biases]
    benchmarks = load_benchmarks(m.benchmarks, whole=m.whole_benchmarks)
    rows = [BiasToken.load(path) for path in protocol.rows]
    heads = {n: read_heads(c.heads) for n, c in protocol.choices.items() if c.by == "given"}
    related = {each.name: each for bias in biases for each in _related(protocol, bias)}
    judge = usable_judge(
        m.judge, list(related.values()), price=running.price, progress=running.progress
    )
    _check_different("biases", [bias.name for bias in biases])
    _check_different("rows", [row.label for row in rows])
    if sizes := model_sizes(protocol.model):
        _check_heads(protocol, heads, sizes.n_layers, sizes.n_heads)
        for row in rows:
            row.check_sizes(biases[0], sizes)
    return _Given(biases, related, list(benchmarks), rows, heads, judge)


def _check_heads(
    protocol: Protocol, heads: Mapping[str, Heads], n_layers: int, n_heads: int
) -> None:
    """Refuse heads that the model does not have."""
    for chosen in heads.values():
        check_heads(chosen, n_layers, n_heads)
    for choice in protocol.choices.values():
        if choice.by in ("top", "overlap"):
            choice.n_heads(n_layers * n_heads)


def _check_fits(protocol: Protocol, model: HookedTransformer, biases: list[Bias]) -> None:
    """Refuse what the model cannot do, before anything is computed."""
    if protocol.maps:
        check_exact(model)
    for bias in biases:
        word_tokens(model, bias)


def _related(protocol: Protocol, bias: Bias) -> list[Bias]:
    m = protocol.measures
    more = [m.other_biases(bias, names, protocol.biases) for names in (m.others, m.further)]
    check_others(bias, more[0])
    if protocol.maps or protocol.choices or protocol.rivals:
        bias.needs("scoping")
    if not protocol.injects(bias):
        protocol.check_without_rows(bias)
    elif not protocol.rows:
        protocol.training.inject.check_bias(bias)
    for each in (bias, *more[0], *more[1]):
        each.needs("evaluation", *(["free answers"] if m.answers else []))
    return [bias, *(other for others in more for other in others)]


def _check_different(what: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise SettingError(f"{what} must be different ones, got {list(names)}.")


def _result(stages: Stages, recorder: Recorder, opened: Opened) -> BiasResult:
    """All of one bias, in order."""
    protocol, bias, running = stages.protocol, stages.bias, opened.running

    def begin(stage: str) -> None:
        if said := recorder.begins(bias.name, stage):
            running.say(said)

    begin("rows")
    rows = stages.rows
    begin("maps")
    for name in protocol.maps:
        for seed in protocol.seeds:
            stages.map(name, seed)
    begin("choices")
    choices = stages.choices
    begin("k sweeps")
    sweeps = {f"{s.map}-{s.mode}": stages.sweep(s.map, s.mode, s.ks) for s in protocol.sweeps}
    rivals = {name: stages.rival(name) for name in protocol.rivals_of(bias)}
    found = BiasResult(rows, stages.maps, choices, sweeps, rivals)
    running.write(bias.name, found)
    for report in _reports(stages, begin, opened):
        found = found._replace(reports=(report,))
        running.write(bias.name, found)
    return found


def _reports(stages: Stages, begin: Callable[[str], None], opened: Opened) -> Iterator[Report]:
    """Of the conditions; with their random controls too; and with a judge's scores."""
    bias, running, given = stages.bias, opened.running, opened.given
    judge, asked = given.judge, Conditions(stages, given.benchmarks)
    conditions, measurements = asked.conditions(), asked.measurements()
    shared = Shared()

    def measured(some: list[Condition]) -> Report:
        return evaluate(
            stages.model,
            bias,
            some,
            measurements,
            scores=stages.first_map(),
            progress=running.progress,
            finished=opened.finished(),
            shared=shared,
        )

    begin("conditions")
    main = [condition for condition in conditions if not condition.control_of]
    report = measured(main)
    yield report
    begin("random controls")
    if len(main) < len(conditions):
        yield (report := measured(conditions))
    begin("judge")
    if judge is not None:
        biases = _related(stages.protocol, bias)
        yield judged(report, judge, biases, confirm=running.confirm)
