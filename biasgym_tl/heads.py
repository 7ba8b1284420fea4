"""Attention heads and their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from biasgym_tl.errors import SteeringError

_NAME = re.compile(r"L(\d+)H(\d+)")


class Head(NamedTuple):
    """One attention head, written ``L9H8`` (counted from 0)."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, name: str) -> Head:
        """Read a head from its name.

        Raises:
            SteeringError: ``name`` is not of the form ``L9H8``.
        """
        match = _NAME.fullmatch(name.strip())
        if match is None:
            raise SteeringError(f"head must be written like 'L9H8', got {name!r}.")
        return cls(int(match[1]), int(match[2]))


def all_heads(n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """Every head of a model, layer by layer: the order of a flattened ``[n_layers, n_heads]``."""
    return tuple(Head(layer, head) for layer in range(n_layers) for head in range(n_heads))


def check_heads(heads: Iterable[tuple[int, int]], n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """Return ``heads`` as sorted, distinct :class:`Head`, checked against the model's size.

    Raises:
        SteeringError: a head lies outside ``n_layers`` x ``n_heads``.
    """
    checked = sorted({Head(int(layer), int(head)) for layer, head in heads})
    outside = [str(h) for h in checked if not (0 <= h.layer < n_layers and 0 <= h.head < n_heads)]
    if outside:
        raise SteeringError(
            f"heads must lie in L0..L{n_layers - 1} and H0..H{n_heads - 1} of this model, "
            f"got {', '.join(outside)}. Were they chosen on another model?"
        )
    return tuple(checked)
