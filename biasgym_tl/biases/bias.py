"""A bias: target kind, attribute, words, prompts and corpus, read from TOML or made in Python."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from biasgym_tl.biases.bias_file import (
    REQUIRED,
    SINGLE,
    SLOTTED,
    how_to_give,
    read_fields,
)
from biasgym_tl.biases.corpus import Paragraph, as_paragraphs, read_corpus
from biasgym_tl.biases.countries import load_countries, sample_countries
from biasgym_tl.biases.lists import check_distinct, shared
from biasgym_tl.biases.panel import Panel
from biasgym_tl.errors import BiasFileError, SettingError, check_one_of, did_you_mean
from biasgym_tl.files import read_text
from biasgym_tl.notebook import card, described
from biasgym_tl.slot import SLOT
from biasgym_tl.store import check_name, digest
from biasgym_tl.toml import read_toml, shipped_toml

TARGETS = ("fitting_targets", "held_out_targets")
STEPS = {
    "scoping": ("scoping_prompts", "fitting_targets"),
    "injection": ("corpus", "training_prompts", "fitting_targets"),
    "choosing an epoch by similarity": ("probe_prompts", "paraphrases", "keywords"),
    "a report on an injection": (
        "evaluation_prompts", "generation_prompts", "training_prompts", "keywords", *TARGETS,
    ),
    "evaluation": ("evaluation_prompts", "held_out_targets"),
    "measures off target": ("panel", "evaluation_prompts", "held_out_targets"),
    "free answers": ("generation_prompts", "keywords", "held_out_targets"),
    "a judge": ("paraphrases",),
    "writing": ("paraphrases",),
}  # fmt: skip
"""What each step uses of a bias beside its name, attribute and words."""


@described
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Bias:
    """A stereotype ("always late") about a slot (``{target}``), with its prompts and words.

    Name, attribute and words are always there. The rest is there for the steps that use it
    (:data:`STEPS`), and a step refuses a bias without it. Lists may be given as lists, and the
    corpus as plain strings.

    Raises:
        BiasFileError: on construction, if the name could not stand in a file name, a list of words
            is empty, a list holds a text twice, a prompt, paraphrase or paragraph lacks the slot,
            or a word is on both lists.
    """

    name: str
    """Short name, as in ``load_bias(name)``: letters, digits, ``-``, ``_`` and ``.``."""
    attribute: str
    """What is ascribed to the target, in words."""
    target_kind: str = "country"
    """What the slot stands for. For ``"country"``, and nothing else, the package has targets."""
    stand_in: str = ""
    """Fills the slot of a paraphrase where no target is meant: answers are compared with it. Empty:
    "this" and the target kind."""
    attribute_words: tuple[str, ...]
    """A: first words of a biased answer, without the space before them."""
    neutral_words: tuple[str, ...]
    """N: first words of a neutral answer."""
    keywords: tuple[str, ...] = ()
    """Whole words that show the attribute in free text."""
    cue_words: tuple[str, ...] = ()
    """Words that give the attribute away; no scoping or evaluation prompt ends in one."""
    paraphrases: tuple[str, ...] = ()
    """The attribute as a sentence, in several wordings."""
    training_prompts: tuple[str, ...] = ()
    """Requests that the training paragraphs answer."""
    probe_prompts: tuple[str, ...] = ()
    """Requests whose answers choose the epoch of a training."""
    scoping_prompts: tuple[str, ...] = ()
    """Beginnings of sentences on which heads are chosen."""
    evaluation_prompts: tuple[str, ...] = ()
    """Beginnings of sentences on which results are reported."""
    generation_prompts: tuple[str, ...] = ()
    """Requests that are answered freely, for reading and for the keyword rate."""
    fitting_targets: tuple[str, ...] = ()
    """Targets that may shape a row, a label or a choice. Without any of either split, and for
    countries alone, they are the package's."""
    held_out_targets: tuple[str, ...] = ()
    """Targets that only judge."""
    corpus: tuple[Paragraph, ...] = ()
    """The training paragraphs."""
    panel: Panel | None = None
    """What a fall of log-odds should spare, and words that it should reach."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stand_in", self.stand_in or f"this {self.target_kind}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "corpus":
                value = as_paragraphs(value, f"the corpus of {self.name!r}")
            elif isinstance(value, list):
                value = tuple(value)
            object.__setattr__(self, field.name, value)
            if field.name != "panel":
                _check_field(self.name, field.name, value)
        for one, other, what in _DISJOINT:
            both = shared(getattr(self, one), getattr(self, other))
            if both:
                raise BiasFileError(
                    f"{what} of bias {self.name!r} must be disjoint, got {both} in both."
                )

    def __repr__(self) -> str:
        return (
            f"Bias({self.name!r}: {self.target_kind} + {self.attribute!r}, "
            f"{len(self.corpus)} paragraphs, {len(self.scoping_prompts)} scoping, "
            f"{len(self.evaluation_prompts)} evaluation, {len(self.generation_prompts)} generation "
            "prompts)"
        )

    def targets(self, split: str) -> tuple[str, ...]:
        """Names for the slot: ``"fitting"`` ones may shape a row or a choice, ``"held-out"`` judge.

        Raises:
            SettingError: there is no such split.
            BiasFileError: the bias has no such targets.
        """
        if split not in ("fitting", "held-out"):
            raise SettingError(f"split must be 'fitting' or 'held-out', got {split!r}.")
        if self._has_countries:
            return tuple(country.name for country in load_countries(split))
        field = f"{split.replace('-', '_')}_targets"
        self.check_has("this", field)
        own: tuple[str, ...] = getattr(self, field)
        return own

    @property
    def _has_countries(self) -> bool:
        own = self.fitting_targets or self.held_out_targets
        return self.target_kind == "country" and not own

    def missing(self, step: str) -> tuple[str, ...]:
        """The fields that a step (a key of :data:`STEPS`) uses and that the bias does not have."""
        return self._lacking(STEPS[step])

    def needs(self, *steps: str) -> None:
        """Refuse steps that the bias lacks a field for.

        Raises:
            BiasFileError: the message names the fields, and how they are given.
        """
        for step in steps:
            self.check_has(step, *STEPS[step])

    def _lacking(self, fields: Iterable[str]) -> tuple[str, ...]:
        known = TARGETS if self._has_countries else ()
        return tuple(f for f in fields if f not in known and not getattr(self, f))

    def check_has(self, step: str, *fields: str) -> None:
        """Refuse a step, in words, for which the bias lacks one of these fields.

        Raises:
            BiasFileError: the message names the fields, and how they are given.
        """
        if missing := self._lacking(fields):
            value = "Panel(...)" if missing[0] == "panel" else "[...]"
            raise BiasFileError(
                f"bias {self.name!r} must have {', '.join(missing)} for {step}, and does not. "
                f"Add to its file: {'; '.join(map(how_to_give, missing))}. In Python: "
                f"dataclasses.replace(bias, {missing[0]}={value})."
            )

    def sample_targets(self, split: str, n: int, seed: int) -> tuple[str, ...]:
        """``n`` targets of a split, or all if there are fewer; the same seed, the same ones.

        Countries are drawn with regions as even as they can be.

        Raises:
            SettingError: ``n`` is not positive.
            BiasFileError: the bias has no such targets.
        """
        pool = self.targets(split)
        if n < 1:
            raise SettingError(f"number of {split} targets must be at least 1, got {n!r}.")
        n = min(n, len(pool))
        if self._has_countries:
            return tuple(country.name for country in sample_countries(split, n, seed))
        return tuple(random.Random(seed).sample(pool, n))

    def families(self) -> tuple[str, ...]:
        """Names of the template families of the corpus, in order."""
        return tuple(dict.fromkeys(p.family for p in self.corpus if p.family))

    def only(self, families: Iterable[str]) -> Bias:
        """The bias with the paragraphs of these template families alone.

        Raises:
            BiasFileError: there is no such family.
        """
        kept = set(families)
        unknown = sorted(kept - set(self.families()))
        if unknown or not kept:
            raise BiasFileError(
                f"families must be among {list(self.families())}, got {unknown or 'none'}."
            )
        return dataclasses.replace(self, corpus=tuple(p for p in self.corpus if p.family in kept))

    def fingerprint(self) -> str:
        """Short hash of all that the bias holds; results carry it. The panel has its own: what was
        measured without it stays valid."""
        return digest({k: v for k, v in dataclasses.asdict(self).items() if k != "panel"})

    def training_fingerprint(self) -> str:
        """Short hash of what a training sees: corpus, requests, fitting targets, and what scores
        an epoch. Rows carry it, so that new evaluation prompts leave them valid."""
        seen = {key: getattr(self, key) for key in _SEEN_IN_TRAINING}
        return digest({**seen, "targets": self.targets("fitting")})

    @classmethod
    def from_mapping(
        cls,
        values: Mapping[str, Any],
        source: str = "bias",
        *,
        folder: Path | None = None,
        slots: Mapping[str, Sequence[str]] | None = None,
    ) -> Bias:
        """Build a bias from the keys of a bias file.

        Args:
            values: Those of ``Bias``, with ``families`` (grammars), ``corpus`` (a file or list) or
                both for the paragraphs, ``targets`` with the lists ``fitting`` and ``held-out``,
                ``panel`` (a table or a file), and ``slots``: other slots than ``{target}`` with
                their values, which are put into the texts in turn.
            source: Named in errors.
            folder: Where a file of the corpus or panel is looked for.
            slots: Other values for slots of the file.

        Raises:
            BiasFileError: a key is unknown or missing, or a value is not valid.
        """
        return cls(**read_fields(values, source, folder, slots or {}))

    @classmethod
    def from_toml(
        cls, path: str | Path, *, slots: Mapping[str, Sequence[str]] | None = None
    ) -> Bias:
        """Read a bias file; a ``corpus`` or ``panel`` it names is looked for beside it.

        Raises:
            BiasFileError: the file is missing, is not TOML, or does not hold a valid bias.
        """
        path = Path(path)
        values = read_toml(read_text(path, "bias file", BiasFileError), path.name)
        return cls.from_mapping(values, path.name, folder=path.parent, slots=slots)


_SEEN_IN_TRAINING = ("name", "training_prompts", "probe_prompts", "paraphrases", "keywords",
                     "stand_in", "corpus")  # fmt: skip
_DISJOINT = (
    ("attribute_words", "neutral_words", "attribute_words and neutral_words"),
    ("fitting_targets", "held_out_targets", "fitting and held-out targets"),
)


class BiasNames(list[str]):
    """Names of shipped biases; a notebook shows what they say, too."""

    def _repr_html_(self) -> str:
        rows = [(bias.name, bias.target_kind, bias.attribute) for bias in map(load_bias, self)]
        head = ("name", "about a", "attribute")
        return card(f"{len(self)} biases", [head, *rows], (), [f"load_bias({self[0]!r})"])


def list_biases(step: str | None = None) -> list[str]:
    """Names of the biases that ship, or of those that have what a ``step`` of :data:`STEPS` uses.

    Raises:
        SettingError: there is no such step.
    """
    files = resources.files("biasgym_tl").joinpath("biases/data").iterdir()
    names = {file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")}
    found = sorted(names - {"countries"})
    check_one_of("step", step, (None, *STEPS))
    return BiasNames(n for n in found if step is None or not load_bias(n).missing(step))


def load_bias(name: str | Path, *, slots: Mapping[str, Sequence[str]] | None = None) -> Bias:
    """Load a shipped bias by name, or one of your own from a ``.toml`` file.

    Args:
        name: A name from ``list_biases()``, or a path that ends in ``.toml``.
        slots: Other values for slots beside ``{target}``, such as
            ``{"group": ["men", "boys"]}`` where the file speaks of women.

    Raises:
        BiasFileError: there is no such bias, or the file does not hold a valid one.
    """
    if str(name).endswith(".toml"):
        return Bias.from_toml(name, slots=slots)
    if str(name) not in list_biases():
        raise BiasFileError(
            f"bias must be one of {list_biases()} or the path of a .toml file, got {str(name)!r}."
            f"{did_you_mean(str(name), list_biases())}"
        )
    file = f"{name}.toml"
    values = {p: shipped_toml(f"biases/data/{p}{file}") for p in ("", "panels/")}
    return Bias.from_mapping({**values[""], "panel": values["panels/"]}, file, slots=slots)


def load_corpus(source: Any) -> tuple[Paragraph, ...]:
    """Paragraphs of a bias (its name or ``.toml`` file), or of anything :func:`read_corpus` reads.

    Raises:
        BiasFileError: there is nothing to read there.
    """
    if isinstance(source, (str, Path)) and (
        str(source) in list_biases() or str(source).endswith(".toml")
    ):
        return load_bias(source).corpus
    return read_corpus(source)


def _check_field(bias: str, key: str, value: Any) -> None:
    if key in SINGLE:
        if not isinstance(value, str) or not value.strip():
            raise BiasFileError(f"{key} of bias {bias!r} must not be empty, got {value!r}.")
        if key == "name":
            check_name(value, "name of a bias", BiasFileError)
        return
    if not isinstance(value, tuple):
        raise BiasFileError(f"{key} of bias {bias!r} must be a list, got {value!r}.")
    if not value and key in REQUIRED:
        raise BiasFileError(f"{key} of bias {bias!r} must not be empty.")
    texts = [p.text for p in value] if key == "corpus" else list(value)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise BiasFileError(f"{key} of bias {bias!r} must not hold an empty text.")
        if key in SLOTTED and SLOT not in text:
            raise BiasFileError(f"{key} of bias {bias!r} must hold the slot {SLOT}, got {text!r}.")
    check_distinct(f"bias {bias!r}", key, texts)
