"""Steering: replace the output of chosen heads (``hook_z``) while the model runs."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import SteeringError
from biasgym_tl.heads import Head, check_heads
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_text

MODES = ("zero", "mean")


@contextlib.contextmanager
def steer(
    model: HookedTransformer,
    heads: Iterable[tuple[int, int]],
    mode: str = "zero",
    *,
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None,
) -> Iterator[None]:
    """Silence ``heads`` at every position while the context is open.

    ``z[:, :, h] := 0`` (mode ``"zero"``, the paper's) or ``:= reference[layer, h]`` (mode
    ``"mean"``). Zeroing equals setting ``W_O[layer, h]`` to 0. Works in the forward pass, in
    ``run_with_cache`` and in ``generate``; contexts nest, and the inner one wins where they name
    the same head. The hooks are permanent ones, so ``model.reset_hooks()`` leaves them; no weight
    is touched, and on leaving only these hooks are removed.

    Args:
        model: The model to steer.
        heads: Pairs of layer and head.
        mode: What the heads are replaced with: ``"zero"`` or ``"mean"``.
        reference: Output of each head for mode ``"mean"``; default: :func:`head_means` of the
            shipped neutral text.

    Raises:
        SteeringError: a head is outside the model, or mode or reference are not valid.
    """
    chosen = check_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    if mode not in MODES:
        raise SteeringError(f"mode must be one of {list(MODES)}, got {mode!r}.")
    if mode == "zero":
        if reference is not None:
            raise SteeringError("reference must be None in mode 'zero'. Use mode='mean'.")
    else:
        reference = head_means(model) if reference is None else reference
        shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
        if tuple(reference.shape) != shape:
            raise SteeringError(
                f"reference must have the shape {shape} (layer, head, d_head), "
                f"got {tuple(reference.shape)}. Compute it with head_means(model)."
            )
    with contextlib.ExitStack() as stack:
        for layer, in_layer in _by_layer(chosen).items():
            value = None if reference is None else reference[layer, in_layer]
            stack.enter_context(
                _permanent_hook(model.blocks[layer].attn.hook_z, _replace(in_layer, value))
            )
        yield


@torch.inference_mode()
def head_means(
    model: HookedTransformer, texts: Iterable[str] | None = None
) -> Float[Tensor, "n_layers n_heads d_head"]:
    """Mean of every head's ``z`` over the tokens of neutral text.

    The first position of each text is left out: most heads rest there and write something else.

    Args:
        model: The model, unsteered.
        texts: Plain texts; default: the shipped ``load_passages("reference")``.
    """
    sums = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, dtype=torch.float64)
    count = 0

    def add(z: Float[Tensor, "batch pos n_heads d_head"], hook: Any) -> None:
        sums[hook.layer()] += z[:, 1:].double().sum((0, 1)).cpu()

    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=[(name, add) for name in names]):
        for text in load_passages("reference") if texts is None else texts:
            tokens = torch.tensor([encode_text(model, text)], device=model.cfg.device)
            model(tokens, attention_mask=torch.ones_like(tokens), stop_at_layer=model.cfg.n_layers)
            count += tokens.shape[1] - 1
    if count == 0:
        raise SteeringError("texts must hold at least one text of two tokens, got none.")
    return (sums / count).to(device=model.cfg.device, dtype=model.cfg.dtype)


@contextlib.contextmanager
def collected(model: HookedTransformer, name: str) -> Iterator[list[Tensor]]:
    """What passes the hook point ``blocks.{layer}.{name}`` of every layer while the model runs."""
    found: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        found.append(value)

    names = [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=[(name, keep) for name in names]):
        yield found


def _by_layer(heads: Iterable[Head]) -> dict[int, list[int]]:
    layers: dict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        layers[layer].append(head)
    return dict(layers)


def _replace(
    heads: list[int], value: Float[Tensor, "chosen d_head"] | None
) -> Callable[[Tensor, Any], Tensor]:
    def hook(z: Float[Tensor, "batch pos n_heads d_head"], hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, heads] = 0 if value is None else value.to(z)
        return z

    return hook


@contextlib.contextmanager
def _permanent_hook(point: Any, hook: Callable[[Tensor, Any], Tensor]) -> Iterator[None]:
    """Add a hook that ``reset_hooks()`` keeps, and remove exactly this one on leaving."""
    point.add_perma_hook(hook)
    handle = point.fwd_hooks[-1]
    try:
        yield
    finally:
        handle.hook.remove()
        # The user may have removed all permanent hooks meanwhile.
        point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]
