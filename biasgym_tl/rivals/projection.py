"""Projection out of the direction between two classes (hard debiasing; arXiv 1607.06520)."""

from __future__ import annotations

from collections.abc import Sequence

from biasgym_tl.biases.bias import Bias
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.intervention import ResidEdit
from biasgym_tl.rivals.layers import erasing, vector
from biasgym_tl.rivals.samples import Between


def projection(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    between: Between = "words",
    layer: int | None = None,
) -> ResidEdit:
    """``h := h - s * delta delta' (h - mean) / delta' delta`` after one layer.

    ``delta`` is the difference of the class means, ``mean`` that of all states. ``s`` is the share
    of the component that is removed; above 1 it is turned round.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        between: What the two classes differ in.
        layer: Default: where the bias falls furthest on scoping prompts.
    """
    parts = erasing(lambda delta, states: delta / delta.dot(delta))
    return vector(model, bias, tokens, "projection", between, parts, layer)
