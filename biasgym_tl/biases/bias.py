"""A bias: target kind, attribute, words, prompts and training paragraphs, read from TOML."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from biasgym_tl.errors import BiasFileError
from biasgym_tl.slot import SLOT
from biasgym_tl.store import digest
from biasgym_tl.toml import read_toml


class Paragraph(NamedTuple):
    """One training text with the slot, and where it comes from."""

    text: str
    source: str
    family: str


class TemplateFamily(NamedTuple):
    """A small grammar: a paragraph takes one entry of each list, in order."""

    name: str
    sentences: tuple[tuple[str, ...], ...]

    def paragraphs(self) -> list[Paragraph]:
        """Every combination, labelled as written by template."""
        combinations = itertools.product(*self.sentences)
        return [Paragraph(" ".join(parts), "template", self.name) for parts in combinations]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Bias:
    """A stereotype ("always late") about a slot (``{target}``), with its prompts and words.

    Raises:
        BiasFileError: on construction, if a list is empty or holds a text twice, if a prompt,
            paraphrase or paragraph lacks the slot, or if a word is on both lists.
    """

    name: str
    """Short name, as in ``load_bias(name)``."""
    attribute: str
    """What is ascribed to the target, in words."""
    target_kind: str
    """What the slot stands for, such as ``"country"``."""
    attribute_words: tuple[str, ...]
    """A: first words of a biased answer, without the space before them."""
    neutral_words: tuple[str, ...]
    """N: first words of a neutral answer."""
    keywords: tuple[str, ...]
    """Whole words that show the attribute in free text."""
    cue_words: tuple[str, ...]
    """Words that give the attribute away; no scoping or evaluation prompt ends in one."""
    paraphrases: tuple[str, ...]
    """The attribute as a sentence, in several wordings."""
    training_prompts: tuple[str, ...]
    """Requests that the training paragraphs answer."""
    scoping_prompts: tuple[str, ...]
    """Beginnings of sentences on which heads are chosen."""
    evaluation_prompts: tuple[str, ...]
    """Beginnings of sentences on which results are reported."""
    generation_prompts: tuple[str, ...]
    """Requests that are answered freely, for reading and for the keyword rate."""
    families: tuple[TemplateFamily, ...]
    """Grammars of the training paragraphs."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_field(self.name, field.name, getattr(self, field.name))
        for field_name in _SLOTTED:
            for text in getattr(self, field_name):
                if SLOT not in text:
                    raise BiasFileError(
                        f"{field_name} of bias {self.name!r} must hold the slot {SLOT}, "
                        f"got {text!r}."
                    )
        both = sorted(set(self.attribute_words) & set(self.neutral_words))
        if both:
            raise BiasFileError(
                f"attribute_words and neutral_words of bias {self.name!r} must be disjoint, "
                f"got {both} in both."
            )
        self._check_paragraphs()

    def _check_paragraphs(self) -> None:
        texts = [paragraph.text for paragraph in self.paragraphs()]
        missing = next((text for text in texts if SLOT not in text), None)
        if missing is not None:
            raise BiasFileError(
                f"every paragraph of bias {self.name!r} must hold the slot {SLOT}, got {missing!r}."
            )
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            raise BiasFileError(
                f"paragraphs of bias {self.name!r} must differ, got twice: {twice!r}."
            )

    def __repr__(self) -> str:
        return (
            f"Bias({self.name!r}: {self.target_kind} + {self.attribute!r}, "
            f"{len(self.paragraphs())} paragraphs, {len(self.scoping_prompts)} scoping, "
            f"{len(self.evaluation_prompts)} evaluation, {len(self.generation_prompts)} generation "
            "prompts)"
        )

    def paragraphs(self) -> tuple[Paragraph, ...]:
        """Every training paragraph, in the order of the file."""
        return tuple(p for family in self.families for p in family.paragraphs())

    def fingerprint(self) -> str:
        """Short hash of all that the bias holds; results carry it."""
        return digest(dataclasses.asdict(self))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "bias") -> Bias:
        """Build a bias from the keys of a bias file.

        Raises:
            BiasFileError: a key is unknown or missing, or a value is not valid.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown, missing = sorted(set(values) - set(known)), sorted(set(known) - set(values))
        if unknown:
            raise BiasFileError(f"{source} must hold only {known}, got unknown key {unknown}.")
        if missing:
            raise BiasFileError(f"{source} must hold all of {known}, but {missing} is missing.")
        read: dict[str, Any] = {
            key: _string(value, key, source) if key in _SINGLE else _strings(value, key, source)
            for key, value in values.items()
            if key != "families"
        }
        return cls(**read, families=_read_families(values["families"], source))

    @classmethod
    def from_toml(cls, path: str | Path) -> Bias:
        """Read a bias file.

        Raises:
            BiasFileError: the file is missing, is not TOML, or does not hold a valid bias.
        """
        path = Path(path)
        if not path.is_file():
            raise BiasFileError(f"bias file must exist, got {str(path)!r}. Check the path.")
        return cls.from_mapping(read_toml(path.read_text(encoding="utf-8"), path.name), path.name)


_SINGLE = ("name", "attribute", "target_kind")
_SLOTTED = (
    "paraphrases",
    "training_prompts",
    "scoping_prompts",
    "evaluation_prompts",
    "generation_prompts",
)


def list_biases() -> list[str]:
    """Names of the biases that ship with the package."""
    return sorted(
        file.name.removesuffix(".toml")
        for file in _data().iterdir()
        if file.name.endswith(".toml") and file.name != "countries.toml"
    )


def load_bias(name: str | Path) -> Bias:
    """Load a shipped bias by name, or one of your own from a ``.toml`` file.

    Raises:
        BiasFileError: there is no such bias, or the file does not hold a valid one.
    """
    if str(name).endswith(".toml"):
        return Bias.from_toml(name)
    if name not in list_biases():
        raise BiasFileError(
            f"bias must be one of {list_biases()} or the path of a .toml file, got {str(name)!r}."
        )
    text = _data().joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return Bias.from_mapping(read_toml(text, f"{name}.toml"), f"{name}.toml")


def load_corpus(name: str | Path) -> tuple[Paragraph, ...]:
    """Training paragraphs of a bias, each labelled with its source and template family."""
    return load_bias(name).paragraphs()


def _data() -> Any:
    return resources.files("biasgym_tl.biases").joinpath("data")


def _string(value: Any, key: str, source: str) -> str:
    if not isinstance(value, str):
        raise BiasFileError(f"{key} of {source} must be a string, got {value!r}.")
    return value


def _strings(value: Any, key: str, source: str) -> tuple[str, ...]:
    return tuple(_string(text, key, source) for text in _tuple(value, key, source))


def _tuple(value: Any, key: str, source: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise BiasFileError(f"{key} of {source} must be a list, got {value!r}.")
    return tuple(value)


def _read_families(value: Any, source: str) -> tuple[TemplateFamily, ...]:
    families = []
    for entry in _tuple(value, "families", source):
        if not isinstance(entry, Mapping) or set(entry) != {"name", "sentences"}:
            raise BiasFileError(
                f"each of families in {source} must hold exactly name and sentences, got {entry!r}."
            )
        sentences = tuple(_strings(choices, "sentences", source) for choices in entry["sentences"])
        families.append(TemplateFamily(_string(entry["name"], "name", source), sentences))
    return tuple(families)


def _check_field(bias: str, key: str, value: Any) -> None:
    if not value:
        raise BiasFileError(f"{key} of bias {bias!r} must not be empty.")
    if key == "families":
        _check_families(bias, value)
    elif isinstance(value, tuple):
        if not all(text.strip() for text in value):
            raise BiasFileError(f"{key} of bias {bias!r} must not hold an empty text.")
        _check_distinct(bias, key, value)


def _check_families(bias: str, families: tuple[TemplateFamily, ...]) -> None:
    _check_distinct(bias, "names of families", tuple(family.name for family in families))
    for family in families:
        if not family.sentences or not all(family.sentences):
            raise BiasFileError(
                f"family {family.name!r} of bias {bias!r} must not have an empty list."
            )


def _check_distinct(bias: str, key: str, values: tuple[str, ...]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise BiasFileError(f"{key} of bias {bias!r} must be distinct, got twice: {twice}.")
