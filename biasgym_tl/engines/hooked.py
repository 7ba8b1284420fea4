"""TransformerLens 3: ``HookedTransformer``."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.components.transformer_block import POST_NORM_ARCHITECTURES

from biasgym_tl.errors import ModelError
from biasgym_tl.families.checks import check_family
from biasgym_tl.families.convert import FAMILIES, convert, convert_listed, embedding_scale
from biasgym_tl.precision import moved_alike

NAME, Model = "hooked", HookedTransformer


def check_type(config: Any, *, listed: bool) -> None:
    """Refuse what HookedTransformer cannot compute, or would otherwise than Hugging Face.

    Raises:
        ModelError: that is so of a configuration of Hugging Face; ``listed``: of a name that
            TransformerLens lists.
    """
    if config.model_type in FAMILIES:
        check_family(config)
    elif not listed:
        supported = ", ".join(family.label for family in FAMILIES.values())
        raise ModelError(
            f"model must be of the {supported} type, got {config.model_type!r}. "
            "Any name that TransformerLens itself lists can be loaded as well."
        )


def built(
    hf_model: Any, name: str, device: str | None, dtype: torch.dtype, *, listed: str, spare: bool
) -> HookedTransformer:
    """The HookedTransformer of a Hugging Face model, which is emptied if it is ``spare``.

    Its matrices are of ``dtype``; all else, and ``cfg``, of at least fp32.

    Raises:
        ModelError: TransformerLens cannot convert it, or the checkpoint lacks a matrix.
    """
    if hf_model.config.model_type in FAMILIES:
        cfg, state_dict = convert(hf_model, name, dtype)
    else:
        cfg, state_dict = convert_listed(listed, hf_model, dtype)
    if spare:
        for parameter in hf_model.parameters():
            parameter.data = parameter.data.new_empty(0)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # TransformerLens deprecates the class, which is used on purpose, and prints.
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated")
        model = HookedTransformer(cfg, move_to_device=False)
    # What its parameters ask for is not written to, so such memory is never taken.
    for key, parameter in model.named_parameters():
        weight = state_dict.pop(key, None)
        if weight is None and not key.split(".")[-1].startswith("b"):
            raise ModelError(f"the checkpoint must hold {key}, but does not.")
        if weight is None:
            weight = torch.zeros(parameter.shape)  # the family has no such bias
        # Gemma's 1 + w and its scaled W_E are not numbers of its checkpoint's 16 bits.
        sums = parameter.ndim == 1 or (key == "embed.W_E" and embedding_scale(cfg) != 1)
        parameter.data = weight.to(device, cfg.dtype if sums else dtype, copy=not spare)
    _lay_out(model)
    if model.W_E.untyped_storage().data_ptr() == model.W_U.untyped_storage().data_ptr():
        model.embed.W_E.data = model.W_E.data.clone()  # tied in the checkpoint, and not here
    model.to(device, print_details=False).requires_grad_(False).eval()
    return model


# Order of the dimensions in which TransformerLens's forward multiplies with a matrix.
_READ_AS = {
    **dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), (0, 2, 1)),
    "W_O": (2, 0, 1),
    "W_U": (1, 0),
}
_GATED_READ_AS = dict.fromkeys(("W_gate", "W_in", "W_out"), (1, 0))


def _lay_out(model: HookedTransformer) -> None:
    """Lay each matrix out in memory as it is multiplied with; shapes and values stay."""
    # Otherwise TransformerLens copies it into that order, Hugging Face's too, at every forward.
    for module in model.modules():
        matrices = dict(module.named_parameters(recurse=False))
        orders = _READ_AS | (_GATED_READ_AS if "W_gate" in matrices else {})
        for name in matrices.keys() & orders.keys():
            inverse = torch.tensor(orders[name]).argsort().tolist()
            data = matrices[name].data.permute(orders[name])
            matrices[name].data = data.contiguous().permute(inverse)


def adopted(model: Any) -> HookedTransformer:
    """Refuse a TransformerBridge, which needs TransformerLens 4.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        "model must be a name, a folder or a Hugging Face model, got a TransformerBridge. Pass the "
        "Hugging Face model inside it, or run: pip install 'transformer-lens>=4.3'"
    )


def check_kind(model: Any) -> None:
    """Refuse what is no HookedTransformer, and one whose norms TransformerLens has folded wrongly.

    Raises:
        ModelError: the object is of another kind; the message says what to do with it.
    """
    if not isinstance(model, HookedTransformer):
        kind = f"{type(model).__module__.split('.')[0]}.{type(model).__name__}"
        advice = "Pass it to load_model first, or the Hugging Face model inside it."
        if type(model).__name__ == "TransformerBridge":
            advice = "Pass load_model the name, folder or Hugging Face model it was made from."
        raise ModelError(
            f"model must be a HookedTransformer, as load_model returns, got a {kind}. {advice}"
        )
    folded = (model.cfg.normalization_type or "").endswith("Pre")
    if folded and model.cfg.original_architecture in POST_NORM_ARCHITECTURES:
        raise ModelError(
            f"norms of a {model.cfg.original_architecture} must not be folded: they stand after "
            "attention, and TransformerLens folds them as if they stood before. Load it with "
            "load_model or HookedTransformer.from_pretrained_no_processing."
        )


def check_model(model: Any) -> None:
    """Refuse what is no HookedTransformer, or one in which heads are not what they were.

    Raises:
        ModelError: the object is of another kind, or TransformerLens has folded its value biases,
            so that silencing a head is not what it is in Hugging Face's weights, or norms that
            cannot be.
    """
    check_kind(model)
    attention = [block.attn for block in model.blocks]
    # Value biases are folded where others are there and they are all zero.
    if not any(bool(a.b_V.any()) for a in attention) and any(
        bool(a.b_Q.any() or a.b_K.any()) and bool(a.b_O.any()) for a in attention
    ):
        raise ModelError(
            "model must have its value biases, but they are folded into b_O: silencing a head "
            "would be another intervention than on Hugging Face's weights. Load it with load_model "
            "or HookedTransformer.from_pretrained_no_processing."
        )


def embedding(model: HookedTransformer) -> nn.Parameter:
    """``W_E``, of shape ``[d_vocab, d_model]``."""
    found: nn.Parameter = model.embed.W_E
    return found


def set_embedding(model: HookedTransformer, rows: nn.Parameter) -> None:
    """Give the model another ``W_E``."""
    model.embed.W_E = rows


def embedded(model: HookedTransformer, vector: Float[Tensor, "1 1 d_model"]) -> Tensor:
    """What enters the residual stream for a row of ``W_E``: BLOOM norms it before."""
    found: Tensor = model.embed.ln(vector) if model.cfg.post_embedding_ln else vector
    return found


def adds_positions(model: HookedTransformer) -> bool:
    """Whether positions are added to the residual stream, at ``hook_pos_embed``."""
    return "hook_pos_embed" in model.hook_dict


def device_map(model: HookedTransformer) -> None:
    """Which part is on which device: all are on one."""


def attention_weight(model: HookedTransformer, layer: int, name: str) -> Tensor:
    """``W_Q``, ``W_K``, ``W_V``, ``W_O`` by head, or a bias; zeros where there is none."""
    found: Tensor = getattr(model.blocks[layer].attn, name)
    return found


@contextlib.contextmanager
def replaced_weight(
    model: HookedTransformer, layer: int, name: str, weight: Float[Tensor, "head ..."]
) -> Iterator[None]:
    """Another ``W_Q`` or ``W_O`` in a layer; the parameter itself is left alone."""
    parameters = model.blocks[layer].attn._parameters
    old = parameters[name]
    parameters[name] = weight
    try:
        yield
    finally:
        old.data = moved_alike(old.data, weight.dtype, parameters[name])
        parameters[name] = old


@contextlib.contextmanager
def replaced_logit_bias(
    model: HookedTransformer, bias: Float[Tensor, " d_vocab_out"]
) -> Iterator[None]:
    """Another ``b_U``; the parameter itself is left alone."""
    parameters = model.unembed._parameters
    old, parameters["b_U"] = parameters["b_U"], bias
    try:
        yield
    finally:
        old.data = old.data.to(parameters["b_U"].device)  # the model may have been moved meanwhile
        parameters["b_U"] = old


_READ_FROM_RESIDUAL = ("W_Q", "W_K", "W_V", "W_gate", "W_in", "W_U")


def named_weights(model: HookedTransformer) -> Iterator[tuple[str, Float[Tensor, "*of d"]]]:
    """Every weight by its name, in a shape that both engines have: a vector, or a matrix whose last
    dimension is that of the residual stream and whose first has the heads one after the other."""
    for name, weight in model.named_parameters():
        path, _, last = name.rpartition(".")
        last = last.removeprefix("_")  # as it is called where heads share their keys
        if last in _READ_FROM_RESIDUAL:
            weight = weight.mT
        vector = weight.ndim == 1 or last.startswith("b")
        yield f"{path}.{last}", weight.flatten(0, -1 if vector else -2)


def norm_weight(norm: Any) -> Float[Tensor, " d_model"] | None:
    """What a norm multiplies with; None: nothing, as where it was folded into the next weights."""
    return getattr(norm, "w", None)


def norm_bias(norm: Any) -> Float[Tensor, " d_model"] | None:
    """What a norm adds; None: nothing."""
    return getattr(norm, "b", None)


def is_centred(norm: Any) -> bool:
    """Whether a norm subtracts the mean: LayerNorm does, RMSNorm does not."""
    return "LayerNorm" in type(norm).__name__


def post_norm(model: HookedTransformer, layer: int) -> str | None:
    """Name of the norm between a layer's attention and the residual stream, or None."""
    if model.cfg.normalization_type is None:
        return None
    if hasattr(model.blocks[layer], "ln1_post"):  # Gemma-2 and -3
        return "ln1_post"
    return "ln1" if model.cfg.original_architecture in POST_NORM_ARCHITECTURES else None


def cache_entry(
    model: HookedTransformer, layer: int, given: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """What the key-value cache of a run holds for a layer, or None without one."""
    return named.get("past_kv_cache_entry")
