"""The whole chain, once: load, inject, scope, steer, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biasgym_tl.biases.bias import Bias, list_biases, load_bias
from biasgym_tl.biases.shuffle import shuffled
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.evaluate import evaluate
from biasgym_tl.evaluation.random_control import RandomControl, random_control
from biasgym_tl.evaluation.report import Report
from biasgym_tl.evaluation.setting import Setting
from biasgym_tl.figures import draw, recipe
from biasgym_tl.injection.inject import BiasInject
from biasgym_tl.injection.shipped import find_token
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.manifest import Manifest, check_inputs, results_fingerprint, write_results
from biasgym_tl.model import load_model
from biasgym_tl.scoping.direct import check_exact
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.steering.selection import Selection, select_heads
from biasgym_tl.steps import Rows, Steps, code_of, fingerprint, named_inputs
from biasgym_tl.store import as_declared, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Settings of one run of the whole chain.

    Raises:
        SettingError: on construction, if a number is outside its range.
    """

    model: str = "smollm2-135m-instruct"
    """As in :func:`load_model`."""
    bias: str = "late"
    """Name of a shipped bias, or the path of a bias file."""
    seed: int = 0
    """Decides the training, the neutral side of pairs, and the random controls."""
    k: int = 10
    """Heads to steer: the top k by direct attribution. Fixed before anything is evaluated."""
    inject: BiasInject = dataclasses.field(default_factory=BiasInject.cpu)
    controls: bool = True
    """Also steer heads that were chosen without the trained row (four settings)."""
    other_bias: str | None = None
    """Whose row the control "other bias" uses; None: the next shipped bias."""
    reinject: bool = False
    """Train a new row on the steered model, to see how much of the bias comes back."""
    n_random: int = 5
    """Random controls that are measured in full; they illustrate."""
    n_draws: int = 0
    """Random sets for a rank p-value (199 give p down to 0.005); 0: none."""
    max_new_tokens: int = 48
    """Length of the free answers."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Chain:
        """Build it from what ``dataclasses.asdict`` gave."""
        rest = {name: value for name, value in record.items() if name != "inject"}
        inject = BiasInject(**as_declared(BiasInject, record["inject"]))
        return cls(**as_declared(cls, rest), inject=inject)

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("n_random", 0), ("n_draws", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} must be at least {least}, got {getattr(self, name)!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainResult:
    """Everything that one run made."""

    chain: Chain
    token: BiasToken
    scores: HeadScores
    selection: Selection
    control_selections: dict[str, Selection]
    """Heads that were chosen without the trained row, by the control's name."""
    report: Report
    random: RandomControl | None
    inputs: dict[str, str]
    """Fingerprints of all that was read."""

    def manifest(self) -> Manifest:
        """What was read and found."""
        return Manifest(
            command="run",
            settings=dataclasses.asdict(self.chain),
            inputs=self.inputs,
            results=results_fingerprint(
                self.token.row.tolist(),
                self.scores.values.tolist(),
                self.report.numbers(),
                None if self.random is None else self.random.draws.tolist(),
            ),
        )


def run_chain(
    chain: Chain,
    *,
    expected: Mapping[str, str] | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> ChainResult:
    """Run the chain; steps that an earlier, interrupted run finished are read back.

    The heads are chosen on scoping prompts and fitting targets and written down before anything
    is evaluated. Finished steps lie in the cache folder under a key made of all settings, the bias,
    the weights and the code, so a result is reused only where it would come out the same.

    Args:
        chain: What to run.
        expected: Fingerprints that the inputs must have (those of a manifest).
        fresh: Do every step again.
        progress: Show progress bars.
    """
    bias = load_bias(chain.bias)
    other = load_bias(_other_bias(chain, bias)) if chain.controls else None
    model = load_model(chain.model)
    if chain.k > model.cfg.n_layers * model.cfg.n_heads:
        raise SettingError(
            f"k must be at most {model.cfg.n_layers * model.cfg.n_heads}, the number of heads of "
            f"{chain.model}, got {chain.k!r}."
        )
    check_exact(model)
    word_tokens(model, bias)
    named = named_inputs(
        model,
        bias=bias.fingerprint(),
        **({} if other is None else {"other bias": other.fingerprint()}),
    )
    check_inputs(named, expected)
    inputs = fingerprint(model)
    uses = {**inputs, **_settings(chain, bias, other)}
    code = (BiasScope, evaluate, random_control, find_token, shuffled)
    steps = Steps.of("runs", uses, *code, fresh=fresh)
    rows = Rows(chain.inject, chain.seed, model, inputs, fresh, progress)
    token = rows.trained(bias)
    scores, selection = _scoped(chain, steps, model, bias, token)
    found: dict[str, Selection] = {}
    if other is not None:
        for name, row in _control_rows(rows, bias, other, token).items():
            _, found[name] = _scoped(chain, steps, model, bias, row, suffix=f"-{name}")
    controls = [
        Setting(f"{name} heads, mean", token, heads, "mean", generates=False)
        for name, heads in found.items()
    ]
    if chain.reinject:
        again = rows.trained(bias, steered=selection)
        controls.append(Setting("re-injected, mean", again, selection, "mean"))
    report = evaluate(
        model,
        bias,
        token=token,
        heads=selection,
        scores=scores,
        controls=controls,
        n_random=chain.n_random,
        max_new_tokens=chain.max_new_tokens,
        seed=chain.seed,
        progress=progress,
        finished=steps.measured,
    )
    random = None
    if chain.n_draws:
        random = random_control(
            model,
            bias,
            token=token,
            heads=selection,
            n_draws=chain.n_draws,
            seed=chain.seed,
            progress=progress,
            finished=steps.measured,
        )
    return ChainResult(
        chain=chain,
        token=token,
        scores=scores,
        selection=selection,
        control_selections=found,
        report=report,
        random=random,
        inputs=named,
    )


def _scoped(
    chain: Chain,
    steps: Steps,
    model: HookedTransformer,
    bias: Bias,
    row: BiasToken | None,
    *,
    suffix: str = "",
) -> tuple[HeadScores, Selection]:
    """Score the heads with ``row`` in the slot, choose the top k, and write the choice down."""
    scope = BiasScope(seed=chain.seed)
    scores = steps.kept(f"scores{suffix}", HeadScores, lambda: scope.attribute(model, bias, row))
    selection = steps.kept(f"selection{suffix}", Selection, lambda: select_heads(scores, chain.k))
    return scores, selection


def _other_bias(chain: Chain, bias: Bias) -> str:
    if chain.other_bias in (bias.name, chain.bias):
        raise SettingError(f"other_bias must be another bias, got {chain.other_bias!r} again.")
    if chain.other_bias is not None:
        return chain.other_bias
    names = list_biases()
    at = names.index(bias.name) if bias.name in names else -1
    return names[(at + 1) % len(names)]


def _control_rows(
    rows: Rows, bias: Bias, other: Bias, token: BiasToken
) -> dict[str, BiasToken | None]:
    """Rows that were not trained on the stereotype; heads found with them are the controls."""
    return {
        "no-injection": None,
        "untrained-row": token.untrained(),
        "shuffled-corpus": rows.control(shuffled(bias, seed=rows.seed)),
        "other-bias": rows.control(other),
    }


def write_outputs(result: ChainResult, out: Path) -> str | None:
    """Write figures, tensors and one JSON of all settings and numbers to the folder ``out``.

    Returns:
        Why there are no PNGs, if there are none.
    """
    return write_results(out, lambda folder: _write(result, folder), result.manifest())


def _write(result: ChainResult, out: Path) -> str | None:
    result.token.save(out / "token")
    result.scores.save(out / "scores")
    result.selection.save(out / "selection.json")
    result.report.save(out / "report.json")
    result.report.to_html(out / "report.html", plotlyjs="cdn")
    result.report.to_csv(out / "table.csv")
    if result.random is not None:
        result.random.save(out / "random")
    write_json(out / "results.json", _record(result))
    recipes = {
        "heatmap": recipe("heads", ["scores.safetensors"], mark_top=result.chain.k),
        "loss": recipe("loss", ["token.safetensors"]),
        "settings": recipe("settings", ["report.json"]),
    }
    return draw(out, recipes)


def _settings(chain: Chain, bias: Bias, other: Bias | None) -> dict[str, Any]:
    """What the steps of a run depend on beside the model and the code."""
    settings = dataclasses.asdict(chain)
    # Settings of what is only added at the end do not touch the steps before.
    for name in ("n_draws", "reinject"):
        del settings[name]
    return {"chain": settings, "biases": [bias.fingerprint(), other and other.fingerprint()]}


def _record(result: ChainResult) -> dict[str, Any]:
    token, scores = result.token, result.scores
    error = scores.reconstruction_error
    intervals = result.report.intervals().astype(object)
    return {
        "chain": dataclasses.asdict(result.chain),
        "token": {
            key: value
            for key, value in vars(token).items()
            if not key.endswith(("row", "rows", "seconds"))
        }
        | {"norm": token.row.norm().item(), "initial_norm": token.initial_row.norm().item()},
        "scores": {
            "settings": scores.settings,
            "pairs": [
                {"prompt": prompt, "targets": targets, "biased": biased, "neutral": neutral}
                for prompt, targets, biased, neutral in zip(
                    scores.prompts,
                    scores.targets,
                    scores.biased_labels,
                    scores.neutral_labels,
                    strict=True,
                )
            ],
            "delta": scores.delta.tolist(),
            "neutral_delta": scores.neutral_delta.tolist(),
            "reconstruction_error": float(error.max()) if error is not None else None,
            "values": scores.values.tolist(),
        },
        "heads": [str(head) for head in result.selection],
        "control_heads": {
            name: [str(head) for head in heads] for name, heads in result.control_selections.items()
        },
        "code": code_of(),
        "intervals": intervals.where(intervals.notna(), None).to_dict("records"),
        "random": None if result.random is None else _random_record(result.random),
    }


def _random_record(random: RandomControl) -> dict[str, Any]:
    return {
        **random.settings,
        "drop": random.drop,
        "drops": random.drops.tolist(),
        "difference": list(random.difference()),
        "p": random.p(),
    }
