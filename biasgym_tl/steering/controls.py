"""Random head sets that a chosen set has to beat."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from biasgym_tl.errors import check_at_least
from biasgym_tl.heads import Factor, GivenHeads, Head, as_heads, by_head, check_heads
from biasgym_tl.steering.selection import Selection


def layer_matched(
    heads: GivenHeads, *, n_heads: int, n_draws: int, seed: int, apart: bool = False
) -> list[tuple[Head, ...]]:
    """Random sets with as many heads in each layer as ``heads`` has there.

    Drawn without replacement from all heads of the layer, so a set may share heads with the
    chosen one. Matching the layers keeps "late layers matter more" from passing as "these heads
    matter".

    Args:
        heads: The chosen heads.
        n_heads: Heads in a layer.
        n_draws: Number of sets; 5 illustrate, a p-value wants 199 or more.
        seed: The same seed, the same sets.
        apart: Only heads that are not chosen, in the layers that have enough of them.

    Raises:
        SettingError: ``n_draws`` is negative.
        SteeringError: a head is outside the layer.
    """
    check_at_least(0, n_draws=n_draws)
    chosen = as_heads(heads)
    n_layers = max((layer for layer, _ in chosen), default=-1) + 1
    per_layer = sorted(Counter(h.layer for h in check_heads(chosen, n_layers, n_heads)).items())
    rng = random.Random(seed)

    def pool(layer: int, count: int) -> Sequence[int]:
        others = [head for head in range(n_heads) if (layer, head) not in chosen]
        return others if apart and len(others) >= count else range(n_heads)

    return [
        tuple(
            Head(layer, head)
            for layer, count in per_layer
            for head in sorted(rng.sample(pool(layer, count), count))
        )
        for _ in range(n_draws)
    ]


def matched_factor(heads: GivenHeads, drawn: Iterable[Head], factor: Factor = None) -> Factor:
    """What the heads of a :func:`layer_matched` set keep: factors go from head to head, by layer.

    ``factor`` is that of the chosen heads; default: that of the ``Selection``.
    """
    if factor is None and isinstance(heads, Selection):
        factor = heads.factor
    if not isinstance(factor, Mapping):
        return factor
    own = sorted(by_head(factor).items())
    return {head: kept for head, (_, kept) in zip(drawn, own, strict=True)}
