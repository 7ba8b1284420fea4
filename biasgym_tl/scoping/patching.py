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
from tqdm.auto import tqdm

from biasgym_tl.batches import AnswerBatch, answer_batches
from biasgym_tl.errors import AttributionError
from biasgym_tl.hooks import collected
from biasgym_tl.lens import HookedTransformer, logit_difference
from biasgym_tl.scoping.direct import check_precision

BATCH_SIZE = 8


def patching_effects(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    *,
    reference: Float[Tensor, "n_layers n_heads d_head"] | Sequence[Sequence[int]] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Float[Tensor, "pair n_layers n_heads"]:
    """First-order estimate of what each head adds to the logit difference ``b - n``.

    ``(z - z_ref) . d delta / d z``, summed over positions: positive if the difference would fall
    without the head. ``reference`` is ``z_ref``. None: zero; a tensor: fixed for each head;
    sequences: ``z`` in the run of another one for each pair, which may differ in the slot alone.

    Raises:
        AttributionError: weights have less than 32 bits, or a sequence has no counterpart.
    """
    check_precision(model)
    cfg = model.cfg
    if reference is None:
        reference = torch.zeros(cfg.n_layers, cfg.n_heads, cfg.d_head)
    if not isinstance(reference, Tensor) and len(reference) != len(sequences):
        raise AttributionError(
            f"reference must hold {len(sequences)} sequences, one a pair, got {len(reference)}. "
            "Pass the neutral side of every pair."
        )
    found = torch.zeros(len(sequences), cfg.n_layers, cfg.n_heads, dtype=torch.float64)
    batches = answer_batches(model, sequences, batch_size, shared=0)
    n = -(-len(sequences) // batch_size)
    for batch in tqdm(batches, desc="patch heads", total=n, delay=3, disable=not progress):
        ids = biased_ids[batch.indices], neutral_ids[batch.indices]
        z, gradient = _z_and_gradient(model, batch, *ids)
        z_ref: Any = reference
        if not isinstance(reference, Tensor):
            pairs = [(sequences[i], reference[i]) for i in batch.indices]
            z_ref = _aligned_z(model, pairs, z[0].shape[1])
        for layer in range(cfg.n_layers):
            effect = ((z[layer] - z_ref[layer].to(z[layer])) * gradient[layer]).sum(-1)
            effect = effect * batch.arguments["attention_mask"][..., None].to(effect.device)
            found[batch.indices, layer] = effect.double().sum(1).cpu()
    return found


def _z_and_gradient(
    model: HookedTransformer,
    batch: AnswerBatch,
    biased_ids: Int[Tensor, "batch ..."],
    neutral_ids: Int[Tensor, "batch ..."],
) -> tuple[list[Tensor], list[Tensor]]:
    """``z`` of every layer and the gradient of the logit difference there."""

    def trace(embed: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
        return embed.detach().requires_grad_()

    with torch.enable_grad():
        with collected(model, "attn.hook_z") as z, model.hooks(fwd_hooks=[("hook_embed", trace)]):
            resid = model(**batch.arguments)[torch.arange(len(batch.last)), batch.last]
        delta = logit_difference(model, resid, biased_ids, neutral_ids)
        gradient = torch.autograd.grad(delta.sum(), z)
    return [value.detach() for value in z], list(gradient)


@torch.no_grad()
def _aligned_z(
    model: HookedTransformer, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int
) -> list[Float[Tensor, "batch pos n_heads d_head"]]:
    """``z`` of every layer in the second runs, moved to the positions of the first."""
    (batch,) = answer_batches(model, [other for _, other in pairs], len(pairs), shared=0)
    with collected(model, "attn.hook_z") as z:
        model(**batch.arguments)
    rows = torch.tensor(batch.indices).argsort()  # the batch is sorted by length
    positions = [alignment(*pair) for pair in pairs]
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
            "Use ablate_to 'zero' or 'mean'."
        )
    last = len(other) - end - 1
    return [*range(start), *[last] * in_slot, *range(len(other) - end, len(other))]
