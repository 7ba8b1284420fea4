"""Attribution patching: the effect of silencing every head, to first order, in one backward pass.

The change of the logit difference when ``z`` of a head becomes ``z_ref`` at every position is, to
first order, ``(z_ref - z) . d delta / d z`` summed over positions. It estimates a *total* effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.batches import answer_batches
from biasgym_tl.errors import AttributionError
from biasgym_tl.hooks import collected
from biasgym_tl.lens import HookedTransformer, logit_difference
from biasgym_tl.scoping.direct import check_precision

BATCH_SIZE = 8


def patching_effects(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, " pair"],
    neutral_ids: Int[Tensor, " pair"],
    *,
    reference: Float[Tensor, "n_layers n_heads d_head"] | Sequence[Sequence[int]] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "pair n_layers n_heads"]:
    """First-order estimate of what each head adds to the logit difference ``b - n``.

    ``(z - z_ref) . d delta / d z``, summed over positions: positive if the difference would fall
    without the head.

    Args:
        model: A model in fp32, with the BiasToken attached if a sequence contains it.
        sequences: Token ids; the last position is the answer position.
        biased_ids: ``b`` of each pair.
        neutral_ids: ``n`` of each pair.
        reference: What ``z`` is compared with: None: zero; a tensor: a fixed value for each head,
            such as ``head_means(model)``; sequences: ``z`` in the run of another sequence for each
            pair, which may differ from it in one stretch of tokens (the slot).
        batch_size: Pairs run at once.

    Raises:
        AttributionError: weights have less than 32 bits, or a sequence has no counterpart.
    """
    check_precision(model)
    others = None if reference is None or isinstance(reference, Tensor) else list(reference)
    if others is not None and len(others) != len(sequences):
        raise AttributionError(
            f"reference must hold {len(sequences)} sequences, one a pair, got {len(others)}. "
            "Pass the neutral side of every pair."
        )
    n = model.cfg.n_layers, model.cfg.n_heads
    found = torch.zeros(len(sequences), *n, dtype=torch.float64)
    for batch in answer_batches(model, sequences, batch_size, shared=0):
        ids = biased_ids[batch.indices], neutral_ids[batch.indices]
        z, gradient = _z_and_gradient(model, batch.arguments, batch.last, *ids)
        in_sequence = batch.arguments["attention_mask"][..., None]
        z_ref: Sequence[Tensor] | Tensor | None = None
        if isinstance(reference, Tensor):
            z_ref = reference
        elif others is not None:
            z_ref = _aligned_z(model, sequences, others, batch.indices, in_sequence.shape[1])
        for layer in range(model.cfg.n_layers):
            change = z[layer] if z_ref is None else z[layer] - z_ref[layer].to(z[layer])
            effect = (change * gradient[layer]).sum(-1) * in_sequence
            found[batch.indices, layer] = effect.double().sum(1).cpu()
    return found


def _z_and_gradient(
    model: HookedTransformer,
    arguments: dict[str, Any],
    last: Int[Tensor, " batch"],
    biased_ids: Int[Tensor, " batch"],
    neutral_ids: Int[Tensor, " batch"],
) -> tuple[list[Tensor], list[Tensor]]:
    """``z`` of every layer and the gradient of the logit difference there."""

    def trace(embed: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
        return embed.detach().requires_grad_()

    with torch.enable_grad():
        with collected(model, "attn.hook_z") as z, model.hooks(fwd_hooks=[("hook_embed", trace)]):
            resid = model(**arguments)[torch.arange(len(last)), last]
        delta = logit_difference(model, resid, biased_ids, neutral_ids)
        gradient = torch.autograd.grad(delta.sum(), z)
    return [value.detach() for value in z], list(gradient)


@torch.no_grad()
def _aligned_z(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    indices: Sequence[int],
    width: int,
) -> list[Float[Tensor, "batch pos n_heads d_head"]]:
    """``z`` of every layer in the runs of ``others``, moved to the positions of ``sequences``."""
    positions = [alignment(sequences[i], others[i]) for i in indices]
    (batch,) = answer_batches(model, [others[i] for i in indices], len(indices), shared=0)
    with collected(model, "attn.hook_z") as z:
        model(**batch.arguments)
    rows = torch.tensor(batch.indices).argsort()  # the batch is sorted by length
    columns = torch.tensor([[*found, *[0] * (width - len(found))] for found in positions])
    return [value[rows[:, None], columns] for value in z]


def alignment(sequence: Sequence[int], other: Sequence[int]) -> list[int]:
    """For each position of ``sequence`` the one of ``other`` that it is compared with.

    Both begin and end alike; what differs between is one slot, and is compared with the slot's
    last token.

    Raises:
        AttributionError: one of the two has nothing in the slot.
    """
    shortest = min(len(sequence), len(other))
    start = 0
    while start < shortest and sequence[start] == other[start]:
        start += 1
    end = 0
    while end < shortest - start and sequence[-1 - end] == other[-1 - end]:
        end += 1
    in_slot = len(sequence) - start - end
    if (in_slot == 0) != (len(other) == start + end):
        raise AttributionError(
            f"sequences must differ in the slot alone, got {list(sequence)} and {list(other)}. "
            "Use reference 'zero' or 'mean'."
        )
    last = len(other) - end - 1
    return [*range(start), *[last] * in_slot, *range(len(other) - end, len(other))]
