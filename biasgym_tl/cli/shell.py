"""Errors in the words of the shell: the library's ``n_targets`` is the command's ``--targets``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from typer.core import TyperCommand

from biasgym_tl.errors import BiasGymError, SettingError


class Command(TyperCommand):
    """A command whose errors name its options."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except BiasGymError as error:
            options = {p.name: p.opts[0] for p in self.params if p.opts[0].startswith("--")}
            given = {name for name in options if ctx.params.get(name) is not None}
            raise type(error)(in_options(str(error), options, given)) from error


def in_options(message: str, options: Mapping[str, str], given: Iterable[str]) -> str:
    """A message of the library with the option in place of the setting that it is about.

    An option that was not given is not at fault for what was found.
    """
    subject, must, rest = message.partition(" must ")
    found = []
    for name in subject.partition(" of ")[0].split(" and "):
        known = (name, name.removeprefix("n_"), name.removesuffix("s"))
        option = next((each for each in known if each in options), None)
        if option is None or (option not in given and ", got " in rest):
            return message
        found.append(options[option])
    return " and ".join(found) + must + rest


def one_of(allowed: tuple[str, ...]) -> Callable[..., Any]:
    """A callback that refuses an option with another value, before anything is imported for it."""

    def check(ctx: Any, param: Any, value: Any) -> Any:
        for each in value if isinstance(value, list) else [value]:
            if each is not None and each not in allowed and not ctx.resilient_parsing:
                raise SettingError(f"{param.opts[0]} must be one of {list(allowed)}, got {each!r}.")
        return value

    return check
