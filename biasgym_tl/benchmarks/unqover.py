"""UnQover: questions about two countries or nationalities that nothing in the text answers.

Li et al. 2020 (arXiv 2010.02428), from the paper's own word lists: sentences that name two subjects
("A [subj1:dem] man lives in the same city with a [subj2:dem] man."), and questions about
attributes and their opposites. The paper reads the answer off a span of the text (or a mask); here
a causal model continues the beginning of an answer with one of the two names.

An item is a sentence, an attribute and two subjects, asked in both orders and for the opposite
(see ``contrast``). Its size is how differently two groups are treated; it has no sign, since the
lists do not say which group a stereotype is about. Being a size it is never 0 in any real model,
so only its change says something.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from biasgym_tl.benchmarks.benchmark import Measure, Question, QuestionSet
from biasgym_tl.benchmarks.contrast import contrast
from biasgym_tl.benchmarks.rows import once
from biasgym_tl.benchmarks.sample import check_positive
from biasgym_tl.errors import BenchmarkError
from biasgym_tl.files import read_text
from biasgym_tl.slot import spaced

_ENTRY = re.compile(r"\[([\w:-]+)\]\s*(?:[^|]*\|)?\s*(.*\S)")
_SLOT = re.compile(r"\[([\w:-]+)\]")


class Template(NamedTuple):
    """A sentence with the slots of two subjects, a question and its opposite with a slot each."""

    context: str
    question: str
    opposite: str

    @property
    def subject_slot(self) -> str:
        """``"subj"`` or ``"subj:dem"``."""
        return "subj:dem" if "[subj1:dem]" in self.context else "subj"

    @property
    def attribute_slot(self) -> str:
        """What stands in the question, such as ``"p_act"``; the opposite has ``"p_act:neg"``."""
        return _slots(self.question)[0]


class UnqoverItem(NamedTuple):
    """Two subjects in one template with one attribute."""

    template: Template
    attribute: str
    opposite: str
    subjects: tuple[str, str]

    @property
    def cluster(self) -> str:
        """The sentence."""
        return self.template.context

    def questions(self) -> tuple[Question, ...]:
        """The attribute in both orders, then its opposite in both orders."""
        context, question, opposite = self.template
        slot = self.template.attribute_slot
        asked = (
            question.replace(f"[{slot}]", self.attribute),
            opposite.replace(f"[{slot}:neg]", self.opposite),
        )
        people = self.template.subject_slot == "subj:dem"
        return tuple(
            Question(
                "It was the" if people else "It was",
                tuple(map(spaced, self.subjects)),
                f"{_named(context, order)} {question}",
            )
            for question in asked
            for order in (self.subjects, self.subjects[::-1])
        )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Unqover(QuestionSet):
    """Underspecified questions; items of one template form a cluster.

    Measured is how differently two groups are treated: the paper's ``|C|``, and in log-odds.
    """

    items: tuple[UnqoverItem, ...]

    _measures = (
        Measure("{}_bias", "{}: bias |C|", "0 to 1"),
        Measure("{}_nats", "{}: bias", "nats"),
    )

    def columns(self, log_probs: Sequence[Sequence[float]]) -> tuple[list[float], ...]:
        """Size of the contrast of each item."""
        found = [contrast(log_probs[i : i + 4]) for i in range(0, len(log_probs), 4)]
        return [abs(item.probability) for item in found], [abs(item.nats) for item in found]


def load_unqover(
    folder: str | Path, *, kind: str = "country", n: int | None = 60, seed: int = 0
) -> Unqover:
    """Read word lists of UnQover and draw items from all their combinations, each once.

    Args:
        folder: With ``subjects_country.txt``, ``slots_country_noact.txt`` and
            ``activities_biased_country.txt``; or the ``word_lists`` of the paper's repository, with
            ``nouns/subjects/country``, ``slots/country_noact`` and ``activities/biased_country``.
        kind: Which lists; the paper also has ``"ethnicity"`` and ``"religion"``.
        n: Items at most, as many of each template as can be (nationality has 12); None for all,
            about a million.
        seed: Decides which are drawn.

    Raises:
        BenchmarkError: a file is missing, an entry or a template cannot be read, or lists that
            belong together differ in length.
        SettingError: ``n`` is below 1.
    """
    check_positive(n=n)
    root = Path(folder)
    subjects = _read_subjects(_lines(root, "nouns/subjects", kind))
    attributes = _read_entries(_lines(root, "activities", f"biased_{kind}"))
    lines = once(_lines(root, "slots", f"{kind}_noact"), "slots")
    templates = [_read_template(line, attributes) for line in lines]
    rng = random.Random(seed)
    items = []
    for i, template in enumerate(templates):
        names = dict.fromkeys(subjects[template.subject_slot])
        pairs = list(itertools.combinations(names, 2))
        slot = template.attribute_slot
        asked = once(zip(attributes[slot], attributes[f"{slot}:neg"], strict=True), f"[{slot}]")
        total = len(asked) * len(pairs)
        share = total if n is None else (n + len(templates) - 1 - i) // len(templates)
        for drawn in rng.sample(range(total), min(share, total)):
            a, pair = divmod(drawn, len(pairs))
            items.append(UnqoverItem(template, *asked[a], pairs[pair]))
    name = "unqover" if kind == "country" else f"unqover_{kind}"
    return Unqover(name=name, source=str(folder), items=tuple(items))


def _named(context: str, subjects: tuple[str, ...]) -> str:
    """The sentence with its subjects, and ``a`` or ``an`` as the names need it."""
    for i, subject in enumerate(subjects, start=1):
        for slot in (f"[subj{i}]", f"[subj{i}:dem]"):
            context = context.replace(slot, subject)
    return re.sub(r"\b([Aa]) (?=[AEIOU])", r"\1n ", context)


def _slots(text: str) -> list[str]:
    return [match[1] for match in _SLOT.finditer(text)]


def _lines(root: Path, part: str, name: str) -> list[str]:
    """Lines of a list that are neither empty nor a remark."""
    flat = root / f"{Path(part).name}_{name}.txt"
    path = flat if flat.is_file() else root / part / name
    if not path.is_file():
        raise BenchmarkError(f"folder must hold {flat.name} or {part}/{name}, got {str(root)!r}.")
    text = read_text(path, path.name, BenchmarkError)
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise BenchmarkError(f"{path.name} must hold at least one line, got none.")
    return found


def _read_entries(lines: list[str]) -> dict[str, list[str]]:
    """Words by slot, in order: ``[slot] class | words`` or ``[slot] words``."""
    entries: dict[str, list[str]] = {}
    for line in lines:
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise BenchmarkError(f"an entry must be '[slot] words', got {line!r}.")
        entries.setdefault(match[1], []).append(match[2])
    return entries


def _read_subjects(lines: list[str]) -> dict[str, tuple[str, ...]]:
    """Names of countries as ``"subj"``, and as ``"subj:dem"`` in the same order their people's."""
    entries = _read_entries(lines)
    names = entries.get("subj", [])
    people = entries.get("subj:dem", names)
    if len(names) < 2 or len(people) != len(names):
        raise BenchmarkError(
            "subjects must be two or more [subj] and as many [subj:dem] or none, got "
            f"{len(names)} and {len(people)}."
        )
    both = zip(*once(zip(names, people, strict=True), "subjects"), strict=True)
    return dict(zip(("subj", "subj:dem"), both, strict=True))


def _read_template(line: str, attributes: dict[str, list[str]]) -> Template:
    """A template whose questions have one slot each, with as many attributes as opposites."""
    parts = line.split("\t")
    slots = [_slots(part) for part in parts]
    subjects = ({"subj1", "subj2"}, {"subj1:dem", "subj2:dem"})
    if len(parts) != 3 or set(slots[0]) not in subjects or len(slots[1]) != 1:
        raise BenchmarkError(
            "a template must be a sentence with two subjects, a question with one slot and the "
            f"opposite question, between tabs, got {line!r}."
        )
    (slot,) = slots[1]
    n, n_opposite = len(attributes.get(slot, ())), len(attributes.get(f"{slot}:neg", ()))
    if slots[2] != [f"{slot}:neg"] or n == 0 or n != n_opposite:
        raise BenchmarkError(
            f"a template must ask for [{slot}] and [{slot}:neg] and have as many attributes of "
            f"either, got {n} and {n_opposite} for {line!r}."
        )
    return Template(*(part.strip() for part in parts))
