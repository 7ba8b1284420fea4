"""Commands for one step: train rows, score heads, choose them, export a steered model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biasgym_tl.cli.app import app, check_file, check_folder, inject_of, say
from biasgym_tl.cli.options import BiasName, ChooseBy, Epochs, ModelName, Preset, Rate, Seed
from biasgym_tl.errors import SettingError, SteeringError, StoreError

if TYPE_CHECKING:
    from biasgym_tl.injection.report import InjectionReport
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.scoping.scores import HeadScores


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
    prompts: Annotated[
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

    options: dict[str, Any] = {"contrast": contrast, "neutral": neutral, "seed": seed}
    scopes = [
        BiasScope(**options | {"method": name}) for name in dict.fromkeys(method or ["direct"])
    ]
    loaded_bias = load_bias(bias)
    row = load_token(loaded_bias.name, seed=seed) if token is None else BiasToken.load(token)
    contrasts = read_contrasts(prompts) if prompts else ()
    check_folder(out)
    say(f"Loading {model} ...", err=True)
    loaded = load_model(model)
    found: dict[str, HeadScores] = {}
    for one in scopes:
        scores = one.attribute(loaded, loaded_bias, row, contrasts=contrasts, progress=True)
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
