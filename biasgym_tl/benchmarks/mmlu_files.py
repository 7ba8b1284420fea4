"""MMLU's questions, from the ``datasets`` library or from folders of CSV files."""

from __future__ import annotations

import ast
import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from biasgym_tl.biases.corpus import loading
from biasgym_tl.errors import BenchmarkError
from biasgym_tl.files import decoded

Row = TypeVar("Row")
LETTERS = "ABCD"
_MAC_ROMAN = "66899acc38302e45f73eadccf4d7465d0c5e5ff17fb6fc3ee1917cef74484b50"
"""Of MMLU-Redux's ``mmlu_moral_scenarios.csv``, the one file that is not UTF-8."""


class MultipleChoice(NamedTuple):
    """A question with four answers."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Place of the right one."""
    sound: bool = True
    """False where MMLU-Redux found an error in it."""

    def key(self) -> tuple[str, tuple[str, ...]]:
        """What is asked, whatever the order of the choices."""
        return self.question.strip(), tuple(sorted(choice.strip() for choice in self.choices))

    def asked(self) -> str:
        """The question as it stands in a prompt, up to the letter of its answer."""
        choices = [f"{letter}. {text}" for letter, text in zip(LETTERS, self.choices, strict=True)]
        return "\n".join([self.question.strip(), *choices, "Answer:"])


class Subject(NamedTuple):
    """The questions of one subject."""

    dev: tuple[MultipleChoice, ...]
    """Questions that may be shown with their answers; empty where none are set apart."""
    test: tuple[MultipleChoice, ...]


def read_mmlu(source: str | Path) -> dict[str, Subject]:
    """Questions by subject, in alphabetical order.

    Args:
        source: A folder with ``dev/*_dev.csv`` and ``test/*_test.csv`` (as Hendrycks et al.
            distribute it), a folder of MMLU-Redux's ``mmlu_*.csv``, or what
            ``datasets.load_dataset(source, "all")`` reads, such as ``"cais/mmlu"``.

    Raises:
        BenchmarkError: the source cannot be read, or a question does not hold what it must.
    """
    folder = Path(source)
    if (folder / "test").is_dir():
        found = _original(folder)
    elif paths := sorted(folder.glob("mmlu_*.csv")):
        found = {path.stem.removeprefix("mmlu_"): Subject((), _redux(path)) for path in paths}
    else:
        found = _datasets(str(source))
    if not any(subject.test for subject in found.values()):
        raise BenchmarkError(f"source must hold MMLU's questions, got none in {str(source)!r}.")
    return dict(sorted(found.items()))


def _original(folder: Path) -> dict[str, Subject]:
    def read(path: Path) -> tuple[MultipleChoice, ...]:
        rows = _rows(path, csv.reader) if path.is_file() else []
        return tuple(
            _checked(row[:1], row[1:5], "".join(row[5:]).strip(), f"{path.name}, question {i}")
            for i, row in enumerate(rows, start=1)
        )

    def subject(name: str) -> Subject:
        return Subject(*(read(folder / split / f"{name}_{split}.csv") for split in ("dev", "test")))

    names = [path.stem.removesuffix("_test") for path in (folder / "test").glob("*_test.csv")]
    return {name: subject(name) for name in names}


def _redux(path: Path) -> tuple[MultipleChoice, ...]:
    """MMLU-Redux (Gema et al. 2024); some of its files have semicolons, some commas."""

    def reader(file: io.StringIO) -> csv.DictReader[str]:
        header = file.readline()
        file.seek(0)
        return csv.DictReader(file, delimiter=max(",;", key=header.count))

    found = []
    for i, row in enumerate(_rows(path, reader), start=1):
        where = f"{path.name}, question {i}"
        try:
            question, answer = row["question"], row["answer"]
            choices = ast.literal_eval(row["choices"])
            sound = row["error_type"].strip().lower() == "ok"
        except (KeyError, AttributeError, SyntaxError, ValueError) as error:
            raise BenchmarkError(
                f"{where} must have question, choices, answer and error_type, got {dict(row)!r}."
            ) from error
        found.append(_checked([question], choices, answer, where)._replace(sound=sound))
    return tuple(found)


def _datasets(name: str) -> dict[str, Subject]:
    from datasets import load_dataset

    expected = (
        "source must be a folder of MMLU's or MMLU-Redux's CSV files or a name that the datasets "
        "library can load with the configuration 'all'"
    )
    columns = {"subject", "question", "choices", "answer"}
    found: dict[str, tuple[list[MultipleChoice], ...]] = defaultdict(lambda: ([], []))
    for place, split in enumerate(("dev", "test")):
        with loading(expected, name, BenchmarkError):
            rows = load_dataset(name, "all", split=split)
        if not columns <= set(rows.column_names):
            raise BenchmarkError(
                f"{name!r} must have the columns {sorted(columns)}, got {rows.column_names}."
            )
        for i, row in enumerate(rows, start=1):
            item = _checked([row["question"]], row["choices"], row["answer"], f"{split} {i}")
            found[row["subject"]][place].append(item)
    return {name: Subject(tuple(dev), tuple(test)) for name, (dev, test) in found.items() if test}


def _checked(question: list[str], choices: Any, answer: int | str, where: str) -> MultipleChoice:
    """A question with its answer as a place, a digit or a letter."""
    places = {str(key): place for place, letter in enumerate(LETTERS) for key in (place, letter)}
    text = len(question) == 1 and isinstance(question[0], str)
    whole = text and isinstance(choices, list) and len(choices) == len(LETTERS)
    if not whole or str(answer) not in places:
        raise BenchmarkError(
            f"{where} must have a question, four choices and the place or letter of the right one, "
            f"got {question!r}, {choices!r} and {answer!r}."
        )
    return MultipleChoice(question[0], tuple(map(str, choices)), places[str(answer)])


def _rows(path: Path, reader: Callable[[io.StringIO], Iterable[Row]]) -> list[Row]:
    try:
        return list(reader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise BenchmarkError(f"{path.name} must be a CSV table, but: {error}.") from error


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if hashlib.sha256(raw.replace(b"\r\n", b"\n")).hexdigest() == _MAC_ROMAN:
        return raw.decode("mac_roman")
    decoded(raw, path.name, BenchmarkError)
    return raw.decode("utf-8-sig")  # new lines within a text as they stand
