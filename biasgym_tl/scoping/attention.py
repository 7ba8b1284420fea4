"""Where the heads look from the answer position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.lens import HookedTransformer
from biasgym_tl.text import answer_batches


@torch.inference_mode()
def answer_attention(
    model: HookedTransformer, sequence: Sequence[int]
) -> Float[Tensor, "n_layers n_heads pos"]:
    """Attention of every head from the last position to each position; sums to 1 over them.

    Args:
        model: The model, with the BiasToken attached if the sequence contains it.
        sequence: Token ids; the last position is the answer position.
    """
    found: list[Tensor] = []

    def keep(pattern: Float[Tensor, "batch n_heads pos key"], hook: Any) -> None:
        found.append(pattern[0, :, -1])

    (batch,) = answer_batches(model, [sequence], shared=0)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model(**batch.arguments)
    return torch.stack(found).cpu()
