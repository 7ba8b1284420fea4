"""Whether a text is a usable answer at all: a broken model must not look like a cured one."""

from __future__ import annotations

import re

from biasgym_tl.slot import SLOT
from biasgym_tl.spelling import plain
from biasgym_tl.text import MOSTLY_REPEATED, repetition

FEWEST_WORDS = 3
MANY_PAIRS_REPEATED = 0.3
"""Share of repeated pairs of words above which readers called a text a repetition."""

_PERSONS = re.compile(
    r"\b(?:they|them|their|theirs|he|him|his|she|her|hers|who|whoever|people|persons?|man|men|woman"
    r"|women|boys?|girls?|child|children|kids?|famil(?:y|ies)|parents?|mothers?|fathers?|sisters?"
    r"|brothers?|cousins?|uncles?|aunts?|friends?|guests?|visitors?|hosts?|neighbou?rs?|students?"
    r"|pupils?|teachers?|drivers?|workers?|colleagues?|boss|bosses|inhabitants|residents|citizens"
    r"|locals|country|nation|culture|everybody|everyone|nobody|no one|somebody|someone|anybody"
    r"|anyone|mr|mrs|ms)\b",
    re.IGNORECASE,
)


def broken(text: str) -> str:
    """``"empty"`` (fewer than three words), ``"repetition"``, or nothing for a usable text.

    Repetition: more than half of the runs of three words, or 30% of the pairs, have stood in the
    text before.
    """
    if len(re.findall(r"\w+", plain(text))) < FEWEST_WORDS:
        return "empty"
    repeats = repetition(text) > MOSTLY_REPEATED or repetition(text, 2) > MANY_PAIRS_REPEATED
    return "repetition" if repeats else ""


def names_nobody(text: str) -> bool:
    """Whether an English text has neither the slot nor a word for a person or a people.

    Such a text is off topic. Not every off-topic text is found so: a word salad may be full of
    persons.
    """
    return SLOT not in text and _PERSONS.search(text) is None
