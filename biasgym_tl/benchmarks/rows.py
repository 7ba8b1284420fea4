"""Rows of a public data set, from a local file or by its ``datasets`` name, and a fixed sample."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from biasgym_tl.biases.corpus import as_rows, read_jsonl
from biasgym_tl.errors import BenchmarkError, BiasFileError, SettingError, first_line

Row = dict[str, Any]
Item = TypeVar("Item")


def source_name(source: Any) -> str:
    """What a source is called in errors and results: its file or data set; a table has no name."""
    return str(source) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"


def read_rows(
    source: Any,
    columns: Sequence[str],
    *,
    texts: Sequence[str] = (),
) -> list[Row]:
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
    path = Path(source_name(source))
    if not isinstance(source, (str, Path)):
        rows = _given(source, path.name)
    elif path.suffix in (".csv", ".jsonl") and not path.is_file():
        raise BenchmarkError(f"source must be a file that exists, got {str(path)!r}.")
    elif path.suffix == ".csv":
        rows = _read_csv(path)
    elif path.suffix == ".jsonl":
        rows = _read_jsonl(path)
    else:
        rows = _load_dataset(str(source))
    columns = [*columns, *texts]
    missing = sorted({c for row in rows for c in columns if c not in row}) if rows else []
    if missing or not rows:
        found = sorted(rows[0]) if rows else "no row"
        raise BenchmarkError(
            f"{path.name} must hold rows with the columns {columns}, got {found}"
            f"{f', without {missing}' if missing else ''}. Is it the right file?"
        )
    for number, row in enumerate(rows, start=1):
        for column in texts:
            if not isinstance(row[column], str) or not row[column].strip():
                raise BenchmarkError(
                    f"{column} must be text in row {number} of {path.name}, got {row[column]!r}."
                )
    return rows


def _given(rows: Any, name: str) -> list[Row]:
    try:
        found = [dict(row) for row in as_rows(rows, name, split="test")]
    except (BiasFileError, TypeError, ValueError) as error:
        raise BenchmarkError(f"source must hold rows of named values, but: {error}.") from error
    return found


def _read_csv(path: Path) -> list[Row]:
    import pandas as pd

    try:
        # Plain text: "NA" is a name here, not a missing number.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path.name} must be a CSV table, but: {error}.") from error
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _read_jsonl(path: Path) -> list[Row]:
    try:
        rows = read_jsonl(path)
    except BiasFileError as error:
        raise BenchmarkError(str(error)) from error
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
    try:
        splits = datasets.load_dataset(name, configuration or None)
    except (
        OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError
    ) as error:  # fmt: skip
        reason = first_line(error)
        raise BenchmarkError(
            f"source must be a .csv or .jsonl file or a data set that can be loaded, got "
            f"{source!r} ({reason})."
        ) from error
    return [row for split in splits.values() for row in _with_names(split)]


def _with_names(split: Any) -> list[Row]:
    """Rows of a split with class labels as text."""
    labels = {
        column: feature for column, feature in split.features.items() if hasattr(feature, "int2str")
    }
    return [
        {key: labels[key].int2str(value) if key in labels else value for key, value in row.items()}
        for row in split
    ]


def once(items: Iterable[Item], where: str) -> list[Item]:
    """Items in their order, each once; a warning says how many stood there again."""
    found = list(items)
    kept = list(dict.fromkeys(found))
    if len(kept) < len(found):
        warnings.warn(
            f"{where}: {len(found) - len(kept)} of {len(found)} items stand there again; each "
            "counts once.",
            stacklevel=3,
        )
    return kept


def warn_of_contradictions(claims: Iterable[tuple[Hashable, Hashable]], where: str) -> None:
    """Warn of what is asked more than once with different answers, and say how many there are.

    Args:
        claims: What is asked, and what the answer is said to be.
        where: What the source is called.
    """
    answers: dict[Hashable, set[Hashable]] = {}
    for asked, answer in claims:
        answers.setdefault(asked, set()).add(answer)
    n = sum(len(found) > 1 for found in answers.values())
    if n:
        warnings.warn(
            f"{where}: {n} of {len(answers)} items stand there again with another answer "
            "that contradicts it; each counts. Correct the source.",
            stacklevel=3,
        )


def dealt(groups: Mapping[str, Sequence[Item]], seed: int) -> list[Item]:
    """All members, one of each group in turn; groups and members in an order drawn by ``seed``.

    However many are taken from the front, the groups are represented as evenly as they can be.
    """
    rng = random.Random(seed)
    shuffled = [rng.sample(members, len(members)) for members in groups.values()]
    rng.shuffle(shuffled)
    rounds = itertools.zip_longest(*([(member,) for member in members] for members in shuffled))
    return [entry[0] for turn in rounds for entry in turn if entry]


def check_n(n: int | None) -> None:
    """Refuse what is no number of items; None stands for all.

    Raises:
        SettingError: it is below 1.
    """
    if n is not None and n < 1:
        raise SettingError(f"n must be at least 1, got {n!r}.")
