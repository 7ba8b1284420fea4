"""MMLU: knowledge, as the letter of the right answer to a multiple-choice question."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from biasgym_tl.benchmarks.benchmark import Length, Measure, Scores
from biasgym_tl.benchmarks.mmlu_files import LETTERS, MultipleChoice, Subject, read_mmlu
from biasgym_tl.benchmarks.rows import once, warn_of_contradictions
from biasgym_tl.benchmarks.sample import check_positive, even_shares, stratified_sample
from biasgym_tl.errors import SettingError
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer, encode_document
from biasgym_tl.store import digest
from biasgym_tl.text import continuation_log_probs
from biasgym_tl.warned import warn

SUBJECTS = (
    "anatomy", "conceptual_physics", "electrical_engineering",
    "philosophy", "prehistory", "world_religions",
    "high_school_geography", "high_school_psychology", "sociology",
    "management", "medical_genetics", "miscellaneous",
)  # fmt: skip
"""Three of each of MMLU's four fields (STEM, humanities, social sciences, other), whose questions
are short: the shots of all 57 subjects would take longer than the questions."""
NAN = float("nan")
BATCH_SIZE = 8
"""Questions read at once: with long shots, more would need gigabytes for the attention."""


class Part(NamedTuple):
    """What is asked of one subject."""

    shots: tuple[MultipleChoice, ...]
    """Shown with their answers before each question."""
    items: tuple[MultipleChoice, ...]


@dataclass(frozen=True)
class Mmlu:
    """Multiple-choice questions of 57 subjects (Hendrycks et al. 2021, arXiv 2009.03300).

    The prompt and the tokens are lm-evaluation-harness's of its task ``mmlu``, without a chat
    format: a line with the subject, the shots, the question with its four answers, "Answer:". A
    question is right if the letter of its answer is the likeliest of the four; by how much it is
    likelier than the best wrong one is the margin. The shots of a subject are run once for all its
    questions, which with eight of them takes a third of the time.

    A prompt that is longer than the model's context loses whole shots from the front, the same ones
    for all questions of the subject (lm-evaluation-harness cuts it anywhere). A question that is
    too long even without shots does not count (NaN).
    """

    parts: Mapping[str, Part]
    name: ClassVar[str] = "mmlu"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("mmlu", "MMLU", "share right", kind="share", floor=1 / len(LETTERS)),
        Measure("mmlu_margin", "MMLU margin", "nats"),
    )

    @property
    def clusters(self) -> tuple[str, ...]:
        """The subject of each question."""
        return tuple(subject for subject, part in self.parts.items() for _ in part.items)

    @property
    def length(self) -> Length:
        """How much text it has a model read, if all shots fit; those of a subject once."""
        asked = {name: part for name, part in self.parts.items() if part.items}
        questions = [len(item.asked()) for part in asked.values() for item in part.items]
        shown = [prompt_text(name, part.shots, part.items[0]) for name, part in asked.items()]
        return Length(sum(questions) + sum(map(len, shown)), len(questions), 0)

    @property
    def fingerprint(self) -> str:
        """Of the prompts and the right answers."""
        return digest(
            [
                (prompt_text(subject, part.shots, item), item.answer)
                for subject, part in self.parts.items()
                for item in part.items
            ]
        )

    def run(self, model: HookedTransformer) -> Scores:
        """Ask all questions of the model as it is now."""
        margins = [
            margin
            for subject, part in self.parts.items()
            for margin in _margins(model, part.items, _fitting(model, subject, part)[1])
        ]
        right = [NAN if math.isnan(margin) else float(margin > 0) for margin in margins]
        return {"mmlu": right, "mmlu_margin": margins}

    def shots_kept(self, model: HookedTransformer) -> dict[str, int]:
        """How many shots of each subject fit into the model's context."""
        return {name: _fitting(model, name, part)[0] for name, part in self.parts.items()}


def load_mmlu(
    source: str | Path,
    *,
    subjects: Iterable[str] | None = SUBJECTS,
    n: int | None = 192,
    shots: int = 5,
    keep_unsound: bool = False,
    seed: int = 0,
) -> Mmlu:
    """Read MMLU, or MMLU-Redux (Gema et al. 2024, arXiv 2406.04127), in which errors are marked.
    Equal questions of a subject count once; a warning names how many contradict each other or
    stand among the shots.

    Shots are the first questions of the split ``dev``. MMLU-Redux has none: there they are drawn
    from the subject's sound questions, which are then not asked.

    The sample holds as many questions of each subject, and in each as many with the right answer A,
    B, C and D, as far as these allow: who always says the same letter is right in a quarter.

    Args:
        source: A name of the ``datasets`` library ("cais/mmlu"), or a folder of CSV files as
            Hendrycks et al. distribute them (``dev/``, ``test/``) or of MMLU-Redux
            (``mmlu_*.csv``).
        subjects: Names such as "high_school_geography"; None: all that are there.
        n: Size of the sample; None: every question. The default is four of each letter for each
            of twelve subjects: three minutes for a model of 135M parameters on one slow core.
        shots: Questions that are shown with their answers.
        keep_unsound: Ask questions too in which MMLU-Redux found an error.
        seed: Decides the sample, and MMLU-Redux's shots.

    Raises:
        BenchmarkError: the source cannot be read, or does not hold what it must.
        SettingError: a subject is not there, there are not enough shots, or a number is outside
            its range.
    """
    if shots < 0:
        raise SettingError(f"shots must be at least 0, got {shots!r}.")
    check_positive(n=n)
    found = read_mmlu(source)
    wanted = sorted(set(found if subjects is None else subjects))
    if not wanted or set(wanted) - set(found):
        raise SettingError(f"subjects must be some of {list(found)}, got {wanted}.")
    distinct = {name: Subject(*(tuple(once(q, name)) for q in found[name])) for name in wanted}
    parts = {name: _part(name, of, shots, keep_unsound, seed) for name, of in distinct.items()}
    for name, part in parts.items():
        _warn_of_items(name, part)
    if n is None:
        return Mmlu(parts)
    sizes = even_shares([len(part.items) for part in parts.values()], n)
    drawn = zip(parts.items(), sizes, strict=True)
    return Mmlu({name: _sampled(name, part, size, seed) for (name, part), size in drawn})


def _part(name: str, subject: Subject, n_shots: int, keep_unsound: bool, seed: int) -> Part:
    """All questions of a subject, and its shots."""
    items = [item for item in subject.test if item.sound or keep_unsound]
    sound = [item for item in items if item.sound]
    at_most = len(subject.dev) or max(len(sound) - 1, 0)
    if n_shots > at_most:
        raise SettingError(f"shots must be at most {at_most} for {name!r}, got {n_shots!r}.")
    if subject.dev:
        return Part(subject.dev[:n_shots], tuple(items))
    shots = random.Random(f"{name}/{seed}").sample(sound, n_shots)
    return Part(tuple(shots), tuple(item for item in items if item not in shots))


def _warn_of_items(name: str, part: Part) -> None:
    """Of questions with several answers, and of those that the shots give away."""
    asked = (*part.shots, *part.items)
    warn_of_contradictions(
        ((item.key(), item.choices[item.answer].strip()) for item in asked), name
    )
    shown = {shot.key() for shot in part.shots}
    n = sum(item.key() in shown for item in part.items)
    if n:
        warn(
            f"{name}: {n} of {len(part.items)} questions stand among the shots, with their answer; "
            "each counts. Take them out of the source.",
            stacklevel=3,
        )


def _sampled(name: str, part: Part, n: int, seed: int) -> Part:
    if n == 0:
        return part._replace(items=())
    # Where four does not divide n, another letter gains in each subject.
    order = random.Random(f"{name}/{seed}").sample(range(len(LETTERS)), len(LETTERS))
    strata = {
        f"{name}/{LETTERS[place]}": [item for item in part.items if item.answer == place]
        for place in order
    }
    drawn = stratified_sample(strata, n, seed=seed)
    return part._replace(items=tuple(item for items in drawn.values() for item in items))


def prompt_text(subject: str, shots: Sequence[MultipleChoice], item: MultipleChoice) -> str:
    """What stands before the letter."""
    about = subject.replace("_", " ")
    start = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    shown = [f"{shot.asked()} {LETTERS[shot.answer]}\n\n" for shot in shots]
    return "".join([start, *shown, item.asked()])


def _fitting(
    model: HookedTransformer, subject: str, part: Part
) -> tuple[int, list[list[int] | None]]:
    """How many shots fit, and the token ids before the letters of each question; None: too long."""
    longest = model.cfg.n_ctx + 1 - max(map(len, _letters(model)))

    def ask(n_shots: int) -> list[list[int] | None]:
        shots = part.shots[len(part.shots) - n_shots :]
        texts = [prompt_text(subject, shots, item) for item in part.items]
        starts = [encode_document(model, text) for text in texts]
        return [start if len(start) <= longest else None for start in starts]

    n_shots = len(part.shots)
    starts = ask(n_shots)
    least = ask(0).count(None) if None in starts else 0
    while starts.count(None) > least:
        n_shots -= 1
        starts = ask(n_shots)
    return n_shots, starts


def _letters(model: HookedTransformer) -> list[list[int]]:
    """Token ids of each letter as it stands after the colon."""
    return [encode_answer(model, f" {letter}") for letter in LETTERS]


def _margins(
    model: HookedTransformer, items: Sequence[MultipleChoice], starts: Sequence[list[int] | None]
) -> list[float]:
    """By how much each right letter is likelier than the best wrong one; NaN without a prompt."""
    letters = _letters(model)
    prompts = [start for start in starts if start for _ in letters]
    if not prompts:
        return [NAN] * len(items)
    log_probs = continuation_log_probs(
        model, prompts, letters * (len(prompts) // len(letters)), batch_size=BATCH_SIZE
    )
    read = iter(log_probs.view(-1, len(letters)).tolist())
    margins = []
    for item, start in zip(items, starts, strict=True):
        of_letters = next(read) if start else [NAN] * len(letters)
        margins.append(of_letters.pop(item.answer) - max(of_letters))
    return margins
