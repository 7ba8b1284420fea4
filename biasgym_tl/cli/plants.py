"""The command that asks the methods about plants, whose truth is known."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from biasgym_tl.allowed import HALVES
from biasgym_tl.cli.app import check_folder, command, find_model, load, say, say_json
from biasgym_tl.cli.options import AsJson
from biasgym_tl.cli.shell import one_of
from biasgym_tl.errors import PlantingError
from biasgym_tl.files import read_text
from biasgym_tl.toml import read_toml, shipped_toml


@command()
def plants(
    out: Annotated[Path, typer.Option(help="Folder for tables and pictures.")],
    study: Annotated[
        Path | None, typer.Argument(help="A .toml file; default: the 24 shipped plants.")
    ] = None,
    half: Annotated[
        str | None,
        typer.Option(help="Only plants of this half: open or closed.", callback=one_of(HALVES)),
    ] = None,
    json: AsJson = False,
) -> None:
    """Plant biases in chosen heads and ask each method for them; about 10 minutes a plant.

    Stopped, it goes on from what is finished.
    """
    given = read_text(study, "study", PlantingError) if study else ""
    check_folder(out)
    from biasgym_tl.planting.study import SHIPPED, PlantStudy, run_study
    from biasgym_tl.planting.summary import by_method, rivals_table, tables, write_study

    values = read_toml(given, str(study)) if study else shipped_toml(SHIPPED)
    asked = PlantStudy.from_mapping(values, str(study or "shipped study")).of_half(half)
    find_model(asked.model)
    found = []
    try:
        for each in run_study(
            asked, load(asked.model, None, None, None), say=partial(say, err=True)
        ):
            found.append(each)
            write_study(*tables(found), out, rivals=rivals_table(found), png=False)
    except KeyboardInterrupt:
        say("Stopped. What was finished is kept: run the same command to go on.", err=True)
        raise typer.Exit(130) from None
    (made, methods, heads), rivals = tables(found), rivals_table(found)
    if remark := write_study(made, methods, heads, out, rivals=rivals):
        say(remark, err=True)
    summary = methods if methods.empty else by_method(methods)
    if json:
        say_json({"plants": made.to_dict("records"), "methods": summary.to_dict("records"),
                  "rivals": rivals.to_dict("records")})  # fmt: skip
        return
    columns = ["plant", "target", "neighbours", "others", "facts", "loss", "n_carriers", "refused"]
    say(made[columns].round(2).to_string(index=False))
    if len(summary):
        say(summary[["method", "plants", "first", "auroc", "removed"]].to_string(index=False))
    if len(rivals):
        columns = ["plant", "rival", "wanted_kl", "removed", "neighbours", "others", "kl"]
        say(rivals[columns].round(2).to_string(index=False))
    say(f"\nWritten to {out}/: {', '.join(sorted(path.name for path in out.glob('*.csv')))}")
