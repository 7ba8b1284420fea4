"""A protocol is run, and what it finds is written and shown as it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from biasgym_tl.cli.app import asking, check_folder, say, say_json

if TYPE_CHECKING:
    from pandas import DataFrame

    from biasgym_tl.api import Price
    from biasgym_tl.manifest import Manifest
    from biasgym_tl.protocol.chain import Opened
    from biasgym_tl.protocol.protocol import Protocol
    from biasgym_tl.protocol.record import Recorder
    from biasgym_tl.protocol.result import BiasResult


def run_and_show(
    protocol: Protocol,
    out: Path,
    *,
    fresh: bool,
    manifest: Manifest | None = None,
    tables: Mapping[str, DataFrame] | None = None,
    price: Price | None = None,
    yes: bool = False,
    json: bool = False,
    ahead: Callable[[Opened, Recorder], None] | None = None,
) -> None:
    """Run it; what is found is there as soon as it is known, and all of it at the end; beside the
    ``tables`` of the run that a manifest is of."""
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from biasgym_tl.console import result_values, show_result
    from biasgym_tl.protocol.chain import Running, run_protocol
    from biasgym_tl.protocol.outputs import farthest, tables_of, write_outputs

    check_folder(out)
    disable_progress_bar()
    running = Running(
        expected=manifest,
        price=price,
        confirm=asking(yes),
        fresh=fresh,
        say=partial(say, err=True),
        write=partial(_write_and_show, protocol, out),
        out=out,
        ahead=ahead,
    )
    say(f"Loading {protocol.model} ...", err=True)
    try:
        result = run_protocol(protocol, running)
    except KeyboardInterrupt:
        say("Stopped. What was finished is kept: run the same command to go on.", err=True)
        raise typer.Exit(130) from None
    remark = write_outputs(result, out)
    show_result(result, Console(stderr=json))
    if remark:
        say(remark, err=True)
    say(f"\nWritten to {out}/: report.html, table.csv, heatmaps, manifest.json, ...", err=json)
    compared = None
    if manifest is not None:
        found = result.manifest()
        compared = manifest.compared(found.inputs, found.results)
        if found.results != manifest.results and tables:
            compared += f" {farthest(tables, tables_of(out, tables))}"
        say(compared, err=json)
    if json:
        say_json({**result_values(result), "repeated": compared})


def _write_and_show(protocol: Protocol, out: Path, name: str, found: BiasResult) -> None:
    """What there is so far, before slower steps: heatmaps, then the table without random sets."""
    from rich.console import Console

    from biasgym_tl.console import summary_table
    from biasgym_tl.protocol.outputs import write_part

    write_part(name, found, out, protocol)
    if not found.reports:
        for path in sorted(out.glob("*heatmap-*.html")):
            say(f"  {path}", err=True)
    elif not found.report.controls:
        Console(stderr=True).print(summary_table(found.report))
        say(f"  {name}: all of it so far is in {out}", err=True)
