"""The command line: parses, calls, prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biasgym_tl.errors import BiasGymError, SettingError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.run import Chain, ChainResult
    from biasgym_tl.stats import Interval

app = typer.Typer(
    help="Find, explain and remove stereotypes in language models, on TransformerLens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Seed = Annotated[int, typer.Option(help="The same seed gives the same numbers.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do every step again, reuse nothing.")]


def main() -> None:
    """Entry point: known errors become one line."""
    try:
        app()
    except BiasGymError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)


@app.command()
def demo(
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("figures/demo"),
    fresh: Fresh = False,
) -> None:
    """Run the whole chain on SmolLM2-135M-Instruct with the bias "late" (minutes on a CPU)."""
    from biasgym_tl.run import Chain

    _run_and_show(Chain(seed=seed), out, fresh)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[
        str, typer.Option(help="Name or folder of the model.")
    ] = "smollm2-135m-instruct",
    bias: Annotated[str, typer.Option(help="Shipped bias, or a .toml file.")] = "late",
    seed: Seed = 0,
    k: Annotated[int, typer.Option(help="Number of heads to steer.")] = 10,
    epochs: Annotated[int, typer.Option(help="Passes over the training paragraphs.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate of the row.")] = 0.01,
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
    fresh: Fresh = False,
) -> None:
    """Run the whole chain with your own settings: inject, scope, steer, compare."""
    from biasgym_tl.injection.inject import BiasInject
    from biasgym_tl.run import Chain

    chain = Chain(
        model=model,
        bias=bias,
        seed=seed,
        k=k,
        inject=BiasInject(epochs=epochs, lr=lr),
        controls=controls,
        other_bias=other_bias,
        reinject=reinject,
        n_draws=draws,
    )
    _run_and_show(chain, out, fresh)


@app.command()
def biases(
    files: Annotated[list[Path] | None, typer.Argument(help="Bias files to check.")] = None,
) -> None:
    """List the shipped biases, and check bias files of your own."""
    from biasgym_tl.biases.bias import list_biases, load_bias

    names: list[str | Path] = [*list_biases(), *(files or [])]
    for name in names:
        typer.echo(repr(load_bias(name)))


def _run_and_show(chain: Chain, out: Path, fresh: bool) -> None:
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from biasgym_tl.run import run_chain, write_outputs

    if out.exists() and not out.is_dir():
        raise SettingError(f"--out must be a folder, got the file {str(out)!r}. Choose another.")
    disable_progress_bar()
    typer.echo(f"Loading {chain.model} ...", err=True)
    try:
        result = run_chain(chain, fresh=fresh)
    except KeyboardInterrupt:
        typer.echo("Stopped. What was finished is kept: run the same command to go on.", err=True)
        raise typer.Exit(130) from None
    remarks = write_outputs(result, out)
    console = Console(width=max(Console().width, 140))
    _show(result, console)
    for remark in remarks:
        typer.echo(remark, err=True)
    written = "heatmap, loss, settings, selection.json, report.json, results.json"
    console.print(f"\nWritten to {out}/: {written}", markup=False)


def _show(result: ChainResult, console: Console) -> None:
    report, scores, token = result.report, result.scores, result.token
    console.print(f"\n{token!r}", markup=False, highlight=False)
    console.print(f"{scores!r}", markup=False, highlight=False)
    console.print(f"{result.selection!r}\n", markup=False, highlight=False)
    console.print(_summary_table(report))
    for line in summary_lines(result):
        console.print(line, markup=False, highlight=False)
    console.print(_text_table(report))


_COLUMNS = (
    "token_log_odds", "token_log_p", "country_log_odds", "damage_loss", "facts",
    "token_keywords",
)  # fmt: skip


def _summary_table(report: Report) -> Table:
    from rich.table import Table

    from biasgym_tl.evaluation.measures import MEASURES

    table = Table(
        title=f'"{report.attribute}" on {report.model}: {len(report.evaluation_prompts)} held-out '
        f"prompts, {len(report.countries)} held-out countries; means with 95% intervals"
    )
    table.add_column("setting", no_wrap=True)
    measures = [MEASURES[key] for key in _COLUMNS]
    for measure in measures:
        mark = "" if not report.not_informative(measure.key) else "\n(not informative)"
        label = measure.label.replace(" ", "\n", 1)
        table.add_column(f"{label}\n({measure.unit}){mark}", justify="right")
    names = [r.name for r in report.results if not r.name.startswith("random ")]
    names += ["random"] if report.random_controls() else []
    for name in names:
        cells = []
        for measure in measures:
            found = report.interval(name, measure.key)
            cells.append("" if found is None else _cell(found, measure.decimals))
        table.add_row(name, *cells)
    return table


def _cell(interval: Interval, decimals: int) -> str:
    mean, low, high = (f"{value:.{decimals}f}" for value in interval)
    return mean if low == "nan" else f"{mean}\n{low} to {high}"


def summary_lines(result: ChainResult) -> list[str]:
    """The table in words: injection, each steering against its controls, what says nothing."""
    from biasgym_tl.evaluation.measures import MEASURES

    report = result.report
    injected, original = (report.to_df().loc[name] for name in ("injected", "original"))
    over = injected["token_log_odds"] - injected["country_log_odds"]
    before = original["token_log_odds"] - original["country_log_odds"]
    lines = [
        f"Injected: the BiasToken is {over:+.2f} nats over the countries "
        f"(before training {before:+.2f}); free answers: {len(report.generation_prompts)} per cell."
    ]
    for setting in report.results:
        if not setting.heads or setting.name.startswith("random "):
            continue
        token = report.change(setting.name, "token_log_odds", "injected")
        damage = report.change(setting.name, "damage_loss", "original")
        assert token is not None and damage is not None
        lines.append(
            f"{setting.name}: BiasToken {token} nats; neutral text {damage.estimate:+.3f} "
            f"[{damage.low:+.3f}, {damage.high:+.3f}] nats per token."
        )
        if setting.name == "steered, mean" and report.n_draws:
            beyond = report.beyond_random()
            lines.append(
                f"  {report.n_draws} random sets of the same layers {-beyond.random:+.2f} nats; "
                f"the chosen heads go {beyond.difference} nats beyond them, place {beyond.rank} "
                f"of {beyond.of}."
            )
        elif setting.mode == "mean":
            further = report.change(setting.name, "token_log_odds", "steered, mean")
            lines.append(f"  Against the chosen heads: {further} nats.")
    if result.random is not None:
        lines.append(repr(result.random))
    reasons = [report.not_informative(key) for key in MEASURES]
    return lines + [f"{reason}." for reason in reasons if reason]


def _text_table(report: Report) -> Table:
    from rich.table import Table
    from rich.text import Text

    names = [result.name for result in report.results if result.token_texts]
    table = Table(title="Free answers with the BiasToken", show_lines=True)
    for heading in ("request", *names):
        table.add_column(heading, ratio=1, overflow="fold")
    for i, request in enumerate(report.generation_prompts):
        cells = [request, *(report[name].token_texts[i] for name in names)]
        table.add_row(*(Text(" ".join(cell.split())) for cell in cells))
    return table
