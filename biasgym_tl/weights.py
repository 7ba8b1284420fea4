"""Other weights of chosen heads while a context is open; the parameters are left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.heads import Head
from biasgym_tl.lens import HookedTransformer, attention_weight, replaced_weight


class Deltas(NamedTuple):
    """What is added to the weights of each chosen head."""

    W_O: Float[Tensor, "head d_head d_model"]
    W_Q: Float[Tensor, "head d_model d_head"] | None


@contextlib.contextmanager
def replaced(model: HookedTransformer, weights: Mapping[tuple[int, str], Tensor]) -> Iterator[None]:
    """Other weights in the attention of some layers (by layer and name) while the context is open.

    They may depend on what a gradient is asked of. The parameters themselves are left alone.
    """
    with contextlib.ExitStack() as stack:
        for (layer, name), tensor in weights.items():
            stack.enter_context(replaced_weight(model, layer, name, tensor))
        yield


def added_weights(
    model: HookedTransformer, heads: Sequence[Head], added: Deltas
) -> dict[tuple[int, str], Tensor]:
    """The weights of the layers of ``heads``, as functions of what is added to them."""
    found = {}
    for layer in {head.layer for head in heads}:
        places = [i for i, head in enumerate(heads) if head.layer == layer]
        index = torch.tensor([heads[i].head for i in places])
        for name, delta in zip(added._fields, added, strict=True):
            if delta is not None:
                old = attention_weight(model, layer, name)
                old = old.detach().to(model.cfg.dtype)
                found[layer, name] = old.index_add(0, index.to(old.device), delta[places].to(old))
    return found
