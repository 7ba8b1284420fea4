"""Options that commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from biasgym_tl.allowed import (
    CLUSTERS,
    CONTRASTS,
    DEVICE_MAPS,
    DTYPES,
    EPOCH_CHOICES,
    METHODS,
    NEUTRAL,
    PRESETS,
    check_benchmarks,
    check_judge,
)
from biasgym_tl.cli.shell import one_of
from biasgym_tl.errors import SettingError


def named_sources(texts: list[str] | None) -> dict[str, str]:
    """Benchmarks by name, as they are given in the shell.

    Raises:
        SettingError: one is not NAME=PATH, or there is no benchmark of that name.
    """
    found = {}
    for text in texts or ():
        name, _, source = text.partition("=")
        if not (name and source):
            raise SettingError(f"--benchmark must be NAME=PATH, got {text!r}.")
        found[name] = source
    check_benchmarks(found, "--benchmark")
    return found


def _benchmarks(ctx: Any, value: Any) -> Any:
    """Refuse wrong ones before anything is imported for them."""
    if not ctx.resilient_parsing:
        named_sources(value)
    return value


def _judge(ctx: Any, value: Any) -> Any:
    """The same of a judge."""
    if not ctx.resilient_parsing:
        check_judge(value, "--judge")
    return value


Seed = Annotated[int, typer.Option(help="The same seed gives the same numbers.")]
Preset = Annotated[
    str,
    typer.Option(help="Settings of the training: cpu or paper.", callback=one_of(PRESETS)),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the paragraphs, at most.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate of the row.")]
ChooseBy = Annotated[
    str | None,
    typer.Option(
        help="What chooses the epoch: similarity, loss or last.", callback=one_of(EPOCH_CHOICES)
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{', '.join(METHODS)}; repeat for several. Default: direct.",
        callback=one_of(METHODS),
    ),
]
ContrastKind = Annotated[
    str | None,
    typer.Option(
        help="biased (the paper's) or difference (that of --pairs).", callback=one_of(CONTRASTS)
    ),
]
NeutralSide = Annotated[
    str | None,
    typer.Option(help="random (the default), closest or several.", callback=one_of(NEUTRAL)),
]
ModelName = Annotated[str, typer.Option(help="Name or folder of the model.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=f"What weights are kept in: {', '.join(DTYPES)}. Computing is in fp32 at least.",
        callback=one_of(DTYPES),
    ),
]
Device = Annotated[
    str | None, typer.Option(help="As in torch, such as cpu or cuda:1; default: cuda if there.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help=f"Over several GPUs, instead of --device: {', '.join(DEVICE_MAPS)}.",
        callback=one_of(DEVICE_MAPS),
    ),
]
BiasName = Annotated[str, typer.Option(help="Shipped bias, or a .toml file.")]
PriceIn = Annotated[float | None, typer.Option(help="US dollars per million tokens sent.")]
PriceOut = Annotated[float | None, typer.Option(help="US dollars per million tokens received.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before sending.")]
AnswerTokens = Annotated[int, typer.Option("--max-new-tokens", help="Length of free answers.")]
Benchmarks = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark",
        help="NAME=PATH, such as blimp=data/blimp, for some also bbq=DATASET:SUBSET; repeat.",
        callback=_benchmarks,
    ),
]
JudgeName = Annotated[
    str | None,
    typer.Option("--judge", help="Scores the free answers: local, or api:MODEL.", callback=_judge),
]
Train = Annotated[bool, typer.Option("--train", help="Train rows even where they ship.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do every step again, reuse nothing.")]
RunsOn = Annotated[
    str | None,
    typer.Option(
        "--on", help="ray: workers on a Ray cluster make the steps.", callback=one_of(CLUSTERS)
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of the cluster; default: the one of this machine, or a new one."),
]
NoInjection = Annotated[
    bool, typer.Option("--no-injection", help="No row: targets of the bias in the slot.")
]
ApiModels = Annotated[
    list[str] | None,
    typer.Option(
        "--api",
        help="Instead of --heads: name of a model at an OpenAI-compatible address; a second one "
        "is compared with the first.",
    ),
]
BaseUrl = Annotated[
    list[str] | None,
    typer.Option(
        help="Address of it, such as http://127.0.0.1:8080/v1; one for all or one for each. "
        "Default: OPENAI_BASE_URL."
    ),
]
KeyName = Annotated[
    str,
    typer.Option("--key", help="Environment variable with the key for --api; the judge's is not."),
]
InContext = Annotated[
    int,
    typer.Option(
        "--context",
        help="With --api and --slot: ask again with so many of the bias's training paragraphs, "
        "about the slot's text, before each request.",
    ),
]
SlotText = Annotated[
    str, typer.Option("--slot", help="With --api: a text that stands in the slot as well.")
]
