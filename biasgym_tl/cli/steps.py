"""Commands for one step: train rows, score heads, choose them, export a steered model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from biasgym_tl.cli.app import app, check_file, check_folder, inject_of, say
from biasgym_tl.cli.options import BiasName, ChooseBy, Epochs, ModelName, Preset, Rate
from biasgym_tl.errors import SettingError, SteeringError, StoreError

if TYPE_CHECKING:
    from biasgym_tl.injection.report import InjectionReport
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.lens import HookedTransformer
    from biasgym_tl.scoping.scores import HeadScores

    Scoring: TypeAlias = Callable[[HookedTransformer, str], HeadScores]
    """Scores a model by a method."""


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

    settings, loaded_bias = inject_of(preset, epochs, lr, choose_by), load_bias(bias)
    settings.check_bias(loaded_bias)
    loaded_bias.needs("a report on an injection")
    if seeds < 1:
        raise SettingError(f"--seeds must be at least 1, got {seeds}.")
    check_folder(out)
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
    bias: Annotated[
        str | None, typer.Option(help="Shipped bias, or a .toml file; default: late.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the shipped row, and of who stands in the slot.")
    ] = None,
    token: Annotated[
        Path | None, typer.Option(help="Row from 'biasgym inject'; default: the shipped one.")
    ] = None,
    no_injection: Annotated[
        bool, typer.Option("--no-injection", help="No row: targets of the bias in the slot.")
    ] = False,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Prompts of your own, without bias and row: a CSV file with the columns first, "
            "second (not for single prompts), and biased, neutral unless there are --answers."
        ),
    ] = None,
    answers: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Of --pairs, biased and neutral, such as late early or late,slow early."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Put --pairs as plain text, without a request before.")
    ] = False,
    method: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; default: direct.")
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="biased (the paper's) or difference (that of --pairs).")
    ] = None,
    neutral: Annotated[
        str | None, typer.Option(help="random (the default), closest or several.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Contrast prompts from 'biasgym write --contrasts'.")
    ] = None,
    k: Annotated[int, typer.Option(help="Heads to name and frame.")] = 10,
) -> None:
    """Score every head, by one or several methods, and compare them."""
    methods = list(dict.fromkeys(method or ["direct"]))
    of_bias: dict[str, Any] = {
        "bias": bias, "seed": seed, "token": token, "no_injection": no_injection or None,
        "neutral": neutral, "prompts": prompts,
    }  # fmt: skip
    if pairs:
        _refuse(of_bias, "without")
        score = _own(pairs, answers, methods, contrast, plain)
    else:
        _refuse({"answers": answers, "plain": plain or None}, "with")
        score = _of_bias(methods, contrast or "biased", **of_bias)
    _map(out, model, methods, score, k)


def _refuse(options: dict[str, Any], how: str) -> None:
    """Refuse those that were given."""
    if given := [f"--{n.replace('_', '-')}" for n, value in options.items() if value is not None]:
        raise SettingError(f"{', '.join(given)} must be given {how} --pairs, and not otherwise.")


def _own(
    path: Path,
    answers: tuple[str, str] | None,
    methods: list[str],
    contrast: str | None,
    plain: bool,
) -> Scoring:
    """How the prompts of a file are scored, which are found to be right first."""
    from biasgym_tl.prompts import SENTENCE_REQUEST
    from biasgym_tl.scoping.own_prompts import attribute_prompts, read_prompts

    own = read_prompts(path, *(side.split(",") for side in answers or ()))
    for name in methods:
        own.scope(contrast, method=name)
    request = None if plain else SENTENCE_REQUEST
    return lambda model, name: attribute_prompts(
        model, *own, method=name, contrast=contrast, request=request, progress=True
    )


def _of_bias(
    methods: list[str],
    contrast: str,
    bias: str | None,
    seed: int | None,
    token: Path | None,
    no_injection: bool | None,
    neutral: str | None,
    prompts: Path | None,
) -> Scoring:
    """How a bias is scored, with all that this needs found first."""
    from biasgym_tl.biases.bias import load_bias
    from biasgym_tl.biases.contrasts import read_contrasts
    from biasgym_tl.injection.shipped import list_tokens, load_token
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.scoping.scope import BiasScope

    settings: dict[str, Any] = {"neutral": neutral or "random", "seed": seed or 0}
    scopes = {name: BiasScope(method=name, contrast=contrast, **settings) for name in methods}
    loaded, seed = load_bias(bias or "late"), seed or 0
    if no_injection and token:
        raise SettingError("--no-injection must be given without --token. Leave out one of them.")
    row = None if token is None else BiasToken.load(token)
    if not no_injection and row is None:
        if f"{loaded.name}-{seed}" not in list_tokens():
            raise SettingError(
                f"--token must name a row for {loaded.name!r}, of which none ships for seed "
                f"{seed}. Train one with 'biasgym inject', or map the targets with --no-injection."
            )
        row = load_token(loaded.name, seed=seed)
    contrasts = read_contrasts(prompts) if prompts else ()
    if not contrasts:
        loaded.needs("scoping")
    for scope in scopes.values():
        scope.check_slot(row)
    return lambda model, method: scopes[method].attribute(
        model, loaded, row, contrasts=contrasts, progress=True
    )


def _map(out: Path, model: str, methods: list[str], score: Scoring, k: int) -> None:
    """Score a model by every method, compare the maps, and write all that is found."""
    from biasgym_tl.manifest import write_results
    from biasgym_tl.model import load_model
    from biasgym_tl.scoping.compare import FEWEST_PROMPTS, compare

    check_folder(out)
    say(f"Loading {model} ...", err=True)
    loaded = load_model(model)
    found = {}
    for name in methods:
        scores = found[name] = score(loaded, name)
        write_results(out, partial(_write_maps, found, k))  # kept, whatever becomes of the next
        say(f"{scores!r}\n  top {k}: {', '.join(map(str, scores.top(k)))}")
        for prompt in scores.left_out:
            say(f"  left out, both answers begin alike: {prompt}")
    if len(found) > 1 and len(scores.prompts) >= FEWEST_PROMPTS:
        say(repr(compare(list(found.values()), k=k)))
    elif len(found) > 1:
        say(f"Methods are compared on {FEWEST_PROMPTS} prompts or more.")
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
    from biasgym_tl.scoping.compare import FEWEST_PROMPTS

    maps = _write_maps(found, k, folder)
    figures = {method: recipe("heads", [name], mark_top=k) for method, name in maps.items()}
    if len(found) > 1 and len(next(iter(found.values())).prompts) >= FEWEST_PROMPTS:
        figures["agreement"] = recipe("agreement", maps)
    return draw(folder, figures)


@app.command()
def search(
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
    check_file(out)
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
        str, typer.Option(help="File from 'biasgym search' or 'scope', or names: L9H8,L3H1.")
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
    from biasgym_tl.files import check_new_folder, check_writable, read_text
    from biasgym_tl.model import load_model
    from biasgym_tl.protocol.sources import read_heads
    from biasgym_tl.steering.export import export_steered
    from biasgym_tl.steering.selection import Selection

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
