"""The keys of a bias file, and how each is read into the fields of a bias."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from biasgym_tl.biases.corpus import Paragraph, TemplateFamily, as_paragraphs, read_corpus
from biasgym_tl.biases.lists import check_distinct
from biasgym_tl.biases.panel import CELLS, SPLITS, Cell, Panel, Prompts
from biasgym_tl.errors import BiasFileError
from biasgym_tl.files import read_text
from biasgym_tl.slot import SLOT
from biasgym_tl.store import check_name
from biasgym_tl.toml import read_toml

MOST_PARAGRAPHS = 100_000
"""That the families of a bias file may make; the shipped biases have 500."""
MOST_CHARACTERS = 100_000_000
"""That the slots of a bias file may put into texts."""
SINGLE = ("name", "attribute", "target_kind", "stand_in")
SLOTTED = (
    "paraphrases", "training_prompts", "probe_prompts", "scoping_prompts", "evaluation_prompts",
    "generation_prompts",
)  # fmt: skip
_LISTS = ("attribute_words", "neutral_words", "keywords", "cue_words", *SLOTTED)
_KNOWN = (*SINGLE, *_LISTS, "corpus", "families", "targets", "slots", "panel")
REQUIRED = ("name", "attribute", "attribute_words", "neutral_words")
"""What every bias has; the rest is there for the steps that use it."""


def new_bias(name: str) -> str:
    """A small commented bias file to start from, with the fields that scoping uses.

    Raises:
        BiasFileError: the name could not stand in a file name.
    """
    check_name(name, "name of a bias", BiasFileError)
    file = resources.files("biasgym_tl").joinpath("data/new_bias.toml")
    return file.read_text(encoding="utf-8").replace("NAME", name)


def read_fields(
    values: Mapping[str, Any],
    source: str,
    folder: Path | None,
    other_slots: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The fields of a bias from the keys of its file; see ``Bias.from_mapping``.

    Raises:
        BiasFileError: a key is unknown or missing, or a value is not valid.
    """
    unknown = sorted(set(values) - set(_KNOWN))
    missing = sorted(set(REQUIRED) - set(values))
    if unknown:
        raise BiasFileError(f"{source} must hold only {list(_KNOWN)}, got unknown key {unknown}.")
    if missing:
        raise BiasFileError(
            f"{source} must hold {', '.join(REQUIRED)}, but {missing} is missing. 'biasgym biases "
            "new NAME' writes a file to start from."
        )
    slots = _slots(values.get("slots", {}), other_slots, source)
    fields: dict[str, Any] = {}
    for key, value in values.items():
        if key in SINGLE:
            fields[key] = _string(value, key, source)
        elif key in _LISTS:
            fields[key] = _filled(_strings(value, key, source), slots, source)
    targets = values.get("targets", {})
    if not isinstance(targets, Mapping):
        raise BiasFileError(f"targets of {source} must be a table, got {targets!r}.")
    for split, key in (("fitting", "fitting_targets"), ("held-out", "held_out_targets")):
        if split in targets:
            fields[key] = _strings(targets[split], key, source)
    if "panel" in values:
        fields["panel"] = _panel(values["panel"], source, folder, slots)
    paragraphs = _paragraphs(values, source, folder)
    texts = _filled([p.text for p in paragraphs], slots, source)
    corpus = (p._replace(text=text) for p, text in zip(paragraphs, texts, strict=True))
    return {**fields, "corpus": tuple(corpus)}


def _slots(own: Any, other: Mapping[str, Sequence[str]], source: str) -> dict[str, tuple[str, ...]]:
    """Values of the slots beside ``{target}``, by the slot as it stands in a text."""
    if not isinstance(own, Mapping) or set(other) - set(own):
        raise BiasFileError(
            f"slots of {source} must be a table that holds {sorted(other)}, got {own!r}."
        )
    values = {
        "{" + key + "}": _strings(other.get(key, value), key, source) for key, value in own.items()
    }
    if not all(values.values()):
        raise BiasFileError(f"slots of {source} must not be empty, got {own!r}.")
    return values


def _filled(
    texts: Sequence[str], slots: Mapping[str, tuple[str, ...]], source: str
) -> tuple[str, ...]:
    """The texts, in each of which a slot has its next value; values are not filled again."""
    if not slots:
        return tuple(texts)
    pattern = re.compile("|".join(map(re.escape, slots)))
    found, n = [], 0
    for i, text in enumerate(texts):
        now = {slot: values[i % len(values)] for slot, values in slots.items()}
        n += sum(len(value) * text.count(slot) for slot, value in now.items())
        if n > MOST_CHARACTERS:
            raise BiasFileError(
                f"slots of {source} must put at most {MOST_CHARACTERS:,} characters into "
                f"texts, got more by text {i + 1:,} of {len(texts):,}."
            )
        found.append(pattern.sub(lambda slot, now=now: now[slot[0]], text))  # type: ignore[misc]
    return tuple(found)


def _paragraphs(values: Mapping[str, Any], source: str, folder: Path | None) -> list[Paragraph]:
    families = [_family(e, source) for e in _tuple(values.get("families", ()), "families", source)]
    check_distinct(source, "names of families", [family.name for family in families])
    n = sum(family.n_paragraphs for family in families)
    if n > MOST_PARAGRAPHS:
        raise BiasFileError(
            f"families of {source} must make at most {MOST_PARAGRAPHS:,} paragraphs, got {n:,}. "
            "Give fewer sentences to choose from."
        )
    made = [p for family in families for p in family.paragraphs()]
    corpus = values.get("corpus", ())
    if not isinstance(corpus, str):
        return [*made, *as_paragraphs(corpus, f"the corpus of {source}")]
    beside = (folder or Path()) / corpus
    return [*made, *read_corpus(beside if beside.exists() or corpus.endswith(".jsonl") else corpus)]


def _family(entry: Any, source: str) -> TemplateFamily:
    if not isinstance(entry, Mapping) or set(entry) != {"name", "sentences"}:
        raise BiasFileError(
            f"each of families in {source} must hold exactly name and sentences, got {entry!r}."
        )
    lists = _tuple(entry["sentences"], "sentences", source)
    sentences = tuple(_strings(choices, "sentences", source) for choices in lists)
    if not sentences or not all(sentences):
        raise BiasFileError(f"family {entry['name']!r} of {source} must not have an empty list.")
    return TemplateFamily(_string(entry["name"], "name", source), sentences)


def _panel(
    value: Any, source: str, folder: Path | None, slots: Mapping[str, tuple[str, ...]]
) -> Panel:
    """From a table, or the file beside the bias's that holds one."""
    if isinstance(value, str):
        text = read_text((folder or Path()) / value, "panel file", BiasFileError)
        return _panel(read_toml(text, value), value, None, slots)
    words = ("attribute_words", "neutral_words")
    _check_keys(value, (*words, *CELLS), f"panel of {source}")
    cells = {}
    for name in CELLS:
        _check_keys(value[name], SPLITS, f"panel.{name} of {source}")
        halves = []
        for split in SPLITS:
            half, where = value[name][split], f"panel.{name}.{split} of {source}"
            _check_keys(half, ("prompts", "fillers"), where)
            prompts = _filled(_strings(half["prompts"], "prompts", where), slots, where)
            halves.append(Prompts(prompts, _strings(half["fillers"], "fillers", where)))
        cells[name] = Cell(*halves)
    attribute, neutral = (_strings(value[key], key, source) for key in words)
    return Panel(attribute_words=attribute, neutral_words=neutral, **cells)


def _check_keys(value: Any, keys: Sequence[str], what: str) -> None:
    if not isinstance(value, Mapping) or set(value) != set(keys):
        got = sorted(value) if isinstance(value, Mapping) else value
        raise BiasFileError(f"{what} must be a table that holds {list(keys)}, got {got!r}.")


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


def how_to_give(field: str) -> str:
    """The line of a bias file that gives a field of a bias."""
    if field == "corpus":
        return "corpus = \"texts.jsonl\", which 'biasgym write' can write, or families"
    if field == "panel":
        return "[panel], as 'biasgym biases new NAME' shows"
    if field.endswith("_targets"):
        return f'{field.removesuffix("_targets").replace("_", "-")} = ["..."] below [targets]'
    return f'{field} = ["... {SLOT} ..."]' if field in SLOTTED else f'{field} = ["..."]'
