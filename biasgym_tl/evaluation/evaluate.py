"""Measure conditions on held-out prompts, targets and texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.evaluation.measurement import Measurement, on_benchmark
from biasgym_tl.evaluation.readers import ConditionResult
from biasgym_tl.evaluation.report import Report
from biasgym_tl.evaluation.standard import standard_measures
from biasgym_tl.heads import as_heads
from biasgym_tl.hooks import head_means
from biasgym_tl.lens import HookedTransformer, Recording, check_model
from biasgym_tl.progress import Finished, bar, make_now
from biasgym_tl.prompts import text_policy
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.steering.selection import Selection, check_held_out
from biasgym_tl.store import digest, versions


class Shared:
    """What evaluations of one model have in common; given to each, it is measured once."""

    def __init__(self) -> None:
        """Nothing was measured yet."""
        self.known: dict[str, Any] = {}
        """Items, by a hash of what they depend on."""
        self.recordings: dict[str, Recording] = {}
        """By a hash of what the model is given."""
        self.means: Float[Tensor, "n_layers n_heads d_head"] | None = None


def evaluate(
    model: HookedTransformer,
    bias: GivenBias,
    conditions: Sequence[Condition],
    measures: Sequence[Measurement | Benchmark] | None = None,
    *,
    scores: HeadScores | None = None,
    progress: bool = True,
    finished: Finished = make_now,
    shared: Shared | None = None,
) -> Report:
    """Make every measurement in every condition; what two conditions share is measured once.

    A row acts only where the BiasToken stands, so targets, facts, texts and benchmarks are measured
    without the token: ``original`` and ``injected`` share them.

    Args:
        model: The model, unsteered and without the token.
        bias: The bias that is to be removed.
        conditions: Such as ``standard_conditions(token, heads)``, with
            ``random_conditions(condition, model.cfg.n_heads)`` for each that steers.
        measures: Such as ``standard_measures(bias, others=...)``, which is the default; a benchmark
            is one too.
        scores: The map that the heads were chosen from; the report then warns if the heads hold
            little of it.
        progress: Show a bar.
        finished: Called with the name of a measurement, with what it uses (equal for conditions
            and biases that share it), and with how it is made; may return what is stored instead.
        shared: Of earlier evaluations of this model, whose conditions these may be among.

    Raises:
        SteeringError: a head is outside the model, or a ``Selection`` has seen what is measured.
        SettingError: names are not distinct, a condition that changes are counted from is missing,
            or the scores are of another model or bias.
        TokenError: a row does not fit the model.
        ModelError: the model is no HookedTransformer with its own value biases, or no attribute
            word or no neutral word of a bias can count on it.
    """
    bias = as_bias(bias)
    check_model(model)
    conditions = list(conditions)
    made = _made(standard_measures(bias) if measures is None else measures, conditions)
    _check(model, conditions, made)
    settings = _settings(model, bias, conditions, made, scores)
    shared = shared or Shared()
    results, floors = _measured(model, bias, conditions, made, finished, progress, shared)
    return report_of(
        bias,
        made,
        results,
        model=model.cfg.model_name,
        settings=settings,
        token_text=next((c.row.text for c in conditions if c.row), ""),
        floors=floors,
    )


def report_of(
    bias: Bias,
    made: Sequence[Measurement],
    results: tuple[ConditionResult, ...],
    *,
    model: str,
    settings: Mapping[str, Any],
    token_text: str = "",
    floors: Mapping[str, Any] | None = None,
) -> Report:
    """What was measured, with what is known of it from the measurements themselves."""
    biases = {each.name: each for m in made for each in (bias, *m.biases)}
    return Report(
        bias=bias.name,
        attribute=bias.attribute,
        model=model,
        token_text=token_text,
        targets=tuple(dict.fromkeys(t for m in made for t in m.held_out.get("targets", ()) if t)),
        measured=tuple(measure for m in made for measure in m.measures),
        asked={key: texts for m in made for key, texts in m.asked.items()},
        clusters={measure.key: m.clusters for m in made if m.clusters for measure in m.measures},
        floors=dict(floors or {}),
        results=results,
        settings={
            **settings,
            "n_prompts": len(bias.evaluation_prompts),
            "biases": {name: each.fingerprint() for name, each in biases.items()},
            "measurements": {m.name: digest(m.fingerprint) for m in made},
            "columns": {key: list(names) for m in made for key, names in m.columns.items()},
        },
        versions=versions(),
    )


def _settings(
    model: HookedTransformer,
    bias: Bias,
    conditions: Sequence[Condition],
    made: Sequence[Measurement],
    scores: HeadScores | None,
) -> dict[str, Any]:
    """What the numbers rest on; words that cannot count are found before anything is measured."""
    biases = {each.name: each for m in made for each in (bias, *m.biases)}
    left_out = {name: list(word_tokens(model, each).left_out) for name, each in biases.items()}
    main = next((c for c in conditions if c.mode and not c.control_of), None)
    return {
        "selections": {c.name: repr(c.heads) for c in conditions if type(c.heads) is Selection},
        "attribution_in_heads": None if scores is None else _share(scores, model, bias, main),
        "text": dataclasses.asdict(text_policy(model)),
        "words_left_out": {name: words for name, words in left_out.items() if words},
    }


def _measured(
    model: HookedTransformer,
    bias: Bias,
    conditions: Sequence[Condition],
    made: Sequence[Measurement],
    finished: Finished,
    progress: bool,
    shared: Shared,
) -> tuple[tuple[ConditionResult, ...], dict[str, Any]]:
    """The results of all conditions, and the floors."""
    if shared.means is None and any(c.mode == "mean" and c.reference is None for c in conditions):
        shared.means = head_means(model)
    floors: dict[str, Any] = {}
    results = {condition.name: ConditionResult(**condition.record()) for condition in conditions}
    firsts = {c.first_layer(model) for c in conditions if c.steers}
    steered = firsts - {model.cfg.n_layers}  # where logits alone are changed, all layers run
    jobs = [_Job.of(c, m) for c in conditions for m in made if m.made_in(c)]
    made_now: list[str] = []

    def measure(job: _Job) -> Any:
        made_now.append(job.key)
        recording = shared.recordings.setdefault(job.inputs, Recording(steered))
        return job.measurement.measured(model, job.condition, shared.means, recording)

    left = _costs(model, jobs, shared)
    with bar(total=sum(left.values()), desc=f"evaluate {bias.name}", progress=progress) as shown:
        for job in jobs:
            name, before = job.measurement.name, len(made_now)
            shown.set_postfix_str(f"{job.condition.name}: {name}")
            if job.key not in shared.known:
                shared.known[job.key] = finished(name, job.uses, partial(measure, job))
                (shown.update if len(made_now) > before else shown.found)(left[job.key])
            results[job.condition.name].items.update(shared.known[job.key])
    for m in made:
        if m.floors is not None:
            uses = [m.name, m.fingerprint, "floor"]
            floors |= finished(f"floor of {m.name}", uses, partial(m.floors, model))
    return tuple(results.values()), floors


class _Job(NamedTuple):
    """A measurement in a condition."""

    condition: Condition
    measurement: Measurement
    uses: list[Any]
    """All that its items depend on beside the model."""
    key: str
    """A hash of that."""
    inputs: str
    """A hash of what the model is given."""

    @classmethod
    def of(cls, condition: Condition, m: Measurement) -> _Job:
        """The job."""
        uses = [m.name, m.fingerprint, condition.uses(m.needs)]
        inputs = digest([m.name, m.fingerprint, condition.inputs(m.needs)])
        return cls(condition, m, uses, digest(uses), inputs)


def _costs(model: HookedTransformer, jobs: Sequence[_Job], shared: Shared) -> dict[str, float]:
    """What each job takes that is not known yet, by its key; layers that are replayed take
    nothing."""
    found: dict[str, float] = {}
    recorded = set(shared.recordings)
    for job in (job for job in jobs if job.key not in shared.known):
        replays = job.measurement.same_inputs and job.inputs in recorded
        recorded.add(job.inputs)
        layers = job.condition.first_layer(model) if replays else 0
        found.setdefault(job.key, job.measurement.cost * (1 - layers / model.cfg.n_layers))
    return found


def _made(
    given: Sequence[Measurement | Benchmark], conditions: Sequence[Condition]
) -> list[Measurement]:
    """Measurements, without those that no condition makes, such as of a row where there is none."""
    asked = (each if isinstance(each, Measurement) else on_benchmark(each) for each in given)
    return [m for m in asked if any(m.made_in(c) for c in conditions)]


def _share(
    scores: HeadScores, model: HookedTransformer, bias: Bias, main: Condition | None
) -> float | None:
    """Part of all that heads write toward the stereotype which the chosen heads write."""
    here = (model.cfg.model_name, bias.name)
    if (scores.model, scores.bias) != here:
        raise SettingError(
            f"scores must be of the model and the bias {here}, got {(scores.model, scores.bias)}."
        )
    scores.check_text(model)
    positive = scores.values.clamp(min=0)
    if not bool((positive > 0).any()):
        raise SettingError("scores must hold a head that writes toward the stereotype, got none.")
    if main is None:
        return None
    chosen = torch.stack([positive[head] for head in as_heads(main.heads)])
    return (chosen.sum() / positive.sum()).item()


def _check(
    model: HookedTransformer, conditions: Sequence[Condition], made: Sequence[Measurement]
) -> None:
    """Refuse what cannot be measured, and heads that were chosen on what they are judged by."""
    check_different(conditions, made)
    for condition in conditions:
        condition.check(model)
        if isinstance(condition.heads, Selection):
            condition.heads.check_model(model.cfg.model_name)
            for m in made:
                condition.heads.check_held_out(**m.held_out)
        if condition.rival:
            for m in made:
                check_held_out(condition.rival.data, **m.held_out)


def check_different(conditions: Sequence[Condition], made: Sequence[Measurement]) -> None:
    """Refuse names that stand twice, and conditions that are named and not there."""
    names = [condition.name for condition in conditions]
    names += sorted({f"{c.control_of}: random" for c in conditions if c.control_of})
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingError(f"names of conditions must differ, got {twice} twice.")
    for what, found in (
        ("measurements", [m.name for m in made]),
        ("measures", [measure.key for m in made for measure in m.measures]),
    ):
        taken = sorted({name for name in found if found.count(name) > 1})
        if taken:
            raise SettingError(f"{what} must be different ones, got {taken} twice.")
    needed = {name for m in made for measure in m.measures for name in measure.rests_on}
    if missing := sorted(needed - set(names)):
        raise SettingError(
            f"conditions must include {missing}, which others are compared with, got {names}. "
            "Begin with standard_conditions(token)."
        )
    for field in ("control_of", "since"):
        named = {getattr(condition, field) for condition in conditions} - {None}
        if unknown := sorted(named - set(names)):
            raise SettingError(f"{field} must name one of the conditions, got {unknown}.")
