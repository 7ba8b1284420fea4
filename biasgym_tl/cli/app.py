"""The application, what its commands share, and how errors become one line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from biasgym_tl.cli.shell import Command
from biasgym_tl.console import as_json, visible, visible_line
from biasgym_tl.errors import BiasGymError, SettingError

if TYPE_CHECKING:
    from biasgym_tl.api import Price
    from biasgym_tl.biases.bias import Bias
    from biasgym_tl.heads import GivenHeads, Head
    from biasgym_tl.injection.inject import BiasInject
    from biasgym_tl.injection.token import BiasToken
    from biasgym_tl.lens import HookedTransformer
    from biasgym_tl.origin import ModelSizes


def say(text: object, *, err: bool = False) -> None:
    """Print a text, whoever wrote it."""
    typer.echo(visible(text), err=err)


def say_json(values: Any) -> None:
    """Print one JSON document, in ASCII: nothing in it can steer a terminal."""
    typer.echo(json.dumps(as_json(values), indent=1, allow_nan=False))


class _Commands(TyperGroup):
    """The commands, each of which can be stopped."""

    def invoke(self, ctx: Any) -> Any:
        """Run one."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Stopped.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
command = partial(app.command, cls=Command)


def _version(asked: bool) -> bool:
    if asked:
        say(f"biasgym {metadata.version('biasgym-tl')}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say which it is.")
    ] = False,
) -> None:
    """Find, explain and remove stereotypes in language models, on TransformerLens."""


def main() -> None:
    """Entry point: known errors become one line, also those of files and disks."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # of a stream that somebody put there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app()
    except BiasGymError as error:
        _fail(str(error))
    except OSError as error:
        _fail(_fault(error))


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as one line; the place in the code says nothing to who gave a command."""
    say(f"Warning: {visible_line(message)}", err=True)


def _fault(error: OSError) -> str:
    """What the system says of a file, with its name; nothing of the package is at fault."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.strerror}: {str(error.filename or 'output')!r}."


def _fail(reason: str) -> None:
    say(f"Error: {visible_line(reason)}", err=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.exit(1)
    os._exit(1)  # what is left cannot be written, and Python would say so again, at length


def price_of(price_in: float | None, price_out: float | None) -> Price | None:
    """Prices of an API model, if any was given."""
    from biasgym_tl.api import Price

    if price_in is None and price_out is None:
        return None
    return Price(price_in or 0.0, price_out or 0.0)


def asking(yes: bool) -> Callable[[object], bool]:
    """Show a plan, and ask unless ``yes``."""

    def confirm(plan: object) -> bool:
        say(str(plan), err=True)
        return yes or typer.confirm("Send?", err=True)

    return confirm


def inject_of(
    preset: str, epochs: int | None, lr: float | None, choose_by: str | None
) -> BiasInject:
    """Settings of a training, whose encoder is found before a model is loaded."""
    from transformers.utils.logging import disable_progress_bar

    from biasgym_tl.injection.inject import BiasInject
    from biasgym_tl.similarity import load_encoder

    disable_progress_bar()

    make: Callable[..., BiasInject] = BiasInject.cpu if preset == "cpu" else BiasInject
    given = {"epochs": epochs, "lr": lr, "choose_by": choose_by}
    inject = make(**{key: value for key, value in given.items() if value is not None})
    if inject.choose_by == "similarity":
        load_encoder(inject.encoder)  # what is missing is said before the model is loaded
    return inject


def check_folder(out: Path) -> None:
    """Find out that results cannot be kept before they are computed."""
    from biasgym_tl.files import check_writable
    from biasgym_tl.store import cache_dir

    check_writable(out, "--out")
    check_writable(cache_dir(), "cache folder (BIASGYM_CACHE)")


def find_model(
    name: str, *, bias: Bias | None = None, rows: Sequence[BiasToken] = (), heads: GivenHeads = ()
) -> ModelSizes | None:
    """Refuse, before it is loaded, a name that is of no model, and rows and heads that are not for
    it; the sizes of the model where its configuration says them."""
    from biasgym_tl.heads import check_heads
    from biasgym_tl.origin import model_sizes

    sizes = model_sizes(name)
    for row in rows:
        if bias:
            row.check_sizes(bias, sizes)
    if sizes:
        check_heads(heads, sizes.n_layers, sizes.n_heads)
    return sizes


def load(
    name: str, dtype: str | None, device: str | None, device_map: str | None
) -> HookedTransformer:
    """The model that a command runs."""
    from transformers.utils.logging import disable_progress_bar

    from biasgym_tl.model import load_model

    disable_progress_bar()
    say(f"Loading {name} ...", err=True)
    return load_model(name, dtype=dtype or "float32", device=device, device_map=device_map)


def named_heads(heads: str) -> tuple[Head, ...]:
    """Heads that are given by their names; none if it is a file, which is read later."""
    from biasgym_tl.heads import as_heads

    return as_heads(heads) if heads and not heads.endswith(".json") else ()


def check_file(out: Path, option: str, *suffixes: str) -> None:
    """Refuse a file that could not be written, or ends otherwise."""
    from biasgym_tl.files import check_writable

    if out.suffix not in suffixes:
        raise SettingError(f"{option} must end in {' or '.join(suffixes)}, got {str(out)!r}.")
    if out.is_dir():
        raise SettingError(f"file must be none that is a folder, got {str(out)!r}. Name another.")
    check_writable(out.parent, "folder of the file")


def check_no_injection(no_injection: bool, token: Any) -> None:
    """Refuse a row beside no injection."""
    if no_injection and token:
        raise SettingError("--no-injection must be given without --token. Leave out one of them.")
