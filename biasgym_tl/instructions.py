"""Asking a model not to stereotype: the baselines that steering has to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from biasgym_tl.errors import SettingError
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import Turn, encode_prompt
from biasgym_tl.text import generate
from biasgym_tl.toml import shipped_toml

FIRST_ANSWER_TOKENS = 32
"""Length of a first answer that the model is asked to revise."""


class Instruction(NamedTuple):
    """Words around each request. Plain texts, which are no request, stay as they are."""

    name: str
    before: str = ""
    """Stands before the user's request."""
    again: str = ""
    """A second request, after the model's first answer; the second answer is what counts."""

    def asked(self, request: str) -> str:
        """The user's first turn."""
        return f"{self.before} {request}" if self.before else request


NOTHING = Instruction("")
INSTRUCTIONS = {
    name: Instruction(name, **words)
    for name, words in shipped_toml("data/instructions.toml").items()
}
"""Three published styles, in words of our own."""


def find_instruction(name: str) -> Instruction:
    """A shipped instruction by name.

    Raises:
        SettingError: there is none of that name.
    """
    if name not in INSTRUCTIONS:
        raise SettingError(f"instruction must be one of {list(INSTRUCTIONS)}, got {name!r}.")
    return INSTRUCTIONS[name]


def encode_instructed(
    model: HookedTransformer,
    instruction: Instruction,
    requests: Sequence[str],
    beginnings: Sequence[str] | None = None,
    *,
    max_new_tokens: int = FIRST_ANSWER_TOKENS,
) -> list[list[int]]:
    """Token ids of each request under an instruction, and of the beginning of its answer.

    Where the instruction asks again, the model first answers freely (greedy, up to
    ``max_new_tokens``), as it is in the setting that is being measured.
    """
    begun = [""] * len(requests) if beginnings is None else list(beginnings)
    asked = [instruction.asked(request) for request in requests]
    first = [encode_prompt(model, *pair) for pair in zip(asked, begun, strict=True)]
    if not instruction.again:
        return first
    answers = generate(model, first, max_new_tokens=max_new_tokens)
    return [
        encode_prompt(model, instruction.again, start, (Turn(request, start + answer),))
        for request, start, answer in zip(asked, begun, answers, strict=True)
    ]
