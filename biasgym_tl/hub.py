"""Results in a repository of the Hugging Face hub, or in a folder that is laid out as one.

One repository holds one result, as a safetensors or JSON file that says its kind, and a card.
Nothing in it is executed: what does not read as a result of that kind is refused.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from html import escape
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast
from urllib.parse import unquote, urlsplit

from biasgym_tl.errors import SettingError, StoreError, first_line
from biasgym_tl.files import expanded, temporary_folder, write_text
from biasgym_tl.notebook import Card, Carded, cell

Shared = TypeVar("Shared", bound="Shareable")
CARD = "README.md"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MARKED = re.compile(r"([\\`*_\[\]|#~])")


class Shareable(Carded):
    """What can be pushed to a repository, and is read back from one by its own class."""

    _not_shown: ClassVar[str] = (
        "Numbers hold for this model, these prompts and these targets, and say nothing of others."
    )
    """What a reader must not conclude from it."""

    def push_to_hub(self, to: str | Path, *, private: bool = True) -> str:
        """Put it into a repository with a card that says what it is and what it does not show.

        Args:
            to: ``"owner/name"`` on the Hugging Face hub, for which you are logged in
                (``hf auth login``); or a folder: a ``Path``, ``"file:///..."``, or text that begins
                with ``.``, ``/`` or ``~``. It is new, or holds a result of the same kind alone.
            private: Whether a new repository is private.

        Returns:
            Where it is: the address, or the folder.

        Raises:
            SettingError: ``to`` is neither.
            StoreError: there is something else, or it cannot be written.
        """
        this, name, folder = cast(Any, self), file_of(type(self)), _folder_of(to)
        if folder is not None:
            there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            _check_ours(there, name, to)
            with _failing(to), temporary_folder(folder) as temporary:
                this.save(temporary / name)
                write_text(temporary / CARD, card_text(self, name, "owner/name"))
                for file in (name, CARD):
                    os.replace(temporary / file, folder / file)
            return str(folder)
        import huggingface_hub as hub

        with _failing(to), tempfile.TemporaryDirectory() as made:
            this.save(Path(made) / name)
            write_text(Path(made) / CARD, card_text(self, name, str(to)))
            address = hub.create_repo(str(to), private=private, exist_ok=True)
            _check_ours(hub.list_repo_files(str(to)), name, to)
            hub.upload_folder(repo_id=str(to), folder_path=made, commit_message=f"Add {name}")
        return str(address)

    @classmethod
    def from_hub(cls: type[Shared], source: str | Path, *, revision: str | None = None) -> Shared:
        """Read what :meth:`push_to_hub` put there.

        Args:
            source: As ``to`` of :meth:`push_to_hub`.
            revision: Branch, tag or commit of a repository on the hub.

        Raises:
            SettingError: ``source`` is neither, or a folder with a revision.
            StoreError: it does not hold a whole result of this kind, or cannot be read.
        """
        name, folder = file_of(cls), _folder_of(source)
        if folder is None:
            import huggingface_hub as hub

            with _failing(source, f"must hold a {cls.__name__} as {name!r}"):
                path = Path(hub.hf_hub_download(str(source), name, revision=revision))
        else:
            _check_revision(revision)
            path = folder / name
            if not path.is_file():
                there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "nothing"
                raise StoreError(
                    f"{str(source)!r} must hold a {cls.__name__} as {name!r}, got {there}."
                )
        return cast(Shared, cast(Any, cls).load(path))


def card_text(result: Any, name: str, at: str) -> str:
    """The card of a repository; all text of a model or a user is escaped.

    Args:
        result: What it is about.
        name: Its file.
        at: The repository.
    """
    kind, (title, rows, notes) = type(result), cast(Card, result._card())
    head, *below = rows or [()]
    table = [head, ["---"] * len(head), *below] if rows else []
    lines = [f"| {' | '.join(_marked(cell(each)) for each in row)} |" for row in table]
    lines[1:2] = [line.replace("\\", "") for line in lines[1:2]]
    about = [f"- {field}: {_marked(value)}" for field in ("model", "bias", "attribute")
             if (value := getattr(result, field, ""))]  # fmt: skip
    parts = (
        "---\nlibrary_name: biasgym_tl\ntags:\n- biasgym\n- mechanistic-interpretability\n---",
        f"# {kind.__name__}: {_marked(title)}",
        (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("``", "`"),
        "\n".join(about),
        "\n".join(lines),
        "\n".join(f"- {_marked(note)}" for note in notes),
        f"**What it does not show.** {kind._not_shown}",
        f"```python\nfrom {kind.__module__} import {kind.__name__}\n\n"
        f'{kind.__name__}.from_hub("{at}")\n```',
        f"`{name}` holds numbers and text with a checksum; reading it runs nothing that is in it.",
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _marked(value: Any) -> str:
    return escape(_MARKED.sub(r"\\\1", " ".join(str(value).split())), quote=False)


def file_of(kind: Any) -> str:
    """The file of a result of a class in its repository."""
    return f"{kind.__name__}.{'safetensors' if kind.has_tensors() else 'json'}"


def files_in(source: str | Path, *, revision: str | None = None) -> list[str]:
    """The names of all files in a repository or folder, which are as of
    :meth:`Shareable.from_hub`.

    Raises:
        SettingError: ``source`` is neither, or a folder with a revision.
        StoreError: it is not there, or cannot be read.
    """
    folder = _folder_of(source)
    if folder is None:
        import huggingface_hub as hub

        with _failing(source, "must be a repository that can be read"):
            return sorted(hub.list_repo_files(str(source), revision=revision))
    _check_revision(revision)
    if not folder.is_dir():
        raise StoreError(f"{str(source)!r} must be a folder, and is not. Check the path.")
    return sorted(path.name for path in folder.iterdir())


def _check_revision(of_folder: str | None) -> None:
    if of_folder is not None:
        raise SettingError(f"revision must be None for a folder, got {of_folder!r}.")


def _folder_of(given: str | Path) -> Path | None:
    """The folder that is meant; None: a repository on the hub."""
    if isinstance(given, Path):
        return expanded(given, "folder")
    if given.startswith("file://"):
        return Path(unquote(urlsplit(given).path))
    if given.startswith((".", "/", "~")):
        return expanded(given, "folder")
    if not _REPOSITORY.fullmatch(given):
        raise SettingError(
            "repository must be written 'owner/name', or be a folder such as './name' or "
            f"'file:///folder', got {given!r}."
        )
    return None


def _check_ours(there: Collection[str], name: str, where: str | Path) -> None:
    """Refuse to write among other files."""
    others = sorted({*there} - {name, CARD, ".gitattributes", ".git", ".cache"})
    if others or (CARD in there and name not in there):
        raise StoreError(
            f"{str(where)!r} must be new, or hold {name!r} alone, got {others or [CARD]}. Take "
            "another name for each result."
        )


@contextlib.contextmanager
def _failing(where: str | Path, must: str = "must be a place to write to") -> Iterator[None]:
    """Errors of the hub and of disks as one of ours."""
    try:
        yield
    except _faults() as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{str(where)!r} {must}, but: {first_line(error)}. Is the name right, and are you "
            "logged in (hf auth login)?"
        ) from error


def _faults() -> tuple[Any, ...]:
    """What disks and huggingface_hub raise; without a network, an error of its HTTP library alone,
    which is httpx or httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, *HfHubHTTPError.__bases__)
