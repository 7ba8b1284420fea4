"""Attention heads and their names."""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

from biasgym_tl.errors import SteeringError

_NAME = re.compile(r"[Ll](\d{1,9})[Hh](\d{1,9})")


class Head(NamedTuple):
    """One attention head, written ``L9H8`` (counted from 0)."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, value: Any) -> Head:
        """Read a head from its name or from a pair of layer and head.

        Raises:
            SteeringError: ``value`` is not of the form ``"L9H8"`` or ``(9, 8)``.
        """
        if isinstance(value, str):
            match = _NAME.fullmatch(value.strip())
            pair: Any = () if match is None else map(int, match.groups())
        else:
            pair = value
        try:
            pair = tuple(pair)
            kinds = [str(getattr(part, "dtype", type(part).__name__)) for part in pair]
            if any(kind.endswith("bool") for kind in kinds):
                raise TypeError("a mask is no list of heads; take its places: mask.nonzero()")
            layer, head = map(operator.index, pair)
        except (TypeError, ValueError) as error:
            raise SteeringError(
                f"head must be a pair such as (9, 8) or written like 'L9H8', got {value!r}."
            ) from error
        return cls(layer, head)

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        """How a head is read from a file: by :meth:`parse`."""
        from pydantic_core.core_schema import no_info_plain_validator_function

        return no_info_plain_validator_function(cls.parse)


GivenHead: TypeAlias = str | Iterable[SupportsIndex]
"""A head as :meth:`Head.parse` reads it: ``"L9H8"``, ``Head(9, 8)``, ``(9, 8)`` or ``[9, 8]``."""
GivenHeads: TypeAlias = str | Iterable[GivenHead] | Iterable[SupportsIndex]
"""Heads as :func:`as_heads` reads them: any of these in any iterable, ``"L9H8, L3H1"``, or one."""
Factor: TypeAlias = float | Mapping[Any, float] | None
"""What heads keep of their output: one number for all, or one by head (a :data:`GivenHead`)."""


def all_heads(n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """Every head of a model, layer by layer: the order of a flattened ``[n_layers, n_heads]``."""
    return tuple(Head(layer, head) for layer in range(n_layers) for head in range(n_heads))


def as_heads(heads: Any) -> tuple[Head, ...]:
    """Heads in the order in which they are given, each once.

    Args:
        heads: Names or pairs; names with commas between them; or a single head.

    Raises:
        SteeringError: one of them is no head.
    """
    if getattr(heads, "mode", "") == "edit":
        raise SteeringError(
            "heads must be a Selection or names, got an Edit, which holds more than heads. Give "
            "what it was made of, or steer(model, edit)."
        )
    try:
        given: list[Any] = heads.split(",") if isinstance(heads, str) else list(heads)
    except TypeError as error:
        raise SteeringError(
            f"heads must be such as ['L9H8', (3, 1)] or 'L9H8, L3H1', got {heads!r}."
        ) from error
    with contextlib.suppress(SteeringError):
        given = [Head.parse(given)]
    return tuple(dict.fromkeys(map(Head.parse, given)))


def heads_by_name(value: Any) -> Any:
    """Heads in a tuple as the list of their names; anything else as it is."""
    if isinstance(value, tuple) and any(isinstance(each, Head) for each in value):
        return list(map(str, value))
    return value


def check_heads(heads: GivenHeads, n_layers: int, n_heads: int) -> tuple[Head, ...]:
    """Return ``heads`` as sorted, distinct :class:`Head`, checked against the model's size.

    Raises:
        SteeringError: one is no head, or lies outside ``n_layers`` x ``n_heads``.
    """
    checked = sorted(as_heads(heads))
    outside = [str(h) for h in checked if not (0 <= h.layer < n_layers and 0 <= h.head < n_heads)]
    if outside:
        raise SteeringError(
            f"heads must lie in L0..L{n_layers - 1} and H0..H{n_heads - 1} of this model, "
            f"got {', '.join(outside)}. Were they chosen on another model?"
        )
    return tuple(checked)


def by_head(factor: Mapping[Any, float]) -> dict[Head, float]:
    """Factors with each head as a :class:`Head`.

    Raises:
        SteeringError: a key is no head, or two are the same one.
    """
    found = {Head.parse(head): value for head, value in factor.items()}
    if len(found) < len(factor):
        twice = sorted(str(h) for h in found if [Head.parse(k) for k in factor].count(h) > 1)
        raise SteeringError(f"factor must have one number for each head, got two for {twice}.")
    return found
