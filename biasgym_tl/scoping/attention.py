"""Where the heads look from the answer position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.batches import answer_batches
from biasgym_tl.hooks import collected
from biasgym_tl.lens import HookedTransformer


@torch.inference_mode()
def answer_attention(
    model: HookedTransformer, sequence: Sequence[int]
) -> Float[Tensor, "n_layers n_heads pos"]:
    """Attention of every head from the last position to each position; sums to 1 over them.

    Args:
        model: The model, with the BiasToken attached if the sequence contains it.
        sequence: Token ids; the last position is the answer position.
    """
    (batch,) = answer_batches(model, [sequence], shared=0)
    with collected(model, "attn.hook_pattern") as patterns:
        model(**batch.arguments)
    return torch.stack([pattern[0, :, -1] for pattern in patterns]).cpu()
