"""Commands for one step: train rows, score heads, choose them, export a steered model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biasgym_tl.allowed import STEERING_MODES
from biasgym_tl.biases.bias import load_bias
from biasgym_tl.cli.app import (
    check_file,
    check_folder,
    command,
    find_model,
    inject_of,
    named_heads,
    say,
    say_json,
)
from biasgym_tl.cli.options import (
    AsJson,
    BiasName,
    ChooseBy,
    ContrastKind,
    Epochs,
    Methods,
    ModelName,
    NeutralSide,
    Preset,
    Rate,
    Seed,
)
from biasgym_tl.cli.shell import one_of
from biasgym_tl.errors import SteeringError, StoreError, check_at_least, check_within

if TYPE_CHECKING:
    from biasgym_tl.injection.report import InjectionReport
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.scoping.scores import HeadScores


@command()
def inject(
    out: Annotated[Path, typer.Option(help="Folder for the rows.")],
    model: ModelName = "smollm2-135m-instruct",
    bias: BiasName = "late",
    seeds: Annotated[int, typer.Option(help="Number of trainings: seeds 0, 1, ...")] = 1,
    preset: Preset = "cpu",
    epochs: Epochs = None,
    lr: Rate = None,
    choose_by: ChooseBy = None,
    json: AsJson = False,
) -> None:
    """Train one row of W_E a seed and report on it. Stopped, it goes on from the last epoch."""
    loaded_bias = load_bias(bias)
    check_at_least(1, seeds=seeds)
    find_model(model)
    check_folder(out)
    from biasgym_tl.injection.inject import fit_seeds
    from biasgym_tl.manifest import write_results
    from biasgym_tl.model import load_model

    settings = inject_of(preset, epochs, lr, choose_by)
    say(f"Loading {model} ...", err=True)
    loaded, written = load_model(model), {}
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
        written[path.stem] = report.record()
        say(
            f"{report}\n  trained in {token.seconds:.0f} s; written to {out / path.name}\n",
            err=json,
        )
    if json:
        say_json(written)


def _write_row(token: BiasToken, report: InjectionReport, folder: Path) -> Path:
    path = token.save(folder / f"{token.bias}-{token.seed}")
    report.save(path.with_suffix(".json"))
    return path


@command()
def scope(
    out: Annotated[Path, typer.Option(help="Folder for scores and figures.")],
    model: ModelName = "smollm2-135m-instruct",
    bias: BiasName = "late",
    seed: Seed = 0,
    token: Annotated[
        Path | None, typer.Option(help="Row from 'biasgym inject'; default: the shipped one.")
    ] = None,
    method: Methods = None,
    contrast: ContrastKind = "biased",
    neutral: NeutralSide = "random",
    prompts: Annotated[
        Path | None, typer.Option(help="Contrast prompts from 'biasgym write --contrasts'.")
    ] = None,
    k: Annotated[int, typer.Option(help="Heads to name and frame.")] = 10,
    json: AsJson = False,
) -> None:
    """Score every head, by one or several methods, and compare them."""
    loaded_bias = load_bias(bias)
    find_model(model)
    check_folder(out)
    from biasgym_tl.biases.contrasts import read_contrasts
    from biasgym_tl.injection.shipped import load_token
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.manifest import write_results
    from biasgym_tl.model import load_model
    from biasgym_tl.scoping.compare import compare
    from biasgym_tl.scoping.scope import BiasScope
    from biasgym_tl.steering.selection import select_heads

    scopes = [
        BiasScope(method=name, contrast=contrast, neutral=neutral, seed=seed)
        for name in dict.fromkeys(method or ["direct"])
    ]
    row = load_token(loaded_bias.name, seed=seed) if token is None else BiasToken.load(token)
    sizes = find_model(model, bias=loaded_bias, rows=[row])
    check_within("k", k, 1, sizes.n_layers * sizes.n_heads if sizes else k)
    contrasts = read_contrasts(prompts) if prompts else ()
    say(f"Loading {model} ...", err=True)
    loaded = load_model(model)
    found = {}
    for one in scopes:
        scores = one.attribute(loaded, loaded_bias, row, contrasts=contrasts, progress=True)
        found[one.method] = scores
        write_results(out, partial(_write_maps, found, k))  # kept, whatever becomes of the next
        say(f"{scores!r}\n  top {k}: {', '.join(map(str, scores.top(k)))}", err=json)
        for prompt in scores.left_out:
            say(f"  left out, both answers begin alike: {prompt}", err=json)
    compared = compare(list(found.values()), k=k) if len(found) > 1 else None
    if compared:
        say(repr(compared), err=json)
    if remark := write_results(out, partial(_draw_maps, found, k)):
        say(remark, err=True)
    say(f"Written to {out}/", err=json)
    if json:
        maps = {method: select_heads(scores, k).record() for method, scores in found.items()}
        say_json({"heads": maps, "agreement": compared and compared.to_df()})


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


@command()
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
    json: AsJson = False,
) -> None:
    """Learn how much of its output each head may keep, for 'evaluate' and 'export'."""
    check_file(out, "file of the heads", ".json")
    loaded_bias = load_bias(bias)
    find_model(model)
    from biasgym_tl.injection.shipped import load_tokens
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.model import load_model
    from biasgym_tl.steering.factors import FactorSearch

    search = FactorSearch(k=k, keep=keep)
    rows = [BiasToken.load(path) for path in token] if token else load_tokens(loaded_bias.name)
    find_model(model, bias=loaded_bias, rows=rows)
    say(f"Loading {model} ...", err=True)
    found = search.select(load_model(model), loaded_bias, *rows)
    if not len(found):
        raise SteeringError(
            f"no head is worth the damage that silencing it does at --keep {keep:g}. Try less."
        )
    say(repr(found), err=json)
    say(f"Written to {found.save(out)}", err=json)
    if json:
        say_json(found.record())


@command()
def export(
    folder: Annotated[Path, typer.Argument(help="New folder for the steered model.")],
    heads: Annotated[
        str, typer.Option(help="File from 'biasgym search' or 'scope', or names: L9H8,L3H1.")
    ],
    model: ModelName = "smollm2-135m-instruct",
    mode: Annotated[
        str | None,
        typer.Option(
            help="zero, mean or scale; default: the file's, or zero.",
            callback=one_of(STEERING_MODES),
        ),
    ] = None,
    factor: Annotated[
        float | None, typer.Option(help="Share of their output that heads keep.")
    ] = None,
) -> None:
    """Write a steered model as a Hugging Face folder, and check that it behaves alike."""
    from biasgym_tl.files import check_new_folder, check_writable, read_text

    find_model(model, heads=named_heads(heads))
    check_new_folder(folder)
    check_writable(folder, "folder")
    from biasgym_tl.hooks import check_steering
    from biasgym_tl.model import load_model
    from biasgym_tl.protocol.sources import read_heads
    from biasgym_tl.steering.export import export_steered
    from biasgym_tl.steering.selection import Selection

    chosen = read_heads(heads)
    if mode is None:
        mode = chosen.mode if isinstance(chosen, Selection) else "zero"
    check_steering(mode, factor)
    find_model(model, heads=chosen)
    say(f"Loading {model} ...", err=True)
    loaded = load_model(model)
    export_steered(loaded, chosen, folder, mode, factor=factor, source=model)
    say(read_text(folder / "README.md", "description", StoreError))


@command()
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


@command()
def doctor(
    model: ModelName = "smollm2-135m-instruct", bias: BiasName = "late", json: AsJson = False
) -> None:
    """Check on a model the identities that all numbers here rest on."""
    loaded_bias = load_bias(bias)
    find_model(model)
    from biasgym_tl.doctor import examine
    from biasgym_tl.model import load_model

    say(f"Loading {model} ...", err=True)
    checks = examine(load_model(model), loaded_bias)
    for check in checks:
        say(str(check), err=json)
    if json:
        say_json([check._asdict() for check in checks])
    if not all(check.passed or not check.required for check in checks):
        raise typer.Exit(1)
