"""Errors in the words of the shell: the library's ``n_targets`` is the command's ``--targets``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from typer.core import TyperCommand

from biasgym_tl.errors import BiasGymError, check_one_of


class Command(TyperCommand):
    """A command whose errors name its options."""

    only_given = False

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except BiasGymError as error:
            options = {
                str(p.name): p.opts[0]
                for p in self.params
                if p.opts[0].startswith("--")
                and not (self.only_given and ctx.params.get(p.name) in (None, [], ()))
            }
            raise type(error)(in_options(str(error), options)) from error


class FileCommand(Command):
    """A command whose options stand for what a file says: only those that were given are named."""

    only_given = True


def in_options(message: str, options: Mapping[str, str]) -> str:
    """A message of the library with the options in place of the settings that it is about."""
    subject, must, rest = message.partition(" must ")
    found = []
    for name in subject.partition(" of ")[0].split(" and "):
        known = (name, name.removeprefix("n_"), name.removesuffix("s"))
        found += [next((options[each] for each in known if each in options), None)]
    return message if None in found else " and ".join(map(str, found)) + must + rest


def one_of(allowed: tuple[str, ...]) -> Callable[..., Any]:
    """A callback that refuses an option with another value, before anything is imported for it."""

    def check(ctx: Any, param: Any, value: Any) -> Any:
        for each in value if isinstance(value, list) else [value]:
            if each is not None and not ctx.resilient_parsing:
                check_one_of(param.opts[0], each, allowed)
        return value

    return check
