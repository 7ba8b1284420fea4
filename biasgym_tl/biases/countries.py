"""Countries, and which of them may be used for what."""

from __future__ import annotations

import itertools
import random
from functools import cache
from typing import Literal, NamedTuple

from biasgym_tl.errors import SettingError
from biasgym_tl.toml import shipped_toml

Split = Literal["fitting", "held-out", "other"]


class Country(NamedTuple):
    """A country as the slot of a prompt, and facts about it."""

    name: str
    demonym: str
    region: str
    split: Split
    capital: str
    currency: str | None = None


@cache
def load_countries(split: str | None = None) -> tuple[Country, ...]:
    """Countries that may stand in a slot, or those of one split.

    ``"fitting"`` countries may shape a row, a label or a choice; ``"held-out"`` ones only judge.
    The split is stored, and each region lies half in either. ``"other"`` countries never stand in
    a slot; facts about them bound the damage of a choice.
    """
    if split not in ("fitting", "held-out", "other", None):
        raise SettingError(f"split must be 'fitting', 'held-out' or 'other', got {split!r}.")
    entries = shipped_toml("biases/data/countries.toml")["countries"]
    wanted = ("fitting", "held-out") if split is None else (split,)
    return tuple(Country(**entry) for entry in entries if entry["split"] in wanted)


def sample_countries(split: str, n: int, seed: int) -> tuple[Country, ...]:
    """``n`` countries of a split, regions as even as they can be; the same seed, the same ones.

    Raises:
        SettingError: the split has fewer than ``n`` countries, or ``n`` is not positive.
    """
    pool = load_countries(split)
    if not 1 <= n <= len(pool):
        raise SettingError(f"number of {split} countries must be in 1..{len(pool)}, got {n}.")
    rng = random.Random(seed)
    by_region: dict[str, list[Country]] = {}
    for country in rng.sample(pool, len(pool)):
        by_region.setdefault(country.region, []).append(country)
    # Deal from the regions in turn until enough are drawn.
    turns = itertools.zip_longest(*by_region.values())
    return tuple(country for turn in turns for country in turn if country)[:n]
