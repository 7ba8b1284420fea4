"""Commands about a study before it is run, and while it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from biasgym_tl.cli.app import app, command, price_of, say, say_json
from biasgym_tl.cli.asked import Asked, with_asked
from biasgym_tl.cli.options import AsJson, PriceIn, PriceOut
from biasgym_tl.cli.shell import FileCommand, one_of
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.protocol.machine import GPUS
from biasgym_tl.protocol.shipped import protocol_text
from biasgym_tl.store import cache_dir
from biasgym_tl.toml import read_toml

PlannedName = Annotated[
    str | None,
    typer.Argument(
        help="Shipped protocol or a .toml file; default: one step of each kind, with --model."
    ),
]
OnMachine = Annotated[
    str | None,
    typer.Option(
        "--on",
        help=f"A GPU, by its data sheet: {', '.join(GPUS)}. Default: this machine.",
        callback=one_of(tuple(GPUS)),
    ),
]


@app.command(cls=FileCommand)
@with_asked
def plan(
    name: PlannedName = None,
    on: OnMachine = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    json: AsJson = False,
    *,
    asked: Asked,
) -> None:
    """Say what a protocol would take: time, memory and cost of each step; nothing is run."""
    if name is None and asked.model is None:
        raise SettingError("--model must be given where no protocol is, got neither.")
    for option, value in (("--device", asked.device), ("--device-map", asked.device_map)):
        if on and value:
            raise SettingError(f"{option} must be left out beside --on, got {value!r}.")
    asked.check()
    from biasgym_tl.protocol.machine import gpu
    from biasgym_tl.protocol.plan import each_step
    from biasgym_tl.protocol.plan import plan as planned
    from biasgym_tl.protocol.protocol import load_protocol

    protocol = asked.changed(load_protocol(name) if name else each_step())
    found = planned(protocol, price_of(price_in, price_out), gpu(on) if on else None)
    say_json(found.values()) if json else say(found)


@command()
def status(
    run: Annotated[
        str | None,
        typer.Argument(help="Its --out folder, its protocol or the .toml file; default: all."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Show how far runs of protocols are, or were when they stopped."""
    from biasgym_tl.protocol.record import known_runs

    known = known_runs()
    if run is not None:
        asked = (_protocol_name(run), str(Path(run).resolve()))
        known = [each for each in known if each[0].protocol == asked[0] or each[0].out == asked[1]]
    if not known:
        raise StoreError(
            f"run must be one that was begun with this cache folder ({cache_dir()}), got "
            f"{'none' if run is None else repr(run)}. Is BIASGYM_CACHE that of the run?"
        )
    if json:
        return say_json([{**dataclasses.asdict(record), "lives": lives} for record, lives in known])
    say("\n\n".join(record.told(lives) for record, lives in known))


def _protocol_name(run: str) -> str:
    """What a protocol calls itself, if it is a file."""
    if not run.endswith(".toml"):
        return run
    return str(read_toml(protocol_text(run), run).get("name", Path(run).stem))
