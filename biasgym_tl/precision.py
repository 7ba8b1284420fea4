"""What a model computes in, whatever its weights are kept in: a layer is cast as it is reached.

In fp32 a forward pass is that of the fp32 model with the same rounded weights, and beside the
weights one layer at a time exists in fp32; in a backward pass too, where a layer is cast again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

SHORT = (torch.bfloat16, torch.float16)
_LOOKS_UP = ("Embed", "PosEmbed")
"""HookedTransformer's tables; Hugging Face's are ``nn.Embedding``."""
_COLUMNS = 4096
"""So many of a large matrix are cast at a time."""
_ONE_AT_A_TIME = threading.RLock()  # of two threads in one layer one would find it cast


def layers_of(model: Any) -> nn.ModuleList:
    """Of a HookedTransformer, a bridge, or a model of Hugging Face: its first list of modules."""
    lists = (part for part in model.modules() if isinstance(part, nn.ModuleList))
    found: nn.ModuleList = model.blocks if hasattr(model, "blocks") else next(lists)
    return found


def computed_in(model: Any, dtype: torch.dtype) -> contextlib.ExitStack:
    """Let ``model`` compute in ``dtype`` from now on; its weights stay as they are.

    A layer is cast as a whole, and what stands outside them module by module; of a table of
    embeddings only rows that were looked up.

    Args:
        model: A HookedTransformer, a bridge, or a model of Hugging Face.
        dtype: Also that of ``model.cfg``, if it has one.

    Returns:
        What lets the model compute as before when it is closed.
    """
    undo, layers = contextlib.ExitStack(), layers_of(model)
    if hasattr(model, "cfg"):
        undo.callback(setattr, model.cfg, "dtype", model.cfg.dtype)
        model.cfg.dtype = dtype
    inside = {part for layer in layers for part in layer.modules()}
    outside = [
        module
        for module in model.modules()
        if module not in inside and any(w is not None for w in module._parameters.values())
    ]
    if dtype not in SHORT:
        for module in model.modules():
            _refine_positions(module, undo)
    for module in (*layers, *outside):
        way = _way(module)
        # What accelerate has put in front moves the input to the module's device.
        forward = "_old_forward" if "_hf_hook" in module.__dict__ else "forward"
        shadow(module, forward, partial(way, module, dtype), undo)
        if way is not _cast:
            # A bridge casts what a table gives to the dtype of the table's parameters.
            shadow(module, "parameters", partial(_nothing_of, dtype), undo)
    return undo


def long(tensor: Tensor) -> Tensor:
    """Itself, in fp32 if it has 16 bits."""
    return tensor.float() if tensor.dtype in SHORT else tensor


def moved_alike(tensor: Tensor, before: torch.dtype, now: Tensor) -> Tensor:
    """Where and as what a model has moved meanwhile that which stood in its place.

    Args:
        tensor: Was put aside.
        before: Dtype of what took its place.
        now: That, as it is now.
    """
    return tensor.to(now.device, tensor.dtype if now.dtype == before else now.dtype)


def product(
    rows: Float[Tensor, "n d_model"], matrix: Float[Tensor, "d_model d_vocab"]
) -> Float[Tensor, "n d_vocab"]:
    """``rows @ matrix`` in the dtype of ``rows``; no gradient for the matrix."""
    if matrix.dtype == rows.dtype:
        return rows @ matrix
    found: Tensor = _Product.apply(rows, matrix)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    """The matrix is cast in parts, and again for the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        found = rows.new_empty(len(rows), matrix.shape[1])
        for into, part in zip(_parts(found), _parts(matrix), strict=True):
            into.copy_(rows @ part.to(rows))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        parts = zip(_parts(gradient), _parts(matrix), strict=True)
        return torch.stack([of @ part.to(of).T for of, part in parts]).sum(0), None


def _parts(matrix: Tensor) -> tuple[Tensor, ...]:
    return torch.split(matrix, _COLUMNS, 1)


def shadow(module: nn.Module, name: str, value: Any, undo: contextlib.ExitStack) -> None:
    """Put another in front of a method of a module, until ``undo`` is closed."""
    own = module.__dict__
    undo.callback(own.__setitem__, name, own[name]) if name in own else undo.callback(own.pop, name)
    own[name] = value


def _nothing_of(dtype: torch.dtype, recurse: bool = True) -> Iterator[Tensor]:
    return iter([torch.empty(0, dtype=dtype)])


def _refine_positions(module: nn.Module, undo: contextlib.ExitStack) -> None:
    """Make in fp32 the table of positions whose frequencies GPT-J rounds as it does its weights."""
    table = module._buffers.get("embed_positions")
    if table is None:
        return
    from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

    module._buffers["embed_positions"] = create_sinusoidal_positions(*table.shape).to(table.device)
    undo.callback(module._buffers.__setitem__, "embed_positions", table)


def _way(module: nn.Module) -> Any:
    """How a module is run in another dtype."""
    if hasattr(module, "scalar_embed_scale"):
        return _scaled
    is_table = isinstance(module, nn.Embedding) or type(module).__name__ in _LOOKS_UP
    return _looked_up if is_table else _cast


def _looked_up(module: Any, dtype: torch.dtype, *args: Any, **named: Any) -> Tensor:
    found: Tensor = type(module).forward(module, *args, **named)
    return found.to(dtype)


def _scaled(module: Any, dtype: torch.dtype, tokens: Tensor) -> Tensor:
    """Gemma's embedding, which scales after the look-up."""
    rows = nn.functional.embedding(tokens, module.weight, module.padding_idx).to(dtype)
    found: Tensor = rows * module.scalar_embed_scale
    return found


def _cast(module: nn.Module, dtype: torch.dtype, *args: Any, **named: Any) -> Any:
    given = [
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in args
    ]
    with _ONE_AT_A_TIME, _weights_in(module, dtype):
        return type(module).forward(module, *given, **named)


class _Part(NamedTuple):
    """Of a weight that was cast, as a backward pass finds it again."""

    weight: Tensor
    dtype: torch.dtype
    geometry: tuple[Any, ...]


@contextlib.contextmanager
def _weights_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Context in which all floating-point weights and buffers of a module are of ``dtype``."""
    before, sources = list(_others(module, dtype)), dict[int, Tensor]()

    def pack(tensor: Tensor) -> Tensor | _Part:
        weight = sources.get(tensor.untyped_storage().data_ptr())
        if weight is None:
            return tensor
        geometry = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        return _Part(weight, dtype, geometry)

    def unpack(kept: Tensor | _Part) -> Tensor:
        if not isinstance(kept, _Part):
            return kept
        return kept.weight.to(kept.dtype).as_strided(*kept.geometry)

    kept = torch.autograd.graph.saved_tensors_hooks(pack, unpack)
    try:
        for held, name, weight in before:
            held[name] = cast = weight.to(dtype)
            if not weight.requires_grad:
                sources[cast.untyped_storage().data_ptr()] = weight.detach()
        with kept if before else contextlib.nullcontext():
            yield
    finally:
        for held, name, weight in before:
            held[name] = weight


def _others(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[Any, str, Tensor]]:
    """Weights and buffers of another floating-point dtype: who holds them, and by what name."""
    for part in module.modules():
        tensors: tuple[Any, ...] = (part._parameters, part._buffers)
        for held in tensors:
            for name, weight in held.items():
                if weight is not None and weight.is_floating_point() and weight.dtype != dtype:
                    yield held, name, weight
