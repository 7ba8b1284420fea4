"""Commands about biases and texts: list, check, measure, have them written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from biasgym_tl.biases.bias import list_biases, load_bias
from biasgym_tl.cli.app import asking, check_file, command, price_of, say, say_json
from biasgym_tl.cli.options import AsJson, BiasName, PriceIn, PriceOut, Yes
from biasgym_tl.console import visible_line
from biasgym_tl.errors import BiasGymError, SettingError


@command()
def biases(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Biases or bias files; default: all shipped ones.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List and check biases, the shipped ones or your own."""
    from biasgym_tl.biases.check import check_bias

    refused, found = 0, []
    for name in sources or list_biases():
        try:
            bias = load_bias(name)
        except BiasGymError as error:
            refused += 1
            say(f"Error: {visible_line(error)}", err=True)
            continue
        doubtful = check_bias(bias)
        words = ("name", "attribute", "target_kind", "attribute_words", "neutral_words", "keywords")
        found.append({word: getattr(bias, word) for word in words} | {"doubtful": doubtful})
        listed = f"{bias.name:18} {bias.target_kind:11} {bias.attribute}"
        say(repr(bias) if sources else listed, err=json)
        for remark in doubtful:
            say(f"  doubtful: {remark}", err=json)
    if json:
        say_json(found)
    if refused:
        raise typer.Exit(1)


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
