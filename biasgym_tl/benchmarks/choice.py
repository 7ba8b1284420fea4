"""Any set of multiple-choice questions: is the right option the likeliest?"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from biasgym_tl.benchmarks.benchmark import Measure, Question, QuestionSet
from biasgym_tl.benchmarks.rows import Row, file_name, once, read_rows, source_name
from biasgym_tl.benchmarks.sample import stratified_sample
from biasgym_tl.errors import BenchmarkError
from biasgym_tl.slot import spaced

QUESTIONS = ("question", "question_stem", "ctx", "goal", "sentence")
OPTIONS = ("choices", "options", "endings")
ANSWERS = ("answer", "answerKey", "label")
"""Columns that are looked for where none is named; the first that is there counts."""


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
        counted_from: What the first place is called, where answers are numbers.
        n: Size of the sample, as many of each cluster; None: all of them.
        seed: Decides the sample.

    Raises:
        BenchmarkError: a column is missing or not known, or a row does not hold a question with
            two options or more of which one is right.
        SettingError: ``n`` is less than 1.
    """
    rows = read_rows(source, ())
    named = [options] if isinstance(options, str) else list(options or ())
    asked = question or _found(rows[0], QUESTIONS, "question", source)
    listed = named or [_found(rows[0], OPTIONS, "options", source)]
    right = answer or _found(rows[0], ANSWERS, "answer", source)
    rows = read_rows(source, [*listed, right, *([cluster] if cluster else [])], texts=[asked])
    items = [
        _choice(row, listed, right, counted_from, f"row {i} of {file_name(source)}")._replace(
            beginning=written.replace("{}", row[asked].strip()),
            cluster=str(row[cluster]) if cluster else row[asked],
        )
        for i, row in enumerate(rows, start=1)
    ]
    strata: dict[str, list[Choice]] = defaultdict(list)
    for item in once(items, source_name(source), lambda item: (item[:3], item.right)):
        strata[item.cluster if cluster else ""].append(item)
    sample = stratified_sample(strata, n, seed=seed)
    kept = tuple(item for part in sample.values() for item in part)
    return MultipleChoice(name=name, source=source_name(source), items=kept)


def _found(row: Row, known: Sequence[str], what: str, source: Any) -> str:
    for name in known:
        if name in row:
            return name
    raise BenchmarkError(
        f"{file_name(source)} must have a column for the {what}, one of {list(known)} or one that "
        f"is named, got {sorted(row)}."
    )


def _choice(row: Row, listed: Sequence[str], right: str, counted_from: int, where: str) -> Choice:
    given: Any = row[listed[0]] if len(listed) == 1 else [row[name] for name in listed]
    labels = list(given.get("label", ())) if isinstance(given, dict) else []
    texts = given.get("text") if isinstance(given, dict) else given
    options = tuple(str(text).strip() for text in texts) if isinstance(texts, (list, tuple)) else ()
    if len(options) < 2 or not all(options):
        raise BenchmarkError(f"options must be two texts or more in {where}, got {given!r}.")
    place = _place(row[right], options, labels, counted_from)
    if place is None:
        raise BenchmarkError(
            f"{right} must say which of {len(options)} options is right in {where}, got "
            f"{row[right]!r}."
        )
    return Choice("", "", options, place)


def _place(
    answer: Any, options: Sequence[str], labels: Sequence[Any], counted_from: int
) -> int | None:
    """Where the right option stands; as text an answer is a label, a text, a letter or a number."""
    if isinstance(answer, int) and not labels:
        return answer - counted_from if 0 <= answer - counted_from < len(options) else None
    said = str(answer).strip()
    for names in (list(map(str, labels)), options, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]):
        if said in names and said:
            return list(names).index(said)
    place = int(said) - counted_from if said.isdecimal() else -1
    return place if 0 <= place < len(options) else None


def _margin(item: Choice, values: Sequence[float]) -> float:
    others = [value for i, value in enumerate(values) if i != item.right]
    return values[item.right] - max(others)
