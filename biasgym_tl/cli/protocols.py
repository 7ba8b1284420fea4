"""Commands that run a whole study, or the evaluation of given heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biasgym_tl.allowed import MEANS, STEERING_MODES
from biasgym_tl.biases.bias import load_bias
from biasgym_tl.cli.app import app, command, find_model, named_heads, price_of, say
from biasgym_tl.cli.asked import Asked, given_options, with_asked
from biasgym_tl.cli.options import (
    Address,
    AnswerTokens,
    ApiModels,
    AsJson,
    BaseUrl,
    Benchmarks,
    BiasName,
    Device,
    DeviceMap,
    Dtype,
    Fresh,
    InContext,
    JudgeName,
    KeyName,
    ModelName,
    PriceIn,
    PriceOut,
    RunsOn,
    Seed,
    SlotText,
    Train,
    Yes,
    named_sources,
)
from biasgym_tl.cli.running import run_and_show
from biasgym_tl.cli.served import EvaluateCommand, evaluate_api
from biasgym_tl.cli.shell import FileCommand, one_of
from biasgym_tl.errors import SettingError
from biasgym_tl.protocol.shipped import protocol_text

if TYPE_CHECKING:
    from biasgym_tl.protocol.chain import Opened
    from biasgym_tl.protocol.protocol import Protocol
    from biasgym_tl.protocol.record import Recorder
    from biasgym_tl.protocol.steering import Steering


OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
GivenHeads = Annotated[
    str, typer.Option("--heads", help="File from 'biasgym search' or 'scope', or L9H8,L3H1.")
]
RowFile = Annotated[
    str | None, typer.Option("--token", help="Row from 'biasgym inject'; default: the shipped one.")
]
Modes = Annotated[
    list[str] | None,
    typer.Option(
        "--mode",
        help="zero, mean or scale; repeat. Default: zero and mean.",
        callback=one_of(STEERING_MODES),
    ),
]
KeptFactor = Annotated[
    float | None, typer.Option("--factor", help="What heads keep, in the modes mean and scale.")
]
MeanOver = Annotated[
    str,
    typer.Option(
        help="text: mean over neutral text; targets: over prompts with targets.",
        callback=one_of(MEANS),
    ),
]
WithOthers = Annotated[
    bool, typer.Option("--others/--no-others", help="Also all other shipped biases of this kind.")
]
WithInstructions = Annotated[
    bool, typer.Option("--instructions/--no-instructions", help="Also ask not to stereotype.")
]
Draws = Annotated[
    int, typer.Option(help="Random sets for a rank p-value; 199 give p down to 0.005.")
]


ProtocolName = Annotated[
    str, typer.Argument(help="Shipped protocol (demo, maps, paper, study) or a .toml file.")
]
OnlyShow = Annotated[
    bool, typer.Option("--show", help="Only print the protocol, to begin one of your own.")
]


@command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("figures/demo"),
    train: Train = False,
    fresh: Fresh = False,
    json: AsJson = False,
) -> None:
    """Run the protocol "demo": the whole chain on SmolLM2-135M-Instruct with the bias "late"."""
    _run("demo", Asked(train=train), out, fresh=fresh, json=json)


@app.command(cls=FileCommand)
@with_asked
def run(
    name: ProtocolName = "demo",
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    show: OnlyShow = False,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    on: RunsOn = None,
    address: Address = None,
    yes: Yes = False,
    fresh: Fresh = False,
    json: AsJson = False,
    *,
    asked: Asked,
) -> None:
    """Run a protocol: rows, maps, choices of heads, conditions, measures."""
    text = protocol_text(name)
    if show:
        return _show(
            text, out=out, **dataclasses.asdict(asked), price_in=price_in, price_out=price_out,
            on=on, address=address, yes=yes, fresh=fresh, json=json,
        )  # fmt: skip
    if out is None:
        raise SettingError("--out must be given, the folder for the results, got none.")
    asked.check()
    price = price_of(price_in, price_out)
    _run(name, asked, out, fresh=fresh, price=price, yes=yes, json=json, ahead=_on(on, address))


def _run(name: str, asked: Asked, out: Path, **how: Any) -> None:
    from biasgym_tl.protocol.protocol import load_protocol

    run_and_show(asked.changed(load_protocol(name)), out, **how)


def _on(cluster: str | None, address: str | None) -> Callable[[Opened, Recorder], None] | None:
    """What makes steps ahead; an extra that is missing is said before a model is loaded."""
    if address and not cluster:
        raise SettingError(f"--address must be given with --on ray, got {address!r} without.")
    if cluster is None:
        return None
    from biasgym_tl.protocol.on_ray import OnRay

    return OnRay(address)


def _show(text: str, **options: Any) -> None:
    """Print a protocol as it is written, which no option could change."""
    if others := given_options(options):
        raise SettingError(
            "--show must be alone, since it prints the protocol as it is written, got "
            f"{', '.join(others)} too. Change what it prints and run that file."
        )
    say(text)


@command()
def repeat(
    manifest: Annotated[Path, typer.Argument(help="manifest.json of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    fresh: Fresh = False,
    json: AsJson = False,
) -> None:
    """Run again what a manifest names, and say whether every number came out the same, or how far
    they are apart."""
    from biasgym_tl.manifest import Manifest

    found = Manifest.load(manifest)
    from biasgym_tl.protocol.outputs import tables_of
    from biasgym_tl.protocol.protocol import Protocol

    protocol = Protocol.from_mapping(found.settings, str(manifest))
    tables = tables_of(manifest.parent, found.files)
    run_and_show(protocol, out, fresh=fresh, manifest=found, tables=tables, json=json)


@app.command(cls=EvaluateCommand)
def evaluate(
    out: OutFolder,
    heads: GivenHeads = "",
    api: ApiModels = None,
    base_url: BaseUrl = None,
    key: KeyName = "OPENAI_API_KEY",
    slot: SlotText = "",
    context: InContext = 0,
    model: ModelName = "smollm2-135m-instruct",
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
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
    json: AsJson = False,
) -> None:
    """Measure what steering chosen heads does to bias and abilities, against its controls; or what
    models behind an address answer."""
    loaded_bias = load_bias(bias)
    if api:
        return evaluate_api(
            api, base_url or [], loaded_bias, out, key=key, fresh=fresh, others=others,
            judge=judge, price_in=price_in, price_out=price_out, yes=yes, json=json, slot=slot,
            context=context,
            n_targets=targets, max_new_tokens=max_new_tokens,
        )  # fmt: skip
    find_model(model, heads=named_heads(heads))
    price = price_of(price_in, price_out)
    steered = _steered(mode or ["zero", "mean"], factor, mean_over, random, draws)
    protocol = _evaluation(
        heads, steered, instructions, model=model, dtype=dtype or "float32", device=device,
        device_map=device_map, biases=(bias,), seeds=(seed,), rows=(token,) if token else (),
        measures={
            "n_targets": targets, "others": ("shipped",) if others else (), "judge": judge,
            "benchmarks": named_sources(benchmark), "max_new_tokens": max_new_tokens,
        },
    )  # fmt: skip
    run_and_show(protocol, out, fresh=fresh, price=price, yes=yes, json=json)


def _evaluation(heads: str, steered: list[Steering], instructions: bool, **asked: Any) -> Protocol:
    """The protocol that the options of :func:`evaluate` ask for."""
    from biasgym_tl.instructions import INSTRUCTIONS
    from biasgym_tl.protocol.parts import Choice, Measured
    from biasgym_tl.protocol.protocol import Protocol
    from biasgym_tl.protocol.steering import Steering

    others = [Steering(asked=name) for name in (INSTRUCTIONS if instructions else ())]
    return Protocol(
        name="evaluate",
        choices={"steered": Choice(by="given", heads=heads)},
        conditions=(*steered, *others),
        **{**asked, "measures": Measured(**asked["measures"])},
    )


def _steered(
    modes: list[str], factor: float | None, mean_over: str, random: int, draws: int
) -> list[Steering]:
    from biasgym_tl.protocol.steering import Steering

    only_zero = set(modes) == {"zero"}  # beside another mode, that one takes the factor
    factors = [None if each == "zero" and not only_zero else factor for each in modes]
    alike: dict[str, Any] = {
        "choice": "steered",
        "mean_over": mean_over,
        "random": random,
        "draws": draws,
    }
    return [Steering(mode=m, factor=f, **alike) for m, f in zip(modes, factors, strict=True)]
