"""Contrastive activation addition (Panickssery et al., arXiv 2312.06681)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.intervention import ResidEdit
from biasgym_tl.rivals.layers import vector
from biasgym_tl.rivals.samples import Between


def caa(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    between: Between = "words",
    layer: int | None = None,
) -> ResidEdit:
    """``h := h - s * delta`` after one layer, at every position.

    ``delta`` is the mean of the biased states minus that of the neutral ones, at the last token of
    an answer as the paper has it (``between="words"``). Other than there, instructions are changed
    too, and the layer is one of six.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens, which stand in the slot as targets do.
        between: What the two classes differ in.
        layer: Default: where the bias falls furthest on scoping prompts.
    """
    return vector(model, bias, tokens, "caa", between, toward_neutral, layer)


def toward_neutral(
    biased: Float[Tensor, "n d_model"], neutral: Float[Tensor, "m d_model"]
) -> dict[str, Tensor]:
    """The difference of the class means as what is added."""
    return {"added": neutral.mean(0) - biased.mean(0)}
