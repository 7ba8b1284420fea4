"""The command line: parses, calls, prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biasgym_tl.errors import BiasGymError, SettingError

if TYPE_CHECKING:
    from rich.table import Table

    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.run import Chain, ChainResult

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
    fresh: Fresh = False,
) -> None:
    """Run the whole chain with your own settings: inject, scope, steer, compare."""
    from biasgym_tl.injection.inject import BiasInject
    from biasgym_tl.run import Chain

    inject = BiasInject(epochs=epochs, lr=lr)
    _run_and_show(Chain(model=model, bias=bias, seed=seed, k=k, inject=inject), out, fresh)


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
    console = Console(width=max(Console().width, 110))
    _show(result, console)
    for remark in remarks:
        typer.echo(remark, err=True)
    console.print(f"\nWritten to {out}/: heatmap, loss, settings, results.json", markup=False)


def _show(result: ChainResult, console: object) -> None:
    from rich.console import Console

    assert isinstance(console, Console)
    report, scores, token = result.report, result.scores, result.token
    console.print(f"\n{token!r}", markup=False, highlight=False)
    console.print(f"{scores!r}", markup=False, highlight=False)
    console.print(f"Heads steered: {', '.join(map(str, result.heads))}\n", highlight=False)
    console.print(_summary_table(report))
    for line in summary_lines(report):
        console.print(line, markup=False, highlight=False)
    console.print(_text_table(report))


def _summary_table(report: Report) -> Table:
    from rich.table import Table

    table = Table(
        title=f'"{report.attribute}" on {report.model}: {len(report.evaluation_prompts)} held-out '
        f"prompts, {len(report.countries)} held-out countries (nats)"
    )
    for heading in (
        "setting",
        "BiasToken\nlog-odds",
        "BiasToken\nlog P(A)",
        "countries\nlog-odds",
        "countries\nlog P(A)",
        "loss on\nneutral text",
        "keywords\nBiasToken",
        "keywords\ncountries",
    ):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for name, row in report.to_df().iterrows():
        cells = [
            f"{row[key]:.2f}"
            for key in ("token_log_odds", "token_log_p", "country_log_odds", "country_log_p")
        ]
        rates = [row["token_keywords"], row["country_keywords"]]
        shown = ["" if rate is None or rate != rate else f"{rate:.0%}" for rate in rates]
        table.add_row(str(name), *cells, f"{row['damage_loss']:.3f}", *shown)
    return table


def summary_lines(report: Report) -> list[str]:
    """The table in words: injection over countries, then each steering against its controls."""
    injected, n_texts = report["injected"].means(), len(report.generation_prompts)
    over = injected["token_log_odds"] - injected["country_log_odds"]
    lines = [
        f"Injected: the BiasToken is {over:+.2f} nats over the countries "
        f"(before training {_over_countries(report):+.2f}); free answers: {n_texts} per cell."
    ]
    for result in report.results:
        if not result.name.startswith("steered"):
            continue
        means, drop = result.means(), report.drop_beyond_random(result.name)
        lines.append(
            f"{result.name[0].upper()}{result.name[1:]}, {len(result.heads)} heads: BiasToken "
            f"{-drop['drop']:+.2f} nats, random heads {-drop['random']:+.2f} (mean-ablated; place "
            f"{drop['rank']} of {drop['of']}); countries "
            f"{means['country_log_odds'] - injected['country_log_odds']:+.2f}; neutral text "
            f"{means['damage_loss'] - injected['damage_loss']:+.3f} nats per token."
        )
    return lines


def _over_countries(report: Report) -> float:
    means = report["original"].means()
    return means["token_log_odds"] - means["country_log_odds"]


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
