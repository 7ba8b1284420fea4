"""Results as files: tensors as safetensors with a JSON record in the header, or JSON; no pickle.

Numbers and record are one file, so they cannot be separated or half written, and a checksum covers
both, so a bit that flips later is noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from biasgym_tl.errors import BiasGymError, SettingError, StoreError
from biasgym_tl.files import read_text, write_atomically, write_text
from biasgym_tl.heads import heads_by_name
from biasgym_tl.hub import Shareable

if TYPE_CHECKING:  # torch takes seconds, and what has no tensors is kept without it
    from torch import Tensor

Built = TypeVar("Built")
Saved = TypeVar("Saved", bound="Result")
LONGEST_NAME = 80
"""Characters of a name that becomes part of file names."""
BROKEN = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
          RuntimeError, MemoryError)  # fmt: skip
"""What reading a file that was changed at any place can raise."""
_HEADER = "biasgym_tl"
_PACKAGES = ("biasgym-tl", "torch", "transformer-lens", "transformers")


def cache_dir() -> Path:
    """Folder for converted models and finished steps: ``BIASGYM_CACHE``, or the platform's.

    Raises:
        SettingError: it lies in the home of a user who is not known.
    """
    from platformdirs import user_cache_path

    chosen = os.environ.get("BIASGYM_CACHE")
    try:
        return Path(chosen).expanduser() if chosen else user_cache_path("biasgym_tl")
    except RuntimeError as error:
        raise SettingError(
            f"BIASGYM_CACHE must be a folder, got {chosen!r}: {error} Name the folder in full."
        ) from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on, and the engine that the
    models run on (``lens.ENGINE``)."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    lens = found.get("transformer-lens", "")
    return {**found, "engine": "hooked" if lens.startswith("3.") else "bridge"}


def digest(value: Any) -> str:
    """Short, stable fingerprint of a JSON-like value or of bytes."""
    raw = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


def check_name(name: str, what: str, error: type[BiasGymError]) -> None:
    """Refuse a name that could not stand in a file name, or would lead out of its folder.

    Raises:
        BiasGymError: of the type ``error``; the message says the rule.
    """
    if not re.fullmatch(rf"(?!\.)[\w.-]{{1,{LONGEST_NAME}}}", name):
        raise error(
            f"{what} must be 1 to {LONGEST_NAME} letters, digits, '-', '_' or '.', not beginning "
            f"with '.', got {name!r}. It becomes part of file names."
        )


def file_name(text: str) -> str:
    """A text as a name that stays in its folder; two texts never share one."""
    safe = re.sub(r"[^\w.-]+", "-", text).lstrip(".")[:LONGEST_NAME]
    return safe if safe == text else f"{safe}-{digest(text)}"


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file, whole or not at all; each key of an object is a line."""
    if not isinstance(value, Mapping) or not value:
        return write_text(path, json.dumps(value, ensure_ascii=False) + "\n")
    lines = (f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
    return write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: the file is missing or is not JSON.
    """
    text = read_text(path, "result file", StoreError)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{str(path)!r} must be JSON, but is not: {error}. Delete it.") from error


def write_kind(path: Path, kind: str, values: Mapping[str, Any]) -> Path:
    """Write a JSON result with its kind and a checksum; :func:`read_kind` reads it."""
    values = json.loads(json.dumps(values, default=dataclasses.asdict))
    return write_json(path, {"kind": kind, "digest": digest(values), **values})


def read_kind(
    path: Path,
    kind: str,
    build: Callable[[dict[str, Any]], Built],
    *,
    digested: bool = False,
) -> Built:
    """Read a JSON result that names its ``kind``, and build it from the other keys.

    One that a person wrote may lack its checksum, unless it must be ``digested``.

    Raises:
        StoreError: the file is missing, is not JSON, was changed since it was written, or does not
            hold a whole result of this kind.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.pop("kind", None) != kind:
        raise StoreError(f"{str(path)!r} must hold a {kind}, and does not.")
    try:
        written = values.pop("digest", None if digested else digest(values))
        if written != digest(values):
            raise StoreError(
                "it is not as it was written, by its checksum. If that was you, remove its "
                "'digest'; otherwise make the file again"
            )
        return build(values)
    except BROKEN as error:
        raise StoreError(f"{str(path)!r} must hold a whole {kind}, but: {error}.") from error


def as_declared(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values from JSON as the fields of a dataclass declare them: its lists as tuples, and so on.

    Raises:
        StoreError: there is no such field, or a value is of another type.
    """
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise StoreError(f"{kind.__name__} must hold only its fields, got {unknown}")
    return {name: read_as(kind, name, value) for name, value in values.items()}


def read_as(kind: Any, name: str, value: Any) -> Any:
    """A value from JSON as a field of a dataclass, or a parameter of a function, is declared.

    Raises:
        StoreError: it is of another type.
    """
    from pydantic import ValidationError

    try:
        (found,) = _reader(kind, name).validate_json(json.dumps([value]), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"][1:])))
        got = f"{first['msg']}, got {first['input']!r:.80}"
        raise StoreError(f"{where} is not as declared: {got}") from error
    return found


@cache
def _reader(kind: Any, name: str) -> Any:
    """Reads a list of one value; a dataclass within it must hold only its fields, too."""
    from pydantic import ConfigDict, TypeAdapter

    declared: Any = tuple[get_type_hints(kind)[name]]  # type: ignore[misc]
    # JSON can say no more of a tensor than that there is none.
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return TypeAdapter(declared, config=config)


def save_result(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write tensors and their JSON record as one ``.safetensors`` file."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = json.loads(json.dumps(record, default=dataclasses.asdict))
    entry = {"kind": kind, "digest": _checksum(kind, contiguous, record), "record": record}
    # One entry: the order of several is not fixed, and equal results should be equal files.
    header = {_HEADER: json.dumps(entry, ensure_ascii=False)}
    raw = save(contiguous, metadata=header)
    return write_atomically(result_path(path), lambda to: to.write_bytes(raw))


def _checksum(kind: str, tensors: Mapping[str, Tensor], record: Any) -> str:
    """Fingerprint of all that a result file holds."""
    import torch

    sha = hashlib.sha256(digest([kind, record]).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def load_result(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_result` wrote.

    Raises:
        StoreError: the file is missing, broken, or holds another kind of result.
    """
    path = result_path(path)
    with _opened(path) as (file, entry):
        if entry.get("kind") != kind:
            raise StoreError(f"{str(path)!r} must hold a {kind}, got {entry.get('kind')!r}.")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if entry["digest"] != _checksum(kind, tensors, entry["record"]):
            raise StoreError(
                f"{str(path)!r} must be as it was written, and is not, by its checksum. "
                "Make it again."
            )
        return tensors, dict(entry["record"])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A ``.safetensors`` file and our entry in its header, ``{}`` where it has none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise StoreError(f"result file must exist, got {str(path)!r}. Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file, dict(json.loads((file.metadata() or {}).get(_HEADER, "{}")))
    except StoreError:
        raise
    except (SafetensorError, *BROKEN) as error:
        raise StoreError(f"{str(path)!r} must be a safetensors file, but: {error}.") from error


def kind_of(path: Path) -> str | None:
    """What a result file says it holds; None for other JSON and safetensors files.

    Raises:
        StoreError: the file is missing or broken.
    """
    if path.suffix == ".json":
        values = read_json(path)
        kind = values.get("kind") if isinstance(values, dict) else None
    else:
        with _opened(path) as (_, entry):
            kind = entry.get("kind")
    return kind if isinstance(kind, str) else None


@dataclasses.dataclass(frozen=True)
class Result(Shareable):
    """Base of the frozen dataclasses that are kept, each as one file that :meth:`load` reads.

    With tensors among its fields it is a ``.safetensors`` file, the rest in its header; without, a
    JSON file. Both hold the name of the class and a checksum.
    """

    def record(self) -> dict[str, Any]:
        """All fields but tensors, as the file holds them; each head by its name."""
        kept = {k: v for k, v in self._fields().items() if k not in self._tensors()}
        return {k: heads_by_name(v) for k, v in kept.items()}

    @classmethod
    def has_tensors(cls) -> bool:
        """Whether a field is declared to hold a tensor."""
        if "torch" not in sys.modules:  # which the module of a class with tensors imports
            return False
        from jaxtyping import AbstractArray
        from torch import Tensor

        hints = get_type_hints(cls).values()
        parts = [part for hint in hints for part in (hint, *get_args(hint))]
        return any(isinstance(p, type) and issubclass(p, (Tensor, AbstractArray)) for p in parts)

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _tensors(self) -> dict[str, Tensor]:
        if "torch" not in sys.modules:
            return {}
        from torch import Tensor

        return {key: value for key, value in self._fields().items() if isinstance(value, Tensor)}

    def save(self, path: str | Path) -> Path:
        """Write one file; that of a result with tensors ends in ``.safetensors``."""
        kind = type(self)
        if not kind.has_tensors():
            return write_kind(Path(path), kind.__name__, self.record())
        return save_result(path, kind.__name__, self._tensors(), self.record())

    @classmethod
    def load(cls: type[Saved], path: str | Path) -> Saved:
        """Read a file written by :meth:`save`.

        Raises:
            StoreError: the file is missing, broken, or holds something else.
        """
        if not cls.has_tensors():
            return read_kind(Path(path), cls.__name__, lambda v: cls(**as_declared(cls, v)))
        tensors, record = load_result(path, cls.__name__)
        try:
            return cls(**_shaped(cls, tensors), **as_declared(cls, record))
        except BROKEN as error:
            raise StoreError(
                f"{str(path)!r} must hold a whole {cls.__name__} of this version, but: {error}."
            ) from error


def _shaped(kind: type, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, if their types and shapes are those that the fields of a class declare."""
    from jaxtyping import jaxtyped

    hints = get_type_hints(kind)
    with jaxtyped("context"):  # in which equal names of dimensions must be equal numbers
        for name, tensor in tensors.items():
            if not isinstance(tensor, hints[name]):
                raise StoreError(f"{name} has the shape {tuple(tensor.shape)}, {tensor.dtype}")
    return tensors


def result_path(path: str | Path) -> Path:
    """Add ``.safetensors`` unless it is there; other dots belong to the name ("lr-0.01")."""
    return Path(path) if str(path).endswith(".safetensors") else Path(f"{path}.safetensors")
