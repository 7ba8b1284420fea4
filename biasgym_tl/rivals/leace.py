"""Least-squares concept erasure in closed form (Belrose et al., arXiv 2306.03819)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.intervention import ResidEdit
from biasgym_tl.rivals.layers import erasing, vector
from biasgym_tl.rivals.samples import Between


def leace(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    between: Between = "words",
    layer: int | None = None,
) -> ResidEdit:
    """``h := h - s * delta * read . (h - mean)`` after one layer, with the :func:`reader` of its
    states and the difference ``delta`` of the class means.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        between: What the two classes differ in.
        layer: Default: where the bias falls furthest on scoping prompts.
    """
    parts = erasing(lambda delta, states: reader(delta, shrunk_covariance(states)))
    return vector(model, bias, tokens, "leace", between, parts, layer)


def reader(
    delta: Float[Tensor, " d_model"], covariance: Float[Tensor, "d_model d_model"]
) -> Float[Tensor, " d_model"]:
    """``read`` of ``h - delta * (read . (h - mean))``, the least change of ``h`` in the metric of
    its covariance ``C`` after which no linear classifier is better than a constant.

    For two classes it is ``C^-1 delta / (delta' C^-1 delta)``, with the difference ``delta`` of
    their means.
    """
    solved: Tensor = torch.linalg.solve(covariance, delta)
    return solved / delta.dot(solved)


def shrunk_covariance(states: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Covariance, shrunk toward a multiple of the identity by the share of Chen et al. (OAS, arXiv
    0907.4698)."""
    n, d = states.shape
    centred = states - states.mean(0)
    found = centred.T @ centred / n
    trace, square = found.trace(), found.square().sum()
    share = ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d))
    share = share.clamp(max=1.0)
    shrunk: Tensor = (1 - share) * found + share * trace / d * torch.eye(d, dtype=found.dtype)
    return shrunk
