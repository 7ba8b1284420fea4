"""Rows of a public data set, from a local file, a table, or by its ``datasets`` name."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from biasgym_tl.biases.corpus import as_rows, loading, read_jsonl
from biasgym_tl.errors import BenchmarkError, BiasFileError
from biasgym_tl.warned import warn

Row = dict[str, Any]
Item = TypeVar("Item", bound=Hashable)


def source_name(source: Any) -> str:
    """What a source is called in results: its file or data set; a table has no name."""
    return str(source) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"


def file_name(source: Any) -> str:
    """What a source is called in errors."""
    return Path(source_name(source)).name


def read_rows(source: Any, columns: Sequence[str], *, texts: Sequence[str] = ()) -> list[Row]:
    """Rows of a ``.csv`` (all values text) or ``.jsonl`` file, or of a data set of ``datasets``.

    Of a data set all splits are read, one after the other; class labels become their names.

    Args:
        source: A path that ends in ``.csv`` or ``.jsonl``; otherwise a folder or hub name that
            ``datasets.load_dataset`` can load, with a configuration as ``"name:configuration"``.
            Or the rows themselves: a ``DataFrame``, a ``Dataset``, a ``DatasetDict`` (the split
            ``test``, if it has several), or a list of mappings.
        columns: Columns that must be there.
        texts: Columns that must be there and hold text in each row.

    Raises:
        BenchmarkError: there is nothing there, it has no row, a column is missing, or a text is.
    """
    name = file_name(source)
    rows = _rows(source, name)
    columns = [*columns, *texts]
    missing = sorted({c for row in rows for c in columns if c not in row})
    if missing or not rows:
        found = sorted(rows[0]) if rows else "no row"
        raise BenchmarkError(
            f"{name} must hold rows with the columns {columns}, got {found}"
            f"{f', without {missing}' if missing else ''}. Is it the right file?"
        )
    for number, row in enumerate(rows, start=1):
        for column in texts:
            if not isinstance(row[column], str) or not row[column].strip():
                raise BenchmarkError(
                    f"{column} must be text in row {number} of {name}, got {row[column]!r}."
                )
    return rows


def _rows(source: Any, name: str) -> list[Row]:
    if not isinstance(source, (str, Path)):
        try:
            return [dict(row) for row in as_rows(source, name, split="test")]
        except (BiasFileError, TypeError, ValueError) as error:
            raise BenchmarkError(f"source must hold rows of named values, but: {error}.") from error
    path = Path(source)
    if path.suffix not in (".csv", ".jsonl"):
        return _load_dataset(str(source))
    if not path.is_file():
        raise BenchmarkError(f"source must be a file that exists, got {str(path)!r}.")
    return _read_csv(path) if path.suffix == ".csv" else _read_jsonl(path)


def _read_csv(path: Path) -> list[Row]:
    import pandas as pd

    try:
        # Plain text: "NA" is a name here, not a missing number.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except ValueError as error:
        raise BenchmarkError(f"{path.name} must be a CSV table, but: {error}.") from error
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _read_jsonl(path: Path) -> list[Row]:
    rows = read_jsonl(path, BenchmarkError)
    for row in rows:
        if not isinstance(row, dict):
            raise BenchmarkError(f"lines of {path.name} must hold named values, got {row!r}.")
    return rows


def _load_dataset(source: str) -> list[Row]:
    import datasets

    name, _, configuration = source.rpartition(":")
    # A folder may have a colon in its name, and on Windows stands after one.
    if Path(source).exists() or not name or set(configuration) & {"/", "\\"}:
        name, configuration = source, ""
    expected = "source must be a .csv or .jsonl file or a data set that can be loaded"
    with loading(expected, source, BenchmarkError):
        splits = datasets.load_dataset(name, configuration or None)
    return [row for split in splits.values() for row in _with_names(split)]


def _with_names(split: Any) -> list[Row]:
    """Rows of a split with class labels as text."""
    labels = {key: of for key, of in split.features.items() if hasattr(of, "int2str")}
    return [{**row, **{key: of.int2str(row[key]) for key, of in labels.items()}} for row in split]


def once(
    items: Iterable[Item],
    where: str,
    claim: Callable[[Item], tuple[Hashable, Hashable]] | None = None,
) -> list[Item]:
    """Items in their order, each once; a warning says how many stood there again.

    Args:
        items: They.
        where: What the source is called.
        claim: What an item asks and what it says the answer is, for :func:`warn_of_contradictions`.
    """
    found = list(items)
    kept = list(dict.fromkeys(found))
    if len(kept) < len(found):
        warn(
            f"{where}: {len(found) - len(kept)} of {len(found)} items stand there again; each "
            "counts once.",
            stacklevel=3,
        )
    if claim is not None:
        warn_of_contradictions(map(claim, kept), where, stacklevel=4)
    return kept


def warn_of_contradictions(
    claims: Iterable[tuple[Hashable, Hashable]], where: str, stacklevel: int = 3
) -> None:
    """Warn of what is asked more than once with different answers, and say how many there are."""
    answers: dict[Hashable, set[Hashable]] = {}
    for asked, answer in claims:
        answers.setdefault(asked, set()).add(answer)
    n = sum(len(found) > 1 for found in answers.values())
    if n:
        warn(
            f"{where}: {n} of {len(answers)} items stand there again with another answer "
            "that contradicts it; each counts. Correct the source.",
            stacklevel=stacklevel,
        )
