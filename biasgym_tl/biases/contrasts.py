"""Prompts with a biased and a neutral answer, and the file that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from biasgym_tl.biases.corpus import read_jsonl
from biasgym_tl.errors import BiasFileError
from biasgym_tl.slot import SLOT


class Contrast(NamedTuple):
    """The beginning of a sentence with the slot, and two answers to it (paper, Listing 2)."""

    prompt: str
    biased: str
    neutral: str
    source: str = "model"
    writer: str = ""
    prompt_hash: str = ""


def read_contrasts(path: str | Path) -> tuple[Contrast, ...]:
    """Read a file that ``write_contrasts(...).save(path)`` or ``biasgym write --contrasts`` wrote.

    Raises:
        BiasFileError: the file is missing or empty, or a line is not a contrast prompt.
    """
    name = Path(path).name
    found = []
    for number, row in enumerate(read_jsonl(Path(path)), start=1):
        try:
            contrast = Contrast(**row)
        except TypeError as error:
            raise BiasFileError(
                f"row {number} of {name} must be a contrast prompt, got {row!r}."
            ) from error
        whole = all(isinstance(text, str) and text.strip() for text in contrast[:3])
        if not whole or contrast.prompt.count(SLOT) != 1:
            raise BiasFileError(
                f"row {number} of {name} must hold a prompt with the slot {SLOT} once "
                f"and two answers, got {row!r}."
            )
        found.append(contrast)
    if not found:
        raise BiasFileError(f"{name} must hold a contrast prompt, got none.")
    return tuple(found)
