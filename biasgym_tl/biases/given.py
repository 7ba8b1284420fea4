"""A bias as it is given to a function: itself, or its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from biasgym_tl.biases.bias import Bias, load_bias

GivenBias: TypeAlias = Bias | str | Path
"""A bias, or what :func:`biasgym_tl.load_bias` takes: its name, or the path of a ``.toml`` file."""


def as_bias(bias: GivenBias) -> Bias:
    """The bias that is meant.

    Raises:
        BiasFileError: there is no bias of this name, or the file does not hold a valid one.
    """
    return bias if isinstance(bias, Bias) else load_bias(bias)


def as_biases(biases: Iterable[GivenBias]) -> tuple[Bias, ...]:
    """The same for several.

    Raises:
        BiasFileError: as :func:`as_bias`.
    """
    return tuple(map(as_bias, biases))
