"""Facts about the countries: what a model should still know after its bias was removed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from biasgym_tl.biases.countries import Country, load_countries
from biasgym_tl.errors import SettingError

FACT_REQUEST = "Please state a fact about a country."
"""The user's turn before the beginning of a fact."""


class Fact(NamedTuple):
    """A question with four candidate answers, the right one first."""

    country: str
    kind: str
    """``"capital"``, ``"continent"`` or ``"currency"``."""
    question: str
    """Beginning of a sentence that the answer ends."""
    candidates: tuple[str, ...]

    def blind(self) -> Fact:
        """The same fact with the country left out of the question."""
        return self._replace(question=self.question.replace(self.country, "this country", 1))


_QUESTIONS = {
    "capital": "The capital city of {} is",
    "continent": "{} is a country in",
    "currency": "The currency of {} is the",
}


@cache
def load_facts(use: str = "report") -> tuple[Fact, ...]:
    """Capital, continent and currency of countries, as far as they are known.

    For the ``"report"``: of all countries that may stand in a slot. For a ``"budget"``, which a
    choice of heads may look at: of other countries.

    The three wrong candidates are right for other countries, all different, drawn once and for all.
    Blind guessing is right in 1 of 4, but some answers ("euro") are more common than others: what
    a model gets right without being told the country is the floor (``Fact.blind``).
    """
    if use not in ("report", "budget"):
        raise SettingError(f"use must be 'report' or 'budget', got {use!r}.")
    countries = load_countries("other" if use == "budget" else None)
    rng = random.Random(0)
    facts = []
    for kind, question in _QUESTIONS.items():
        answers = {country.name: _answer(country, kind) for country in countries}
        distinct = sorted({answer for answer in answers.values() if answer})
        for name, answer in answers.items():
            if answer:
                wrong = rng.sample([a for a in distinct if a != answer], 3)
                facts.append(Fact(name, kind, question.format(name), (answer, *wrong)))
    return tuple(facts)


def evenly(facts: Sequence[Fact], n: int) -> Sequence[Fact]:
    """So many of the facts at equal distances, or all if there are fewer."""
    return facts[:: max(1, len(facts) // n)][:n]


def _answer(country: Country, kind: str) -> str | None:
    if kind == "capital":
        return country.capital
    if kind == "currency":
        return country.currency
    return "the Americas" if country.region == "Americas" else country.region
