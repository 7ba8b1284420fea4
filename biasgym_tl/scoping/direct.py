"""Direct attribution: how much each part of the model writes along the logit difference.

For pair i with final residual ``r_i``, labels ``b_i`` and ``n_i``, final-norm weight ``w_f`` and
scale ``s_i`` (frozen at its value in this run), with ``c`` the centring of LayerNorm (identity
for RMSNorm) and ``D_i = W_U[:, b_i] - W_U[:, n_i]``:

    delta_i = (c(r_i) / s_i * w_f) . D_i + b_f . D_i + b_U[b_i] - b_U[n_i]

is linear in what was written to the residual stream, so it is a sum of parts. With
``d_i = c(w_f * D_i) / s_i`` a head's part is ``P(z @ W_O[l, h]) . d_i``. ``P`` is the identity on
most models; where a norm follows attention (Gemma-2/3, OLMo-2) it is that norm with its scale
frozen too. With a final soft cap ``delta_i`` is the difference *before* the cap.

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

from biasgym_tl.batches import BATCH_SIZE, answer_batches
from biasgym_tl.errors import AttributionError
from biasgym_tl.hooks import collected
from biasgym_tl.lens import (
    POST_NORM_ARCHITECTURES,
    HookedTransformer,
    check_model,
    unembed_difference,
)

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
        ModelError: the model is no HookedTransformer with its own value biases.
        AttributionError: the model has positions outside the residual stream or weights of less
            than 32 bits, or is on a device without 64-bit floats.
    """
    check_model(model)
    cfg = model.cfg
    if cfg.positional_embedding_type == "shortformer":
        raise AttributionError(
            "positional_embedding_type must be in the residual stream, got 'shortformer': no part "
            "of the residual stream holds these positions. Use another model."
        )
    if torch.device(cfg.device or "cpu").type == "mps":
        raise AttributionError(
            "device must have 64-bit floats, got 'mps'. Move the model: model.to('cpu')."
        )
    check_precision(model)


def check_precision(model: HookedTransformer) -> None:
    """Refuse weights of less than 32 bits, with the reason.

    Raises:
        AttributionError: the dtype has less precision than effects of single heads need.
    """
    if model.cfg.dtype not in (torch.float32, torch.float64):
        raise AttributionError(
            f"dtype must be torch.float32 or torch.float64 for attribution, got {model.cfg.dtype}. "
            "Load the model with dtype=torch.float32."
        )


def post_norm(model: HookedTransformer, layer: int) -> str | None:
    """Name of the norm between a layer's attention and the residual stream, or None."""
    if model.cfg.normalization_type is None:
        return None
    if hasattr(model.blocks[layer], "ln1_post"):  # Gemma-2 and -3
        return "ln1_post"
    return "ln1" if model.cfg.original_architecture in POST_NORM_ARCHITECTURES else None


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
        model: A model in fp32, with the BiasToken attached if a sequence contains it.
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
    parts = unchecked_attribution(model, sequences, biased_ids, neutral_ids, batch_size=batch_size)
    _check_reconstruction(parts, tolerance)
    return parts


@torch.inference_mode()
def unchecked_attribution(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, " pair"],
    neutral_ids: Int[Tensor, " pair"],
    *,
    batch_size: int = BATCH_SIZE,
) -> Parts:
    """:func:`direct_attribution` without its refusals, to see how far off a model is."""
    difference, constant = unembed_difference(model, biased_ids, neutral_ids)
    return _attributed(model, sequences, difference, constant, batch_size)


@torch.inference_mode()
def continuation_attribution(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased: Sequence[Sequence[int]],
    neutral: Sequence[Sequence[int]],
    *,
    batch_size: int = BATCH_SIZE,
    tolerance: float = TOLERANCE,
) -> Parts:
    """Attribute the logits of whole continuations, summed over their tokens, biased minus neutral.

    Each continuation is forced on the model token by token, and every token counts with its logit
    minus the mean logit of the vocabulary, since logits after different words have no common zero.
    That is linear as well. For continuations of one token it is :func:`direct_attribution`.

    Args:
        model: A model in fp32, with the BiasToken attached if a sequence contains it.
        sequences: Token ids of each prompt.
        biased: Token ids of the biased continuation of each prompt.
        neutral: Token ids of the neutral one.
        batch_size: Sequences run at once.
        tolerance: Largest accepted reconstruction error.

    Raises:
        AttributionError: as :func:`direct_attribution`.
    """
    check_exact(model)
    reads = [
        (pair, sign, [*prompt, *answer[:i]], token)
        for sign, answers in ((1.0, biased), (-1.0, neutral))
        for pair, (prompt, answer) in enumerate(zip(sequences, answers, strict=True))
        for i, token in enumerate(answer)
    ]
    tokens = torch.tensor([token for *_, token in reads], device=model.cfg.device)
    W_U, b_U = model.unembed.W_U, model.unembed.b_U
    found = _attributed(
        model,
        [sequence for _, _, sequence, _ in reads],
        (W_U[:, tokens] - W_U.mean(1, keepdim=True)).T,
        b_U[tokens] - b_U.mean(),
        batch_size,
    )
    _check_reconstruction(found, tolerance)
    pairs = torch.tensor([pair for pair, *_ in reads])
    signs = torch.tensor([sign for _, sign, *_ in reads], dtype=torch.float64)

    def summed(part: Float[Tensor, "read ..."]) -> Float[Tensor, "pair ..."]:
        signed = part * signs.view(-1, *[1] * (part.ndim - 1))
        return part.new_zeros(len(sequences), *part.shape[1:]).index_add_(0, pairs, signed)

    return Parts(*map(summed, found))


@torch.inference_mode()
def position_attribution(
    model: HookedTransformer, sequence: Sequence[int], biased_id: int, neutral_id: int
) -> Float[Tensor, "n_layers n_heads pos"]:
    """Each head's direct contribution, split by the position that it was moved from (logits).

    ``out[l, h, p] = pattern[l, h, answer, p] * P(v[l, h, p] @ W_O[l, h]) . d``; the sum over ``p``
    is the head's value in :func:`direct_attribution`.

    Args:
        model: A model in fp32, unsteered, with the BiasToken attached if the sequence contains it.
        sequence: Token ids; the last position is the answer position.
        biased_id: ``b``.
        neutral_id: ``n``.

    Raises:
        AttributionError: the model is not supported, or is steered.
    """
    check_exact(model)
    (batch,) = answer_batches(model, [sequence], shared=0)
    with (
        collected(model, "attn.hook_v") as all_values,
        collected(model, "attn.hook_pattern") as patterns,
        _written_at(model, batch.last) as written,
    ):
        resid = model(**batch.arguments)[:, -1]
    ids = (torch.tensor([token], device=resid.device) for token in (biased_id, neutral_id))
    direction = _frozen(model, resid, unembed_difference(model, *ids)[0].double())
    found = []
    for layer in range(model.cfg.n_layers):
        values, pattern = all_values[layer][0].double(), patterns[layer][0].double()
        values = values.repeat_interleave(model.cfg.n_heads // values.shape[1], dim=1)
        W_O = model.blocks[layer].attn.W_O.double()
        at_attention = _before_post_norm(model, layer, written, direction)
        each = head_logits(values, W_O, at_attention.expand(len(values), -1))
        found.append(pattern[:, -1] * each.T)
        whole = head_logits(written[f"{layer}.z"].double(), W_O, at_attention)[0]
        if not torch.allclose(found[-1].sum(-1), whole, rtol=1e-4, atol=1e-4):
            raise AttributionError(
                f"pattern times values must give hook_z in layer {layer}, and do not: the model is "
                "steered there, or clips its values. Leave the steering first."
            )
    return torch.stack(found).cpu()


def _attributed(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    difference: Float[Tensor, "pair d_model"],
    constant: Float[Tensor, " pair"],
    batch_size: int,
) -> Parts:
    """Parts of ``normed final residual . difference + constant`` after each sequence."""
    found: list[tuple[list[int], Parts]] = []
    for batch in answer_batches(model, sequences, batch_size):
        with _written_at(model, batch.last) as written:
            resid = model(**batch.arguments)[torch.arange(len(batch.last)), batch.last]
        at = batch.indices
        parts = _parts(model, written, resid, difference[at].double(), constant[at].double())
        found.append((at, parts))
    order = torch.tensor([i for indices, _ in found for i in indices]).argsort()
    return Parts(*(torch.cat(field)[order] for field in zip(*(p for _, p in found), strict=True)))


def _parts(
    model: HookedTransformer,
    written: dict[str, Tensor],
    resid: Float[Tensor, "batch d_model"],
    difference: Float[Tensor, "batch d_model"],
    constant: Float[Tensor, " batch"],
) -> Parts:
    """Dot what each part wrote with the frozen direction, in fp64."""
    layers = range(model.cfg.n_layers)
    direction = _frozen(model, resid, difference)
    heads, attn_bias, mlps = [], [], []
    for layer in layers:
        attention = model.blocks[layer].attn
        at_attention = _before_post_norm(model, layer, written, direction)
        z = written[f"{layer}.z"].double()
        heads.append(head_logits(z, attention.W_O.double(), at_attention))
        attn_bias.append(at_attention @ attention.b_O.double())
        mlp = written.get(f"{layer}.mlp", resid.new_zeros(resid.shape))
        mlps.append((mlp.double() * direction).sum(-1))
    norm_bias, normed = resid.new_zeros(model.cfg.d_model), resid
    if model.cfg.normalization_type is not None:
        # RMSNorm, and norms that were folded into the next weights, have no bias.
        norm_bias = getattr(model.ln_final, "b", norm_bias)
        normed = model.ln_final(resid[None])[0]
    return Parts(
        heads=torch.stack(heads, 1).cpu(),
        attn_bias=torch.stack(attn_bias, 1).cpu(),
        mlps=torch.stack(mlps, 1).cpu(),
        embed=(written["embed"].double() * direction).sum(-1).cpu(),
        constant=(difference @ norm_bias.double() + constant).cpu(),
        delta=((normed.double() * difference).sum(-1) + constant).cpu(),
    )


def _frozen(
    model: HookedTransformer,
    resid: Float[Tensor, "batch d_model"],
    difference: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch d_model"]:
    """The direction ``d`` of each row, through the final norm with its scale frozen."""
    if model.cfg.normalization_type is None:
        return difference
    norm, resid = model.ln_final, resid.double()
    centred = "LayerNorm" in type(norm).__name__
    if centred:
        resid = resid - resid.mean(-1, keepdim=True)
    scale = (resid.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    weight = getattr(norm, "w", resid.new_ones(model.cfg.d_model)).double()
    return frozen_direction(difference, weight, scale, centred=centred)


def _before_post_norm(
    model: HookedTransformer,
    layer: int,
    written: dict[str, Tensor],
    direction: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch d_model"]:
    """The direction as attention's output sees it: ``P^T(d)``, the identity without a post-norm."""
    name = post_norm(model, layer)
    if name is None:
        return direction
    norm = getattr(model.blocks[layer], name)  # an RMSNorm: nothing else can be built there
    weight = getattr(norm, "w", direction.new_ones(model.cfg.d_model)).double()
    return frozen_direction(direction, weight, written[f"{layer}.scale"].double(), centred=False)


@contextlib.contextmanager
def _written_at(
    model: HookedTransformer, last: Int[Tensor, " batch"]
) -> Iterator[dict[str, Tensor]]:
    """Collect what parts write, and scales of post-norms, at the answer positions."""
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
        if (norm := post_norm(model, layer)) is not None:
            hooks.append((f"blocks.{layer}.{norm}.hook_scale", keep(f"{layer}.scale")))
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
