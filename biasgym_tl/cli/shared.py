"""Commands that put a result where others find it, and get one from there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from biasgym_tl.cli.app import check_file, command, say
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.hub import file_of, files_in
from biasgym_tl.store import kind_of

_KINDS = {
    "BiasToken": "injection.token",
    "HeadScores": "scoping.scores",
    "StereotypeMap": "evaluation.stereotype_map",
    "Selection": "steering.selection",
    "Edit": "edits",
    "Report": "evaluation.report",
}
"""What is shared, and its module."""


def _class(kind: str) -> Any:
    return getattr(import_module(f"biasgym_tl.{_KINDS[kind]}"), kind)


@command()
def share(
    file: Annotated[Path, typer.Argument(help="A row, map, selection of heads, edit or report.")],
    to: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face hub, or a folder such as ./NAME.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="A new repository that everybody can see.")
    ] = False,
) -> None:
    """Put a result into a repository or folder of its own, with a card that says what it is.

    For the hub you are logged in with 'hf auth login'.
    """
    kind = kind_of(file)
    if kind not in _KINDS:
        raise StoreError(f"{str(file)!r} must hold one of {', '.join(_KINDS)}, got {kind}.")
    say(f"Shared: {_class(kind).load(file).push_to_hub(to, private=not public)}")


@command()
def fetch(
    source: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face hub, or a folder such as ./NAME.")
    ],
    out: Annotated[
        Path,
        typer.Argument(help="File for other commands; one that is there is replaced."),
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a repository.")
    ] = None,
) -> None:
    """Get what 'share' put there, as a file that is checked."""
    check_file(out, "the file", ".safetensors", ".json")
    there = files_in(source, revision=revision)
    known = {file_of(_class(kind)): _class(kind) for kind in _KINDS}
    names = sorted(known.keys() & set(there))
    if len(names) != 1:
        shown = names or there
        more = " and more" if len(shown) > 8 else ""
        raise StoreError(f"{source!r} must hold one of {', '.join(known)}, got {shown[:8]}{more}.")
    (name,) = names
    if not name.endswith(out.suffix):
        raise SettingError(
            f"the file must end in {Path(name).suffix} to hold {Path(name).stem}, got {str(out)!r}."
        )
    found = known[name].from_hub(source, revision=revision)
    say(f"{found!r}\nWritten to {found.save(out)}")
