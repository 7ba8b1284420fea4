"""Files and folders, written whole or not at all, and texts in UTF-8."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biasgym_tl.errors import BiasGymError, SettingError, StoreError

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


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


def check_writable(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be written to, or made and written to; creates nothing.

    Raises:
        SettingError: it is a file or a broken link, below one, or belongs to somebody else.
    """
    place, wanted, why = folder.absolute(), "a folder", ""
    try:
        while not _is_there(place):
            place = place.parent
    except OSError as error:  # such as a name that is too long
        why = f" ({error.strerror})"
    else:
        if not place.is_dir():
            why = f", where {str(place)!r} is a file or a broken link"
        elif not os.access(place, os.W_OK | os.X_OK):
            wanted = "a folder that can be written to"
        else:
            return
    raise SettingError(f"{name} must be {wanted}, got {str(folder)!r}{why}. Choose another.")


def _is_there(path: Path) -> bool:
    """Whether there is something, were it a broken link."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return bool(path.lstat())
    return False


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
        # Some libraries make files that only their owner can read.
        mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
        for path in temporary.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(mode)
        if inside:
            for path in sorted(temporary.iterdir()):
                os.replace(path, folder / path.name)
        else:
            temporary.rename(folder)
    return folder


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


def read_text(path: Path, what: str, error: type[BiasGymError]) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark; errors call it ``what``.

    Raises:
        BiasGymError: of the type ``error``; the file is missing, unreadable, or not in UTF-8.
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
