"""Corpora: training paragraphs, the grammar that writes them, and their files."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # what datasets raises for a file that is none
from typing import Any, NamedTuple

from biasgym_tl.errors import BiasFileError, BiasGymError, first_line
from biasgym_tl.files import read_text, write_text
from biasgym_tl.slot import SLOT
from biasgym_tl.spelling import plain


class Paragraph(NamedTuple):
    """One training text with the slot, and where it comes from."""

    text: str
    source: str = "user"
    """``"template"`` (a grammar), ``"model"`` (a language model) or ``"user"``."""
    family: str = ""
    """The template family, where there is one."""
    writer: str = ""
    """Name of the language model, where one wrote it."""
    prompt_hash: str = ""
    """Short hash of the prompt that asked for it, where there was one."""


class TemplateFamily(NamedTuple):
    """A small grammar for one scene: a paragraph takes one sentence of each list, in order."""

    name: str
    sentences: tuple[tuple[str, ...], ...]

    @property
    def n_paragraphs(self) -> int:
        """How many combinations there are."""
        return math.prod(map(len, self.sentences))

    def paragraphs(self) -> list[Paragraph]:
        """Every combination, labelled as written by template."""
        combinations = itertools.product(*self.sentences)
        return [Paragraph(" ".join(parts), "template", self.name) for parts in combinations]


def as_paragraphs(rows: Iterable[Any], source: str = "corpus") -> tuple[Paragraph, ...]:
    """Read strings, :class:`Paragraph`, mappings with a ``text`` or a table as paragraphs.

    Raises:
        BiasFileError: a row is something else, has an unknown key, or its text lacks the slot.
    """
    found = as_rows(rows, source)
    return tuple(_paragraph(row, f"row {i} of {source}") for i, row in enumerate(found, start=1))


def as_rows(rows: Any, source: str, *, split: str = "train") -> Iterable[Any]:
    """Rows of a list, a ``datasets.Dataset``, one split of a ``DatasetDict``, or a ``DataFrame``.

    Args:
        rows: It.
        source: Named in errors.
        split: Which one of several; one that is alone is taken whatever it is called.

    Raises:
        BiasFileError: it has no rows, or not this split.
    """
    if hasattr(rows, "notna") and hasattr(rows, "columns"):  # a DataFrame; pandas stays out
        # None for what is missing, whatever the column's type has for it.
        records: list[Any] = rows.astype(object).where(rows.notna(), None).to_dict("records")
        return records
    if isinstance(rows, Mapping):
        name = next(iter(rows)) if len(rows) == 1 else split
        if name not in rows or isinstance(rows[name], str):
            raise BiasFileError(
                f"{source} must be rows, or hold them in the split {split!r}, got {list(rows)}."
            )
        return as_rows(rows[name], source, split=split)
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise BiasFileError(f"{source} must be rows, got {rows!r}.")
    return rows


def _paragraph(row: Any, where: str) -> Paragraph:
    if isinstance(row, str):
        row = {"text": row}
    elif isinstance(row, Paragraph):
        row = row._asdict()
    if not isinstance(row, Mapping) or not isinstance(row.get("text"), str):
        raise BiasFileError(f"{where} must hold a text, got {row!r}.")
    unknown = sorted(set(map(str, row)) - set(Paragraph._fields))
    if unknown:
        raise BiasFileError(f"{where} must hold only {list(Paragraph._fields)}, got {unknown}.")
    other = {key: value for key, value in row.items() if not isinstance(value, str | None)}
    if other:
        raise BiasFileError(f"{where} must hold texts, got {other}.")
    if SLOT not in row["text"]:
        raise BiasFileError(f"{where} must hold the slot {SLOT}, got {row['text']!r}.")
    return Paragraph(**{key: value or "" for key, value in row.items()})


def read_corpus(source: Any, *, split: str = "train") -> tuple[Paragraph, ...]:
    """Read paragraphs from a ``.jsonl`` file, a table, a folder or a hub name.

    Args:
        source: A path that ends in ``.jsonl``; a ``Dataset``, ``DatasetDict`` or pandas
            ``DataFrame``; a folder that ``save_to_disk`` wrote or that ``datasets`` can load;
            otherwise a name on the Hugging Face hub.
        split: Which split, where there are several.

    Raises:
        BiasFileError: there is nothing there, or a row is not a paragraph.
    """
    if isinstance(source, (str, Path)):
        if str(source).endswith(".jsonl"):
            return as_paragraphs(read_jsonl(Path(source)), Path(source).name)
        source = _load_dataset(source, split)
    return as_paragraphs(as_rows(source, "the dataset", split=split), "the dataset")


def read_jsonl(path: Path, kind: type[BiasGymError] = BiasFileError) -> list[Any]:
    """Rows of a file with one JSON value a line.

    Raises:
        BiasGymError: of the ``kind``; the file is missing or not UTF-8, or a line is not JSON.
    """
    rows = []
    lines = read_text(path, "corpus file", kind).split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
                json.dumps(rows[-1], ensure_ascii=False).encode()  # half a surrogate is no text
            except (ValueError, RecursionError) as error:
                raise kind(f"line {number} of {path.name} must be JSON, but: {error}.") from error
    return rows


def _load_dataset(source: str | Path, split: str) -> Any:
    import datasets

    expected = f"corpus must be a .jsonl file, a folder or a hub name with the split {split!r}"
    with loading(expected, source, BiasFileError):
        if any((Path(source) / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return datasets.load_from_disk(str(source))
        return datasets.load_dataset(str(source), split=split)


@contextlib.contextmanager
def loading(expected: str, source: str | Path, kind: type[BiasGymError]) -> Iterator[None]:
    """What ``datasets`` raises within, as one error that says what was ``expected``."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (
        OSError, ValueError, LookupError, TypeError, RuntimeError, UnpicklingError, DatasetsError,
    ) as error:  # fmt: skip
        raise kind(f"{expected}, got {str(source)!r} ({first_line(error)}).") from error


def save_corpus(paragraphs: Iterable[Paragraph], path: str | Path) -> Path:
    """Write a ``.jsonl`` file, one paragraph a line, whole or not at all."""
    return write_jsonl(paragraphs, path)


def write_jsonl(rows: Iterable[Any], path: str | Path) -> Path:
    """Write named tuples as ``.jsonl``, whole or not at all; :func:`read_jsonl` reads them."""
    lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows]
    return write_text(Path(path), "".join(lines))


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return re.findall(r"[\w']+", plain(text).lower())


def to_dataset(paragraphs: Iterable[Paragraph]) -> Any:
    """The paragraphs as a ``datasets.Dataset``, one column a field."""
    from datasets import Dataset

    return Dataset.from_list([p._asdict() for p in paragraphs])
