"""A fixed sample of a benchmark, as even over its parts as these allow."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from biasgym_tl.benchmarks.rows import check_n

Item = TypeVar("Item")


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
    check_n(n)
    sizes = even_shares([len(items) for items in strata.values()], n)
    drawn = {}
    for (name, items), size in zip(strata.items(), sizes, strict=True):
        places = random.Random(f"{name}/{seed}").sample(range(len(items)), size)
        drawn[name] = [items[place] for place in sorted(places)]
    return drawn


def even_shares(sizes: Sequence[int], n: int | None) -> list[int]:
    """How many each of some strata of these sizes gives, ``n`` in all or as many as there are."""
    shares = [0] * len(sizes)
    left = sum(sizes) if n is None else min(n, sum(sizes))
    while left:
        for i, size in enumerate(sizes):
            if left and shares[i] < size:
                shares[i] += 1
                left -= 1
    return shares
