"""A vector of no meaning: what any change of that size does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from biasgym_tl.biases.bias import Bias
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.caa import caa
from biasgym_tl.rivals.intervention import ResidEdit
from biasgym_tl.rivals.samples import Between


def random_direction(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    between: Between = "words",
    layer: int | None = None,
    seed: int = 0,
) -> ResidEdit:
    """:func:`caa` at its layer, in a random direction of the same length; sign and all are drawn.

    Args:
        model: The model, unchanged.
        bias: As in :func:`caa`, and so are:
        tokens: See ``bias``.
        between: See ``bias``.
        layer: See ``bias``.
        seed: Decides the direction.
    """
    found = caa(model, bias, tokens, between=between, layer=layer).random(model, seed)
    settings = {**found.settings, "seed": seed}
    return dataclasses.replace(found, method="random_direction", settings=settings)
