"""What a run read and found, written down so that the run can be repeated and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.store import digest, read_kind, versions, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The settings of one command, fingerprints of its inputs, and of its results."""

    command: str
    """``"run"`` or ``"evaluate"``."""
    settings: dict[str, Any]
    """As the command's dataclass holds them."""
    inputs: dict[str, str]
    """By name, the fingerprint of what was read: model, biases, rows, heads, benchmarks, code."""
    results: str
    """Fingerprint of all numbers."""
    versions: dict[str, str] = dataclasses.field(default_factory=versions)

    def compared(self, inputs: Mapping[str, str], results: str) -> str:
        """Whether a repetition came out the same, in one line."""
        if results == self.results:
            return "Repeated: every number and text equals that of the manifest."
        other = _differing(inputs, self.inputs)
        return "Not repeated: numbers differ from those of the manifest. " + (
            f"Not the same: {', '.join(other)}." if other else "Is this another machine?"
        )

    def save(self, path: Path) -> Path:
        """Write it as one JSON file."""
        return write_json(path, {"kind": "Manifest", **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a file written by :meth:`save`.

        Raises:
            StoreError: the file is missing, is not JSON, or is no manifest.
        """
        found = read_kind(path, "Manifest", lambda values: cls(**values))
        if found.command not in ("run", "evaluate"):
            raise StoreError(f"{str(path)!r} must be of run or evaluate, got {found.command!r}.")
        return found


_MAY_DIFFER = ("code", "versions")
"""A repetition with another version is of interest; with other data it is no repetition."""


def check_inputs(inputs: Mapping[str, str], expected: Mapping[str, str] | None) -> None:
    """Refuse other data than a manifest names.

    Raises:
        SettingError: a model, bias, row, choice of heads or benchmark is not the one expected.
    """
    if expected is None:
        return
    other = [name for name in _differing(inputs, expected) if name not in _MAY_DIFFER]
    if other:
        raise SettingError(
            f"inputs must be those of the manifest, got other data for {other}. Restore the files."
        )


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]


def results_fingerprint(*results: Any) -> str:
    """Short hash of numbers and texts, digit by digit."""
    return digest(list(results))
