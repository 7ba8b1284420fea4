"""Reading TOML on every supported Python."""

from __future__ import annotations

import sys
from importlib import resources
from typing import Any

from biasgym_tl.errors import BiasFileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(text: str, name: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        BiasFileError: ``text`` is not TOML; the message names the file and the place.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the second of deep lists
        raise BiasFileError(f"{name} must be TOML, but: {error}.") from error


def shipped_toml(path: str) -> dict[str, Any]:
    """A TOML file of the package, such as ``"data/passages.toml"``."""
    file = resources.files("biasgym_tl").joinpath(path)
    return read_toml(file.read_text(encoding="utf-8"), file.name)
