"""The protocols that ship, and files of others, as text: a wrong name is told at once."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from biasgym_tl.errors import SettingError
from biasgym_tl.files import read_text


def list_protocols() -> list[str]:
    """Names of the shipped protocols."""
    return sorted(
        p.name.removesuffix(".toml") for p in _data().iterdir() if p.name.endswith("toml")
    )


def protocol_text(name: str) -> str:
    """A shipped protocol, or a file, as it is written.

    Raises:
        SettingError: there is no such protocol.
    """
    if Path(name).suffix == ".toml":
        return read_text(Path(name), "protocol", SettingError)
    if name not in list_protocols():
        raise SettingError(
            f"protocol must be one of {list_protocols()} or a .toml file, got {name!r}."
        )
    return str(_data().joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def _data() -> Any:
    return resources.files("biasgym_tl.protocol").joinpath("data")
