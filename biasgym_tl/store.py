"""Files: written whole or not at all, tensors as safetensors, records as JSON, never pickle.

A result is one ``.safetensors`` file. Its tensors are the numbers; its header carries one JSON
record (settings, seed, versions), so the two cannot be separated or half written. A checksum in it
covers both, so a bit that flips later is noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import torch
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

from biasgym_tl.errors import BiasGymError, SettingError, StoreError

if TYPE_CHECKING:
    import pandas as pd

Built = TypeVar("Built")
Saved = TypeVar("Saved", bound="Result")
LONGEST_NAME = 80
"""Characters of a name that becomes part of file names."""
BROKEN = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError,
          RuntimeError, MemoryError)  # fmt: skip
"""What reading a file that was changed at any place can raise."""
_HEADER = "biasgym_tl"
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_PACKAGES = ("biasgym-tl", "torch", "transformer-lens", "transformers")


def cache_dir() -> Path:
    """Folder for converted models and finished steps.

    ``BIASGYM_CACHE`` if that is set, otherwise the user's cache folder of the platform.

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


def check_writable(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be written to, before anything is computed; creates nothing.

    Args:
        folder: It, or where it will be made.
        name: What it is called in the error.

    Raises:
        SettingError: it is a file or a broken link, below one, or belongs to somebody else.
    """
    place = folder.absolute()
    try:
        while not _is_there(place):
            place = place.parent
    except OSError as error:  # such as a name that is too long
        raise SettingError(
            f"{name} must be a folder, got {str(folder)!r} ({error.strerror}). Choose another."
        ) from error
    if not place.is_dir():
        raise SettingError(
            f"{name} must be a folder, got {str(folder)!r}, where {str(place)!r} is a file or a "
            "broken link. Choose another."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise SettingError(
            f"{name} must be a folder that can be written to, got {str(folder)!r}. Choose another."
        )


def _is_there(path: Path) -> bool:
    """Whether there is something, were it a broken link."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return bool(path.lstat())
    return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a path among processes; it is free again when its holder ends or dies."""
    from filelock import FileLock

    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{digest(str(path.resolve()))}.lock"):
        yield


def expanded(path: str | Path, name: str) -> Path:
    """A path with the user's home in place of ``~``; ``name`` is what errors call it.

    Raises:
        SettingError: the path begins with the home of a user who is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SettingError(
            f"{name} must lie in a home that is known, got {str(path)!r}. Name it in full."
        ) from error


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary neighbour of ``path``, then move it into place.

    The file has the permissions of the one that it replaces, or those that the umask gives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = _temporary(path.parent), _permissions(path)
    # Its owner must be able to write it, and nobody may read it who may not read the old one.
    mode = 0o666 if before is None else before & 0o666 | 0o600
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    after = stat.S_IMODE(temporary.stat().st_mode) if before is None else before
    try:
        write(temporary)
        temporary.chmod(after)  # a writer may have put another file in its place
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as of a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _permissions(path: Path) -> int | None:
    """Of a file that is there; None for none, and for a link, which is replaced."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat().st_mode
        return stat.S_IMODE(found) if stat.S_ISREG(found) else None
    return None


def write_folder_atomically(folder: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary folder, then put it where ``folder`` is to be.

    An empty folder that is there already stays what it is (a link to one, ``.``, a mount), and the
    files are moved into it.

    Raises:
        StoreError: there is something else at ``folder`` already.
    """
    check_new_folder(folder)
    inside = folder.is_dir()
    with temporary_folder(folder if inside else folder.parent) as temporary:
        write(temporary)
        _open_up(temporary)
        if inside:
            for path in sorted(temporary.iterdir()):
                os.replace(path, folder / path.name)
        else:
            temporary.rename(folder)
    return folder


def _open_up(folder: Path) -> None:
    """Give all files in a new folder the permissions that the umask gives, as the folder has them.

    Some libraries make files that only their owner can read.
    """
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, which is made if need be; what is left of it at the end goes."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(parent)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """Refuse what :func:`write_folder_atomically` would, before the work.

    Raises:
        StoreError: there is something else than an empty folder.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or any(not _owner(path) for path in folder.iterdir()):
        raise StoreError(f"folder must be new or empty, got {str(folder)!r}. Choose another.")


def _temporary(folder: Path) -> Path:
    """A new name in ``folder`` that tells whose it is; what killed processes left there goes."""
    sweep(folder)
    return folder / f".biasgym-{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def sweep(folder: Path) -> None:
    """Remove temporary files and folders whose process is dead, or which are older than a day."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            owner = _owner(entry)
            if owner and _is_stale(entry, *owner.groups()):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


def _owner(entry: Path | os.DirEntry[str]) -> re.Match[str] | None:
    """Host and process that a temporary file belongs to; None for another file."""
    return re.fullmatch(r"\.biasgym-(.*)-(\d+)-[0-9a-f]{8}\.tmp", entry.name)


def _is_stale(entry: os.DirEntry[str], host: str, pid: str) -> bool:
    if host == _host() and os.name == "posix":  # elsewhere asking would end the process
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > 24 * 3600


def _host() -> str:
    return re.sub(r"\W+", "-", platform.node())[:32]


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    return write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file, whole or not at all."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, what: str, error: type[BiasGymError]) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark.

    Args:
        path: The file.
        what: What it is called in errors.
        error: Type of the errors.

    Raises:
        BiasGymError: of the type ``error``; the file is missing, cannot be read, or is in another
            encoding.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as fault:
        raise error(f"{what} must exist, got {str(path)!r}. Check the path.") from fault
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise error(f"{what} must be readable, got {str(path)!r} ({reason}).") from fault
    return decoded(raw, path.name, error)


def decoded(raw: bytes, name: str, error: type[BiasGymError]) -> str:
    """Bytes of a text file as text, lines ending in one newline.

    Raises:
        BiasGymError: of the type ``error``; they are not UTF-8.
    """
    try:
        text = raw.decode("utf-8-sig")
        at = raw.find(0)  # UTF-16 without a mark can be read as UTF-8, with a zero in each letter
    except UnicodeDecodeError as fault:
        at = fault.start
    if at >= 0:
        line = raw.count(b"\n", 0, at) + 1
        raise error(
            f"{name} must be UTF-8, got the byte 0x{raw[at]:02x} in line {line}. Save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


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

    Args:
        path: The file.
        kind: What it must hold.
        build: Makes it.
        digested: Whether it must have a checksum; otherwise one that a person wrote may lack it.

    Raises:
        StoreError: the file is missing, is not JSON, was changed since it was written, or does not
            hold a whole result of this kind.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.pop("kind", None) != kind:
        raise StoreError(f"{str(path)!r} must hold a {kind}, and does not.")
    try:
        if digested and "digest" not in values:
            raise StoreError(_CHANGED)
        if "digest" in values and values.pop("digest") != digest(values):
            raise StoreError(_CHANGED)
        return build(values)
    except BROKEN as error:
        raise StoreError(f"{str(path)!r} must hold a whole {kind}, but: {error}.") from error


_CHANGED = (
    "it is not as it was written, by its checksum. If that was you, remove its 'digest'; otherwise "
    "make the file again"
)


def as_declared(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values from JSON as the fields of a dataclass declare them: its lists as tuples, and so on.

    Raises:
        StoreError: there is no such field, or a value is of another type.
    """
    from pydantic import ValidationError

    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise StoreError(f"{kind.__name__} must hold only its fields, got {unknown}")
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None and type(None) in get_args(get_type_hints(kind)[name]):
            found[name] = None  # also of a tensor, of which JSON can say no more
            continue
        try:
            raw = json.dumps([value])
            (found[name],) = _reader(kind, name).validate_json(raw, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (name, *first["loc"][1:])))
            raise StoreError(f"{where} is not as declared: {first['msg']}") from error
    return found


@cache
def _reader(kind: type, name: str) -> Any:
    """Reads a list of one value; a dataclass within it must hold only its fields, too."""
    from pydantic import ConfigDict, TypeAdapter

    declared: Any = tuple[get_type_hints(kind)[name]]  # type: ignore[misc]
    return TypeAdapter(declared, config=ConfigDict(extra="forbid"))


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
class Result:
    """Base of the frozen dataclasses that are kept, each as one file that :meth:`load` reads.

    With tensors among its fields it is a ``.safetensors`` file, the rest in its header; without, a
    JSON file. Both hold the name of the class and a checksum.
    """

    def record(self) -> dict[str, Any]:
        """All fields but tensors, as the file holds them."""
        return {k: v for k, v in self._fields().items() if not isinstance(v, Tensor)}

    @classmethod
    def has_tensors(cls) -> bool:
        """Whether a field is declared to hold a tensor."""
        hints = get_type_hints(cls).values()
        parts = [part for hint in hints for part in (hint, *get_args(hint))]
        return any(isinstance(p, type) and issubclass(p, (Tensor, AbstractArray)) for p in parts)

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def save(self, path: str | Path) -> Path:
        """Write one file; that of a result with tensors ends in ``.safetensors``."""
        kind = type(self)
        if not kind.has_tensors():
            return write_kind(Path(path), kind.__name__, self.record())
        tensors = {key: value for key, value in self._fields().items() if isinstance(value, Tensor)}
        return save_result(path, kind.__name__, tensors, self.record())

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
    hints = get_type_hints(kind)
    with jaxtyped("context"):  # in which equal names of dimensions must be equal numbers
        for name, tensor in tensors.items():
            if not isinstance(tensor, hints[name]):
                raise StoreError(f"{name} has the shape {tuple(tensor.shape)}, {tensor.dtype}")
    return tensors


def result_path(path: str | Path) -> Path:
    """Add ``.safetensors`` unless it is there; other dots belong to the name ("lr-0.01")."""
    return Path(path) if str(path).endswith(".safetensors") else Path(f"{path}.safetensors")
