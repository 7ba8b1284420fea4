"""Everything that is measured of one BiasToken and one choice of heads, by names and paths.

An :class:`Assessment` can be written down and run again: its results are kept setting by setting,
so an interrupted run goes on, and its manifest says what it read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from biasgym_tl.api import ChatModel, Price
from biasgym_tl.benchmarks.bbq import load_bbq
from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.benchmarks.blimp import load_blimp
from biasgym_tl.benchmarks.crows_pairs import load_crows_pairs
from biasgym_tl.benchmarks.implicit import has_scenarios, implicit_questions
from biasgym_tl.benchmarks.mmlu import load_mmlu
from biasgym_tl.benchmarks.seegull import load_seegull
from biasgym_tl.benchmarks.unqover import load_unqover
from biasgym_tl.biases.bias import Bias, load_bias
from biasgym_tl.errors import ApiError, SettingError
from biasgym_tl.evaluation.evaluate import evaluate
from biasgym_tl.evaluation.judging import judged, to_judge
from biasgym_tl.evaluation.random_control import RandomControl, random_control
from biasgym_tl.evaluation.report import Report
from biasgym_tl.evaluation.setting import REFERENCES
from biasgym_tl.figures import draw, recipe
from biasgym_tl.heads import Head, as_heads
from biasgym_tl.hooks import check_steering
from biasgym_tl.injection.shipped import load_token
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.instructions import INSTRUCTIONS
from biasgym_tl.judges.api_judge import ApiJudge, JudgePlan
from biasgym_tl.judges.local_judge import LocalJudge
from biasgym_tl.judges.verdict import Judge
from biasgym_tl.manifest import Manifest, check_inputs, results_fingerprint, write_results
from biasgym_tl.model import load_model
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.steering.selection import Selection
from biasgym_tl.steps import Steps, named_inputs
from biasgym_tl.store import as_declared

BENCHMARKS: dict[str, Callable[[str], Benchmark]] = {
    "bbq": load_bbq,
    "blimp": load_blimp,
    "crows-pairs": load_crows_pairs,
    "mmlu": load_mmlu,
    "seegull": load_seegull,
    "unqover": load_unqover,
}
"""Loader of each benchmark, with its default sample."""
IMPLICIT_PAIRS = 4
"""Targets that the BiasToken is compared with in scenes that do not name the attribute."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assessment:
    """What to measure.

    Raises:
        SettingError: on construction, if a number or a name is outside its range.
        SteeringError: there is no such mode, or it does not go with the factor.
    """

    heads: str
    """File of a ``Selection``, or names such as ``"L9H8,L3H1"``."""
    model: str = "smollm2-135m-instruct"
    """As in :func:`biasgym_tl.load_model`."""
    bias: str = "late"
    """Name of a shipped bias, or the path of a bias file."""
    token: str | None = None
    """File of a row; None: the shipped row of this bias and ``seed``."""
    modes: tuple[str, ...] = ("zero", "mean")
    """What the heads are replaced with: ``"zero"``, ``"mean"``, ``"scale"``."""
    factor: float | None = None
    """What a head keeps of its own output, in the modes ``"mean"`` and ``"scale"``."""
    reference: str = "text"
    """What the mean is taken over: ``"text"`` or ``"targets"``."""
    scores: str | None = None
    """File of the map that the heads were chosen from: is what it holds spread over many heads?"""
    instructions: bool = False
    """Also ask for answers without stereotypes, in three styles."""
    others: tuple[str, ...] = ()
    """Biases that the row was not trained on."""
    benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name of a benchmark -> file, folder or data set."""
    judge: str | None = None
    """Scores the free answers: ``"local"``, or ``"api:MODEL"``."""
    n_targets: int = 10
    """Held-out targets."""
    n_random: int = 5
    """Random controls that are measured in full."""
    n_draws: int = 0
    """Random sets for a rank p-value, on the BiasToken and on targets; 0: none."""
    max_new_tokens: int = 48
    """Length of the free answers."""
    seed: int = 0
    """Decides random heads, and which shipped row is taken."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Assessment:
        """Build it from what ``dataclasses.asdict`` gave."""
        return cls(**as_declared(cls, record))

    def __post_init__(self) -> None:
        if self.judge is not None and self.judge != "local" and not self.judge.startswith("api:"):
            raise SettingError(
                f"judge must be 'local' or 'api:MODEL', such as 'api:gpt-4o-mini', got "
                f"{self.judge!r}."
            )
        at_least = {"n_targets": 1, "n_random": 0, "n_draws": 0, "max_new_tokens": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise SettingError(f"{name} must be at least {least}, got {getattr(self, name)!r}.")
        if not self.modes:
            raise SettingError("modes must be at least one, got none. Give 'mean', say.")
        only_zero = set(self.modes) == {"zero"}  # beside another mode, that one takes the factor
        for mode in self.modes:
            check_steering(mode, self.factor if mode != "zero" or only_zero else None)
        if self.reference not in REFERENCES:
            raise SettingError(
                f"reference must be one of {list(REFERENCES)}, got {self.reference!r}."
            )
        unknown = sorted(set(self.benchmarks) - set(BENCHMARKS))
        if unknown:
            raise SettingError(f"benchmarks must be among {list(BENCHMARKS)}, got {unknown}.")


class Assessed(NamedTuple):
    """What one run found."""

    assessment: Assessment
    report: Report
    random: dict[str, RandomControl]
    """On the ``"token"`` and on ``"targets"``; empty without draws."""
    inputs: dict[str, str]
    """Fingerprints of all that was read."""

    def manifest(self) -> Manifest:
        """What was read and found."""
        random = {on: control.draws.tolist() for on, control in self.random.items()}
        return Manifest(
            command="evaluate",
            settings=dataclasses.asdict(self.assessment),
            inputs=self.inputs,
            results=results_fingerprint(self.report.numbers(), random),
        )


def assess(
    assessment: Assessment,
    *,
    expected: Mapping[str, str] | None = None,
    price: Price | None = None,
    confirm: Callable[[JudgePlan], bool] | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> Assessed:
    """Measure; settings that an earlier, interrupted run finished are read back.

    Args:
        assessment: What to measure.
        expected: Fingerprints that the inputs must have (those of a manifest).
        price: Of an API judge, for the estimate of its cost.
        confirm: Is shown what an API judge is going to take; it sends nothing unless this is True.
        fresh: Measure everything again.
        progress: Show progress bars.
    """
    bias, others = load_bias(assessment.bias), [load_bias(name) for name in assessment.others]
    token = _token(assessment, bias)
    heads = read_heads(assessment.heads)
    scores = None if assessment.scores is None else HeadScores.load(assessment.scores)
    judge = _judge(assessment, [bias, *others], price, progress)
    benchmarks = [BENCHMARKS[name](source) for name, source in assessment.benchmarks.items()]
    of_token: list[Benchmark] = []
    if has_scenarios(bias.name):
        targets = bias.sample_targets("held-out", assessment.n_targets, seed=0)
        of_token.append(
            implicit_questions(bias, [token.text], targets, n=IMPLICIT_PAIRS, baseline="injected")
        )
        if len(targets) > 1:
            benchmarks.append(implicit_questions(bias, targets))
    model = load_model(assessment.model)
    read = {
        "bias": bias.fingerprint(),
        **{f"bias {other.name}": other.fingerprint() for other in others},
        "row": [token.row.tolist(), token.untrained().row.tolist(), token.text],
        "heads": _choice(heads),
        **{f"benchmark {each.name}": each.fingerprint for each in (*benchmarks, *of_token)},
        **({} if scores is None else {"scores": scores.values.tolist()}),
    }
    inputs = named_inputs(model, **read)
    check_inputs(inputs, expected)
    settings, measured = dataclasses.asdict(assessment), dict(inputs)
    for added in ("n_draws", "judge", "scores"):  # at the end, so they touch nothing before
        del settings[added]
    for unused in ("scores", "code"):  # only a warning rests on them; its own code is enough
        measured.pop(unused, None)
    loaders = [BENCHMARKS[name] for name in assessment.benchmarks]
    code = (evaluate, random_control, implicit_questions, *loaders)
    steps = Steps.of("assessments", [settings, measured], *code, fresh=fresh)
    report = evaluate(
        model,
        bias,
        token=token,
        heads=heads,
        scores=scores,
        modes=assessment.modes,
        factor=assessment.factor,
        reference=assessment.reference,
        instructions=list(INSTRUCTIONS.values()) if assessment.instructions else (),
        others=others,
        benchmarks=benchmarks,
        token_benchmarks=of_token,
        n_targets=assessment.n_targets,
        n_random=assessment.n_random,
        max_new_tokens=assessment.max_new_tokens,
        seed=assessment.seed,
        progress=progress,
        finished=steps.measured,
    )
    if judge is not None:
        if isinstance(judge, ApiJudge) and confirm is not None:
            _confirm(report, judge, [bias, *others], confirm)
        report = judged(report, judge, bias, others)
    mode = "mean" if "mean" in assessment.modes else assessment.modes[0]
    random = {
        on: random_control(
            model,
            bias,
            token=token,
            heads=heads,
            mode=mode,
            factor=None if mode == "zero" else assessment.factor,
            reference=assessment.reference,
            on=on,
            n_targets=assessment.n_targets,
            n_draws=assessment.n_draws,
            seed=assessment.seed,
            progress=progress,
            finished=steps.measured,
        )
        for on in (("token", "targets") if assessment.n_draws else ())
    }
    return Assessed(assessment, report, random, inputs)


def read_heads(heads: str) -> Selection | tuple[Head, ...]:
    """Heads from the file of a ``Selection``, or from names with commas between them."""
    if Path(heads).suffix == ".json":
        return Selection.load(heads)
    return as_heads(heads)


def write_assessed(found: Assessed, out: Path) -> str | None:
    """Write the page, the table, the report, the random sets and the figures to a folder.

    Returns:
        Why there are no PNGs, if there are none.
    """
    return write_results(out, lambda folder: _write(found, folder), found.manifest())


def _write(found: Assessed, out: Path) -> str | None:
    report = found.report
    report.to_html(out / "report.html")
    report.to_csv(out / "table.csv")
    report.save(out / "report.json")
    for on, control in found.random.items():
        control.save(out / f"random-{on}")
    return draw(out, {name: recipe(name, ["report.json"]) for name in ("settings", "frontier")})


def _judge(
    assessment: Assessment, biases: Sequence[Bias], price: Price | None, progress: bool
) -> Judge | None:
    """The judge, found to be usable before anything is measured."""
    if assessment.judge is None:
        return None
    if assessment.judge == "local":
        judge = LocalJudge()
        for bias in biases:
            judge.judge(bias, ["They live there."])
        return judge
    chat = ChatModel(model=assessment.judge.removeprefix("api:"))
    chat.check_usable()
    return ApiJudge(chat=chat, price=price, progress=progress)


def _confirm(
    report: Report,
    judge: ApiJudge,
    biases: Sequence[Bias],
    confirm: Callable[[JudgePlan], bool],
) -> None:
    """Ask once, for all that the judge is going to take."""
    plan = JudgePlan.of_all(
        judge.plan(
            bias,
            [text for answers in found for text in answers.texts],
            [target for answers in found for target in answers.targets],
        )
        for bias, found in to_judge(report, biases[0], biases[1:])
    )
    if not confirm(plan):
        raise ApiError(f"judging must be confirmed, and was not ({plan}). Nothing was sent.")


def _token(assessment: Assessment, bias: Bias) -> BiasToken:
    if assessment.token is None:
        return load_token(bias.name, seed=assessment.seed)
    return BiasToken.load(assessment.token)


def _choice(heads: Selection | tuple[Head, ...]) -> list[Any]:
    """All of a choice that numbers depend on."""
    names = list(map(str, heads))
    return [names, list(heads.factors), heads.mode] if isinstance(heads, Selection) else [names]
