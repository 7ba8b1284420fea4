"""Steering: replace the output of chosen heads (``hook_z``) while the model runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.allowed import MODES, STEERING_MODES
from biasgym_tl.contexts import Steering, begin, changes, end
from biasgym_tl.edits import Edit
from biasgym_tl.errors import SteeringError
from biasgym_tl.gate import Gate, check_names
from biasgym_tl.heads import Factor, GivenHeads, Head, by_head, check_heads
from biasgym_tl.lens import (
    HookedTransformer,
    at_each_layer,
    check_model,
    check_numbers,
    final_resid,
    layer_matrices,
)
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import check_length, encode_text


def check_mode(mode: str, modes: Sequence[str] = MODES) -> None:
    """Refuse a mode that does not silence heads.

    Raises:
        SteeringError: ``mode`` is not one of ``modes``.
    """
    if mode not in modes:
        raise SteeringError(f"mode must be one of {list(modes)}, got {mode!r}.")


def mode_of(heads: GivenHeads, mode: str | None) -> str:
    """The mode itself, or the one that heads were chosen for, or the paper's."""
    return str(mode or getattr(heads, "mode", "zero"))


def check_steering(mode: str, factor: object) -> None:
    """Refuse what :func:`steer` cannot do, whatever the model.

    Raises:
        SteeringError: ``mode`` is not one of :data:`STEERING_MODES`, or not with this factor.
    """
    check_mode(mode, STEERING_MODES)
    if mode == "zero" and factor is not None:
        raise SteeringError(f"factor must be None in mode 'zero', got {factor!r}. Use 'scale'.")
    if mode == "scale" and factor is None:
        raise SteeringError("factor must be given in mode 'scale'. 0.5 halves the heads' output.")


@contextlib.contextmanager
def steer(
    model: HookedTransformer,
    heads: GivenHeads,
    mode: str | None = None,
    *,
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None,
    factor: Factor = None,
    after: Sequence[str] | None = None,
) -> Iterator[None]:
    """Silence or weaken ``heads`` while the context is open, at every position or after names.

    ``z[:, :, h] := factor * z + (1 - factor) * reference[layer, h]``. Mode ``"zero"`` (the
    paper's): both are 0. ``"scale"``: the reference is 0. ``"mean"``: the factor is 0 unless given.
    Zeroing equals setting ``W_O[layer, h]`` to 0. Works in the forward pass, in ``run_with_cache``
    and in ``generate``; contexts nest, the inner one acts last, and each can be left at any time.
    The hooks are permanent ones, so ``model.reset_hooks()`` leaves them; no weight is touched, and
    on leaving only these hooks are removed. Other threads that run the model meanwhile run it
    steered.

    Args:
        model: The model to steer.
        heads: Names or pairs of layer and head: ``"L9H8, L3H1"``, ``["L9H8", (3, 1)]``. A
            ``Selection`` with factors brings them to mode ``"mean"``; an ``Edit`` brings all.
        mode: ``"zero"``, ``"mean"`` or ``"scale"``; default: that of a ``Selection``, or
            ``"zero"``.
        reference: Output of each head for mode ``"mean"``; default: :func:`head_means` of the
            shipped neutral text, in the model without any steering.
            :func:`biasgym_tl.target_means` is over prompts instead.
        factor: Share of its own output that a head keeps, for all or by head; above 1 strengthens,
            below 0 turns round.
        after: Act only from the last token of the first of these names on, in each text by itself,
            such as the names of targets; an attached BiasToken is one. Default: those of the
            ``Selection``, or none: everywhere. The model must then be run from tokens, and a
            key-value cache made in this context.

    Raises:
        SteeringError: a head is outside the model, or mode, reference, factor or names are not
            valid.
        ModelError: the model is no HookedTransformer with its own value biases, or another thread
            has changed it.
    """
    after = getattr(heads, "after", ()) if after is None else after
    names = check_names(after)
    with edited(model, steering_edit(model, heads, mode_of(heads, mode), reference, factor), names):
        yield


@contextlib.contextmanager
def edited(
    model: HookedTransformer, edit: Mapping[int, LayerEdit], after: Sequence[str] = ()
) -> Iterator[None]:
    """What :func:`steer` does, from what :func:`steering_edit` returned."""
    gate = Gate(model, after) if len(after) else None
    steering = Steering("steered")
    steering.heads = tuple(Head(layer, head) for layer in edit for head in edit[layer].heads)
    begin(model, steering)
    try:
        with contextlib.ExitStack() as stack:
            if gate and edit:
                stack.enter_context(gate.watching(edit))
            for layer, in_layer in edit.items():
                point = model.hook_dict[f"blocks.{layer}.attn.hook_z"]
                stack.enter_context(_permanent_hook(point, _edit(in_layer, steering, gate)))
            yield
    finally:
        end(model, steering)


@contextlib.contextmanager
def changed_at(
    model: HookedTransformer, changes: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Other values at hook points while the context is open, in the way of :func:`steer`.

    Args:
        model: The model.
        changes: By the name of a hook point, what is made of its value.
    """
    steering = Steering("steered")
    begin(model, steering)
    try:
        with contextlib.ExitStack() as stack:
            for name, change in changes.items():
                hook = partial(_changed, change, steering)
                stack.enter_context(_permanent_hook(model.hook_dict[name], hook))
            yield
    finally:
        end(model, steering)


def _changed(
    change: Callable[[Tensor], Tensor], steering: Steering, value: Tensor, hook: Any
) -> Tensor:
    return value if steering.rests else change(value)


@contextlib.contextmanager
def _unsteered(model: HookedTransformer) -> Iterator[None]:
    """The model as if no steering were open."""
    resting = [steering for steering in changes(model, Steering) if not steering.rests]
    try:
        for steering in resting:
            steering.rests = True
        yield
    finally:
        for steering in resting:
            steering.rests = False


class LayerEdit(NamedTuple):
    """What steering does to ``z`` in one layer: ``z := factor * z + shift``."""

    heads: list[int]
    factor: Float[Tensor, " chosen"]
    shift: Float[Tensor, "chosen d_head"]


def steering_edit(
    model: HookedTransformer,
    heads: GivenHeads,
    mode: str,
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None,
    factor: Factor = None,
) -> dict[int, LayerEdit]:
    """The arguments of :func:`steer`, checked, as what is done in each layer."""
    check_model(model)
    if isinstance(heads, Edit):
        return _of_edit(model, heads, mode, reference, factor)
    if factor is None and mode == "mean":
        factor = getattr(heads, "factor", None)
    chosen = check_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    check_steering(mode, factor)
    if isinstance(heads, Mapping) and factor is None:
        raise SteeringError("factor must be given beside heads that have numbers, got None.")
    if mode != "mean" and reference is not None:
        raise SteeringError(f"reference must be None in mode {mode!r}. Use mode='mean'.")
    kept = _factors(factor, chosen)
    if mode == "mean" and reference is None:
        with _unsteered(model):
            reference = head_means(model)
    shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    if reference is None:
        reference = torch.zeros(shape)
    if not isinstance(reference, Tensor) or tuple(reference.shape) != shape:
        raise SteeringError(
            f"reference must have the shape {shape} (layer, head, d_head), "
            f"got {tuple(getattr(reference, 'shape', ()))}. Compute it with head_means(model)."
        )
    if not bool(reference.isfinite().all()):
        raise SteeringError(
            "reference must hold numbers, got NaN or inf. Do activations overflow? Load the model "
            "with dtype=torch.float32."
        )
    edit = {}
    for layer, found in groupby(range(len(chosen)), key=lambda place: chosen[place].layer):
        places = list(found)
        in_layer, of_layer = [chosen[i].head for i in places], kept[places]
        shift = (1 - of_layer)[:, None] * reference[layer, in_layer].to(kept)
        edit[layer] = LayerEdit(in_layer, of_layer, shift)
    return edit


def _of_edit(
    model: HookedTransformer, edit: Edit, mode: str, reference: Tensor | None, factor: Factor
) -> dict[int, LayerEdit]:
    if mode != edit.mode or reference is not None or factor is not None:
        raise SteeringError("mode, reference and factor must be left out beside an Edit.")
    edit.check_layers(layer_matrices(model), model.cfg.n_heads)
    return {
        layer: LayerEdit(
            [edit.heads[place].head for place in places], edit.factor[places], edit.shift[places]
        )
        for layer, places in edit.places().items()
    }


def _factors(factor: Factor, heads: Sequence[Head]) -> Float[Tensor, " head"]:
    if isinstance(factor, Mapping):
        given = by_head(factor)
        if set(given) != set(heads):
            differing = sorted(map(str, set(given) ^ set(heads)))
            raise SteeringError(
                f"factor must have one number for each steered head, got {differing} in only one "
                "of factor and heads."
            )
        values = [given[head] for head in heads]
    else:
        values = [factor or 0.0] * len(heads)
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
        raise SteeringError(f"factor must be a finite number, got {factor!r}.")
    return torch.tensor(values, dtype=torch.float64)


@torch.inference_mode()
def head_means(
    model: HookedTransformer,
    texts: Iterable[str | Sequence[int]] | None = None,
    *,
    skip: int = 1,
) -> Float[Tensor, "n_layers n_heads d_head"]:
    """Mean of every head's ``z`` over the tokens of neutral text.

    The first position of a text should be left out: most heads rest there and write something else.

    Args:
        model: The model, unsteered.
        texts: Plain texts or token ids; default: the shipped ``load_passages("reference")``.
        skip: So many positions at the beginning of each text are left out.

    Raises:
        SteeringError: ``texts`` is one text, ``skip`` is negative, or no text is longer than it.
        ModelError: the model is no HookedTransformer with its own value biases, a text is longer
            than its context, or activations overflow.
    """
    check_model(model)
    if isinstance(texts, str):
        raise SteeringError(
            f"texts must be a list of texts, got one: {texts[:40]!r}. Wrap it: [text]."
        )
    if skip < 0:
        raise SteeringError(f"skip must be at least 0, got {skip!r}.")
    sums = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head, dtype=torch.float64)
    count, read = 0, list[Sequence[int]]()

    def add(z: Float[Tensor, "batch pos n_heads d_head"], hook: Any) -> None:
        sums[hook.layer()] += z[:, skip:].double().sum((0, 1)).cpu()

    with at_each_layer(model, "attn.hook_z", add):
        for text in load_passages("reference") if texts is None else texts:
            ids = encode_text(model, text) if isinstance(text, str) else list(text)
            check_length(model, [ids])
            read.append(ids)
            final_resid(model, [ids])
            count += max(len(ids) - skip, 0)
    if count == 0:
        raise SteeringError(
            f"texts must hold at least one of more than {skip} tokens, got none. Pass longer texts."
        )
    check_numbers(model, sums, read)
    return (sums / count).to(device=model.cfg.device, dtype=model.cfg.dtype)


@contextlib.contextmanager
def collected(model: HookedTransformer, name: str) -> Iterator[list[Tensor]]:
    """What passes the hook point ``blocks.{layer}.{name}`` of every layer while the model runs."""
    found: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> Tensor:
        found.append(value)
        return value  # so that a gradient can be asked of it

    with at_each_layer(model, name, keep):
        yield found


def _edit(
    edit: LayerEdit, steering: Steering, gate: Gate | None
) -> Callable[[Tensor, Any], Tensor]:
    scaled = bool(edit.factor.any())

    def hook(z: Float[Tensor, "batch pos n_heads d_head"], hook: Any) -> Tensor:
        if steering.rests:
            return z
        value = edit.shift.to(z)
        if scaled:
            value = value + edit.factor.to(z)[:, None] * z[:, :, edit.heads]
        if gate:
            value = torch.where(gate(z), value, z[:, :, edit.heads])
        z = z.clone()
        z[:, :, edit.heads] = value
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
