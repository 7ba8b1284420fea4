"""Files: written whole or not at all, tensors as safetensors, records as JSON, never pickle.

A result is one ``.safetensors`` file. Its tensors are the numbers; its header carries one JSON
record (settings, seed, versions), so the two cannot be separated or half written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from biasgym_tl.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

Result = TypeVar("Result")
_HEADER = "biasgym_tl"
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_PACKAGES = ("biasgym-tl", "torch", "transformer-lens", "transformers")


def cache_dir() -> Path:
    """Folder for converted models and finished steps.

    ``BIASGYM_CACHE`` if that is set, otherwise the user's cache folder of the platform.
    """
    from platformdirs import user_cache_path

    chosen = os.environ.get("BIASGYM_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("biasgym_tl")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def digest(value: Any) -> str:
    """Short, stable fingerprint of a JSON-like value or of bytes."""
    raw = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary neighbour of ``path``, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files that only their owner can read; results are ordinary files.
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    return write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file, whole or not at all."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> Path:
    r"""Write a table without its index, whole or not at all; no text in it is a formula.

    A spreadsheet takes a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a new line for
    a formula. Such texts get a ``'`` in front, which :func:`csv_text` takes off; numbers do not.
    Every new line within a text is written as ``\n``.
    """
    safe = table.map(_no_formula).rename(columns=_no_formula)
    return write_text(path, safe.to_csv(index=False))


def csv_text(cell: str) -> str:
    """The text that :func:`write_csv` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")  # a lone \r would end a row
    return f"'{cell}" if _FORMULA.match(cell) else cell


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"result file must exist, got {str(path)!r}. Check the path.") from error
    except OSError as error:
        raise StoreError(f"{str(path)!r} must be a readable file, but: {error}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{str(path)!r} must be JSON, but is not: {error}. Delete it.") from error


def read_kind(path: Path, kind: str, build: Callable[[dict[str, Any]], Result]) -> Result:
    """Read a JSON result that names its ``kind``, and build it from the other keys.

    Raises:
        StoreError: the file is missing, is not JSON, or does not hold a whole result of this kind.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.pop("kind", None) != kind:
        raise StoreError(f"{str(path)!r} must hold a {kind}, and does not.")
    try:
        return build(values)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{str(path)!r} must hold a whole {kind}, but: {error}.") from error


def save_result(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write tensors and their JSON record as one ``.safetensors`` file."""
    from safetensors.torch import save_file

    # One entry: the order of several is not fixed, and equal results should be equal files.
    header = {_HEADER: json.dumps({"kind": kind, "record": record}, ensure_ascii=False)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(
        result_path(path),
        lambda to: save_file(contiguous, to, metadata=header),
    )


def load_result(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_result` wrote.

    Raises:
        StoreError: the file is missing, broken, or holds another kind of result.
    """
    from safetensors import SafetensorError, safe_open

    path = result_path(path)
    if not path.is_file():
        raise StoreError(f"result file must exist, got {str(path)!r}. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{str(path)!r} must be a safetensors file, but: {error}.") from error
    if header.get("kind") != kind:
        raise StoreError(f"{str(path)!r} must hold a {kind}, got {header.get('kind')!r}.")
    return tensors, header["record"]


def kind_of(path: Path) -> str | None:
    """What a result file says it holds; None for other JSON and safetensors files.

    Raises:
        StoreError: the file is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".json":
        values = read_json(path)
        return values.get("kind") if isinstance(values, dict) else None
    if not path.is_file():
        raise StoreError(f"result file must exist, got {str(path)!r}. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{str(path)!r} must be a safetensors file, but: {error}.") from error
    kind: str | None = header.get("kind")
    return kind


class TensorResult:
    """Base of the dataclasses that are kept as one ``.safetensors`` file."""

    def save(self, path: str | Path) -> Path:
        """Write one ``.safetensors`` file: the tensors, and the rest as JSON in its header."""
        tensors = {key: value for key, value in vars(self).items() if isinstance(value, Tensor)}
        record = {key: value for key, value in vars(self).items() if key not in tensors}
        return save_result(path, type(self).__name__, tensors, record)

    @classmethod
    def load(cls: type[Result], path: str | Path) -> Result:
        """Read a file written by :meth:`save`; the lists of its record were tuples.

        Raises:
            StoreError: the file is missing, broken, or holds something else.
        """
        tensors, record = load_result(path, cls.__name__)
        tuples = {key: _tuples(value) for key, value in record.items()}
        try:
            return cls(**{**tensors, **tuples})
        except TypeError as error:
            raise StoreError(
                f"{str(path)!r} must hold a whole {cls.__name__} of this version, but: {error}."
            ) from error


def _tuples(value: Any) -> Any:
    """Lists, and lists in them, as tuples; everything else as it is."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def result_path(path: str | Path) -> Path:
    """Add ``.safetensors`` unless it is there; other dots belong to the name ("lr-0.01")."""
    return Path(path) if str(path).endswith(".safetensors") else Path(f"{path}.safetensors")
