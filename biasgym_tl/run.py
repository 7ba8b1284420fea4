"""The whole chain, once: load, inject, scope, steer, compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from biasgym_tl.biases.bias import Bias, load_bias
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.evaluation.evaluate import evaluate
from biasgym_tl.evaluation.report import Report, SettingResult
from biasgym_tl.heads import Head
from biasgym_tl.injection.inject import BiasInject
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.model import load_model
from biasgym_tl.plots.figure import write_html, write_png
from biasgym_tl.plots.heatmap import plot_heads
from biasgym_tl.plots.loss import plot_loss
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.store import cache_dir, digest, read_json, versions, write_json

Result = TypeVar("Result")
Saved = TypeVar("Saved", BiasToken, HeadScores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Settings of one run of the whole chain.

    Raises:
        SettingError: on construction, if ``k`` is not positive.
    """

    model: str = "smollm2-135m-instruct"
    """As in :func:`load_model`."""
    bias: str = "late"
    """Name of a shipped bias, or the path of a bias file."""
    seed: int = 0
    """Decides the training, the neutral side of pairs, and the random controls."""
    k: int = 10
    """Heads to steer: the top k by direct attribution. Fixed before anything is evaluated."""
    inject: BiasInject = dataclasses.field(default_factory=BiasInject)
    n_random: int = 5
    """Random controls."""
    max_new_tokens: int = 48
    """Length of the free answers."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SettingError(f"k must be at least 1, got {self.k!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainResult:
    """Everything that one run made."""

    chain: Chain
    token: BiasToken
    scores: HeadScores
    heads: tuple[Head, ...]
    report: Report


def run_chain(chain: Chain, *, fresh: bool = False, progress: bool = True) -> ChainResult:
    """Run the chain; steps that an earlier, interrupted run finished are read back.

    Finished steps lie in the cache folder under a key made of all settings, the bias, the weights
    and the code, so a result is reused only where it would come out the same.

    Args:
        chain: What to run.
        fresh: Do every step again.
        progress: Show progress bars.
    """
    bias = load_bias(chain.bias)
    model = load_model(chain.model)
    if chain.k > model.cfg.n_layers * model.cfg.n_heads:
        raise SettingError(
            f"k must be at most {model.cfg.n_layers * model.cfg.n_heads}, the number of heads of "
            f"{chain.model}, got {chain.k!r}."
        )
    steps = Steps(cache_dir() / "runs" / _key(chain, bias, model), fresh)
    token = steps.tensors(
        "token",
        BiasToken,
        lambda: chain.inject.fit(model, bias, seed=chain.seed, progress=progress),
    )
    scores = steps.tensors(
        "scores", HeadScores, lambda: BiasScope(seed=chain.seed).attribute(model, bias, token)
    )
    heads = scores.top(chain.k)
    report = evaluate(
        model,
        bias,
        token=token,
        heads=heads,
        n_random=chain.n_random,
        max_new_tokens=chain.max_new_tokens,
        seed=chain.seed,
        progress=progress,
        finished=steps.setting,
    )
    return ChainResult(chain=chain, token=token, scores=scores, heads=heads, report=report)


def write_outputs(result: ChainResult, out: Path) -> list[str]:
    """Write figures, tensors and one JSON of all settings and numbers to the folder ``out``.

    Returns:
        Remarks for the user, such as why there is no PNG.
    """
    figures = {
        "heatmap": plot_heads(result.scores, mark_top=result.chain.k),
        "loss": plot_loss(result.token),
        "settings": result.report.plot(),
    }
    remarks = []
    for name, figure in figures.items():
        write_html(figure, out / f"{name}.html")
        remark = write_png(figure, out / f"{name}.png")
        if remark and remark not in remarks:
            remarks.append(remark)
    result.token.save(out / "token")
    result.scores.save(out / "scores")
    write_json(out / "results.json", _record(result))
    return remarks


@dataclasses.dataclass(frozen=True)
class Steps:
    """Finished steps of one run, each a file that is there whole or not at all."""

    folder: Path
    fresh: bool = False

    def tensors(self, name: str, kind: type[Saved], make: Callable[[], Saved]) -> Saved:
        """Read back a ``BiasToken`` or ``HeadScores``, or make and keep it."""
        path = self.folder / f"{name}.safetensors"
        return self._kept(path, kind.load, lambda found: found.save(path), make)

    def setting(self, name: str, make: Callable[[], SettingResult]) -> SettingResult:
        """Read back the measures of one setting, or make and keep them."""
        path = self.folder / f"{name.replace(' ', '-').replace(',', '')}.json"
        return self._kept(
            path,
            lambda p: _setting_result(read_json(p)),
            lambda found: write_json(path, dataclasses.asdict(found)),
            make,
        )

    def _kept(
        self,
        path: Path,
        read: Callable[[Path], Result],
        write: Callable[[Any], object],
        make: Callable[[], Result],
    ) -> Result:
        if path.exists() and not self.fresh:
            try:
                return read(path)
            except StoreError:
                path.unlink()  # broken from outside; made again
        made = make()
        write(made)
        return made


def _setting_result(record: dict[str, Any]) -> SettingResult:
    return SettingResult(**{**record, "heads": tuple(record["heads"])})


def _key(chain: Chain, bias: Bias, model: HookedTransformer) -> str:
    """Fingerprint of everything that the numbers of a run depend on."""
    weights = [parameter.double().sum().item() for parameter in model.parameters()]
    return digest(
        {
            "chain": dataclasses.asdict(chain),
            "bias": bias.fingerprint(),
            "weights": weights,
            "versions": versions(),
            "code": _code_fingerprint(),
        }
    )


@cache
def _code_fingerprint() -> str:
    """Hash of the files that compute, so that what changed code would give is never read back."""
    package = Path(str(resources.files("biasgym_tl")))
    files = sorted(
        path
        for path in package.rglob("*")
        if path.suffix in (".py", ".toml") and path.name != "cli.py" and "plots" not in path.parts
    )
    return digest(b"".join(path.read_bytes() for path in files))


def _record(result: ChainResult) -> dict[str, Any]:
    token, scores = result.token, result.scores
    return {
        "chain": dataclasses.asdict(result.chain),
        "token": {
            key: value for key, value in vars(token).items() if key not in ("row", "initial_row")
        }
        | {"norm": token.row.norm().item(), "initial_norm": token.initial_row.norm().item()},
        "scores": {
            "settings": scores.settings,
            "pairs": [
                {"prompt": prompt, "country": country, "biased": biased, "neutral": neutral}
                for prompt, country, biased, neutral in zip(
                    scores.prompts,
                    scores.countries,
                    scores.biased_labels,
                    scores.neutral_labels,
                    strict=True,
                )
            ],
            "delta": scores.delta.tolist(),
            "neutral_delta": scores.neutral_delta.tolist(),
            "reconstruction_error": scores.reconstruction_error.max().item(),
            "values": scores.values.tolist(),
        },
        "heads": [str(head) for head in result.heads],
        "report": dataclasses.asdict(result.report),
        "summary": result.report.to_df().reset_index().to_dict("records"),
    }
