"""Heads scored on prompts of your own: no bias, no BiasToken, no training."""

from __future__ import annotations

import csv
import dataclasses
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from biasgym_tl.errors import SettingError, check_one_of
from biasgym_tl.files import read_text
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import SENTENCE_REQUEST, encode_sentence
from biasgym_tl.scoping.direct import check_exact
from biasgym_tl.scoping.pairs import LABELS, Pairs, answer_tokens
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.scoping.scores import OWN_PROMPTS, HeadScores
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

    def scope(self, contrast: str | None, **settings: Any) -> BiasScope:
        """Settings of an attribution; without a ``contrast`` the default of these prompts.

        Raises:
            SettingError: a setting is outside its range, or compares what are no pairs.
        """
        scope: BiasScope = BiasScope(**settings)
        paired, patched = len(self.prompts[0]) == 2, scope.to_neutral
        chosen: Any = contrast or ("difference" if paired and not patched else "biased")
        if not paired and (chosen == "difference" or patched):
            raise SettingError(
                "prompts must be pairs (first, second) to compare both, got single ones. Give "
                "pairs, or use contrast 'biased' and ablate_to 'zero' or 'mean'."
            )
        found: BiasScope = dataclasses.replace(scope, contrast=chosen)
        return found


def attribute_prompts(
    model: HookedTransformer,
    prompts: GivenPrompts,
    biased: GivenAnswers,
    neutral: GivenAnswers,
    *,
    method: str = "direct",
    contrast: str | None = None,
    label: str = "first",
    ablate_to: str = "zero",
    gradient: str = "run",
    answer_only: bool = False,
    request: str | None = SENTENCE_REQUEST,
    batch_size: int = 32,
    progress: bool = False,
) -> HeadScores:
    """Score every head on prompts of your own, by what it adds to *biased minus neutral answer*.

    ``attribute_prompts(model, ("People from France are", "People from Japan are"), "late",
    "early")``. Values are logits, as ``BiasScope`` gives them: positive pushes toward the biased
    answer, of a pair in the first prompt more than in the second. Of several answers the mean logit
    counts: it is linear in what the heads write, so that all parts still sum to it exactly.

    Args:
        model: A model in fp32. A BiasToken may be attached, and stand in the prompts.
        prompts: What stands before the answer: a text, a pair (a tuple of two texts), or a list of
            texts or of pairs.
        biased: An answer, a list of several, or such a list for each prompt (equally many in each).
            A space is put before an answer that has none.
        neutral: The same.
        method: As in ``BiasScope``, as are ``label`` (of an answer of several tokens the
            ``"first"`` counts), ``ablate_to``, ``gradient``, ``answer_only`` and ``batch_size``.
        contrast: ``"difference"``: the first prompt of a pair minus the second, the default for
            pairs; ``"biased"``: the first alone.
        request: What the user asks before the model begins its answer with the prompt, by default
            as prompts of biases are put; None: the prompt alone, as plain text.
        progress: Show a bar while heads are ablated.

    Raises:
        SettingError: prompts or answers are empty, alike or of another form, or do not fit the
            settings.
        AttributionError: the model is not supported, or the parts do not sum to the difference.
        ModelError: the model has no tokenizer, or a prompt is longer than its context.
    """
    check_exact(model)
    own = own_prompts(prompts, biased, neutral)
    scope = own.scope(
        contrast, method=method, label=label, ablate_to=ablate_to, gradient=gradient,
        answer_only=answer_only, batch_size=batch_size,
    )  # fmt: skip
    pairs = _pairs(model, own, label, request)
    names = {"bias": _counted(model, own, label).name, "token": OWN_PROMPTS}
    return scope.score(model, pairs, None, {"request": request}, progress=progress, **names)


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
                f"prompts must be whole texts, not empty and without the slot {SLOT}, got "
                f"{texts!r:.200}. Fill the slot, or give BiasScope a bias."
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


def _pairs(model: HookedTransformer, own: OwnPrompts, label: str, request: str | None) -> Pairs:
    """The tokens of prompts and answers.

    Raises:
        SettingError: answers begin alike, or cannot count with this label.
    """
    check_one_of("label", label, LABELS)
    n_answers = max(len(own.biased[0]), len(own.neutral[0]))
    if label == "continuation" and n_answers > 1:
        raise SettingError(
            f"label must be 'first' or 'token' with several answers, got 'continuation' with "
            f"{n_answers}: only of single tokens the mean logit has a meaning."
        )
    end = None if label == "continuation" else 1
    biased, neutral = (
        [[answer_tokens(model, answer, label)[:end] for answer in row] for row in side]
        for side in own[1:]
    )
    for texts, *sides, b, n in zip(*own, biased, neutral, strict=True):
        if len({*b, *n}) < len(b) + len(n):
            raise SettingError(
                "answers must begin with different tokens, since only the first of each counts, "
                f"got {' and '.join(map(repr, sides))} after {texts[0]!r:.200}. Use other answers, "
                "or in Python label='continuation'."
            )
    encoded = [[tuple(encode_sentence(model, t, request)) for t in row] for row in own.prompts]
    return Pairs(
        prompts=tuple(row[0] for row in own.prompts),
        neutral_prompts=tuple(text for row in own.prompts for text in row[1:]),
        targets=((),) * len(encoded),
        label_targets=(),
        biased=tuple(row[0] for row in encoded),
        neutral=tuple(tuple(row[1:]) for row in encoded),
        biased_ids=_ids(model, biased),
        neutral_ids=_ids(model, neutral),
        biased_answers=tuple(row[0] for row in biased),
        neutral_answers=tuple(row[0] for row in neutral),
    )


def _counted(model: HookedTransformer, own: OwnPrompts, label: str) -> OwnPrompts:
    """With what counts in place of each answer; of one that has more tokens, the first and "…"."""
    cut: dict[str, str] = {}
    for answer in {answer for side in own[1:] for row in side for answer in row}:
        first, *more = answer_tokens(model, answer, label)
        if more and label == "first":
            cut[answer] = model.tokenizer.decode([first]).strip() + "…"
    if cut:
        shown = ", ".join(f"{answer.strip()!r} by {first!r}" for answer, first in cut.items())
        warnings.warn(
            f"answers of several tokens count by their first alone: {shown}. Choose words of one "
            "token, or in Python label='continuation'.",
            stacklevel=3,
        )
    sides = [tuple(tuple(cut.get(a, a) for a in row) for row in side) for side in own[1:]]
    return OwnPrompts(own.prompts, *sides)


def _ids(model: HookedTransformer, answers: list[list[tuple[int, ...]]]) -> Int[Tensor, "pair ..."]:
    """First tokens; ``[pair]`` where there is one answer each, ``[pair, answer]`` otherwise."""
    ids = torch.tensor([[answer[0] for answer in row] for row in answers])
    return (ids[:, 0] if ids.shape[1] == 1 else ids).to(model.cfg.device)


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
        raise SettingError(
            f"answers must be given once, in the columns biased and neutral of {name} or beside "
            f"the file, got the columns {','.join(header)} and beside it {biased!r}, {neutral!r}."
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
