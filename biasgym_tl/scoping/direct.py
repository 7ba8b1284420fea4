"""Direct attribution: how much each part of the model writes along the logit difference.

For pair i with final residual ``r_i``, labels ``b_i`` and ``n_i``, final-norm weight ``w_f`` and
scale ``s_i`` (frozen at its value in this run), with ``c`` the centring of LayerNorm (identity
for RMSNorm) and ``D_i = W_U[:, b_i] - W_U[:, n_i]``:

    delta_i = (c(r_i) / s_i * w_f) . D_i + b_f . D_i + b_U[b_i] - b_U[n_i]

is linear in what was written to the residual stream, so it is a sum of parts. With
``d_i = c(w_f * D_i) / s_i`` a head's part is ``(z @ W_O[l, h]) . d_i``.

This is a *direct* effect, with everything after the head frozen. It says what a head writes, not
what would happen without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.errors import AttributionError
from biasgym_tl.lens import POST_NORM_ARCHITECTURES, HookedTransformer
from biasgym_tl.text import BATCH_SIZE, answer_batches

TOLERANCE = 1e-5
"""Largest reconstruction error, relative to the sum of the absolute parts."""


class Parts(NamedTuple):
    """Direct contributions to the logit difference (logits; positive pushes toward ``b``)."""

    heads: Float[Tensor, "pair n_layers n_heads"]
    attn_bias: Float[Tensor, "pair n_layers"]
    """``b_O`` of each layer, which belongs to no head."""
    mlps: Float[Tensor, "pair n_layers"]
    embed: Float[Tensor, " pair"]
    """Token embedding, and learned position embedding where the model adds one."""
    constant: Float[Tensor, " pair"]
    """Biases of the final norm and of the unembedding; nothing in the residual stream."""
    delta: Float[Tensor, " pair"]
    """The model's own logit difference, which the parts must sum to."""

    def total(self) -> Float[Tensor, " pair"]:
        """Sum of all parts."""
        return sum((part.flatten(1).sum(1) for part in self._summands()), torch.tensor(0.0))

    def error(self) -> Float[Tensor, " pair"]:
        """``|total - delta|`` relative to the sum of the absolute parts."""
        size = sum((part.abs().flatten(1).sum(1) for part in self._summands()), torch.tensor(0.0))
        return (self.total() - self.delta).abs() / size

    def _summands(self) -> list[Tensor]:
        return [self.heads, self.attn_bias, self.mlps, self.embed[:, None], self.constant[:, None]]


def frozen_direction(
    direction: Float[Tensor, "batch d_model"],
    norm_weight: Float[Tensor, " d_model"],
    scale: Float[Tensor, "batch 1"],
    *,
    centred: bool,
) -> Float[Tensor, "batch d_model"]:
    """``d = c(w_f * D) / s``: what a vector in the residual stream is dotted with.

    Centring is its own transpose, so it may act on the direction instead of on the residual.
    """
    weighted = direction * norm_weight
    if centred:
        weighted = weighted - weighted.mean(-1, keepdim=True)
    return weighted / scale


def head_logits(
    z: Float[Tensor, "batch n_heads d_head"],
    W_O: Float[Tensor, "n_heads d_head d_model"],
    direction: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch n_heads"]:
    """Direct contribution of each head of one layer along ``direction``.

    ``out[b, h] = z[b, h] . (W_O[h] @ direction[b])``, in logits; positive pushes toward
    ``direction``. ``b_O`` belongs to no head and is left out. The direction is projected first, so
    nothing of the size ``[batch, n_heads, d_model]`` is formed.

    Args:
        z: Head outputs before ``W_O`` (``hook_z``) at the answer position.
        W_O: Output weights of the layer.
        direction: Unembedding direction, already divided by the frozen final-norm scale.
    """
    projected = einsum(W_O, direction, "head d_head d_model, batch d_model -> batch head d_head")
    return (z * projected).sum(-1)


def check_exact(model: HookedTransformer) -> None:
    """Refuse models on which the equations of this module do not hold.

    Raises:
        AttributionError: the model has a norm after attention, a soft cap, positions outside the
            residual stream, or weights of less than 32 bits.
    """
    cfg = model.cfg
    refused = {
        "a norm after attention": cfg.use_normalization_before_and_after
        or cfg.original_architecture in POST_NORM_ARCHITECTURES,
        "a final soft cap": (cfg.output_logits_soft_cap or 0) > 0,
        "an attention soft cap": (cfg.attn_scores_soft_cap or 0) > 0,
        "shortformer positions": cfg.positional_embedding_type == "shortformer",
    }
    found = [name for name, present in refused.items() if present]
    if found:
        raise AttributionError(
            f"direct attribution must be exact, but {cfg.model_name} has {' and '.join(found)}, "
            "which is not supported yet. Use a pre-norm model such as Llama, Qwen2, GPT-2, NeoX."
        )
    if cfg.dtype not in (torch.float32, torch.float64):
        raise AttributionError(
            f"dtype must be torch.float32 or torch.float64 for attribution, got {cfg.dtype}. "
            "Load the model with dtype=torch.float32."
        )


@torch.inference_mode()
def direct_attribution(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, " pair"],
    neutral_ids: Int[Tensor, " pair"],
    *,
    batch_size: int = BATCH_SIZE,
    tolerance: float = TOLERANCE,
) -> Parts:
    """Attribute the logit difference ``b - n`` after each sequence to every part of the model.

    Args:
        model: A pre-norm model in fp32, with the BiasToken attached if a sequence contains it.
        sequences: Token ids; the last position is the answer position.
        biased_ids: ``b`` of each pair.
        neutral_ids: ``n`` of each pair.
        batch_size: Sequences run at once.
        tolerance: Largest accepted reconstruction error.

    Raises:
        AttributionError: the model is not supported, or the parts do not sum to the model's own
            logit difference within ``tolerance``.
    """
    check_exact(model)
    found: list[tuple[list[int], Parts]] = []
    for batch in answer_batches(model, sequences, batch_size):
        with _written_at(model, batch.last) as written:
            resid = model(**batch.arguments)[torch.arange(len(batch.last)), batch.last]
        ids = biased_ids[batch.indices], neutral_ids[batch.indices]
        found.append((batch.indices, _parts(model, written, resid, *ids)))
    order = torch.tensor([i for indices, _ in found for i in indices]).argsort()
    parts = Parts(*(torch.cat(field)[order] for field in zip(*(p for _, p in found), strict=True)))
    _check_reconstruction(parts, tolerance)
    return parts


def _parts(
    model: HookedTransformer,
    written: dict[str, Tensor],
    resid: Float[Tensor, "batch d_model"],
    biased_ids: Int[Tensor, " batch"],
    neutral_ids: Int[Tensor, " batch"],
) -> Parts:
    """Dot what each part wrote with the frozen direction, in fp64."""
    unembed, layers = model.unembed, range(model.cfg.n_layers)
    difference = (unembed.W_U[:, biased_ids] - unembed.W_U[:, neutral_ids]).T.double()
    constant = (unembed.b_U[biased_ids] - unembed.b_U[neutral_ids]).double()
    # Norms that were folded into the next weights, and RMSNorm, have no weight or no bias.
    weight = getattr(model.ln_final, "w", resid.new_ones(model.cfg.d_model)).double()
    bias = getattr(model.ln_final, "b", resid.new_zeros(model.cfg.d_model)).double()
    normed = model.ln_final(resid[None])[0].double()
    scale, centred = _final_scale(model, resid.double())
    direction = frozen_direction(difference, weight, scale, centred=centred)

    blocks = [model.blocks[layer] for layer in layers]
    heads = [
        head_logits(written[f"{layer}.z"].double(), blocks[layer].attn.W_O.double(), direction)
        for layer in layers
    ]
    attn_bias = [direction @ block.attn.b_O.double() for block in blocks]
    mlps = [
        (written[f"{layer}.mlp"].double() * direction).sum(-1)
        if f"{layer}.mlp" in written
        else direction.new_zeros(len(resid))
        for layer in layers
    ]
    return Parts(
        heads=torch.stack(heads, 1).cpu(),
        attn_bias=torch.stack(attn_bias, 1).cpu(),
        mlps=torch.stack(mlps, 1).cpu(),
        embed=(written["embed"].double() * direction).sum(-1).cpu(),
        constant=(difference @ bias + constant).cpu(),
        delta=((normed * difference).sum(-1) + constant).cpu(),
    )


def _final_scale(
    model: HookedTransformer, resid: Float[Tensor, "batch d_model"]
) -> tuple[Float[Tensor, "batch 1"], bool]:
    """The final norm's scale at each row, and whether that norm centres."""
    centred = "LayerNorm" in type(model.ln_final).__name__
    if centred:
        resid = resid - resid.mean(-1, keepdim=True)
    return (resid.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt(), centred


@contextlib.contextmanager
def _written_at(
    model: HookedTransformer, last: Int[Tensor, " batch"]
) -> Iterator[dict[str, Tensor]]:
    """Collect ``z``, MLP outputs and embeddings at the answer positions while the model runs."""
    written: dict[str, Tensor] = {}
    rows = torch.arange(len(last))

    def keep(name: str) -> Any:
        def hook(value: Float[Tensor, "batch pos ..."], hook: Any) -> None:
            at_answer = value[rows, last]
            written[name] = written[name] + at_answer if name in written else at_answer

        return hook

    hooks = [("hook_embed", keep("embed"))]
    if "hook_pos_embed" in model.hook_dict:
        hooks.append(("hook_pos_embed", keep("embed")))
    for layer in range(model.cfg.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_z", keep(f"{layer}.z")))
        if not model.cfg.attn_only:
            hooks.append((f"blocks.{layer}.hook_mlp_out", keep(f"{layer}.mlp")))
    with model.hooks(fwd_hooks=hooks):
        yield written


def _check_reconstruction(parts: Parts, tolerance: float) -> None:
    worst = parts.error().max().item()
    if not worst <= tolerance:
        raise AttributionError(
            f"parts must sum to the logit difference within {tolerance:g} of their absolute sum, "
            f"got an error of {worst:.2g}. A hook that changes the residual stream, or a part that "
            "this model has and the equations lack, would explain it."
        )
