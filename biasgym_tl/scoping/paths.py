"""Path patching: what a head does along some paths alone, all other heads frozen.

A head may write to the answer itself, or move what stands in the slot to where later parts use it.
From the head to the logits, everything but the MLPs is held as it was in the run (arXiv
2304.05969); from the slot to the head, only what the head reads there is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.batches import AnswerBatch, answer_batches
from biasgym_tl.hooks import collected
from biasgym_tl.lens import HookedTransformer, logit_difference
from biasgym_tl.scoping.patching import (
    BATCH_SIZE,
    Counterpart,
    Reference,
    Sequences,
    as_reference,
    traced,
)


@torch.inference_mode()
def path_effects(
    model: HookedTransformer,
    sequences: Sequences,
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    *,
    reference: Reference = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Float[Tensor, "pair n_layers n_heads"]:
    """How much less the logit difference ``b - n`` is when a head's ``z`` is its reference and all
    other heads keep theirs, while MLPs and norms answer to it.

    The other heads move nothing new to the answer, so that only its position is run again. With
    MLPs and norms held too it would be the direct value. Arguments and errors as of
    :func:`~biasgym_tl.scoping.patching.patching_effects`.
    """
    reference = as_reference(model, sequences, reference)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    found = torch.zeros(len(sequences), n_layers, n_heads, dtype=torch.float64)
    given = model, sequences, biased_ids, neutral_ids
    for run in traced(*given, batch_size, "patch paths" if progress else None):
        batch, ids = run.batch, (run.biased_ids, run.neutral_ids)
        z, resid = _at_answer(model, batch)
        z_ref: Any = reference
        if not isinstance(reference, Tensor):
            sides = [reference[i] for i in batch.indices]
            (others,) = answer_batches(model, sides, len(sides), shared=0)
            back = torch.tensor(others.indices).argsort()
            z_ref = [value[back] for value in _at_answer(model, others)[0]]
        plain = logit_difference(model, resid[-1], *ids)
        for layer in range(n_layers):
            changed = z[layer].repeat(n_heads, 1, 1, 1)
            for head in range(n_heads):
                changed[head, :, head] = z_ref[layer][..., head, :].to(changed)
            rows = _rest(model, layer, resid[layer], [changed, *z[layer + 1 :]])
            for head, row in enumerate(rows):
                fall = plain - logit_difference(model, row, *ids)
                found[batch.indices, layer, head] = fall.double().cpu()
    return found


def _at_answer(
    model: HookedTransformer, batch: AnswerBatch
) -> tuple[list[Float[Tensor, "batch n_heads d_head"]], list[Float[Tensor, "batch d_model"]]]:
    """At the answer positions: ``z`` of every layer, the residual stream before it, and after."""
    rows = torch.arange(len(batch.last))
    with collected(model, "hook_resid_pre") as resid, collected(model, "attn.hook_z") as z:
        resid.append(model(**batch.arguments))
    last = batch.last.cpu()
    at_answer = ([value[rows, last] for value in each] for each in (z, resid))
    return next(at_answer), next(at_answer)


def _rest(
    model: HookedTransformer,
    layer: int,
    resid: Float[Tensor, "batch d_model"],
    z: Sequence[Float[Tensor, "... batch n_heads d_head"]],
) -> Float[Tensor, "head batch d_model"]:
    """Final residuals of one position, run from a layer on with ``z`` of this and the later layers
    given; of the first by head."""
    n = model.cfg.n_heads

    def give(value: Float[Tensor, "row 1 n_heads d_head"], hook: Any) -> Tensor:
        given: Tensor = z[hook.layer() - layer]
        return given.expand(n, *given.shape[-3:]).reshape(value.shape)

    start = resid.expand(n, *resid.shape).reshape(-1, 1, resid.shape[-1])
    names = [f"blocks.{i}.attn.hook_z" for i in range(layer, model.cfg.n_layers)]
    with model.hooks(fwd_hooks=[(name, give) for name in names]):
        found: Tensor = model(
            start,
            attention_mask=torch.ones(start.shape[:2], dtype=torch.long, device=start.device),
            start_at_layer=layer,
            stop_at_layer=model.cfg.n_layers,
        )
    return found.view(n, *resid.shape)


def slot_effects(
    model: HookedTransformer,
    sequences: Sequences,
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    *,
    reference: Reference,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Float[Tensor, "pair n_layers n_heads"]:
    """First-order estimate of what each head adds to the logit difference by reading the slot.

    ``sum_q (sum_j a(q, j) (v_j - v'_j)) . d delta / d z_q`` over the positions ``j`` in which a
    sequence and its ``reference`` differ: its values there are exchanged, its attention stays.
    Arguments and errors as of :func:`~biasgym_tl.scoping.patching.patching_effects`.
    """
    cfg, reference = model.cfg, as_reference(model, sequences, reference)
    assert not isinstance(reference, Tensor), "a slot is read of another run"
    found = torch.zeros(len(sequences), cfg.n_layers, cfg.n_heads, dtype=torch.float64)
    given = model, sequences, biased_ids, neutral_ids
    for run in traced(*given, batch_size, "patch slots" if progress else None):
        with (
            collected(model, "attn.hook_v") as values,
            collected(model, "attn.hook_pattern") as patterns,
        ):
            _, gradients = run.gradients()
        with collected(model, "attn.hook_v") as other_values:
            other = Counterpart.of(run, sequences, reference)
        slot = other.in_slot[..., None, None]
        for layer in range(cfg.n_layers):
            shift = (values[layer] - other.moved(other_values[layer])).detach()
            shift = shift * slot.to(shift.device)
            shift = shift.repeat_interleave(cfg.n_heads // shift.shape[2], dim=2)
            moved = torch.einsum("bhqk,bkhd->bqhd", patterns[layer].detach(), shift)
            found[run.batch.indices, layer] = run.effects([moved], [gradients[layer]])[:, 0]
    return found
