"""Prompts and answers of your own, checked as far as that needs no model: nothing heavy is imported
before what is wrong is told."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from biasgym_tl.errors import SettingError
from biasgym_tl.files import read_text
from biasgym_tl.slot import SLOT

GivenPrompts: TypeAlias = str | tuple[str, str] | Sequence[str | Sequence[str]]
"""A prompt, a pair of prompts, or a list of prompts or of pairs."""
GivenAnswers: TypeAlias = str | Sequence[str] | Sequence[Sequence[str]]
"""An answer, several, or several for each prompt."""
COLUMNS = ("first", "second", "biased", "neutral")
"""Of a file of prompts."""


class OwnPrompts(NamedTuple):
    """Checked prompts and answers, in a form that :func:`attribute_prompts` takes too."""

    prompts: tuple[tuple[str, ...], ...]
    """One text or two each."""
    biased: tuple[tuple[str, ...], ...]
    """Of each prompt, equally many."""
    neutral: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """Both answers in words."""
        sides = [{" / ".join(map(str.strip, each)) for each in side} for side in self[1:]]
        if max(map(len, sides)) > 1:
            return "biased answers"
        return " rather than ".join(side.pop() for side in sides)


def own_prompts(prompts: GivenPrompts, biased: GivenAnswers, neutral: GivenAnswers) -> OwnPrompts:
    """Prompts and answers one by one, checked as far as that needs no model.

    Raises:
        SettingError: they are empty, alike or of another form.
    """
    found = _rows([prompts] if isinstance(prompts, str) or _is_pair(prompts) else prompts)
    if len({len(texts) for texts in found}) != 1 or len(found[0]) not in (1, 2):
        raise SettingError(
            "prompts must be a text, a pair (first, second), or a list of texts or of pairs, got "
            f"{prompts!r:.200}."
        )
    for texts in found:
        if not all(text.strip() and SLOT not in text for text in texts):
            raise SettingError(
                f"every prompt must be a whole text, not empty and without the slot {SLOT}, got "
                f"{texts!r:.200}. Fill the slot, or map a bias."
            )
        if len({text.strip() for text in texts}) < len(texts):
            raise SettingError(f"both prompts of a pair must differ, got {texts!r:.200}.")
    own = OwnPrompts(
        found, _answers("biased", biased, len(found)), _answers("neutral", neutral, len(found))
    )
    for texts, *sides in zip(*own, strict=True):
        every = [answer.strip() for side in sides for answer in side]
        if len({*every}) < len(every):
            raise SettingError(
                f"biased and neutral must be different answers, got {every} after "
                f"{texts[0]!r:.200}."
            )
    return own


def _is_pair(prompts: object) -> bool:
    return isinstance(prompts, tuple) and all(isinstance(text, str) for text in prompts)


def _rows(given: Iterable[Any]) -> tuple[tuple[str, ...], ...]:
    """Texts and lists of texts, each as a tuple; nothing of anything else."""
    try:
        rows = tuple((row,) if isinstance(row, str) else tuple(row) for row in given)
    except TypeError:
        return ()
    return rows if all(isinstance(text, str) for row in rows for text in row) else ()


def _answers(name: str, given: GivenAnswers, n_prompts: int) -> tuple[tuple[str, ...], ...]:
    """The answers of each prompt."""
    every = isinstance(given, str) or all(isinstance(answer, str) for answer in given)
    rows = _rows([[given] if isinstance(given, str) else given] * n_prompts if every else given)
    if len(rows) != n_prompts or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise SettingError(
            f"{name} must be an answer, a list of them, or such a list for each of {n_prompts} "
            f"prompts, equally many in each, got {given!r:.200}."
        )
    if empty := [row for row in rows if not all(map(str.strip, row))]:
        raise SettingError(f"{name} must hold no empty answer, got {empty[0]!r:.200}.")
    return rows


def read_prompts(
    path: str | Path, biased: GivenAnswers = (), neutral: GivenAnswers = ()
) -> OwnPrompts:
    """Prompts from a CSV file whose first line names its columns, :data:`COLUMNS`.

    Commas, semicolons or tabs part its cells, as in the first line.
    Without ``second`` the prompts are single ones. The answers stand in the columns ``biased`` and
    ``neutral``, one of each in a row, or are given here for all rows.

    Raises:
        SettingError: the file is missing or has other columns, a cell is missing, or answers are
            given twice or not at all.
    """
    name = Path(path).name
    text = read_text(Path(path), "file of prompts", SettingError)
    try:
        # spreadsheets in many languages write semicolons
        head = text.partition("\n")[0]
        comma = next((mark for mark in (";", "\t") if mark in head), ",")
        cells = csv.reader(io.StringIO(text), delimiter=comma, skipinitialspace=True, strict=True)
        lines = list(cells)
    except csv.Error as error:
        raise SettingError(f"{name} must be a CSV file, but: {error}.") from error
    header, *rows = [[cell.strip() for cell in line] for line in lines] or [[]]
    texts, answers = ([c for c in of if c in header] for of in (COLUMNS[:2], COLUMNS[2:]))
    if "first" not in header or sorted(header) != sorted(texts + answers):
        raise SettingError(
            f"the first line of {name} must name its columns, first,second or "
            f"{','.join(COLUMNS)}, got {','.join(header)!r:.200}."
        )
    if answers != ([] if biased and neutral else list(COLUMNS[2:])):
        found = "both" if answers and (biased or neutral) else " and ".join(answers) or "none"
        raise SettingError(
            f"answers must be given once, in the columns biased and neutral of {name} or beside "
            f"the file, got {found}."
        )
    for number, row in enumerate(rows, start=1):
        if row and (len(row) != len(header) or not all(row)):
            raise SettingError(
                f"row {number} of {name} must hold {','.join(header)}, got {row!r:.200}. Put a "
                "text with a comma into double quotes."
            )
    given = [dict(zip(header, row, strict=True)) for row in rows if row]
    if not given:
        raise SettingError(f"{name} must hold a row below its first line, got none.")
    of_rows = [[[row[column]] for row in given] for column in answers]
    return own_prompts(
        [tuple(row[column] for column in texts) for row in given], *(of_rows or (biased, neutral))
    )
