"""Fixed samples of a benchmark, as even over its parts as these allow."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from biasgym_tl.errors import SettingError

Item = TypeVar("Item")


def check_positive(**numbers: int | None) -> None:
    """Refuse what is no number of items; None stands for all.

    Raises:
        SettingError: one is below 1.
    """
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise SettingError(f"{name} must be at least 1, got {value!r}.")


def stratified_sample(
    strata: Mapping[str, Sequence[Item]], n: int | None, *, seed: int = 0
) -> dict[str, list[Item]]:
    """Draw ``n`` items in all, as many from each stratum, in the order in which they stood.

    A stratum that is too small gives all it has, and the others give more. Where ``n`` does not
    divide, earlier strata give one more. What is drawn from a stratum depends on its name, its
    items, how many it gives and the seed, not on the other strata. None draws everything.

    Raises:
        SettingError: ``n`` is less than 1.
    """
    check_positive(n=n)
    sizes = even_shares([len(items) for items in strata.values()], n)
    drawn = {}
    for (name, items), size in zip(strata.items(), sizes, strict=True):
        places = random.Random(f"{name}/{seed}").sample(range(len(items)), size)
        drawn[name] = [items[place] for place in sorted(places)]
    return drawn


def even_shares(sizes: Sequence[int], n: int | None) -> list[int]:
    """How many each of some strata of these sizes gives, ``n`` in all or as many as there are."""
    # One of each stratum in turn until enough are taken.
    turns = sorted((turn, i) for i, size in enumerate(sizes) for turn in range(size))
    taken = Counter(i for _, i in turns[:n])
    return [taken[i] for i in range(len(sizes))]


def dealt(groups: Mapping[str, Sequence[Item]], seed: int) -> list[Item]:
    """All members, one of each group in turn; groups and members in an order drawn by ``seed``.

    However many are taken from the front, the groups are represented as evenly as they can be.
    """
    rng = random.Random(seed)
    shuffled = [rng.sample(members, len(members)) for members in groups.values()]
    rng.shuffle(shuffled)
    rounds = itertools.zip_longest(*([(member,) for member in members] for members in shuffled))
    return [entry[0] for turn in rounds for entry in turn if entry]
