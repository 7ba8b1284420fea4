"""Locks on paths among processes, also of machines that share the cache folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from biasgym_tl.store import cache_dir, digest


@contextlib.contextmanager
def locked(path: Path, wait: int | float = -1) -> Iterator[bool]:
    """Hold a lock on a path; it is free again when its holder ends or dies.

    Yields:
        Whether it is held: not if another process has it for ``wait`` seconds (-1: ever so long).
    """
    from filelock import FileLock, Timeout

    lock = _lock_of(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        held = True
        try:
            stack.enter_context(FileLock(lock).acquire(wait))
        except Timeout:
            held = False
        yield held


def is_locked(path: Path) -> bool:
    """Whether some process holds a lock on a path now; makes nothing."""
    if not _lock_of(path).exists():
        return False
    with locked(path, wait=0.2) as free:  # another that asks holds it for a moment
        return not free


def _lock_of(path: Path) -> Path:
    return cache_dir() / "locks" / f"{digest(str(path.resolve()))}.lock"
