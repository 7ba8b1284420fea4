"""The command line: parses, calls, prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from biasgym_tl.console import visible, visible_line
from biasgym_tl.errors import BiasGymError, SettingError, SteeringError, StoreError

if TYPE_CHECKING:
    from biasgym_tl.api import Price
    from biasgym_tl.assessment import Assessed, Assessment
    from biasgym_tl.injection.inject import BiasInject
    from biasgym_tl.injection.report import InjectionReport
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.manifest import Manifest
    from biasgym_tl.run import Chain, ChainResult
    from biasgym_tl.scoping.scores import HeadScores

Found = TypeVar("Found")


def say(text: object, *, err: bool = False) -> None:
    """Print a text, whoever wrote it."""
    typer.echo(visible(text), err=err)


class _Commands(TyperGroup):
    """The commands, each of which can be stopped."""

    def invoke(self, ctx: Any) -> Any:
        """Run one."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Stopped.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Find, explain and remove stereotypes in language models, on TransformerLens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="The same seed gives the same numbers.")]
Preset = Annotated[str, typer.Option(help="Settings of the training: cpu or paper.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the paragraphs, at most.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate of the row.")]
ChooseBy = Annotated[
    str | None, typer.Option(help="What chooses the epoch: similarity, loss or last.")
]
ModelName = Annotated[str, typer.Option(help="Name or folder of the model.")]
BiasName = Annotated[str, typer.Option(help="Shipped bias, or a .toml file.")]
PriceIn = Annotated[float | None, typer.Option(help="US dollars per million tokens sent.")]
PriceOut = Annotated[float | None, typer.Option(help="US dollars per million tokens received.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before sending.")]
AnswerTokens = Annotated[int, typer.Option("--max-new-tokens", help="Length of free answers.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do every step again, reuse nothing.")]


def main() -> None:
    """Entry point: known errors become one line, also those of files and disks."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # of a stream that somebody put there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except BiasGymError as error:
        _fail(str(error))
    except OSError as error:
        _fail(_fault(error))


def _fault(error: OSError) -> str:
    """What the system says of a file, with its name; nothing of the package is at fault."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.strerror}: {str(error.filename or 'output')!r}."


def _fail(reason: str) -> None:
    say(f"Error: {visible_line(reason)}", err=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.exit(1)
    os._exit(1)  # what is left cannot be written, and Python would say so again, at length


@app.command()
def demo(
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("figures/demo"),
    fresh: Fresh = False,
) -> None:
    """Run the whole chain on SmolLM2-135M-Instruct with the bias "late" (up to an hour on CPU)."""
    from biasgym_tl.run import Chain

    _run_and_show(Chain(seed=seed), out, fresh)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: ModelName = "smollm2-135m-instruct",
    bias: BiasName = "late",
    seed: Seed = 0,
    k: Annotated[int, typer.Option(help="Number of heads to steer.")] = 10,
    preset: Preset = "cpu",
    epochs: Epochs = None,
    lr: Rate = None,
    choose_by: ChooseBy = None,
    controls: Annotated[
        bool, typer.Option(help="Also steer heads that were chosen without the trained row.")
    ] = True,
    other_bias: Annotated[
        str | None, typer.Option(help="Whose row is a control; default: the next shipped bias.")
    ] = None,
    reinject: Annotated[
        bool, typer.Option("--reinject", help="Train a new row on the steered model.")
    ] = False,
    draws: Annotated[
        int, typer.Option(help="Random sets for a rank p-value; 199 give p down to 0.005.")
    ] = 0,
    max_new_tokens: AnswerTokens = 48,
    fresh: Fresh = False,
    manifest: Annotated[
        Path | None,
        typer.Option("--from", help="Repeat what this manifest.json says; other settings wait."),
    ] = None,
) -> None:
    """Run the whole chain with your own settings: inject, scope, steer, compare."""
    from biasgym_tl.run import Chain

    if manifest is not None:
        _repeat(manifest, out, fresh)
        return
    chain = Chain(
        model=model,
        bias=bias,
        seed=seed,
        k=k,
        inject=_inject(preset, epochs, lr, choose_by),
        controls=controls,
        other_bias=other_bias,
        reinject=reinject,
        n_draws=draws,
        max_new_tokens=max_new_tokens,
    )
    _run_and_show(chain, out, fresh)


def _repeat(path: Path, out: Path, fresh: bool) -> None:
    """Run again what a manifest names, and say whether it came out the same."""
    from biasgym_tl.assessment import Assessment
    from biasgym_tl.manifest import Manifest
    from biasgym_tl.run import Chain

    found = Manifest.load(path)
    try:
        if found.command == "run":
            chain = Chain.from_record(found.settings)
        else:
            assessment = Assessment.from_record(found.settings)
    except (TypeError, KeyError, StoreError) as error:
        raise SettingError(
            f"{str(path)!r} must hold the settings of this version, but: {error}."
        ) from error
    if found.command == "run":
        _run_and_show(chain, out, fresh, found)
    else:
        _assess_and_show(assessment, out, fresh, found)


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for the report.")],
    heads: Annotated[
        str, typer.Option(help="File from 'biasgym select' or 'scope', or names: L9H8,L3H1.")
    ],
    model: ModelName = "smollm2-135m-instruct",
    bias: BiasName = "late",
    token: Annotated[
        str | None, typer.Option(help="Row from 'biasgym inject'; default: the shipped one.")
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="zero, mean or scale; repeat. Default: zero and mean.")
    ] = None,
    factor: Annotated[
        float | None, typer.Option(help="What a head keeps of its output, for mean and scale.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Mean over neutral text, or over prompts with targets.")
    ] = "text",
    scores: Annotated[
        str | None, typer.Option(help="Map that the heads were chosen from, to see how spread.")
    ] = None,
    others: Annotated[
        bool, typer.Option(help="Also measure all other shipped biases with targets of this kind.")
    ] = True,
    instructions: Annotated[
        bool, typer.Option(help="Also ask the model not to stereotype, in three styles.")
    ] = True,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH, such as blimp=data/blimp, for some also bbq=DATASET:SUBSET; "
            "repeat for several."
        ),
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Scores the free answers: local, or api:MODEL.")
    ] = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    yes: Yes = False,
    targets: Annotated[int, typer.Option(help="Held-out targets.")] = 10,
    random: Annotated[int, typer.Option(help="Random head sets measured in full.")] = 5,
    draws: Annotated[
        int, typer.Option(help="Random sets for a rank p-value; 199 give p down to 0.005.")
    ] = 0,
    max_new_tokens: AnswerTokens = 48,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Measure what steering chosen heads does to bias and abilities, against its controls."""
    from biasgym_tl.assessment import Assessment
    from biasgym_tl.biases.bias import list_biases, load_bias

    own = load_bias(bias)
    also = [name for name in list_biases() if name != own.name] if others else []
    assessment = Assessment(
        heads=heads,
        model=model,
        bias=bias,
        token=token,
        modes=tuple(mode or ("zero", "mean")),
        factor=factor,
        reference=reference,
        scores=scores,
        instructions=instructions,
        others=tuple(name for name in also if load_bias(name).target_kind == own.target_kind),
        benchmarks=dict(map(_named_source, benchmark or ())),
        judge=judge,
        n_targets=targets,
        n_random=random,
        n_draws=draws,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    _assess_and_show(assessment, out, fresh, price=_price(price_in, price_out), yes=yes)


def _named_source(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise SettingError(f"--benchmark must be NAME=PATH, got {text!r}.")
    return name, source


@app.command()
def inject(
    out: Annotated[Path, typer.Option(help="Folder for the rows.")],
    model: ModelName = "smollm2-135m-instruct",
    bias: BiasName = "late",
    seeds: Annotated[int, typer.Option(help="Number of trainings: seeds 0, 1, ...")] = 1,
    preset: Preset = "cpu",
    epochs: Epochs = None,
    lr: Rate = None,
    choose_by: ChooseBy = None,
) -> None:
    """Train one row of W_E a seed and report on it. Stopped, it goes on from the last epoch."""
    from transformers.utils.logging import disable_progress_bar

    from biasgym_tl.biases.bias import load_bias
    from biasgym_tl.injection.inject import fit_seeds
    from biasgym_tl.manifest import write_results
    from biasgym_tl.model import load_model

    settings, loaded_bias = _inject(preset, epochs, lr, choose_by), load_bias(bias)
    if seeds < 1:
        raise SettingError(f"--seeds must be at least 1, got {seeds}.")
    _check_folder(out)
    disable_progress_bar()
    say(f"Loading {model} ...", err=True)
    loaded = load_model(model)
    for seed in range(seeds):
        try:
            (token,) = fit_seeds(
                loaded, loaded_bias, seeds=[seed], inject=settings, checkpoints=out / "epochs"
            )
        except KeyboardInterrupt:
            say("Stopped. Run the same command to go on from the last epoch.", err=True)
            raise typer.Exit(130) from None
        report = token.report(loaded, loaded_bias)
        path = write_results(out, partial(_write_row, token, report))
        say(f"{report}\n  trained in {token.seconds:.0f} s; written to {out / path.name}\n")


def _write_row(token: BiasToken, report: InjectionReport, folder: Path) -> Path:
    path = token.save(folder / f"{token.bias}-{token.seed}")
    report.save(path.with_suffix(".json"))
    return path


@app.command()
def scope(
    out: Annotated[Path, typer.Option(help="Folder for scores and figures.")],
    model: ModelName = "smollm2-135m-instruct",
    bias: BiasName = "late",
    seed: Seed = 0,
    token: Annotated[
        Path | None, typer.Option(help="Row from 'biasgym inject'; default: the shipped one.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; default: direct.")
    ] = None,
    contrast: Annotated[str, typer.Option(help="biased (the paper's) or difference.")] = "biased",
    neutral: Annotated[str, typer.Option(help="random, closest or several.")] = "random",
    contrasts: Annotated[
        Path | None, typer.Option(help="Contrast prompts from 'biasgym write --contrasts'.")
    ] = None,
    k: Annotated[int, typer.Option(help="Heads to name and frame.")] = 10,
) -> None:
    """Score every head, by one or several methods, and compare them."""
    from biasgym_tl.biases.bias import load_bias
    from biasgym_tl.biases.contrasts import read_contrasts
    from biasgym_tl.injection.shipped import load_token
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.manifest import write_results
    from biasgym_tl.model import load_model
    from biasgym_tl.scoping.compare import compare
    from biasgym_tl.scoping.scope import BiasScope

    scopes = [
        BiasScope(method=name, contrast=contrast, neutral=neutral, seed=seed)
        for name in dict.fromkeys(method or ["direct"])
    ]
    loaded_bias = load_bias(bias)
    row = load_token(loaded_bias.name, seed=seed) if token is None else BiasToken.load(token)
    prompts = read_contrasts(contrasts) if contrasts else ()
    _check_folder(out)
    say(f"Loading {model} ...", err=True)
    loaded = load_model(model)
    found = {}
    for one in scopes:
        scores = one.attribute(loaded, loaded_bias, row, contrasts=prompts, progress=True)
        found[one.method] = scores
        write_results(out, partial(_write_maps, found, k))  # kept, whatever becomes of the next
        say(f"{scores!r}\n  top {k}: {', '.join(map(str, scores.top(k)))}")
        for prompt in scores.left_out:
            say(f"  left out, both answers begin alike: {prompt}")
    if len(found) > 1:
        say(repr(compare(list(found.values()), k=k)))
    if remark := write_results(out, partial(_draw_maps, found, k)):
        say(remark, err=True)
    say(f"Written to {out}/")


def _write_maps(found: dict[str, HeadScores], k: int, folder: Path) -> dict[str, str]:
    """The name of each map's file."""
    from biasgym_tl.steering.selection import select_heads

    maps = {method: scores.save(folder / method).name for method, scores in found.items()}
    for method, scores in found.items():
        select_heads(scores, k).save(folder / f"{method}-heads.json")
    return maps


def _draw_maps(found: dict[str, HeadScores], k: int, folder: Path) -> str | None:
    from biasgym_tl.figures import draw, recipe

    maps = _write_maps(found, k, folder)
    figures = {method: recipe("heads", [name], mark_top=k) for method, name in maps.items()}
    if len(found) > 1:
        figures["agreement"] = recipe("agreement", maps)
    return draw(folder, figures)


@app.command()
def select(
    out: Annotated[Path, typer.Argument(help="File for the heads, such as heads.json.")],
    model: ModelName = "smollm2-135m-instruct",
    bias: BiasName = "late",
    token: Annotated[
        list[Path] | None,
        typer.Option(help="Row from 'biasgym inject'; repeat for several; default: shipped ones."),
    ] = None,
    k: Annotated[int | None, typer.Option(help="Heads at most; default: any number.")] = None,
    keep: Annotated[
        float, typer.Option(help="How dear other text is: more keeps more of the model.")
    ] = 15.0,
) -> None:
    """Learn how much of its output each head may keep, for 'evaluate' and 'export'."""
    from biasgym_tl.biases.bias import load_bias
    from biasgym_tl.injection.shipped import load_tokens
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.model import load_model
    from biasgym_tl.steering.factors import FactorSearch

    if out.suffix != ".json":
        raise SettingError(f"file for the heads must end in .json, got {str(out)!r}.")
    _check_file(out)
    search, loaded_bias = FactorSearch(k=k, keep=keep), load_bias(bias)
    rows = [BiasToken.load(path) for path in token] if token else load_tokens(loaded_bias.name)
    say(f"Loading {model} ...", err=True)
    found = search.select(load_model(model), loaded_bias, *rows)
    if not len(found):
        raise SteeringError(
            f"no head is worth the damage that silencing it does at keep = {keep:g}. Try less."
        )
    say(repr(found))
    say(f"Written to {found.save(out)}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="New folder for the steered model.")],
    heads: Annotated[
        str, typer.Option(help="File from 'biasgym select' or 'scope', or names: L9H8,L3H1.")
    ],
    model: ModelName = "smollm2-135m-instruct",
    mode: Annotated[
        str | None, typer.Option(help="zero, mean or scale; default: the file's, or zero.")
    ] = None,
    factor: Annotated[
        float | None, typer.Option(help="Share of their output that heads keep.")
    ] = None,
) -> None:
    """Write a steered model as a Hugging Face folder, and check that it behaves alike."""
    from biasgym_tl.assessment import read_heads
    from biasgym_tl.model import load_model
    from biasgym_tl.steering.export import export_steered
    from biasgym_tl.steering.selection import Selection
    from biasgym_tl.store import check_new_folder, check_writable, read_text

    chosen = read_heads(heads)
    check_new_folder(folder)
    check_writable(folder, "folder")
    if mode is None:
        mode = chosen.mode if isinstance(chosen, Selection) else "zero"
    say(f"Loading {model} ...", err=True)
    loaded = load_model(model)
    export_steered(loaded, chosen, folder, mode, factor=factor, source=model)
    say(read_text(folder / "README.md", "description", StoreError))


@app.command()
def figures(
    folder: Annotated[
        Path, typer.Argument(help="Folder of results; folders below are looked at too.")
    ] = Path("figures"),
) -> None:
    """Draw every figure again from the results that it shows."""
    from biasgym_tl.figures import redraw

    names, remark = redraw(folder)
    say("\n".join(names))
    if remark:
        say(remark, err=True)


@app.command()
def doctor(model: ModelName = "smollm2-135m-instruct", bias: BiasName = "late") -> None:
    """Check on a model the identities that all numbers here rest on."""
    from biasgym_tl.biases.bias import load_bias
    from biasgym_tl.doctor import examine
    from biasgym_tl.model import load_model

    loaded_bias = load_bias(bias)
    say(f"Loading {model} ...", err=True)
    checks = examine(load_model(model), loaded_bias)
    for check in checks:
        say(str(check))
    if not all(check.passed or not check.required for check in checks):
        raise typer.Exit(1)


@app.command()
def biases(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Biases or bias files; default: all shipped ones.")
    ] = None,
) -> None:
    """List and check biases, the shipped ones or your own."""
    from biasgym_tl.biases.bias import list_biases, load_bias
    from biasgym_tl.biases.check import check_bias

    refused = 0
    for name in sources or list_biases():
        try:
            bias = load_bias(name)
        except BiasGymError as error:
            refused += 1
            say(f"Error: {visible_line(error)}", err=True)
            continue
        say(repr(bias))
        for remark in check_bias(bias):
            say(f"  doubtful: {remark}")
    if refused:
        raise typer.Exit(1)


@app.command()
def corpus(
    source: Annotated[str, typer.Argument(help="A bias, a .toml or .jsonl file, or a dataset.")],
) -> None:
    """Report how varied a corpus is: words, lengths, near-duplicates."""
    from biasgym_tl.biases.bias import load_corpus
    from biasgym_tl.corpus_diversity import diversity

    found = diversity(load_corpus(source))
    for name, value in found.to_df()["value"].items():
        say(f"{name:38} {value}")
    say("closest pair:")
    for text in found.closest:
        say(f"  {text}")


@app.command()
def write(
    bias: BiasName,
    out: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    model: Annotated[str, typer.Option(help="Name of the writing model at the API.")],
    n: Annotated[int, typer.Option(help="Texts wanted.")] = 500,
    per_call: Annotated[int, typer.Option(help="Texts asked for in one call.")] = 25,
    contrasts: Annotated[
        bool, typer.Option("--contrasts", help="Write contrast prompts, not paragraphs.")
    ] = False,
    concurrency: Annotated[int, typer.Option(help="Calls at the same time.")] = 4,
    retries: Annotated[int, typer.Option(help="Of a call that fails, each after a wait.")] = 5,
    timeout: Annotated[float, typer.Option(help="Seconds until a call counts as lost.")] = 120.0,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    yes: Yes = False,
) -> None:
    """Have a language model write paragraphs or contrast prompts (OPENAI_API_KEY, _BASE_URL)."""
    from biasgym_tl.api import ChatModel
    from biasgym_tl.biases.bias import load_bias
    from biasgym_tl.biases.writer import write_contrasts, write_corpus

    if out.suffix != ".jsonl":
        raise SettingError(f"--out must end in .jsonl, got {str(out)!r}.")
    _check_file(out)
    price = _price(price_in, price_out)
    writer = write_contrasts if contrasts else write_corpus
    try:
        written = writer(
            load_bias(bias),
            ChatModel(model=model, concurrency=concurrency, max_retries=retries, timeout=timeout),
            n=n,
            per_call=per_call,
            price=price,
            confirm=_confirm(yes),
        )
    except KeyboardInterrupt:
        say("Stopped; calls under way still end. Run the same command to go on.", err=True)
        raise typer.Exit(130) from None
    say(repr(written))
    if price:
        used = price.of(written.usage.prompt_tokens, written.usage.completion_tokens)
        say(f"Cost of this run: {used:.4f} US dollars")
    for failure in written.failures:
        say(f"  failed: {failure}", err=True)
    if not written.items:
        raise SettingError(f"no text could be used, so {str(out)!r} was not written; see above.")
    written.save(out)
    say(f"Written to {out}")


def _price(price_in: float | None, price_out: float | None) -> Price | None:
    from biasgym_tl.api import Price

    if price_in is None and price_out is None:
        return None
    return Price(price_in or 0.0, price_out or 0.0)


def _confirm(yes: bool) -> Callable[[object], bool]:
    """Show a plan, and ask unless ``yes``."""

    def confirm(plan: object) -> bool:
        say(str(plan), err=True)
        return yes or typer.confirm("Send?", err=True)

    return confirm


def _inject(preset: str, epochs: int | None, lr: float | None, choose_by: str | None) -> BiasInject:
    from transformers.utils.logging import disable_progress_bar

    from biasgym_tl.injection.inject import BiasInject
    from biasgym_tl.similarity import load_encoder

    disable_progress_bar()

    presets: dict[str, Callable[..., BiasInject]] = {"cpu": BiasInject.cpu, "paper": BiasInject}
    if preset not in presets:
        raise SettingError(f"--preset must be one of {sorted(presets)}, got {preset!r}.")
    given = {"epochs": epochs, "lr": lr, "choose_by": choose_by}
    inject = presets[preset](**{key: value for key, value in given.items() if value is not None})
    if inject.choose_by == "similarity":
        load_encoder(inject.encoder)  # what is missing is said before the model is loaded
    return inject


def _check_folder(out: Path) -> None:
    """Find out that results cannot be kept before they are computed."""
    from biasgym_tl.store import cache_dir, check_writable

    check_writable(out, "--out")
    check_writable(cache_dir(), "cache folder (BIASGYM_CACHE)")


def _check_file(out: Path) -> None:
    from biasgym_tl.store import check_writable

    if out.is_dir():
        raise SettingError(f"file must be none that is a folder, got {str(out)!r}. Name another.")
    check_writable(out.parent, "folder of the file")


def _run_and_show(chain: Chain, out: Path, fresh: bool, manifest: Manifest | None = None) -> None:
    from biasgym_tl.console import show_chain, wide_console
    from biasgym_tl.run import run_chain, write_outputs

    def compute() -> ChainResult:
        return run_chain(chain, expected=manifest.inputs if manifest else None, fresh=fresh)

    result = _kept_when_stopped(compute, out, chain.model)
    remark = write_outputs(result, out)
    show_chain(result, wide_console())
    if remark:
        say(remark, err=True)
    _say_written(out, "report.html, heatmap, loss, settings, table.csv, manifest.json, ...")
    _say_repeated(manifest, result.manifest())


def _assess_and_show(
    assessment: Assessment,
    out: Path,
    fresh: bool,
    manifest: Manifest | None = None,
    *,
    price: Price | None = None,
    yes: bool = False,
) -> None:
    from biasgym_tl.assessment import assess, write_assessed
    from biasgym_tl.console import show_assessed, wide_console

    def compute() -> Assessed:
        return assess(
            assessment,
            expected=manifest.inputs if manifest else None,
            price=price,
            confirm=_confirm(yes),
            fresh=fresh,
        )

    found = _kept_when_stopped(compute, out, assessment.model)
    remark = write_assessed(found, out)
    show_assessed(found, wide_console())
    if remark:
        say(remark, err=True)
    _say_written(out, "report.html, table.csv, report.json, manifest.json, settings, frontier")
    _say_repeated(manifest, found.manifest())


def _kept_when_stopped(compute: Callable[[], Found], out: Path, model: str) -> Found:
    from transformers.utils.logging import disable_progress_bar

    _check_folder(out)
    disable_progress_bar()
    say(f"Loading {model} ...", err=True)
    try:
        return compute()
    except KeyboardInterrupt:
        say("Stopped. What was finished is kept: run the same command to go on.", err=True)
        raise typer.Exit(130) from None


def _say_written(out: Path, names: str) -> None:
    say(f"\nWritten to {out}/: {names}")


def _say_repeated(expected: Manifest | None, found: Manifest) -> None:
    if expected is not None:
        say(expected.compared(found.inputs, found.results))
