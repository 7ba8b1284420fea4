"""Direct attribution: how much each part of the model writes along the logit difference.

With final residual ``r``, final-norm weight ``w_f``, its scale ``s`` frozen at the value in this
run, ``c`` the centring of LayerNorm (identity for RMSNorm) and ``D = W_U[:, b] - W_U[:, n]``,

    delta = (c(r) / s * w_f) . D + b_f . D + b_U[b] - b_U[n]

is linear in what was written to the residual stream. With ``d = c(w_f * D) / s`` a head's part is
``P(z @ W_O[l, h]) . d``; ``P`` is the identity, or the norm that follows attention (Gemma-2/3,
OLMo-2) with its scale frozen too. With a final soft cap ``delta`` is the difference *before* it.
A *direct* effect says what a head writes, not what would happen without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.batches import BATCH_SIZE, answer_batches
from biasgym_tl.errors import AttributionError
from biasgym_tl.lens import (
    HookedTransformer,
    adds_positions,
    attention_weight,
    final_normed,
    is_centred,
    norm_bias,
    norm_weight,
    post_norm,
    unembed_difference,
)
from biasgym_tl.scoping.checks import check_equations

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

    def error(self) -> Float[Tensor, " pair"]:
        """``|sum of parts - delta|`` relative to the sum of the absolute parts."""
        parts = [part.reshape(len(self.delta), -1) for part in self[:-1]]
        total, size = (
            torch.stack([p.sum(1) for p in of]).sum(0) for of in (parts, map(abs, parts))
        )
        return (total - self.delta).abs() / size

    def checked(self, tolerance: float) -> Parts:
        """Itself, if the parts sum to the logit difference.

        Raises:
            AttributionError: the largest error is above ``tolerance``.
        """
        worst = self.error().max().item()
        if not worst <= tolerance:
            raise AttributionError(
                f"parts must sum to the logit difference within {tolerance:g} of their absolute "
                f"sum, got an error of {worst:.2g}. A hook that changes the residual stream, or a "
                "part that this model has and the equations lack, would explain it."
            )
        return self


PARTS_BESIDE_HEADS = ("attn_bias", "mlps", "embed", "constant")


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
    direction = direction.to(W_O.device)  # of a model over several devices, that of the layer
    projected = einsum(W_O, direction, "head d_head d_model, batch d_model -> batch head d_head")
    return (z * projected.to(z.device)).sum(-1)


def direct_attribution(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    *,
    batch_size: int = BATCH_SIZE,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> Parts:
    """Attribute the logit difference ``b - n`` after each sequence to every part of the model.

    Raises:
        AttributionError: the model is not supported, or the parts do not sum to the model's own
            logit difference within ``tolerance``.
    """
    check_equations(model)
    given = model, sequences, biased_ids, neutral_ids
    found = unchecked_attribution(*given, batch_size=batch_size, progress=progress)
    return found.checked(tolerance)


def unchecked_attribution(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    *,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Parts:
    """:func:`direct_attribution` without its refusals, to see how far off a model is."""
    difference, constant = unembed_difference(model, biased_ids, neutral_ids)
    return _attributed(model, sequences, difference, constant, batch_size, progress)


def continuation_attribution(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased: Sequence[Sequence[int]],
    neutral: Sequence[Sequence[int]],
    *,
    batch_size: int = BATCH_SIZE,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> Parts:
    """Attribute the logits of whole continuations, summed over their tokens, biased minus neutral.

    Each continuation is forced on the model token by token, and every token counts with its logit
    minus the mean logit of the vocabulary, since logits after different words have no common zero.
    That is linear as well. For continuations of one token it is :func:`direct_attribution`.

    Raises:
        AttributionError: as :func:`direct_attribution`.
    """
    check_equations(model)
    reads = [
        (pair, sign, [*prompt, *answer[:i]], token)
        for sign, answers in ((1.0, biased), (-1.0, neutral))
        for pair, (prompt, answer) in enumerate(zip(sequences, answers, strict=True))
        for i, token in enumerate(answer)
    ]
    of_pair, signs, forced, answer_ids = zip(*reads, strict=True)
    tokens = torch.tensor(answer_ids)
    W_U, b_U = model.unembed.W_U, model.unembed.b_U
    mean = W_U.mean(1, keepdim=True, dtype=model.cfg.dtype)
    difference, constant = (W_U[:, tokens] - mean).T, b_U[tokens] - b_U.mean()
    difference, constant = (part.to(model.cfg.device) for part in (difference, constant))

    def summed(part: Float[Tensor, "read ..."]) -> Float[Tensor, "pair ..."]:
        signed = part * torch.tensor(signs, dtype=part.dtype).view(-1, *[1] * (part.ndim - 1))
        total = part.new_zeros(len(sequences), *part.shape[1:])
        return total.index_add_(0, torch.tensor(of_pair), signed)

    parts = _attributed(model, forced, difference, constant, batch_size, progress)
    return Parts(*map(summed, parts.checked(tolerance)))


@torch.inference_mode()
def _attributed(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    difference: Float[Tensor, "pair d_model"],
    constant: Float[Tensor, " pair"],
    batch_size: int,
    progress: bool,
) -> Parts:
    """Parts of ``normed final residual . difference + constant`` after each sequence."""
    found, places = list[Parts](), list[int]()
    batches, n = answer_batches(model, sequences, batch_size), -(-len(sequences) // batch_size)
    for batch in tqdm(batches, desc="direct", total=n, delay=3, disable=n < 2 or not progress):
        with written_at(model, batch.last) as written:
            resid = model(**batch.arguments)[torch.arange(len(batch.last)), batch.last]
        at = batch.indices
        found.append(_parts(model, written, resid, difference[at].double(), constant[at].double()))
        places += at
    order = torch.tensor(places).argsort()
    return Parts(*(torch.cat(part)[order] for part in zip(*found, strict=True)))


def _parts(
    model: HookedTransformer,
    written: dict[str, Tensor],
    resid: Float[Tensor, "batch d_model"],
    difference: Float[Tensor, "batch d_model"],
    constant: Float[Tensor, " batch"],
) -> Parts:
    """Dot what each part wrote with the frozen direction, in fp64."""
    direction = final_direction(model, resid, difference)
    heads, attn_bias, mlps = [], [], []
    for layer in range(model.cfg.n_layers):
        at_attention = attention_direction(model, layer, written, direction)
        z = written[f"{layer}.z"].double()
        heads.append(head_logits(z, attention_weight(model, layer, "W_O").double(), at_attention))
        attn_bias.append(at_attention @ attention_weight(model, layer, "b_O").to(at_attention))
        mlp = written.get(f"{layer}.mlp", resid.new_zeros(resid.shape))
        mlps.append((mlp.double() * direction).sum(-1))
    has_norm, normed = model.cfg.normalization_type is not None, final_normed(model, resid)
    added = norm_bias(model.ln_final) if has_norm else None
    if added is None:
        added = resid.new_zeros(model.cfg.d_model)
    return Parts(
        heads=torch.stack(heads, 1).cpu(),
        attn_bias=torch.stack(attn_bias, 1).cpu(),
        mlps=torch.stack(mlps, 1).cpu(),
        embed=(written["embed"].double() * direction).sum(-1).cpu(),
        constant=(difference @ added.to(difference) + constant).cpu(),
        delta=((normed.double() * difference).sum(-1) + constant).cpu(),
    )


def final_direction(
    model: HookedTransformer,
    resid: Float[Tensor, "batch d_model"],
    difference: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch d_model"]:
    """The direction ``d`` of each row, through the final norm with its scale frozen."""
    if model.cfg.normalization_type is None:
        return difference
    norm, resid = model.ln_final, resid.double()
    centred = is_centred(norm)
    if centred:
        resid = resid - resid.mean(-1, keepdim=True)
    scale = (resid.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    return frozen_direction(difference, _weight(norm, resid), scale, centred=centred)


def attention_direction(
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
    scale = written[f"{layer}.scale"].double()
    return frozen_direction(direction, _weight(norm, direction), scale, centred=False)


def _weight(norm: Any, like: Float[Tensor, "batch d_model"]) -> Float[Tensor, " d_model"]:
    weight = norm_weight(norm)
    return like.new_ones(like.shape[1]) if weight is None else weight.to(like)


@contextlib.contextmanager
def written_at(
    model: HookedTransformer, last: Int[Tensor, " batch"]
) -> Iterator[dict[str, Tensor]]:
    """Collect what parts write, and scales of post-norms, at the answer positions."""
    written: dict[str, Tensor] = {}
    rows = torch.arange(len(last))

    def keep(name: str) -> Any:
        def hook(value: Float[Tensor, "batch pos ..."], hook: Any) -> None:
            at_answer = value[rows, last.to(value.device)].to(last.device)
            written[name] = written[name] + at_answer if name in written else at_answer

        return hook

    hooks = [("hook_embed", keep("embed"))]
    if adds_positions(model):
        hooks.append(("hook_pos_embed", keep("embed")))
    for layer in range(model.cfg.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_z", keep(f"{layer}.z")))
        if not model.cfg.attn_only:
            hooks.append((f"blocks.{layer}.hook_mlp_out", keep(f"{layer}.mlp")))
        if (norm := post_norm(model, layer)) is not None:
            hooks.append((f"blocks.{layer}.{norm}.hook_scale", keep(f"{layer}.scale")))
    with model.hooks(fwd_hooks=hooks):
        yield written
