"""Commands that run a whole study, or the evaluation of given heads."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biasgym_tl.cli.app import app, asking, check_folder, price_of, say
from biasgym_tl.cli.options import (
    AnswerTokens,
    Benchmarks,
    BiasName,
    Fresh,
    JudgeName,
    ModelName,
    PriceIn,
    PriceOut,
    Seed,
    Train,
    Yes,
)
from biasgym_tl.errors import SettingError

if TYPE_CHECKING:
    from biasgym_tl.api import Price
    from biasgym_tl.manifest import Manifest
    from biasgym_tl.protocol.protocol import Protocol


OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
GivenHeads = Annotated[
    str, typer.Option("--heads", help="File from 'biasgym search' or 'scope', or L9H8,L3H1.")
]
RowFile = Annotated[
    str | None, typer.Option("--token", help="Row from 'biasgym inject'; default: the shipped one.")
]
Modes = Annotated[
    list[str] | None, typer.Option("--mode", help="zero, mean or scale; repeat. Default: two.")
]
KeptFactor = Annotated[
    float | None, typer.Option("--factor", help="What heads keep, in the modes mean and scale.")
]
MeanOver = Annotated[str, typer.Option(help="Mean over neutral text, or prompts with targets.")]
WithOthers = Annotated[
    bool, typer.Option("--others/--no-others", help="Also all other shipped biases of this kind.")
]
WithInstructions = Annotated[
    bool, typer.Option("--instructions/--no-instructions", help="Also ask not to stereotype.")
]
Draws = Annotated[
    int, typer.Option(help="Random sets for a rank p-value; 199 give p down to 0.005.")
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("figures/demo"),
    train: Train = False,
    fresh: Fresh = False,
) -> None:
    """Run the protocol "demo": the whole chain on SmolLM2-135M-Instruct with the bias "late"."""
    run(out=out, name="demo", train=train, fresh=fresh)


@app.command()
def run(
    name: Annotated[
        str, typer.Argument(help="Shipped protocol (demo, paper, study) or a .toml file.")
    ] = "demo",
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the protocol's.")] = None,
    bias: Annotated[
        list[str] | None, typer.Option(help="Other biases than the protocol's; repeat.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Rows a bias: seeds 0, 1, ...")] = None,
    paragraphs: Annotated[int | None, typer.Option(help="Training paragraphs, at most.")] = None,
    benchmark: Benchmarks = None,
    judge: JudgeName = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    train: Train = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it would take: time, memory, cost.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Only print the protocol, to begin one of your own.")
    ] = False,
    yes: Yes = False,
    fresh: Fresh = False,
) -> None:
    """Run a protocol: rows, maps, choices of heads, conditions, measures."""
    from biasgym_tl.protocol.plan import plan as planned
    from biasgym_tl.protocol.protocol import load_protocol, protocol_text

    protocol = _changed(
        load_protocol(name),
        model=model,
        biases=bias,
        seeds=None if seeds is None else range(seeds),
        training={"n_paragraphs": paragraphs, "rows": "trained" if train else None},
        measures={"benchmarks": _named_sources(benchmark) or None, "judge": judge},
    )
    price = price_of(price_in, price_out)
    if show:
        say(protocol_text(name))
    elif plan:
        say(planned(protocol, price))
    elif out is None:
        raise SettingError("--out must be given, the folder for the results, got none.")
    else:
        _run_and_show(protocol, out, fresh=fresh, price=price, yes=yes)


def _changed(protocol: Protocol, **given: Any) -> Protocol:
    """The protocol with what was given in place of its own."""

    changes: dict[str, Any] = {}
    for key, value in given.items():
        own = getattr(protocol, key)
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if v is not None}
            fields = {field.name for field in dataclasses.fields(own)}
            rest = {k: kept.pop(k) for k in set(kept) - fields}
            if rest:
                kept["settings"] = {**own.settings, **rest}
            changes[key] = dataclasses.replace(own, **kept)
        elif value is not None:
            changes[key] = value if isinstance(value, str) else tuple(value)
    found: Protocol = dataclasses.replace(protocol, **changes)
    return found


@app.command()
def repeat(
    manifest: Annotated[Path, typer.Argument(help="manifest.json of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    fresh: Fresh = False,
) -> None:
    """Run again what a manifest names, and say whether every number came out the same."""
    from biasgym_tl.manifest import Manifest
    from biasgym_tl.protocol.protocol import Protocol

    found = Manifest.load(manifest)
    protocol = Protocol.from_mapping(found.settings, str(manifest))
    _run_and_show(protocol, out, fresh=fresh, manifest=found)


@app.command()
def evaluate(
    out: OutFolder,
    heads: GivenHeads,
    model: ModelName = "smollm2-135m-instruct",
    bias: BiasName = "late",
    token: RowFile = None,
    mode: Modes = None,
    factor: KeptFactor = None,
    mean_over: MeanOver = "text",
    others: WithOthers = True,
    instructions: WithInstructions = True,
    benchmark: Benchmarks = None,
    judge: JudgeName = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    yes: Yes = False,
    targets: Annotated[int, typer.Option(help="Held-out targets.")] = 10,
    random: Annotated[int, typer.Option(help="Random head sets of each mode.")] = 5,
    draws: Draws = 0,
    max_new_tokens: AnswerTokens = 48,
    seed: Seed = 0,
    fresh: Fresh = False,
) -> None:
    """Measure what steering chosen heads does to bias and abilities, against its controls."""
    from biasgym_tl.instructions import INSTRUCTIONS
    from biasgym_tl.protocol.parts import Choice, Measured, Steering
    from biasgym_tl.protocol.protocol import Protocol

    modes = mode or ["zero", "mean"]
    only_zero = set(modes) == {"zero"}  # beside another mode, that one takes the factor
    steered = [
        Steering(
            choice="steered",
            mode=each,
            factor=None if each == "zero" and not only_zero else factor,
            mean_over=mean_over,
            random=random,
            draws=draws,
        )
        for each in modes
    ]
    protocol = Protocol(
        name="evaluate",
        model=model,
        biases=(bias,),
        seeds=(seed,),
        rows=(token,) if token else (),
        choices={"steered": Choice(by="given", heads=heads)},
        conditions=(*steered, *(Steering(asked=n) for n in (INSTRUCTIONS if instructions else ()))),
        measures=Measured(
            n_targets=targets,
            others=("shipped",) if others else (),
            benchmarks=_named_sources(benchmark),
            judge=judge,
            max_new_tokens=max_new_tokens,
        ),
    )
    _run_and_show(protocol, out, fresh=fresh, price=price_of(price_in, price_out), yes=yes)


def _named_sources(texts: list[str] | None) -> dict[str, str]:
    found = {}
    for text in texts or ():
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise SettingError(f"--benchmark must be NAME=PATH, got {text!r}.")
        found[name] = source
    return found


def _run_and_show(
    protocol: Protocol,
    out: Path,
    *,
    fresh: bool,
    manifest: Manifest | None = None,
    price: Price | None = None,
    yes: bool = False,
) -> None:
    from transformers.utils.logging import disable_progress_bar

    from biasgym_tl.console import show_result, wide_console
    from biasgym_tl.protocol.chain import Running, run_protocol
    from biasgym_tl.protocol.outputs import write_outputs, write_part

    check_folder(out)
    disable_progress_bar()
    say(f"Loading {protocol.model} ...", err=True)
    running = Running(
        expected=manifest.inputs if manifest else None,
        price=price,
        confirm=asking(yes),
        fresh=fresh,
        say=partial(say, err=True),
        write=lambda name, found: write_part(name, found, out, protocol),
    )
    try:
        result = run_protocol(protocol, running)
    except KeyboardInterrupt:
        say("Stopped. What was finished is kept: run the same command to go on.", err=True)
        raise typer.Exit(130) from None
    remark = write_outputs(result, out)
    show_result(result, wide_console())
    if remark:
        say(remark, err=True)
    say(f"\nWritten to {out}/: report.html, table.csv, heatmaps, manifest.json, ...")
    if manifest is not None:
        found = result.manifest()
        say(manifest.compared(found.inputs, found.results))
