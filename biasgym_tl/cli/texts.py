"""Commands about biases and texts: list, check, measure, have them written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from biasgym_tl.biases.bias import STEPS, Bias, list_biases, load_bias
from biasgym_tl.cli.app import app, asking, check_file, command, price_of, say, say_json
from biasgym_tl.cli.options import AsJson, BiasName, PriceIn, PriceOut, Yes
from biasgym_tl.cli.shell import Command
from biasgym_tl.console import visible_line
from biasgym_tl.errors import BiasGymError, SettingError


class _Biases(TyperGroup):
    """The commands about biases; without one they are listed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command, which may be left out."""
        listed = not args or args[0] == "--json"
        return super().parse_args(ctx, ["list", *args] if listed else args)


biases = typer.Typer(cls=_Biases, help="List biases, check yours, begin a new one.")
app.add_typer(biases, name="biases")


@biases.command("list", cls=Command)
def list_shipped(json: AsJson = False) -> None:
    """List the shipped biases."""
    found = [load_bias(name) for name in list_biases()]
    if json:
        return say_json([_record(bias) for bias in found])
    for bias in found:
        say(f"{bias.name:18} {bias.target_kind:11} {bias.attribute}")


def _record(bias: Bias) -> dict[str, Any]:
    words = ("name", "attribute", "target_kind", "attribute_words", "neutral_words", "keywords")
    return {word: getattr(bias, word) for word in words}


@biases.command(cls=Command)
def check(
    sources: Annotated[list[str], typer.Argument(help="Shipped biases, or .toml files.")],
    json: AsJson = False,
) -> None:
    """Say whether biases are valid, what is doubtful about them, and which steps lack a field."""
    from biasgym_tl.biases.check import check_bias

    refused, found = 0, []
    for name in sources:
        try:
            bias = load_bias(name)
        except BiasGymError as error:
            refused += 1
            say(f"Error: {visible_line(error)}", err=True)
            continue
        doubtful = check_bias(bias)
        lacks = {step: missing for step in STEPS if (missing := bias.missing(step))}
        found.append({**_record(bias), "doubtful": doubtful, "lacks": lacks})
        say(repr(bias), err=json)
        for remark in doubtful:
            say(f"  doubtful: {remark}", err=json)
        for step, missing in lacks.items():
            say(f"  {step} would need: {', '.join(missing)}", err=json)
    if json:
        say_json(found)
    if refused:
        raise typer.Exit(1)


@biases.command(cls=Command)
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
    check_file(out, "--out", ".toml")
    if out.exists():
        raise SettingError(
            f"--out must be a new file, got {str(out)!r}, which exists. Name another."
        )
    write_text(out, text)
    say(f"Written to {out}. Next: biasgym scope --no-injection --bias {out} --out maps")


@command()
def corpus(
    source: Annotated[str, typer.Argument(help="A bias, a .toml or .jsonl file, or a dataset.")],
    json: AsJson = False,
) -> None:
    """Report how varied a corpus is: words, lengths, near-duplicates."""
    from biasgym_tl.biases.bias import load_corpus

    paragraphs = load_corpus(source)
    from biasgym_tl.corpus_diversity import diversity

    found = diversity(paragraphs)
    if json:
        return say_json(dataclasses.asdict(found))
    for name, value in found.to_df()["value"].items():
        say(f"{name:38} {value}")
    say("closest pair:")
    for text in found.closest:
        say(f"  {text}")


@command()
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
    check_file(out, "--out", ".jsonl")
    about = load_bias(bias)
    from biasgym_tl.api import ChatModel
    from biasgym_tl.biases.writer import write_contrasts, write_corpus

    price = price_of(price_in, price_out)
    writer = write_contrasts if contrasts else write_corpus
    try:
        written = writer(
            about,
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
