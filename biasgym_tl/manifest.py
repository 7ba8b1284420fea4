"""What a run read and found, written down so that the run can be repeated and compared.

The files of a run are put into their folder together (:func:`write_results`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.files import temporary_folder
from biasgym_tl.locks import locked
from biasgym_tl.store import Result, as_declared, digest, read_kind, versions, write_json

Written = TypeVar("Written")
MANIFEST = "manifest.json"
_WHOLE = ".biasgym-whole"
"""Folder with all files of a run that are on their way to the folder around it."""
_EARLIER = ".earlier.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Result):
    """The settings of one command, fingerprints of its inputs, and of its results."""

    command: str
    """``"run"``: of a protocol."""
    settings: dict[str, Any]
    """As the command's dataclass holds them."""
    inputs: dict[str, str]
    """By name, the fingerprint of what was read: model, biases, rows, heads, benchmarks, code."""
    results: str
    """Fingerprint of all numbers."""
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    threads: int | None = None
    """With which torch computed; with another number sums can differ in their last bits."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """By name, the fingerprint of each file that was written beside it."""

    def compared(self, inputs: Mapping[str, str], results: str) -> str:
        """Whether a repetition came out the same, in one line."""
        if results == self.results:
            return "Repeated: every number and text equals that of the manifest."
        other = _differing(inputs, self.inputs)
        if _other_engine(self):
            other = ["engine", *(name for name in other if name != "model cfg")]
        return "Not repeated: numbers differ from those of the manifest. " + (
            f"Not the same: {', '.join(other)}."
            if other
            else "Is this another machine? Or another number of threads?"
        )

    def save(self, path: str | Path) -> Path:
        """Write it as one JSON file, without a checksum: it may be edited and run."""
        return write_json(Path(path), {"kind": "Manifest", **self.record()})

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a file written by :meth:`save`.

        Raises:
            StoreError: the file is missing, is not JSON, or is no manifest.
        """
        settle(Path(path).parent)
        found = super().load(path)
        if found.command != "run":
            raise StoreError(f"{str(path)!r} must be of run, got {found.command!r}.")
        return found


def write_results(
    folder: Path, write: Callable[[Path], Written], manifest: Manifest | None = None
) -> Written:
    """Let ``write`` fill a temporary folder, then put its files into ``folder`` together.

    With a manifest, files of an earlier run that its manifest names, and that were not changed
    since, go; others stay. If the process is killed on the way, ``folder`` holds what it held; or
    it has no manifest, and :func:`settle` puts the rest in its place the next time that the folder
    is read or written.

    Returns:
        What ``write`` returned.
    """
    with temporary_folder(folder) as temporary:
        result = write(temporary)
        if manifest is not None:
            files = {path.name: digest(path.read_bytes()) for path in sorted(temporary.iterdir())}
            dataclasses.replace(manifest, files=files).save(temporary / MANIFEST)
        with locked(folder):
            _settle(folder)
            temporary.rename(folder / _WHOLE)
            _settle(folder)
    return result


def settle(folder: Path) -> None:
    """Put the files of a run in their place whose process was killed while it did so."""
    if (folder / _WHOLE).is_dir():
        with locked(folder):
            _settle(folder)


def _settle(folder: Path) -> None:
    whole = folder / _WHOLE
    if whole.is_symlink():
        raise StoreError(
            f"{str(whole)!r} must be a folder of this package, got a link. Was the folder handed "
            "over by somebody? Remove the link."
        )
    if not whole.is_dir():
        return
    if (whole / MANIFEST).exists():  # it is moved last: until then the folder has none
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / MANIFEST, whole / _EARLIER)
        new = _files_of(whole / MANIFEST)
        for name, written in _files_of(whole / _EARLIER).items():
            path = folder / name
            ours = path.name == name and name not in new and path.is_file()
            if ours and digest(path.read_bytes()) == written:
                path.unlink()
    for path in sorted(whole.iterdir(), key=lambda path: path.name == MANIFEST):
        if path.name != _EARLIER and not path.is_dir():  # no run writes folders
            os.replace(path, folder / path.name)
    shutil.rmtree(whole)


def _files_of(path: Path) -> dict[str, str]:
    with contextlib.suppress(StoreError):
        return read_kind(path, "Manifest", lambda values: as_declared(Manifest, values)["files"])
    return {}


def check_inputs(inputs: Mapping[str, str], expected: Manifest | None) -> None:
    """Refuse other data than a manifest names.

    A repetition with another version or on another engine, which describes the same model in
    other words, is of interest; with other data it is no repetition.

    Raises:
        SettingError: a model, bias, row, choice of heads or benchmark is not the one expected.
    """
    if expected is None:
        return
    may_differ = ["code", "versions"]
    if _other_engine(expected):
        may_differ.append("model cfg")
    other = [name for name in _differing(inputs, expected.inputs) if name not in may_differ]
    if other:
        raise SettingError(
            f"inputs must be those of the manifest, got other data for {other}. Restore the files."
        )


def _other_engine(expected: Manifest) -> bool:
    return versions()["engine"] != expected.versions.get("engine", versions()["engine"])


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]


def results_fingerprint(*results: Any) -> str:
    """Short hash of numbers and texts, digit by digit."""
    return digest(list(results))
