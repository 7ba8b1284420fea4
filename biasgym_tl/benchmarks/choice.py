"""Any set of multiple-choice questions: is the right option the likeliest?"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from biasgym_tl.benchmarks.benchmark import Measure, Question, QuestionSet
from biasgym_tl.benchmarks.rows import Row, file_name, once, read_rows, source_name
from biasgym_tl.benchmarks.sample import stratified_sample
from biasgym_tl.errors import BenchmarkError, check_one_of
from biasgym_tl.slot import spaced

QUESTIONS = ("question", "question_stem", "ctx", "goal", "sentence")
OPTIONS = ("choices", "options", "endings")
ANSWERS = ("answer", "answerKey", "label")
"""Columns that are looked for where none is named; the first that is there counts."""
READINGS = ("label", "text", "letter", "place")
"""What an answer may be; all of a file are read in one way."""


class Choice(NamedTuple):
    """A question with its options."""

    cluster: str
    beginning: str
    """What is read before an option."""
    options: tuple[str, ...]
    right: int
    """Place of the right one."""

    def questions(self) -> tuple[Question, ...]:
        """The options after the question, as plain text."""
        return (Question(self.beginning, tuple(map(spaced, self.options))),)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class MultipleChoice(QuestionSet):
    """Questions whose options are compared by their log-probability.

    Right is a question whose right option is the likeliest (lm-evaluation-harness's ``acc``); by
    character, whose right option has the highest log-probability per character of its text
    (``acc_norm``), which does not prefer short options. The margin is that of the right option
    over the best other one. All without shots.
    """

    items: tuple[Choice, ...]

    _measures = (
        Measure("{}", "{}", "share right", kind="share"),
        Measure("{}_by_character", "{}, by character", "share right", kind="share"),
        Measure("{}_margin", "{} margin", "nats"),
    )

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is measured; the floor is chance."""
        chance = sum(1 / len(item.options) for item in self.items) / len(self.items)
        *shares, margin = super().measures
        return (*(share._replace(floor=chance) for share in shares), margin)

    def columns(self, log_probs: Sequence[Sequence[float]]) -> tuple[list[float], ...]:
        """Whether each is right, in both ways, and its margin."""
        margins = [_margin(item, each) for item, each in zip(self.items, log_probs, strict=True)]
        by_character = [
            _margin(item, [p / len(o) for p, o in zip(each, item.options, strict=True)])
            for item, each in zip(self.items, log_probs, strict=True)
        ]
        return [float(m > 0) for m in margins], [float(m > 0) for m in by_character], margins


def load_choices(
    source: Any,
    *,
    name: str = "choice",
    question: str | None = None,
    options: str | Sequence[str] | None = None,
    answer: str | None = None,
    cluster: str | None = None,
    written: str = "Question: {}\nAnswer:",
    answers_are: str | None = None,
    counted_from: int = 0,
    n: int | None = 200,
    seed: int = 0,
) -> MultipleChoice:
    """Read multiple-choice questions, such as ARC's, HellaSwag's or PIQA's; equal ones count once.

    ``load_choices(datasets.load_dataset("allenai/ai2_arc", "ARC-Easy")["test"], name="arc")``

    Args:
        source: A ``.csv`` or ``.jsonl`` file, a ``Dataset``, a ``datasets`` name with a
            configuration as ``"name:configuration"`` (all of its splits), or a list of mappings.
        name: What it is called in results.
        question: Column of the question; None: the first of :data:`QUESTIONS` that is there.
        options: Column of a list of texts, or of ``{"text": [...], "label": [...]}``; or several
            columns of one text each. None: the first of :data:`OPTIONS`.
        answer: Column of the right one: its label, letter, place or text. None: the first of
            :data:`ANSWERS`.
        cluster: Column of what questions share, such as a subject; None: each is its own.
        written: How a question is written, with ``{}`` for it.
        answers_are: One of :data:`READINGS`; default: the one in which every row has an answer.
        counted_from: What the first place is called, where answers are numbers.
        n: Size of the sample, as many of each cluster; None: all of them.
        seed: Decides the sample.

    Raises:
        BenchmarkError: a column is missing or not known, a row does not hold a question with
            two options or more of which one is right, or answers can be read in two ways that
            differ.
        SettingError: ``n`` is less than 1, or ``answers_are`` is no reading.
    """
    rows = read_rows(source, ())
    named = [options] if isinstance(options, str) else list(options or ())
    asked = question or _found(rows[0], QUESTIONS, "question", source)
    listed = named or [_found(rows[0], OPTIONS, "options", source)]
    right = answer or _found(rows[0], ANSWERS, "answer", source)
    rows = read_rows(source, [*listed, right, *([cluster] if cluster else [])], texts=[asked])
    wheres = [f"row {i} of {file_name(source)}" for i in range(1, len(rows) + 1)]
    found = [_options(row, listed, where) for row, where in zip(rows, wheres, strict=True)]
    answers = [row[right] for row in rows]
    places = _places(answers, found, answers_are, counted_from, right, wheres)
    items = [
        Choice(
            str(row[cluster]) if cluster else row[asked],
            written.replace("{}", row[asked].strip()), texts, place,
        )
        for row, (texts, _), place in zip(rows, found, places, strict=True)
    ]  # fmt: skip
    different = once(items, source_name(source), lambda item: (item[:3], item.right))
    kept = _sampled(different, cluster is not None, n, seed)
    return MultipleChoice(name=name, source=source_name(source), items=kept)


def _sampled(
    items: Iterable[Choice], clustered: bool, n: int | None, seed: int
) -> tuple[Choice, ...]:
    strata: dict[str, list[Choice]] = defaultdict(list)
    for item in items:
        strata[item.cluster if clustered else ""].append(item)
    sample = stratified_sample(strata, n, seed=seed)
    return tuple(item for part in sample.values() for item in part)


def _found(row: Row, known: Sequence[str], what: str, source: Any) -> str:
    for name in known:
        if name in row:
            return name
    raise BenchmarkError(
        f"{file_name(source)} must have a column for the {what}, one of {list(known)} or one that "
        f"is named, got {sorted(row)}."
    )


def _options(row: Row, listed: Sequence[str], where: str) -> tuple[tuple[str, ...], list[str]]:
    """The options' texts, and their labels if they have some."""
    given: Any = row[listed[0]] if len(listed) == 1 else [row[name] for name in listed]
    labels = list(map(str, given.get("label", ()))) if isinstance(given, dict) else []
    texts = given.get("text") if isinstance(given, dict) else given
    options = tuple(str(text).strip() for text in texts) if isinstance(texts, (list, tuple)) else ()
    if len(options) < 2 or not all(options):
        raise BenchmarkError(f"options must be two texts or more in {where}, got {given!r}.")
    return options, labels


def _readings(
    answer: Any, options: Sequence[str], labels: Sequence[str], counted_from: int
) -> dict[str, int]:
    """Where the right option stands, by what the answer is taken for."""
    said = str(answer).strip()
    places = [str(i + counted_from) for i in range(len(options))]
    names = (labels, options, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)], places)
    known = dict(zip(READINGS, map(list, names), strict=True))
    if isinstance(answer, int) and not labels:
        known = {"place": places}
    return {how: of.index(said) for how, of in known.items() if said in of}


def _places(
    answers: Sequence[Any],
    options: Sequence[tuple[Sequence[str], Sequence[str]]],
    wanted: str | None,
    counted_from: int,
    right: str,
    wheres: Sequence[str],
) -> list[int]:
    """Of each row, in the one reading of all; labels, where there are some, are no other."""
    if wanted is not None:
        check_one_of("answers_are", wanted, READINGS)
    found = [_readings(a, *of, counted_from) for a, of in zip(answers, options, strict=True)]
    wheres = [f"{where}, got {a!r}" for where, a in zip(wheres, answers, strict=True)]
    fits = [how for how in ([wanted] if wanted else READINGS) if all(how in r for r in found)]
    if not fits:
        how = wanted or max(READINGS, key=lambda how: sum(how in r for r in found))
        first = next(i for i, row in enumerate(found) if how not in row)
        raise BenchmarkError(
            f"{right} must say which option is right, as a {how} in every row, in {wheres[first]}."
        )
    for where, row in zip(wheres, found, strict=True):
        if fits[0] != "label" and len({row[how] for how in fits}) > 1:
            raise BenchmarkError(
                f"{right} must say in one way which option is right, not as a "
                f"{' or a '.join(fits)}, in {where}. Pass answers_are."
            )
    return [row[fits[0]] for row in found]


def _margin(item: Choice, values: Sequence[float]) -> float:
    others = [value for i, value in enumerate(values) if i != item.right]
    return values[item.right] - max(others)
