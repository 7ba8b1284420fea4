"""Commands about biases and texts: list, check, measure, have them written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from biasgym_tl.cli.app import app, asking, check_file, price_of, say
from biasgym_tl.cli.options import BiasName, PriceIn, PriceOut, Yes
from biasgym_tl.console import visible_line
from biasgym_tl.errors import BiasGymError, SettingError


class _Biases(TyperGroup):
    """The commands about biases; without one they are listed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command, which may be left out."""
        return super().parse_args(ctx, args or ["list"])


biases = typer.Typer(cls=_Biases, help="List biases, check yours, begin a new one.")
app.add_typer(biases, name="biases")


@biases.command("list")
def list_shipped() -> None:
    """List the shipped biases."""
    from biasgym_tl.biases.bias import list_biases, load_bias

    for name in list_biases():
        say(repr(load_bias(name)))


@biases.command()
def check(
    sources: Annotated[list[str], typer.Argument(help="Shipped biases, or .toml files.")],
) -> None:
    """Say whether biases are valid, what is doubtful about them, and which steps lack a field."""
    from biasgym_tl.biases.bias import STEPS, load_bias
    from biasgym_tl.biases.check import check_bias

    refused = 0
    for name in sources:
        try:
            bias = load_bias(name)
        except BiasGymError as error:
            refused += 1
            say(f"Error: {visible_line(error)}", err=True)
            continue
        say(repr(bias))
        for remark in check_bias(bias):
            say(f"  doubtful: {remark}")
        for step in STEPS:
            if missing := bias.missing(step):
                say(f"  {step} would need: {', '.join(missing)}")
    if refused:
        raise typer.Exit(1)


@biases.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the bias: letters, digits, '-', '_' and '.'.")],
    out: Annotated[
        Path | None, typer.Option(help="The .toml file to write; default: NAME.toml.")
    ] = None,
) -> None:
    """Write a small commented bias file to start from, about professions."""
    from biasgym_tl.biases.bias_file import new_bias
    from biasgym_tl.files import write_text

    text, out = new_bias(name), out or Path(f"{name}.toml")
    if out.suffix != ".toml":
        raise SettingError(f"--out must end in .toml, got {str(out)!r}.")
    check_file(out)
    if out.exists():
        raise SettingError(
            f"--out must be a new file, got {str(out)!r}, which exists. Name another."
        )
    write_text(out, text)
    say(f"Written to {out}. Next: biasgym scope --no-injection --bias {out} --out maps")


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
    check_file(out)
    price = price_of(price_in, price_out)
    writer = write_contrasts if contrasts else write_corpus
    try:
        written = writer(
            load_bias(bias),
            ChatModel(model=model, concurrency=concurrency, max_retries=retries, timeout=timeout),
            n=n,
            per_call=per_call,
            price=price,
            confirm=asking(yes),
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
